// What compiles and runs a bundle's graphs: the backend this library was built with, and its
// engines, a graph each. engine_onnxruntime.cpp and engine_tensorrt.cpp are the two there are.
// dsd_trt/engine has the same names.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "batching.hpp"
#include "bundle.hpp"

namespace dsd {

// A tensor's bytes, row after row.
using Bytes = std::vector<std::byte>;

// Options::device.
struct Device {
    enum class Kind { unnamed, cpu, cuda };
    Kind kind;
    int number;  // of a CUDA device
};

// Throws dsd::Error, code input, unless it is empty, "cpu", "cuda" or "cuda:N".
Device read_device(const std::string &text);

// Sizes of a run's dynamic dimensions. A number of items is all but the matrix scorer's.
struct Sizes {
    Sizes(std::size_t of_items, std::size_t of_texts = 0, std::size_t of_tokens = 0)
        : items(of_items), texts(of_texts), tokens(of_tokens) {}

    std::size_t items, texts, tokens;
};

class Backend {
  public:
    // Throws dsd::Error, code engine, where the library, or the machine, cannot do it.
    Backend(int threads, const Device &device);
    ~Backend();

    std::string name() const;
    static BatchSizes batch_sizes(const Bundle &bundle, double memory_budget_mb);
    // Whether the matrix scorer can be opened.
    static bool has_matrix_mode() noexcept;
    // Whether graphs' forms for ONNX Runtime on CUDA are for this.
    bool takes_cuda_forms() const noexcept;
    // What results may differ by in a self-check, relative to an output's largest number, where a
    // bundle's own precision allows `tolerance`.
    double tolerance(double tolerance) const noexcept;

  private:
    friend class Engine;
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

class Engine {
  public:
    // Compiles a graph. The backend has to outlive it. Throws dsd::Error, code engine, where the
    // library refuses the graph, or inputs and outputs are not those that the bundle declares.
    // `activation_bytes` is BatchSizes'.
    Engine(const Backend &backend, const Graph &graph, std::size_t activation_bytes);
    ~Engine();
    Engine(Engine &&) noexcept;

    // Runs a batch. `feeds` are in the order of the declared inputs, and so are the outputs.
    // Several threads may do so at once.
    std::vector<Bytes> run(const Sizes &sizes, const std::vector<const void *> &feeds) const;

  private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

// What follows serves both backends.

// Whether there is one for every item of a batch.
bool batched(const Tensor &tensor);
std::size_t bytes_of_one(const Tensor &tensor);
std::size_t bytes_of(const Tensor &tensor, const Sizes &sizes);
std::vector<std::int64_t> shape_of(const Tensor &tensor, const Sizes &sizes);

// Whether a shape in a graph's file is what is declared; a dimension left open agrees with any.
bool agree(const std::vector<std::int64_t> &found, const Tensor &declared);

// Throws dsd::Error, code engine, unless a file's inputs, or outputs, are those declared: `agrees`
// says whether the tensor at some place among `names` is of the declared type and shape.
void check_signature(const std::string &path, const std::vector<Tensor> &declared,
                     const std::vector<std::string> &names,
                     const std::function<bool(std::size_t, const Tensor &)> &agrees);

}  // namespace dsd

// One graph of a bundle in an ONNX Runtime session.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstddef>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace dsd {

// A tensor's bytes, row after row.
using Bytes = std::vector<std::byte>;

class Graph {
  public:
    // Throws dsd::Error, code engine, where ONNX Runtime refuses the file, or where its inputs
    // and outputs are not those that the bundle declares.
    Graph(Ort::Env &env, const GraphFile &file, int threads);

    // Runs a batch. `feeds` are in the order of the declared inputs, and so are the outputs.
    std::vector<Bytes> run(std::size_t batch, const std::vector<const void *> &feeds) const;

  private:
    std::vector<Tensor> inputs_, outputs_;
    std::string path_;
    mutable Ort::Session session_;  // safe to run by several threads, though it is not const
};

std::size_t bytes_of_one(const Tensor &tensor);

// Throws dsd::Error, code engine, where the library is older than the headers of this build.
Ort::Env open_runtime();

}  // namespace dsd

#include <fcntl.h>
#include <onnxruntime_cxx_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "dsd/error.hpp"
#include "engine.hpp"
#include "onnxruntime_cuda.hpp"
#include "onnxruntime_library.hpp"

namespace dsd {
namespace {

// TF32 is off, but cuDNN's transforms of convolutions lose a digit of FP32's.
constexpr double kCudaTolerance = 1e-3;

ONNXTensorElementDataType onnx_type(ElementType type) {
    constexpr ONNXTensorElementDataType kTypes[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
    return kTypes[static_cast<int>(type)];
}

// A file in memory, as far as it is read.
class Mapped {
  public:
    explicit Mapped(const std::filesystem::path &path) : size_(std::filesystem::file_size(path)) {
        const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0) throw Error(ErrorCode::engine, path.string() + " cannot be read");
        start_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        close(file);
        if (start_ == MAP_FAILED) throw Error(ErrorCode::engine, path.string() + " cannot be read");
    }
    ~Mapped() {
        if (start_) munmap(start_, size_);
    }
    Mapped(Mapped &&other) noexcept
        : start_(std::exchange(other.start_, nullptr)), size_(other.size_) {}

    char *start() const { return static_cast<char *>(start_); }
    std::size_t size() const { return size_; }

  private:
    void *start_ = nullptr;
    std::size_t size_;
};

// Hands ONNX Runtime the weights that are links, which it would not follow out of a graph's folder.
class LinkedWeights {
  public:
    LinkedWeights(Ort::SessionOptions &options, const Graph &graph) {
        std::vector<std::string> names;
        std::vector<char *> starts;
        std::vector<std::size_t> sizes;
        for (const auto &path : graph.weights) {
            if (!std::filesystem::is_symlink(path)) continue;
            mapped_.emplace_back(path);
            names.push_back(path.lexically_relative(graph.path.parent_path()).string());
            starts.push_back(mapped_.back().start());
            sizes.push_back(mapped_.back().size());
        }
        if (names.empty()) return;
        options.AddExternalInitializersFromFilesInMemory(names, starts, sizes);
    }

  private:
    std::vector<Mapped> mapped_;
};

// Most bytes that a graph's weights take: FP32 ones may be stored in half of them.
std::size_t bytes_of_weights(const Graph &graph) {
    const auto half = [](const Tensor &tensor) { return tensor.type == ElementType::float16; };
    const bool fp16 = std::any_of(graph.inputs.begin(), graph.inputs.end(), half) ||
                      std::any_of(graph.outputs.begin(), graph.outputs.end(), half);
    std::size_t stored = 0;
    for (const auto &path : graph.weights) stored += std::filesystem::file_size(path);
    return fp16 ? stored : 2 * stored;
}

Ort::Session open_session(Ort::Env &env, const Graph &graph, int threads, const Device &device,
                          std::size_t activation_bytes) {
    const bool cuda = device.kind == Device::Kind::cuda;
    const std::string path = graph.path.string();
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(kSilent);
    options.SetIntraOpNumThreads(threads);
    // Waiting threads sleep: faster at small batches, and it leaves cores to others.
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");
    try {
        if (cuda) {
            // ONNX Runtime's arena counts weights, wherever they lie.
            const std::size_t bytes = activation_bytes + bytes_of_weights(graph);
            const bool form = graph.path == graph.cuda_form;
            use_cuda(options, device.number, bytes, /*channels_last=*/form);
        }
        const LinkedWeights weights(options, graph);  // read while the session is made
        Ort::Session session(env, path.c_str(), options);
        if (cuda) require_on_cuda(session, path);
        return session;
    } catch (const Ort::Exception &error) {
        if (cuda) throw cuda_error("ONNX Runtime refuses " + path, error);
        throw Error(ErrorCode::engine, "ONNX Runtime refuses " + path + ": " + error.what());
    }
}

bool agrees(const Ort::TypeInfo &found, const Tensor &declared) {
    if (found.GetONNXType() != ONNX_TYPE_TENSOR) return false;
    const auto tensor = found.GetTensorTypeAndShapeInfo();
    return tensor.GetElementType() == onnx_type(declared.type) &&
           agree(tensor.GetShape(), declared);
}

}  // namespace

struct Backend::Parts {
    Ort::Env env = open_onnxruntime();
    int threads;
    Device device;

    bool cuda() const { return device.kind == Device::Kind::cuda; }
};

Backend::Backend(int threads, const Device &device) : parts_(std::make_unique<Parts>()) {
    parts_->threads = threads;
    parts_->device = device;
    if (parts_->cuda()) require_cuda(device.number);
}
Backend::~Backend() = default;

std::string Backend::name() const {
    return "ONNX Runtime" +
           (parts_->cuda() ? " on CUDA device " + std::to_string(parts_->device.number) : "");
}

BatchSizes Backend::batch_sizes(const Bundle &bundle, double memory_budget_mb) {
    return dsd::batch_sizes(bundle, memory_budget_mb);
}

bool Backend::has_matrix_mode() noexcept { return true; }

bool Backend::takes_cuda_forms() const noexcept { return parts_->cuda(); }

double Backend::tolerance(double tolerance) const noexcept {
    return parts_->cuda() ? std::max(tolerance, kCudaTolerance) : tolerance;
}

struct Engine::Parts {
    std::vector<Tensor> inputs, outputs;
    std::string path;
    bool cuda;
    Ort::Session session;
};

Engine::Engine(const Backend &backend, const Graph &graph, std::size_t activation_bytes)
    : parts_(std::make_unique<Parts>(
          Parts{graph.inputs, graph.outputs, graph.path.string(), backend.parts_->cuda(),
                open_session(backend.parts_->env, graph, backend.parts_->threads,
                             backend.parts_->device, activation_bytes)})) {
    const Ort::Session &session = parts_->session;
    check_signature(parts_->path, graph.inputs, session.GetInputNames(),
                    [&](std::size_t i, const Tensor &declared) {
                        return agrees(session.GetInputTypeInfo(i), declared);
                    });
    check_signature(parts_->path, graph.outputs, session.GetOutputNames(),
                    [&](std::size_t i, const Tensor &declared) {
                        return agrees(session.GetOutputTypeInfo(i), declared);
                    });
}
Engine::~Engine() = default;
Engine::Engine(Engine &&) noexcept = default;

std::vector<Bytes> Engine::run(const Sizes &sizes, const std::vector<const void *> &feeds) const {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<const char *> input_names, output_names;
    std::vector<Ort::Value> values;
    try {
        for (std::size_t i = 0; i < feeds.size(); ++i) {
            const Tensor &tensor = parts_->inputs[i];
            const auto shape = shape_of(tensor, sizes);
            input_names.push_back(tensor.name.c_str());
            // The runtime reads inputs only.
            values.push_back(Ort::Value::CreateTensor(memory, const_cast<void *>(feeds[i]),
                                                      bytes_of(tensor, sizes), shape.data(),
                                                      shape.size(), onnx_type(tensor.type)));
        }
        for (const Tensor &tensor : parts_->outputs) output_names.push_back(tensor.name.c_str());
        const auto results =
            parts_->session.Run(Ort::RunOptions{}, input_names.data(), values.data(), values.size(),
                                output_names.data(), output_names.size());
        std::vector<Bytes> outputs;
        for (std::size_t i = 0; i < results.size(); ++i) {
            const Tensor &tensor = parts_->outputs[i];
            if (results[i].GetTensorTypeAndShapeInfo().GetShape() != shape_of(tensor, sizes)) {
                throw Error(ErrorCode::engine, parts_->path + " computed " + tensor.name +
                                                   " of another shape than its bundle says");
            }
            const auto *data = static_cast<const std::byte *>(results[i].GetTensorRawData());
            outputs.emplace_back(data, data + bytes_of(tensor, sizes));
        }
        return outputs;
    } catch (const Ort::Exception &error) {
        if (parts_->cuda) throw cuda_error("ONNX Runtime failed", error);
        throw Error(ErrorCode::engine, "ONNX Runtime failed: " + std::string(error.what()));
    }
}

}  // namespace dsd

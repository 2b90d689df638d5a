// TensorRT and TensorRT-RTX, through the calls that both have in common in every version from 10.
// No GPU was at hand when this was written: it was compiled, and run on a stand-in alone.

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "dsd/error.hpp"
#include "elf.hpp"
#include "engine.hpp"
#include "plan.hpp"

namespace dsd {
namespace {

// TensorRT multiplies FP32 in TF32, which has FP16's digits.
constexpr double kTf32Tolerance = 1e-2;

void check(cudaError_t code, const std::string &call) {
    if (code == cudaSuccess) return;
    throw Error(ErrorCode::engine,
                call + " failed: " + cudaGetErrorString(code) +
                    (code == cudaErrorMemoryAllocation
                         ? ". Free memory of the GPU, or build plans for smaller batches: dsd-trt "
                           "build BUNDLE --batch MIN,OPT,MAX"
                         : ""));
}

struct FreeMemory {
    void operator()(void *memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, FreeMemory>;

DeviceMemory allocate(std::size_t size) {
    void *memory = nullptr;
    check(cudaMalloc(&memory, size), "cudaMalloc");
    return DeviceMemory(memory);
}

struct DestroyStream {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyStream>;

Stream open_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    return Stream(stream);
}

// What is queued reads and writes memory of the caller, so it is waited for on every way out.
struct Settled {
    cudaStream_t stream;
    ~Settled() { cudaStreamSynchronize(stream); }
};

// Keeps the library's last words, for the exception that follows.
class Logger : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const char *message) noexcept override {
        if (severity > Severity::kERROR) return;
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            words_ = message;
        } catch (...) {  // no memory for them
        }
    }

    Error error(const std::string &what) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const std::string words = std::exchange(words_, {});
        return Error(ErrorCode::engine, words.empty() ? what : what + ": " + words);
    }

  private:
    std::mutex mutex_;
    std::string words_;
};

// Makes a device current in this thread for a while. What CUDA allocates and TensorRT runs is on
// the current one.
class Current {
  public:
    explicit Current(int device) noexcept {
        code_ = cudaGetDevice(&before_);
        if (code_ == cudaSuccess && device != before_) code_ = cudaSetDevice(device);
        changed_ = code_ == cudaSuccess && device != before_;
    }
    ~Current() {
        if (changed_) cudaSetDevice(before_);
    }
    Current(const Current &) = delete;
    Current &operator=(const Current &) = delete;

    void require() const { check(code_, "cudaSetDevice"); }

  private:
    cudaError_t code_;
    int before_ = 0;
    bool changed_;
};

// Asked before the library is, which without a driver may crash.
int find_device(const Device &device) {
    if (device.kind == Device::Kind::cpu) {
        throw Error(ErrorCode::engine,
                    "this library was built for TensorRT, which needs a GPU. For the device cpu, "
                    "build with -DDSD_ENGINE=onnxruntime");
    }
    if (const std::string why = why_cuda_cut(); !why.empty()) {  // loading it ends the process
        throw Error(ErrorCode::engine, "no CUDA device: " + why + ". Install it again");
    }
    int count = 0, current = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess || count == 0) {
        throw Error(ErrorCode::engine,
                    std::string("no CUDA device: ") +
                        (code == cudaSuccess ? "none is visible to this process"
                                             : cudaGetErrorString(code)) +
                        ". Install NVIDIA's driver, or build with -DDSD_ENGINE=onnxruntime");
    }
    if (device.kind == Device::Kind::cuda) {
        if (device.number < count) return device.number;
        throw Error(ErrorCode::engine, "there is no device cuda:" + std::to_string(device.number) +
                                           ": this process sees " + std::to_string(count) +
                                           ", from 0 on");
    }
    check(cudaGetDevice(&current), "cudaGetDevice");
    return current;
}

PlanTarget find_target(int device) {
    int major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
          "cudaDeviceGetAttribute");
    const int version = getInferLibVersion();
    return {PLAN_LIBRARY,
            std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
                std::to_string(version % 100),
            std::to_string(major) + "." + std::to_string(minor)};
}

nvinfer1::DataType data_type(ElementType type) {
    constexpr nvinfer1::DataType kTypes[] = {nvinfer1::DataType::kUINT8, nvinfer1::DataType::kINT32,
                                             nvinfer1::DataType::kHALF, nvinfer1::DataType::kFLOAT};
    return kTypes[static_cast<int>(type)];
}

std::vector<std::int64_t> sizes(const nvinfer1::Dims &dims) {
    return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

nvinfer1::Dims dims(const std::vector<std::int64_t> &shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

// Batch sizes that a plan takes: the fewest, those it is fastest at, and the most.
struct Profile {
    std::int64_t min, opt, max;
};

bool operator==(const Profile &one, const Profile &other) {
    return one.min == other.min && one.opt == other.opt && one.max == other.max;
}

}  // namespace

struct Backend::Parts {
    int device;
    PlanTarget target;
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
};

Backend::Backend(int, const Device &device) : parts_(std::make_unique<Parts>()) {
    parts_->device = find_device(device);
    const Current current(parts_->device);
    current.require();
    parts_->target = find_target(parts_->device);
    parts_->runtime.reset(nvinfer1::createInferRuntime(parts_->logger));
    if (!parts_->runtime) throw parts_->logger.error(name() + " does not start");
}
Backend::~Backend() = default;

std::string Backend::name() const {
    return std::string_view(PLAN_LIBRARY) == "tensorrt" ? "TensorRT" : "TensorRT-RTX";
}

// Activations are the plans' own affair, and so is which batches are run at once.
BatchSizes Backend::batch_sizes(const Bundle &, double) { return {32, 256, 256, 1, 256, 0}; }

bool Backend::has_matrix_mode() noexcept { return false; }

bool Backend::takes_cuda_forms() const noexcept { return false; }

double Backend::tolerance(double tolerance) const noexcept {
    return std::max(tolerance, kTf32Tolerance);
}

struct Engine::Parts {
    Parts(const Backend &backend, Backend::Parts &parts, const Graph &graph);

    void run(std::size_t start, std::size_t count, const std::vector<const void *> &feeds,
             std::vector<Bytes> &results);

    const Backend &backend;
    const int device;
    Logger &logger;
    std::vector<Tensor> inputs, outputs;
    std::string path;
    std::unique_ptr<nvinfer1::ICudaEngine> cuda_engine;
    std::vector<Profile> profiles;
    std::size_t most = 0;  // of all profiles
    Stream stream;
    std::vector<DeviceMemory> input_memory, output_memory;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    std::mutex mutex;  // a context serves one thread at a time

  private:
    void check_tensors() const;
    void read_profiles();
    std::size_t choose(std::size_t count) const;
    void copy(void *target, const void *source, std::size_t size, cudaMemcpyKind kind) const;
    void upload(std::size_t input, const void *feed, std::size_t start, std::size_t count,
                std::size_t fed) const;
    void demand(bool done, const std::string &what) const;
};

Engine::Parts::Parts(const Backend &owner, Backend::Parts &parts, const Graph &graph)
    : backend(owner),
      device(parts.device),
      logger(parts.logger),
      inputs(graph.inputs),
      outputs(graph.outputs) {
    const Plan plan = read_plan(graph, parts.target);
    path = plan.path.string();
    cuda_engine.reset(
        parts.runtime->deserializeCudaEngine(plan.content.data(), plan.content.size()));
    demand(cuda_engine != nullptr, "refuses " + path);
    check_tensors();
    read_profiles();
    stream = open_stream();
    for (const Tensor &tensor : inputs) input_memory.push_back(allocate(bytes_of(tensor, most)));
    for (const Tensor &tensor : outputs) output_memory.push_back(allocate(bytes_of(tensor, most)));
    context.reset(cuda_engine->createExecutionContext());
    demand(context != nullptr, "has no room on the GPU for " + path);
}

void Engine::Parts::demand(bool done, const std::string &what) const {
    if (!done) throw logger.error(backend.name() + " " + what);
}

void Engine::Parts::check_tensors() const {
    std::vector<std::string> names[2];  // of inputs and of outputs
    for (std::int32_t i = 0; i < cuda_engine->getNbIOTensors(); ++i) {
        const char *name = cuda_engine->getIOTensorName(i);
        const bool input = cuda_engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        names[input ? 0 : 1].emplace_back(name);
    }
    const auto agrees = [&](std::size_t, const Tensor &declared) {
        const char *name = declared.name.c_str();
        return cuda_engine->getTensorDataType(name) == data_type(declared.type) &&
               agree(sizes(cuda_engine->getTensorShape(name)), declared);
    };
    check_signature(path, inputs, names[0], agrees);
    check_signature(path, outputs, names[1], agrees);
}

void Engine::Parts::read_profiles() {
    const auto refuse = [&] {
        throw Error(ErrorCode::engine, path +
                                           " does not take its inputs in batches of one size. "
                                           "Build again: dsd-trt build BUNDLE");
    };
    for (std::int32_t i = 0; i < cuda_engine->getNbOptimizationProfiles(); ++i) {
        std::vector<Profile> of_inputs;
        for (const Tensor &tensor : inputs) {
            if (!batched(tensor)) continue;
            const auto rows = [&](nvinfer1::OptProfileSelector which) -> std::int64_t {
                return cuda_engine->getProfileShape(tensor.name.c_str(), i, which).d[0];
            };
            of_inputs.push_back({rows(nvinfer1::OptProfileSelector::kMIN),
                                 rows(nvinfer1::OptProfileSelector::kOPT),
                                 rows(nvinfer1::OptProfileSelector::kMAX)});
        }
        const Profile &profile = of_inputs.at(0);
        const auto same = [&](const Profile &it) { return it == profile; };
        if (!std::all_of(of_inputs.begin(), of_inputs.end(), same) || profile.min < 1 ||
            profile.max < profile.min) {
            refuse();
        }
        profiles.push_back(profile);
        most = std::max(most, static_cast<std::size_t>(profile.max));
    }
    if (profiles.empty()) refuse();
}

// The profile that takes a batch and is made for sizes nearest to it.
std::size_t Engine::Parts::choose(std::size_t count) const {
    const auto rows = static_cast<std::int64_t>(count);
    const auto cost = [&](const Profile &it) {
        return std::make_pair(rows > it.max, std::make_pair(std::abs(it.opt - rows), it.max));
    };
    const auto best = std::min_element(
        profiles.begin(), profiles.end(),
        [&](const Profile &one, const Profile &other) { return cost(one) < cost(other); });
    return static_cast<std::size_t>(best - profiles.begin());
}

void Engine::Parts::copy(void *target, const void *source, std::size_t size,
                         cudaMemcpyKind kind) const {
    check(cudaMemcpyAsync(target, source, size, kind, stream.get()), "cudaMemcpyAsync");
}

void Engine::Parts::upload(std::size_t input, const void *feed, std::size_t start,
                           std::size_t count, std::size_t fed) const {
    const std::size_t size = bytes_of_one(inputs[input]);
    const auto *source = static_cast<const std::byte *>(feed);
    auto *target = static_cast<std::byte *>(input_memory[input].get());
    if (!batched(inputs[input])) return copy(target, source, size, cudaMemcpyHostToDevice);
    source += start * size;
    copy(target, source, count * size, cudaMemcpyHostToDevice);
    for (std::size_t row = count; row < fed; ++row) {  // a plan's least batch is filled up
        copy(target + row * size, source + (count - 1) * size, size, cudaMemcpyHostToDevice);
    }
}

void Engine::Parts::run(std::size_t start, std::size_t count,
                        const std::vector<const void *> &feeds, std::vector<Bytes> &results) {
    const Settled settled{stream.get()};
    const std::size_t place = choose(count);
    const std::size_t fed = std::max(count, static_cast<std::size_t>(profiles[place].min));
    const auto profile = static_cast<std::int32_t>(place);
    demand(context->getOptimizationProfile() == profile ||
               context->setOptimizationProfileAsync(profile, stream.get()),
           "refuses a profile of " + path);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const char *name = inputs[i].name.c_str();
        upload(i, feeds[i], start, count, fed);
        demand(context->setInputShape(name, dims(shape_of(inputs[i], fed))) &&
                   context->setTensorAddress(name, input_memory[i].get()),
               "refuses input " + inputs[i].name + " of " + path);
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const char *name = outputs[i].name.c_str();
        demand(sizes(context->getTensorShape(name)) == shape_of(outputs[i], fed) &&
                   context->setTensorAddress(name, output_memory[i].get()),
               "has another output " + outputs[i].name + " of " + path + " than its bundle says");
    }
    demand(context->enqueueV3(stream.get()), "could not run " + path);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const std::size_t size = bytes_of_one(outputs[i]);
        copy(results[i].data() + start * size, output_memory[i].get(), count * size,
             cudaMemcpyDeviceToHost);
    }
    check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
}

Engine::Engine(const Backend &backend, const Graph &graph, std::size_t) {
    const Current current(backend.parts_->device);
    current.require();
    parts_ = std::make_unique<Parts>(backend, *backend.parts_, graph);
}

Engine::Engine(Engine &&) noexcept = default;

Engine::~Engine() {
    if (!parts_) return;
    const Current current(parts_->device);
    parts_.reset();
}

// Batches may be of any size: what the plan does not take at a time is run in parts.
std::vector<Bytes> Engine::run(const Sizes &sizes, const std::vector<const void *> &feeds) const {
    const std::size_t batch = sizes.items;
    std::vector<Bytes> outputs;
    for (const Tensor &tensor : parts_->outputs) outputs.emplace_back(bytes_of(tensor, batch));
    const Current current(parts_->device);
    current.require();
    const std::lock_guard<std::mutex> lock(parts_->mutex);
    for (std::size_t start = 0; start < batch; start += parts_->most) {
        parts_->run(start, std::min(parts_->most, batch - start), feeds, outputs);
    }
    return outputs;
}

}  // namespace dsd

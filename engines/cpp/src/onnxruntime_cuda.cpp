#include "onnxruntime_cuda.hpp"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <unordered_map>
#include <vector>

#include "elf.hpp"
#include "onnxruntime_library.hpp"

namespace dsd {
namespace {

constexpr char kProvider[] = "CUDAExecutionProvider";

constexpr std::size_t kWorkspace = std::size_t{1} << 30;  // what convolutions borrow of an arena

// What ONNX Runtime leaves to the CPU on purpose, since sizes are needed there: operators that
// compute shapes. The provider has kernels for all of them, so none is left for want of one.
const std::set<std::string> kShapeOperators{
    "Add",        "Cast",    "Concat",    "Constant", "ConstantOfShape",
    "Div",        "Equal",   "Expand",    "Gather",   "Identity",
    "Max",        "Min",     "Mod",       "Mul",      "Range",
    "ReduceProd", "Reshape", "Shape",     "Size",     "Slice",
    "Squeeze",    "Sub",     "Unsqueeze", "Where"};

// The exception's words are a chain of its source files' and functions' names, and at the end of it
// what happened.
std::string last_words(std::string text) {
    const auto drop_to = [&](const std::string &mark, bool with) {
        const auto at = text.rfind(mark);
        if (at != text.npos) text.erase(0, at + (with ? mark.size() : 0));
    };
    drop_to("with error: ", true);
    drop_to("CUDA failure ", false);
    drop_to("Invalid device ID", false);
    drop_to("[ONNXRuntimeError] : ", true);
    text.erase(std::min(text.find(" ; GPU="), text.size()));
    while (!text.empty() && std::string(" \n.").find(text.back()) != std::string::npos) {
        text.pop_back();
    }
    return text;
}

std::string remedy(const std::string &words) {
    const auto says = [&](const char *part) { return words.find(part) != words.npos; };
    const std::string version = onnxruntime_version();
    if (says("libcuda.so")) {
        return "NVIDIA's driver is not installed here. Install it; a container gets it with docker "
               "run --gpus all";
    }
    if (says("undefined symbol: ")) {  // a function of the driver has a capital after its "cu"
        const std::size_t name = words.find("undefined symbol: ") + 18;
        if (words.compare(name, 2, "cu") == 0 && std::isupper(words[name + 2])) {
            return "Install a newer NVIDIA driver, or an older ONNX Runtime than " + version;
        }
        return "A library of CUDA that was found is another one than ONNX Runtime " + version +
               " was built with: look at LD_LIBRARY_PATH";
    }
    if (says("libonnxruntime_providers_")) {
        return "The files libonnxruntime_providers_shared.so and libonnxruntime_providers_cuda.so "
               "of ONNX Runtime " +
               version + " have to lie beside its libonnxruntime.so.1";
    }
    if (says("cuDNN") || says("CUDNN") || says("cudnn")) {
        return "Install the cuDNN that ONNX Runtime " + version +
               " needs, and name its folder in LD_LIBRARY_PATH";
    }
    if (says("cannot open shared object file")) {
        return "Install the version of CUDA that ONNX Runtime " + version +
               " needs, and name its folder in LD_LIBRARY_PATH";
    }
    if (says("CUDA failure 35")) {  // as the runtime counts: cudaErrorInsufficientDriver
        return "Install a newer NVIDIA driver: nvidia-smi names the CUDA that this one is for, and "
               "ONNX Runtime " +
               version + " needs a newer one";
    }
    if (says("CUDA failure 100")) {  // cudaErrorNoDevice
        return "This process sees no GPU: nvidia-smi lists them, CUDA_VISIBLE_DEVICES hides them, "
               "and a container gets them with docker run --gpus all";
    }
    if (says("Invalid device ID")) return "nvidia-smi lists the devices, from 0 on";
    if (says("out of memory") || says("ailed to allocate") || says("Available memory")) {
        return "Free memory of the GPU, or set another Options::memory_budget_mb: a smaller one "
               "makes smaller batches, a larger one lets a batch take more";
    }
    return "nvidia-smi says whether the driver works, and which version of CUDA it is for";
}

Ort::CUDAProviderOptions provider_options(int device, std::size_t arena_bytes,
                                          bool channels_last = false) {
    Ort::CUDAProviderOptions options;
    options.Update({
        {"device_id", std::to_string(device)},
        {"use_tf32", "0"},  // FP32 graphs keep FP32's digits
        // The default tries every algorithm on every new shape: slow, and other bits every time.
        {"cudnn_conv_algo_search", "HEURISTIC"},
        // The default doubles what it asks for.
        {"arena_extend_strategy", "kSameAsRequested"},
        {"gpu_mem_limit", std::to_string(arena_bytes)},
        {"prefer_nhwc", channels_last ? "1" : "0"},
    });
    return options;
}

// Loading a library that is cut short ends the process, so all that the provider loads is looked at
// before: its own libraries, CUDA's and cuDNN's, and the driver's.
void require_whole(const std::string &device) {
    const std::string start = "device " + device + " cannot be used: ";
    for (const char *part : {"shared", "cuda"}) {
        const std::string name = std::string("libonnxruntime_providers_") + part + ".so";
        if (const std::string why = why_cut(onnxruntime_folder() / name); !why.empty()) {
            throw Error(ErrorCode::engine, start + why + ". Copy the libraries of ONNX Runtime " +
                                               onnxruntime_version() + " there again");
        }
    }
    if (const std::string why = why_cuda_cut(); !why.empty()) {
        throw Error(ErrorCode::engine, start + why + ". Install it again");
    }
}

}  // namespace

Error cuda_error(const std::string &tried, const Ort::Exception &error) {
    const std::string words = last_words(error.what());
    return Error(ErrorCode::engine, tried + ": " + words + ". " + remedy(words));
}

void require_cuda(int device) {
    const std::string name = "cuda:" + std::to_string(device);
    const std::vector<std::string> providers = Ort::GetAvailableProviders();
    if (std::find(providers.begin(), providers.end(), kProvider) == providers.end()) {
        throw Error(ErrorCode::engine,
                    "device " + name + ": this ONNX Runtime, " + onnxruntime_version() +
                        ", was built without CUDA. Put the library of its GPU release, or of the "
                        "Python package onnxruntime-gpu, in its place, or use the device cpu");
    }
    require_whole(name);
    try {
        Ort::SessionOptions options;
        options.AppendExecutionProvider_CUDA_V2(*provider_options(device, 1 << 20));
    } catch (const Ort::Exception &error) {
        throw cuda_error("device " + name + " cannot be used", error);
    }
}

void use_cuda(Ort::SessionOptions &options, int device, std::size_t bytes, bool channels_last) {
    options.AppendExecutionProvider_CUDA_V2(
        *provider_options(device, bytes + kWorkspace, channels_last));
    options.SetDeterministicCompute(true);
    options.AddConfigEntry("session.use_device_allocator_for_initializers", "1");
    // session.disable_cpu_ep_fallback would refuse shape arithmetic too; what each node got is read
    // back instead.
    options.AddConfigEntry("session.record_ep_graph_assignment_info", "1");
}

void require_on_cuda(const Ort::Session &session, const std::string &path) {
    std::map<std::string, int> left;  // by operator
    bool used = false;
    for (const auto &part : session.GetEpGraphAssignmentInfo()) {
        const bool here = part.GetEpName() == kProvider;
        used = used || here;
        for (const auto &node : part.GetNodes()) {
            const std::string type = node.GetOperatorType();
            if (!here && !kShapeOperators.count(type)) ++left[type];
        }
    }
    if (used && left.empty()) return;
    std::string listed;
    for (const auto &[type, count] : left) {
        listed += (listed.empty() ? ": " : ", ") + std::to_string(count) + " " + type;
    }
    throw Error(ErrorCode::engine, "ONNX Runtime " + onnxruntime_version() +
                                       " would compute parts of " + path + " on the CPU" + listed +
                                       ". Use a newer version, or the device cpu");
}

}  // namespace dsd

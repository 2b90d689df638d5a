// Stands in for an ONNX Runtime with CUDA: a real one does the work, on the CPU, and what is asked
// of the CUDA provider is answered here. Environment variables say how it behaves:
//
//     STAND_IN_REAL     path of the real library
//     STAND_IN_LOG      a file that gets a line for each use of the provider, and each session
//     STAND_IN_DEVICES  how many GPUs there are; 2 where it is not set
//     STAND_IN_REFUSES  what the provider says instead of being used
//     STAND_IN_LEFT     operators left to the CPU, with commas around each, or "all"
//     STAND_IN_FAILS    what running a graph says instead of doing it
//
// The provider's own libraries are loaded as by the real one, if they lie beside this one.

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

struct OrtCUDAProviderOptionsV2 {
    std::map<std::string, std::string> values;
};

namespace {

constexpr char kCuda[] = "CUDAExecutionProvider", kCpu[] = "CPUExecutionProvider";

std::string setting(const char *name, const char *otherwise = "") {
    const char *value = std::getenv(name);
    return value ? value : otherwise;
}

void log(const std::string &line) {
    const std::string path = setting("STAND_IN_LOG");
    if (!path.empty()) std::ofstream(path, std::ios::app) << line << '\n';
}

const OrtApiBase *real_base() {
    void *library = dlopen(setting("STAND_IN_REAL").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) std::abort();
    return reinterpret_cast<const OrtApiBase *(*)()>(dlsym(library, "OrtGetApiBase"))();
}

const OrtApi *real() {
    static const OrtApi *api = real_base()->GetApi(ORT_API_VERSION);
    return api;
}

OrtStatus *fail(const std::string &words) { return real()->CreateStatus(ORT_FAIL, words.c_str()); }

char *names[] = {const_cast<char *>(kCuda), const_cast<char *>(kCpu)};

OrtStatus *get_providers(char ***providers, int *count) noexcept {
    *providers = names;
    *count = 2;
    return nullptr;
}

OrtStatus *release_providers(char **, int) noexcept { return nullptr; }

OrtStatus *create_options(OrtCUDAProviderOptionsV2 **options) noexcept {
    *options = new OrtCUDAProviderOptionsV2;
    return nullptr;
}

OrtStatus *update_options(OrtCUDAProviderOptionsV2 *options, const char *const *keys,
                          const char *const *values, size_t count) noexcept {
    for (size_t i = 0; i < count; ++i) options->values[keys[i]] = values[i];
    return nullptr;
}

void release_options(OrtCUDAProviderOptionsV2 *options) noexcept { delete options; }

// What the loader says of the provider's libraries, or nothing.
std::string load_provider() {
    Dl_info info{};
    dladdr(names, &info);
    for (const char *part : {"shared", "cuda"}) {
        const auto path = std::filesystem::path(info.dli_fname)
                              .replace_filename("libonnxruntime_providers_" + std::string(part))
                              .concat(".so");
        if (std::filesystem::exists(path) && !dlopen(path.c_str(), RTLD_NOW)) return dlerror();
    }
    return "";
}

OrtStatus *append(OrtSessionOptions *, const OrtCUDAProviderOptionsV2 *options) noexcept {
    if (const std::string words = setting("STAND_IN_REFUSES"); !words.empty()) return fail(words);
    if (const std::string words = load_provider(); !words.empty()) return fail(words);
    const std::string devices = setting("STAND_IN_DEVICES", "2"),
                      id = options->values.at("device_id");
    if (std::stoi(id) >= std::stoi(devices)) {
        return fail(
            "cuda_execution_provider_info.cc:63 [ONNXRuntimeError] : 1 : FAIL : Failed to "
            "parse provider option \"device_id\": Invalid device ID: " +
            id + ", must be between 0 (inclusive) and " + devices + " (exclusive).\n");
    }
    std::string line = "provider";
    for (const auto &[key, value] : options->values) line += " " + key + "=" + value;
    log(line);
    return nullptr;
}

OrtStatus *add_config(OrtSessionOptions *options, const char *key, const char *value) noexcept {
    log(std::string("config ") + key + "=" + value);
    return real()->AddSessionConfigEntry(options, key, value);
}

OrtStatus *create_session(const OrtEnv *env, const char *path, const OrtSessionOptions *options,
                          OrtSession **session) noexcept {
    log("session " + std::string(path).substr(std::string(path).rfind('/') + 1));
    return real()->CreateSession(env, path, options, session);
}

OrtStatus *get_provider_of(const OrtEpAssignedSubgraph *part, const char **name) noexcept {
    const OrtEpAssignedNode *const *nodes = nullptr;
    size_t count = 0;
    const char *type = nullptr;
    if (auto *status = real()->EpAssignedSubgraph_GetNodes(part, &nodes, &count)) return status;
    if (auto *status = real()->EpAssignedNode_GetOperatorType(nodes[0], &type)) return status;
    const std::string left = setting("STAND_IN_LEFT");
    const bool here = left != "all" && left.find("," + std::string(type) + ",") == left.npos;
    *name = here ? kCuda : kCpu;
    return nullptr;
}

OrtStatus *run(OrtSession *session, const OrtRunOptions *options, const char *const *input_names,
               const OrtValue *const *inputs, size_t input_count, const char *const *output_names,
               size_t output_count, OrtValue **outputs) noexcept {
    if (const std::string words = setting("STAND_IN_FAILS"); !words.empty()) return fail(words);
    return real()->Run(session, options, input_names, inputs, input_count, output_names,
                       output_count, outputs);
}

const OrtApi *get_api(uint32_t) noexcept {
    static const OrtApi api = [] {
        OrtApi changed = *real();
        changed.GetAvailableProviders = get_providers;
        changed.ReleaseAvailableProviders = release_providers;
        changed.CreateCUDAProviderOptions = create_options;
        changed.UpdateCUDAProviderOptions = update_options;
        changed.ReleaseCUDAProviderOptions = release_options;
        changed.SessionOptionsAppendExecutionProvider_CUDA_V2 = append;
        changed.AddSessionConfigEntry = add_config;
        changed.CreateSession = create_session;
        changed.EpAssignedSubgraph_GetEpName = get_provider_of;
        changed.Run = run;
        return changed;
    }();
    return &api;
}

const char *get_version() noexcept { return "9.9.9"; }

constexpr OrtApiBase kBase{get_api, get_version};

}  // namespace

extern "C" const OrtApiBase *OrtGetApiBase() noexcept { return &kBase; }

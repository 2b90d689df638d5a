#include "onnxruntime_library.hpp"

#include <dlfcn.h>

#include <cstdlib>

#include "dsd/error.hpp"

#if ORT_API_VERSION < 24
#error "ONNX Runtime's headers have to be those of 1.24 or newer"
#endif

namespace dsd {
namespace {

// ONNX Runtime 1.32 reports to its maker unless this variable is set when its first environment is
// made. It is set as this library is loaded: by then few programs have threads that could be
// reading the environment. A value the user has set stays.
[[maybe_unused]] const int kTelemetryOff = [] {
    constexpr char kVariable[] = "ORT_DISABLE_TELEMETRY";
    const char *value = std::getenv(kVariable);
    return value && *value ? 0 : setenv(kVariable, "1", 1);
}();

// Every release gives the symbol a version of its own, such as VERS_1.32.0: linked as usual, a
// program does not even start with 1.32.1, or with the GPU package's 1.31.1.
void *find_api_base() {
    static void *const found = dlsym(RTLD_DEFAULT, "OrtGetApiBase");
    if (!found) throw Error(ErrorCode::engine, "ONNX Runtime's library has no OrtGetApiBase");
    return found;
}

const OrtApiBase &api_base() {
    return *reinterpret_cast<const OrtApiBase *(*)()>(find_api_base())();
}

}  // namespace

std::string onnxruntime_version() { return api_base().GetVersionString(); }

std::filesystem::path onnxruntime_folder() {
    Dl_info info{};
    if (!dladdr(find_api_base(), &info) || !info.dli_fname) return {};
    return std::filesystem::path(info.dli_fname).parent_path();
}

Ort::Env open_onnxruntime() {
    const OrtApi *api = api_base().GetApi(ORT_API_VERSION);
    if (!api) {
        throw Error(ErrorCode::engine, "ONNX Runtime " + onnxruntime_version() +
                                           " is older than the headers this was built with, 1." +
                                           std::to_string(ORT_API_VERSION));
    }
    Ort::InitApi(api);
    return Ort::Env(kSilent, "dsd");
}

}  // namespace dsd

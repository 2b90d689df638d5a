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
const OrtApiBase &api_base() {
    using Get = const OrtApiBase *(*)();
    static const auto get = reinterpret_cast<Get>(dlsym(RTLD_DEFAULT, "OrtGetApiBase"));
    if (!get) throw Error(ErrorCode::engine, "ONNX Runtime's library has no OrtGetApiBase");
    return *get();
}

}  // namespace

std::string onnxruntime_version() { return api_base().GetVersionString(); }

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

// The ONNX Runtime that this process has loaded. Its calls are looked up in it when a backend is
// opened: what its headers do by themselves would bind this library to one exact version.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <string>

namespace dsd {

// Errors are thrown as well, and a library has no business on standard error.
constexpr OrtLoggingLevel kSilent = ORT_LOGGING_LEVEL_FATAL;

// Throws dsd::Error, code engine, where it is older than the headers.
Ort::Env open_onnxruntime();

// Such as "1.32.0".
std::string onnxruntime_version();

// Where its library lies; empty if the loader does not say.
std::filesystem::path onnxruntime_folder();

}  // namespace dsd

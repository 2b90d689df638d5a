// ONNX Runtime's CUDA provider: asked for by name, and never replaced by the CPU without a word.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstddef>
#include <string>

#include "dsd/error.hpp"

namespace dsd {

// Throws dsd::Error, code engine, unless the library has the provider, the provider's own libraries
// load, and the driver has the device.
void require_cuda(int device);

// Puts a session on a CUDA device. `bytes` of weights and activations bound its arena. With
// `channels_last`, convolutions take the pixels of all channels together.
void use_cuda(Ort::SessionOptions &options, int device, std::size_t bytes, bool channels_last);

// Throws dsd::Error, code engine, where any node but shape arithmetic was left to the CPU.
void require_on_cuda(const Ort::Session &session, const std::string &path);

// What was tried, the library's own words without its source code's, and what to do.
Error cuda_error(const std::string &tried, const Ort::Exception &error);

}  // namespace dsd

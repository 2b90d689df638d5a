// Shared libraries that are cut short, as by a copy that broke off. Loading one may end the process
// with a bus error, so its size is compared before. dsd_trt/engine/elf.py has the same rules.
#pragma once

#include <filesystem>
#include <string>

namespace dsd {

// Both sizes of a library that is shorter than what is loaded of it; else nothing.
std::string why_cut(const std::filesystem::path &path);

// The same of the first library of NVIDIA's driver, CUDA or cuDNN that is cut short, of those that
// the loader finds in LD_LIBRARY_PATH and the system's folders. Its cache is left out, since only
// the loader reads it.
std::string why_cuda_cut();

}  // namespace dsd

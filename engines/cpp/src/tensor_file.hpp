// A safetensors file of the types that graphs have. dsd_trt/files/tensor_file.py has the same
// rules.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"

namespace dsd {

struct StoredTensor {
    ElementType type;
    std::vector<std::uint64_t> shape;
    Bytes content;  // row after row, in this machine's byte order
};

using StoredTensors = std::map<std::string, StoredTensor>;

// Every tensor by its name. Throws dsd::Error, code bundle, whose message is the reason: the file
// is cut, longer than its tensors, has two of one name or one of another type, or bytes of one are
// too few, shared or nobody's.
StoredTensors read_tensor_file(const std::filesystem::path &path);

}  // namespace dsd

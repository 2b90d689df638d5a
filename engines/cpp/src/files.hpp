// Regular files alone, read up to a limit: a pipe would hang whoever reads it, and a device may
// have no end. dsd_trt/files/regular.py and dsd_trt/limits.py have the same rules.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

#include "dsd/error.hpp"

namespace dsd {

// A limit that an environment variable sets; docs/limits.md lists them.
struct Limit {
    const char *variable;
    std::size_t standard;
    const char *unit;

    std::size_t value() const;  // throws dsd::Error, code input, where the variable is no number
    // What is wrong with a count, or nothing.
    std::string fault(std::size_t count) const;
};

constexpr Limit kImageBytes{"DSD_TRT_MAX_IMAGE_BYTES", std::size_t{1} << 30, "bytes"};
constexpr Limit kImagePixels{"DSD_TRT_MAX_IMAGE_PIXELS", 178956970, "pixels"};
constexpr Limit kTextCharacters{"DSD_TRT_MAX_TEXT_CHARACTERS", 1000000, "characters"};
constexpr Limit kImages{"DSD_TRT_MAX_IMAGES", 10000000, "images"};
constexpr Limit kTexts{"DSD_TRT_MAX_TEXTS", 1000000, "texts"};
constexpr Limit kPairs{"DSD_TRT_MAX_PAIRS", 1000000000, "pairs"};
constexpr Limit kFileBytes{"DSD_TRT_MAX_FILE_BYTES", std::size_t{1} << 29, "bytes"};

// All of a regular file. What goes wrong is an Error of the code, whose message is the reason.
std::string read_regular(const std::filesystem::path &path, const Limit &most, ErrorCode code);

}  // namespace dsd

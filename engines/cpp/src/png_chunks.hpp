// What the chunks of a PNG file say of its pixels, and of how they are turned; the rest is not
// read. `dsd_trt/image/png.py` is the same in Python.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "decoded.hpp"

namespace dsd {

struct PngChunks {
    std::size_t height = 0, width = 0;
    int depth = 0, color = 0;  // as the header has them
    std::string_view header, palette, transparent;
    std::vector<std::string_view> pixels;  // a zlib stream in pieces
    std::string exif, xmp;
};

// Views into `file`. Throws dsd::Error, code image.
PngChunks read_chunks(std::string_view file);

// A file of the chunks that pixels need.
std::string pixels_alone(const PngChunks &chunks, std::string_view file);

// The same with an end to the pixels' zlib stream; empty where it has one, or is damaged.
std::string pixels_with_an_end(const PngChunks &chunks, std::string_view file);

}  // namespace dsd

// From an encoded image, or pixels, to the bytes a graph takes.
#pragma once

#include <cstdint>
#include <vector>

#include "dsd/scorer.hpp"

namespace dsd {

struct Rgb {
    std::size_t height, width;
    std::vector<std::uint8_t> pixels;  // (height, width, 3)
};

// Upright RGB: EXIF orientation applied, transparency laid on white, 16-bit greys scaled to 8 bits.
// Throws dsd::Error, code image; its message is the reason.
Rgb load_image(const Image &image);

// Antialiased bicubic stretching, as Pillow does it, in fixed point.
Rgb resize(const Rgb &image, std::size_t height, std::size_t width);

}  // namespace dsd

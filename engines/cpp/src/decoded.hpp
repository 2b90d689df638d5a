// An image as its file stores it: not yet upright, perhaps with transparency.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dsd {

struct Decoded {
    std::size_t height = 0, width = 0;
    std::vector<std::uint8_t> rgba;  // (height, width, 4)
    std::string exif;                // a TIFF header and what follows it, or empty
    std::string xmp;
};

// Throw dsd::Error, code image.
Decoded decode_jpeg(const unsigned char *data, std::size_t size);
Decoded decode_png(const unsigned char *data, std::size_t size);
void check_size(std::size_t height, std::size_t width);

// EXIF from its TIFF header on; some writers prefix it twice.
std::string without_prefix(const std::string &exif);

// 1 to 8, 1 where nothing is said or what is said is damaged; EXIF counts before XMP.
int orientation(const Decoded &image);

}  // namespace dsd

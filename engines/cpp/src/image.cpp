#include "image.hpp"

#include <cstring>

#include "decoded.hpp"
#include "dsd/error.hpp"
#include "files.hpp"

namespace dsd {
namespace {

Decoded decode(const unsigned char *data, std::size_t size) {
    constexpr unsigned char kJpeg[] = {0xFF, 0xD8, 0xFF};
    constexpr unsigned char kPng[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    const auto starts = [&](const auto &magic) {
        return size >= sizeof magic && std::memcmp(data, magic, sizeof magic) == 0;
    };
    if (size == 0) throw Error(ErrorCode::image, "the file is empty");
    if (starts(kJpeg)) return decode_jpeg(data, size);
    if (starts(kPng)) return decode_png(data, size);
    throw Error(ErrorCode::image, "neither a JPEG nor a PNG file");
}

Decoded from_pixels(const Image &image) {
    const bool known = image.channels == 1 || image.channels == 3 || image.channels == 4;
    if (!known) throw Error(ErrorCode::image, "pixels must have 1, 3 or 4 channels");
    check_size(image.height, image.width);
    Decoded decoded;
    decoded.height = image.height;
    decoded.width = image.width;
    decoded.rgba.resize(image.height * image.width * 4);
    const auto *source = static_cast<const std::uint8_t *>(image.data);
    for (std::size_t i = 0; i < decoded.rgba.size(); i += 4, source += image.channels) {
        for (std::size_t c = 0; c < 3; ++c) {
            decoded.rgba[i + c] = source[image.channels == 1 ? 0 : c];
        }
        decoded.rgba[i + 3] = image.channels == 4 ? source[3] : 255;
    }
    return decoded;
}

// Laid on white, in Pillow's fixed point.
std::uint8_t on_white(unsigned value, unsigned alpha) {
    const unsigned blend = (value * alpha + 255 * (255 - alpha) + 128) << 7;
    return static_cast<std::uint8_t>(((blend >> 8) + blend) >> 15);
}

}  // namespace

void check_size(std::size_t height, std::size_t width) {
    if (height == 0 || width == 0) throw Error(ErrorCode::image, "it has no pixels");
    const std::size_t most = kImagePixels.value();
    if (height > most / width) throw Error(ErrorCode::image, kImagePixels.fault(most + 1));
}

Rgb load_image(const Image &image) {
    std::string file;
    if (!image.data) file = read_regular(image.path, kImageBytes, ErrorCode::image);
    if (image.data && image.channels == 0) {
        const std::string fault = kImageBytes.fault(image.size);
        if (!fault.empty()) throw Error(ErrorCode::image, fault);
    }
    const auto *bytes = static_cast<const unsigned char *>(image.data ? image.data : file.data());
    const Decoded stored = image.data && image.channels != 0
                               ? from_pixels(image)
                               : decode(bytes, image.data ? image.size : file.size());

    const int turn = orientation(stored);
    const bool swap = turn >= 5;  // rows become columns
    const bool from_right = turn == 2 || turn == 3 || turn == 7 || turn == 8;
    const bool from_below = turn == 3 || turn == 4 || turn == 6 || turn == 7;
    Rgb upright{swap ? stored.width : stored.height, swap ? stored.height : stored.width, {}};
    upright.pixels.resize(stored.height * stored.width * 3);
    std::uint8_t *target = upright.pixels.data();
    for (std::size_t y = 0; y < upright.height; ++y) {
        for (std::size_t x = 0; x < upright.width; ++x) {
            const std::size_t column = swap ? y : x, row = swap ? x : y;
            const std::size_t at = (from_below ? stored.height - 1 - row : row) * stored.width +
                                   (from_right ? stored.width - 1 - column : column);
            const std::uint8_t *source = &stored.rgba[at * 4];
            for (int c = 0; c < 3; ++c) {
                *target++ = source[3] == 255 ? source[c] : on_white(source[c], source[3]);
            }
        }
    }
    return upright;
}

}  // namespace dsd

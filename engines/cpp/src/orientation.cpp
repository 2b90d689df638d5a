#include <cstdint>
#include <cstring>
#include <string_view>

#include "decoded.hpp"

namespace dsd {
namespace {

constexpr unsigned kOrientation = 0x0112, kByte = 1, kShort = 3, kLong = 4;

// Numbers of a TIFF structure, in its byte order; 0 beyond its end.
struct Tiff {
    std::string_view bytes;
    bool little;

    unsigned long number(std::size_t at, std::size_t length) const {
        if (at > bytes.size() || length > bytes.size() - at) return 0;
        unsigned long value = 0;
        for (std::size_t i = 0; i < length; ++i) {
            const std::size_t place = little ? at + length - 1 - i : at + i;
            value = value << 8 | static_cast<unsigned char>(bytes[place]);
        }
        return value;
    }
};

// The first directory's tag; 0 where it is malformed, -1 where there is none.
std::int64_t from_exif(std::string_view exif) {
    const std::string_view order = exif.substr(0, 4);
    const bool little = order == std::string_view("II*\0", 4);
    if ((!little && order != std::string_view("MM\0*", 4)) || exif.size() < 8) return -1;
    const Tiff tiff{exif, little};
    const std::size_t directory = tiff.number(4, 4);
    if (directory + 2 > exif.size()) return -1;
    const std::size_t entries = tiff.number(directory, 2);
    for (std::size_t i = 0; i < entries; ++i) {
        const std::size_t entry = directory + 2 + 12 * i;
        if (entry + 12 > exif.size()) break;
        if (tiff.number(entry, 2) != kOrientation) continue;
        if (tiff.number(entry + 4, 4) != 1) return 0;
        switch (tiff.number(entry + 2, 2)) {
            case kByte: return static_cast<std::int64_t>(tiff.number(entry + 8, 1));
            case kShort: return static_cast<std::int64_t>(tiff.number(entry + 8, 2));
            case kLong: return static_cast<std::int64_t>(tiff.number(entry + 8, 4));
            default: return 0;
        }
    }
    return -1;
}

std::string_view without_spaces(std::string_view text) {
    while (!text.empty() && std::strchr(" \t\r\n", text[0]) && text[0]) text.remove_prefix(1);
    return text;
}

std::int64_t from_xmp(std::string_view xmp) {
    constexpr std::string_view kName = "tiff:Orientation";
    for (std::size_t at = xmp.find(kName); at != xmp.npos; at = xmp.find(kName, at + 1)) {
        std::string_view rest = without_spaces(xmp.substr(at + kName.size()));
        if (rest.substr(0, 1) == "=") {  // an attribute, or an element
            rest = without_spaces(rest.substr(1));
            if (rest.empty() || (rest[0] != '"' && rest[0] != '\'')) continue;
        } else if (rest.substr(0, 1) != ">") {
            continue;
        }
        rest = without_spaces(rest.substr(1));
        int value = -1;
        for (std::size_t i = 0; i < 4 && i < rest.size() && rest[i] >= '0' && rest[i] <= '9'; ++i) {
            value = (i == 0 ? 0 : value * 10) + (rest[i] - '0');
        }
        if (value >= 0) return value;
    }
    return 1;
}

}  // namespace

std::string without_prefix(const std::string &exif) {
    constexpr std::string_view kPrefix("Exif\0\0", 6);
    std::string_view rest = exif;
    for (int i = 0; i < 2 && rest.substr(0, kPrefix.size()) == kPrefix; ++i) {
        rest.remove_prefix(kPrefix.size());
    }
    return std::string(rest);
}

int orientation(const Decoded &image) {
    std::int64_t found = from_exif(image.exif);
    if (found < 0) found = from_xmp(image.xmp);
    return found >= 1 && found <= 8 ? static_cast<int>(found) : 1;
}

}  // namespace dsd

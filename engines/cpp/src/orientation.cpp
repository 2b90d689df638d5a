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

// The tag of the first directory, or 0 where it has none.
unsigned long from_exif(std::string_view exif) {
    const bool little = exif.substr(0, 2) == "II";
    if (!little && exif.substr(0, 2) != "MM") return 0;
    const Tiff tiff{exif, little};
    const std::size_t directory = tiff.number(4, 4), entries = tiff.number(directory, 2);
    for (std::size_t i = 0; i < entries; ++i) {
        const std::size_t entry = directory + 2 + 12 * i;
        if (tiff.number(entry, 2) != kOrientation) continue;
        switch (tiff.number(entry + 2, 2)) {
            case kByte: return tiff.number(entry + 8, 1);
            case kShort: return tiff.number(entry + 8, 2);
            case kLong: return tiff.number(entry + 8, 4);
            default: return 9;  // there, but no orientation
        }
    }
    return 0;
}

unsigned long from_xmp(std::string_view xmp) {
    constexpr std::string_view kName = "tiff:Orientation";
    for (std::size_t at = xmp.find(kName); at != xmp.npos; at = xmp.find(kName, at + 1)) {
        std::string_view rest = xmp.substr(at + kName.size());
        if (rest.substr(0, 2) == "=\"") {
            rest.remove_prefix(2);
        } else if (rest.substr(0, 1) == ">") {
            rest.remove_prefix(1);
        } else {
            continue;
        }
        if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
    }
    return 0;
}

}  // namespace

int orientation(const Decoded &image) {
    unsigned long found = from_exif(image.exif);
    if (found == 0) found = from_xmp(image.xmp);
    return found >= 1 && found <= 8 ? static_cast<int>(found) : 1;
}

}  // namespace dsd

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include <zlib.h>

#include "dsd/error.hpp"
#include "png_chunks.hpp"

namespace dsd {
namespace {

using Bytes = std::string_view;

constexpr std::size_t kSignature = 8, kLongestText = 1 << 24, kInflated = 1 << 24;
constexpr Bytes kXmp = "XML:com.adobe.xmp", kRawExif = "Raw profile type exif";

[[noreturn]] void damaged(const std::string &what) {
    throw Error(ErrorCode::image, "cannot be decoded: " + what);
}

std::uint32_t big_endian(Bytes bytes) {
    std::uint32_t value = 0;
    for (char byte : bytes.substr(0, 4)) value = value << 8 | static_cast<unsigned char>(byte);
    return value;
}

std::uint32_t checksum(Bytes name_and_body) {
    return static_cast<std::uint32_t>(
        crc32_z(0, reinterpret_cast<const Bytef *>(name_and_body.data()), name_and_body.size()));
}

struct Chunk {
    Bytes name, body;
    bool whole, sound;  // all of it is there; and its checksum is right

    bool is(Bytes other) const { return name == other; }
    bool is_critical() const { return name[0] >= 'A' && name[0] <= 'Z'; }
    bool is_named() const {
        return std::all_of(name.begin(), name.end(), [](char letter) {
            return (letter >= 'A' && letter <= 'Z') || (letter >= 'a' && letter <= 'z');
        });
    }
};

// A chunk that pixels need.
Bytes needed(const Chunk &chunk) {
    if (!chunk.whole) damaged("image file is truncated");
    if (!chunk.sound) damaged("wrong checksum in " + std::string(chunk.name));
    return chunk.body;
}

Bytes checked_header(Bytes header) {
    const auto one_of = [](int value, std::initializer_list<int> known) {
        return std::find(known.begin(), known.end(), value) != known.end();
    };
    bool known = header.size() == 13;
    if (known) {
        const int depth = header[8];
        switch (header[9]) {
            case 0: known = one_of(depth, {1, 2, 4, 8, 16}); break;
            case 3: known = one_of(depth, {1, 2, 4, 8}); break;
            case 2:
            case 4:
            case 6: known = one_of(depth, {8, 16}); break;
            default: known = false;
        }
        known = known && header[10] == 0 && header[11] == 0 && one_of(header[12], {0, 1});
    }
    if (!known) damaged("the header is damaged");
    return header;
}

// Before and after the first of `mark`, without it.
std::pair<Bytes, Bytes> cut(Bytes text, char mark) {
    const std::size_t at = text.find(mark);
    if (at == text.npos) return {text, {}};
    return {text.substr(0, at), text.substr(at + 1)};
}

struct Inflated {
    std::string bytes;
    int status;  // zlib's: Z_BUF_ERROR where the stream has no end
};

Inflated inflated(Bytes packed, std::size_t longest) {
    z_stream stream{};
    stream.next_in = reinterpret_cast<Bytef *>(const_cast<char *>(packed.data()));
    stream.avail_in = static_cast<uInt>(packed.size());
    Inflated result{"", inflateInit(&stream)};
    char block[1 << 14];
    while (result.status == Z_OK && result.bytes.size() < longest) {
        stream.next_out = reinterpret_cast<Bytef *>(block);
        stream.avail_out = sizeof block;
        result.status = inflate(&stream, Z_NO_FLUSH);
        result.bytes.append(block, sizeof block - stream.avail_out);
    }
    inflateEnd(&stream);
    return result;
}

// A packed text; of one that is cut as much as is there, of one that is damaged nothing.
std::string unpacked_text(Bytes packed) {
    Inflated text = inflated(packed, kInflated);
    const int status = text.status;
    const bool fine = status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR;
    return fine ? std::move(text.bytes) : "";
}

// What follows a text's keyword.
std::string text_of(Bytes name, Bytes rest) {
    bool packed = false;
    char method = 0;
    if (name == "zTXt") {
        packed = true;
        method = rest.empty() ? 1 : rest[0];
        rest.remove_prefix(std::min<std::size_t>(rest.size(), 1));
    } else if (name == "iTXt") {
        packed = rest.substr(0, 1) != Bytes("\0", 1);
        method = rest.size() > 1 ? rest[1] : 1;
        rest.remove_prefix(std::min<std::size_t>(rest.size(), 2));
        rest = cut(cut(rest, 0).second, 0).second;  // a language, and the keyword in it
    }
    if (!packed) return std::string(rest);
    return method == 0 ? unpacked_text(rest) : "";
}

// Bytes in hexadecimal that follow three lines: an empty one, a name and a length.
std::string from_hexadecimal(Bytes text) {
    for (int line = 0; line < 3; ++line) {
        if (text.find('\n') == text.npos) return "";
        text = cut(text, '\n').second;
    }
    const auto digit = [](char letter) {
        const char *digits = "0123456789abcdef";
        const char low = letter >= 'A' && letter <= 'F' ? static_cast<char>(letter | 0x20) : letter;
        const char *found = low ? std::strchr(digits, low) : nullptr;
        return found ? static_cast<int>(found - digits) : -1;
    };
    std::string bytes;
    for (std::size_t at = 0; at < text.size(); ++at) {
        if (std::strchr(" \t\n\r\v\f", text[at]) && text[at]) continue;
        const int high = digit(text[at]), low = at + 1 < text.size() ? digit(text[at + 1]) : -1;
        if (high < 0 || low < 0) return "";
        bytes += static_cast<char>(high << 4 | low);
        ++at;
    }
    return bytes;
}

// Takes what is wanted of a chunk; one that is damaged says nothing.
void read_ancillary(const Chunk &chunk, PngChunks &png, std::string &raw_exif) {
    if (!chunk.whole || !chunk.sound || chunk.body.size() > kLongestText) return;
    if (chunk.is("tRNS")) {
        const std::size_t size = chunk.body.size();
        const bool fits = png.color == 3   ? size <= png.palette.size() / 3
                          : png.color == 0 ? size == 2
                          : png.color == 2 ? size == 6
                                           : false;
        if (png.pixels.empty() && png.transparent.empty() && fits) png.transparent = chunk.body;
    } else if (chunk.is("eXIf")) {
        if (png.exif.empty()) png.exif = chunk.body;
    } else if (chunk.is("tEXt") || chunk.is("zTXt") || chunk.is("iTXt")) {
        const auto [keyword, rest] = cut(chunk.body, 0);
        if (keyword == kXmp && png.xmp.empty()) png.xmp = text_of(chunk.name, rest);
        if (keyword == kRawExif && raw_exif.empty()) {
            raw_exif = from_hexadecimal(text_of(chunk.name, rest));
        }
    }
}

}  // namespace

PngChunks read_chunks(Bytes file) {
    PngChunks png;
    std::string raw_exif;
    bool ended = false;  // the pixels are one run of chunks
    for (std::size_t at = kSignature; at + 8 <= file.size();) {
        const std::size_t length = big_endian(file.substr(at));
        Chunk chunk{file.substr(at + 4, 4), file.substr(at + 8, length), false, false};
        if (chunk.is("IEND")) break;
        if (!chunk.is_named() || length >= std::size_t{1} << 31) {
            if (png.pixels.empty()) damaged("no chunk where one should be");
            break;  // the pixels are there all the same
        }
        chunk.whole = chunk.body.size() == length && file.size() - at - 8 - length >= 4;
        chunk.sound = chunk.whole && checksum(file.substr(at + 4, 4 + length)) ==
                                         big_endian(file.substr(at + 8 + length));
        if (png.header.empty() && !chunk.is("IHDR")) damaged("the header is missing");
        if (chunk.is("IHDR")) {
            if (!png.header.empty()) damaged("two headers");
            png.header = checked_header(needed(chunk));
            png.width = big_endian(png.header);
            png.height = big_endian(png.header.substr(4));
            png.depth = png.header[8];
            png.color = png.header[9];
            check_size(png.height, png.width);
        } else if (chunk.is("IDAT")) {
            if (chunk.whole && !ended) needed(chunk);
            if (!ended) png.pixels.push_back(chunk.body);
        } else if (chunk.is("PLTE")) {
            if (png.color == 3 && png.pixels.empty()) {
                if (!png.palette.empty()) damaged("two palettes");
                png.palette = needed(chunk);
                const std::size_t size = png.palette.size();
                if (size == 0 || size % 3 || size > 768) damaged("the palette is damaged");
            }
        } else if (chunk.is_critical()) {
            damaged(std::string(chunk.name) + " is no chunk that is known");
        } else {
            read_ancillary(chunk, png, raw_exif);
        }
        ended = ended || (!png.pixels.empty() && !chunk.is("IDAT"));
        at += 12 + length;
    }
    if (png.pixels.empty()) damaged("image file is truncated");
    if (png.color == 3 && png.palette.empty()) damaged("the palette is missing");
    if (png.exif.empty()) png.exif = without_prefix(raw_exif);
    return png;
}

std::string pixels_alone(const PngChunks &png, Bytes file) {
    std::string out(file.substr(0, kSignature));
    const auto append = [&](Bytes name, Bytes body) {
        const auto number = [&](std::uint32_t value) {
            for (int shift : {24, 16, 8, 0}) out += static_cast<char>(value >> shift);
        };
        number(static_cast<std::uint32_t>(body.size()));
        const std::size_t start = out.size();
        out += name;
        out += body;
        number(checksum(Bytes(out).substr(start)));
    };
    append("IHDR", png.header);
    if (png.color == 3) append("PLTE", png.palette);
    for (Bytes piece : png.pixels) append("IDAT", piece);
    append("IEND", "");
    return out;
}

std::string pixels_with_an_end(const PngChunks &png, Bytes file) {
    std::string packed;
    for (Bytes piece : png.pixels) packed += piece;
    const std::size_t row = 8 * png.width + 1, longest = 2 * row * png.height + 64;
    const Inflated pixels = inflated(packed, longest);
    if (pixels.status != Z_BUF_ERROR) return "";
    uLongf size = compressBound(static_cast<uLong>(pixels.bytes.size()));
    std::string again(size, 0);
    compress2(reinterpret_cast<Bytef *>(again.data()), &size,
              reinterpret_cast<const Bytef *>(pixels.bytes.data()),
              static_cast<uLong>(pixels.bytes.size()), Z_BEST_SPEED);
    PngChunks ended = png;
    ended.pixels = {Bytes(again).substr(0, size)};
    return pixels_alone(ended, file);
}

}  // namespace dsd

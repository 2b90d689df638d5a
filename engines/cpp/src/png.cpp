#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

#include <png.h>

#include "dsd/error.hpp"
#include "png_chunks.hpp"

namespace dsd {
namespace {

struct Reader {
    std::string_view left;
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::jmp_buf jump{};
    char message[128] = "";
    std::vector<std::uint8_t> raw;
    std::vector<png_bytep> rows;

    explicit Reader(std::string_view bytes) : left(bytes) {
        const auto ignore = [](png_structp, png_const_charp) {};
        png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, ignore);
        info = png ? png_create_info_struct(png) : nullptr;
        if (!info) throw std::bad_alloc();
        png_set_read_fn(png, this, read);
        png_set_user_limits(png, 0x7FFFFFFF, 0x7FFFFFFF);  // `check_size` draws the line
        // As Pillow: some writers declare a smaller window than they use.
        png_set_option(png, PNG_MAXIMUM_INFLATE_WINDOW, PNG_OPTION_ON);
    }
    ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
    Reader(const Reader &) = delete;
    Reader &operator=(const Reader &) = delete;

    [[noreturn]] static void fail(png_structp png, png_const_charp message) {
        auto *reader = static_cast<Reader *>(png_get_error_ptr(png));
        std::snprintf(reader->message, sizeof reader->message, "%s", message);
        std::longjmp(reader->jump, 1);
    }
    static void read(png_structp png, png_bytep target, std::size_t size) {
        auto *reader = static_cast<Reader *>(png_get_io_ptr(png));
        if (size > reader->left.size()) png_error(png, "image file is truncated");
        std::memcpy(target, reader->left.data(), size);
        reader->left.remove_prefix(size);
    }
};

// Runs a step that libpng may leave by longjmp, so one whose own frame has nothing to destroy.
void guard(Reader &reader, void (*step)(Reader &)) {
    if (setjmp(reader.jump) == 0) {
        step(reader);
        return;
    }
    throw Error(ErrorCode::image, std::string("cannot be decoded: ") + reader.message);
}

// Samples as they are stored: a byte each, or two of 16 bits.
class Samples {
  public:
    Samples(const std::vector<std::uint8_t> &raw, int depth)
        : at_(raw.data()), wide_(depth == 16), white_((1U << depth) - 1) {
        for (unsigned value = 0; value <= std::min(white_, 255U); ++value) {
            table_[value] = divided(value);
        }
    }
    unsigned next() {
        const unsigned high = *at_++;
        return wide_ ? high << 8 | *at_++ : high;
    }
    std::uint8_t scaled(unsigned value) const { return wide_ ? divided(value) : table_[value]; }
    // A transparent colour's part: the low bits count, whatever is in the others.
    unsigned key(std::string_view transparent, std::size_t channel) const {
        const auto *part = reinterpret_cast<const unsigned char *>(&transparent[2 * channel]);
        return (part[0] << 8U | part[1]) & white_;
    }

  private:
    std::uint8_t divided(unsigned value) const {
        return static_cast<std::uint8_t>((value * 510 + white_) / (2 * white_));  // rounded
    }

    const std::uint8_t *at_;
    bool wide_;
    unsigned white_;
    std::uint8_t table_[256] = {};
};

// An index beyond the palette is an error that leaves a picture: black.
void from_palette(const PngChunks &png, const std::vector<std::uint8_t> &raw,
                  std::vector<std::uint8_t> &rgba) {
    std::vector<std::uint8_t> table(256 * 4);
    for (std::size_t i = 0; i < 256; ++i) {
        for (std::size_t c = 0; c < 3 && 3 * i < png.palette.size(); ++c) {
            table[4 * i + c] = static_cast<std::uint8_t>(png.palette[3 * i + c]);
        }
        const bool known = i < png.transparent.size();
        table[4 * i + 3] = known ? static_cast<std::uint8_t>(png.transparent[i]) : 255;
    }
    std::uint8_t *target = rgba.data();
    for (std::uint8_t index : raw) {
        std::memcpy(target, &table[4 * std::size_t{index}], 4);
        target += 4;
    }
}

void from_samples(const PngChunks &png, const std::vector<std::uint8_t> &raw,
                  std::vector<std::uint8_t> &rgba) {
    const bool has_alpha = png.color & PNG_COLOR_MASK_ALPHA;
    const std::size_t colors = png.color & PNG_COLOR_MASK_COLOR ? 3 : 1;
    Samples samples(raw, png.depth);
    unsigned key[3] = {};
    const bool keyed = !png.transparent.empty();
    for (std::size_t c = 0; keyed && c < colors; ++c) key[c] = samples.key(png.transparent, c);
    for (std::size_t i = 0; i < rgba.size(); i += 4) {
        unsigned part[3] = {};
        for (std::size_t c = 0; c < colors; ++c) part[c] = samples.next();
        for (std::size_t c = 0; c < 3; ++c) rgba[i + c] = samples.scaled(part[colors == 1 ? 0 : c]);
        const bool clear = keyed && std::equal(part, part + colors, key);
        rgba[i + 3] = has_alpha ? samples.scaled(samples.next()) : clear ? 0 : 255;
    }
}

std::vector<std::uint8_t> decode_samples(const std::string &file, std::size_t height) {
    Reader reader(file);
    guard(reader, [](Reader &r) {
        png_read_info(r.png, r.info);
        png_set_packing(r.png);  // a byte for a sample of fewer bits
        png_set_interlace_handling(r.png);
        png_read_update_info(r.png, r.info);
    });
    const std::size_t stride = png_get_rowbytes(reader.png, reader.info);
    reader.raw.resize(stride * height);
    for (std::size_t y = 0; y < height; ++y) reader.rows.push_back(&reader.raw[y * stride]);
    guard(reader, [](Reader &r) { png_read_image(r.png, r.rows.data()); });
    return std::move(reader.raw);
}

// libpng asks for the end of the zlib stream, though all pixels may lie before it.
std::vector<std::uint8_t> decode_samples(const PngChunks &png, std::string_view file) {
    try {
        return decode_samples(pixels_alone(png, file), png.height);
    } catch (const Error &) {
        const std::string ended = pixels_with_an_end(png, file);
        if (ended.empty()) throw;
        return decode_samples(ended, png.height);
    }
}

}  // namespace

Decoded decode_png(const unsigned char *data, std::size_t size) {
    const std::string_view file(reinterpret_cast<const char *>(data), size);
    const PngChunks chunks = read_chunks(file);
    const std::vector<std::uint8_t> raw = decode_samples(chunks, file);
    Decoded image;
    image.height = chunks.height;
    image.width = chunks.width;
    image.exif = chunks.exif;
    image.xmp = chunks.xmp;
    image.rgba.resize(image.height * image.width * 4);
    const bool has_palette = chunks.color == PNG_COLOR_TYPE_PALETTE;
    (has_palette ? from_palette : from_samples)(chunks, raw, image.rgba);
    return image;
}

}  // namespace dsd

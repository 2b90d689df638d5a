#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>

#include <png.h>

#include "decoded.hpp"
#include "dsd/error.hpp"

namespace dsd {
namespace {

struct Reader {
    const unsigned char *data;
    std::size_t left;
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::jmp_buf jump{};
    char message[128] = "";
    std::vector<std::uint8_t> raw;
    std::vector<png_bytep> rows;

    Reader(const unsigned char *bytes, std::size_t size) : data(bytes), left(size) {
        const auto ignore = [](png_structp, png_const_charp) {};
        png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, ignore);
        info = png ? png_create_info_struct(png) : nullptr;
        if (!info) throw std::bad_alloc();
        png_set_read_fn(png, this, read);
        png_set_user_limits(png, 0x7FFFFFFF, 0x7FFFFFFF);  // `check_size` draws the line
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
        if (size > reader->left) png_error(png, "image file is truncated");
        std::memcpy(target, reader->data, size);
        reader->data += size;
        reader->left -= size;
    }
};

// Runs a step that libpng may leave by longjmp, so one whose own frame has nothing to destroy.
bool succeeds(Reader &reader, void (*step)(Reader &)) {
    if (setjmp(reader.jump) != 0) return false;
    step(reader);
    return true;
}

void guard(Reader &reader, void (*step)(Reader &)) {
    if (!succeeds(reader, step)) {
        throw Error(ErrorCode::image, std::string("cannot be decoded: ") + reader.message);
    }
}

// A byte string in hexadecimal, after three lines of other things.
std::string from_raw_profile(const std::string &text) {
    std::size_t at = 0;
    for (int line = 0; line < 3; ++line) {
        at = text.find('\n', at);
        if (at == text.npos) return "";
        ++at;
    }
    std::string bytes;
    int half = -1;
    for (; at < text.size(); ++at) {
        const char *digits = "0123456789abcdef";
        const char *found = std::strchr(digits, text[at] | 0x20);
        if (!found || !*found || text[at] < '0') continue;
        const int digit = static_cast<int>(found - digits);
        if (half < 0) {
            half = digit;
        } else {
            bytes += static_cast<char>(half << 4 | digit);
            half = -1;
        }
    }
    return bytes;
}

void read_metadata(Reader &reader, Decoded &image) {
    png_uint_32 size = 0;
    png_bytep exif = nullptr;
    if (png_get_eXIf_1(reader.png, reader.info, &size, &exif) && exif) {
        image.exif.assign(reinterpret_cast<const char *>(exif), size);
    }
    png_textp texts = nullptr;
    const int count = png_get_text(reader.png, reader.info, &texts, nullptr);
    for (int i = 0; i < count; ++i) {
        const std::string key = texts[i].key ? texts[i].key : "";
        const std::string value = texts[i].text ? texts[i].text : "";
        if (key == "XML:com.adobe.xmp") image.xmp = value;
        if (key == "Raw profile type exif" && image.exif.empty()) {
            image.exif = from_raw_profile(value);
        }
    }
    const std::string start("Exif\0\0", 6);
    while (image.exif.compare(0, start.size(), start) == 0) image.exif.erase(0, start.size());
}

// What libpng has of colours besides the pixels.
struct Colors {
    png_colorp palette = nullptr;
    int palette_size = 0;
    png_bytep alpha = nullptr;  // of the palette
    int alpha_size = 0;
    png_color_16p transparent = nullptr;

    Colors(png_structp png, png_infop info) {
        png_get_PLTE(png, info, &palette, &palette_size);
        png_get_tRNS(png, info, &alpha, &alpha_size, &transparent);
    }
};

// Pixels of 8 bits a channel, or of 16 where they are grey, as RGBA. A transparent colour is
// compared as Pillow does, by its low byte.
void to_rgba(const std::vector<std::uint8_t> &raw, int kind, int depth, const Colors &colors,
             std::vector<std::uint8_t> &rgba) {
    const bool has_alpha = kind & PNG_COLOR_MASK_ALPHA, has_color = kind & PNG_COLOR_MASK_COLOR;
    const bool has_palette = kind & PNG_COLOR_MASK_PALETTE;
    const bool wide = kind == PNG_COLOR_TYPE_GRAY && depth == 16;
    const png_color_16 *key = has_palette || has_alpha || wide ? nullptr : colors.transparent;
    const auto keyed = [&](int gray_or_part) {
        const int low = gray_or_part & 0xFF;
        return kind == PNG_COLOR_TYPE_GRAY && depth == 1 ? (gray_or_part ? 255 : 0) : low;
    };
    const std::uint8_t *source = raw.data();
    for (std::uint8_t *target = rgba.data(); target != rgba.data() + rgba.size(); target += 4) {
        target[3] = 255;
        if (has_palette) {
            const int index = *source++;
            const bool known = index < colors.palette_size;
            target[0] = known ? colors.palette[index].red : static_cast<std::uint8_t>(index);
            target[1] = known ? colors.palette[index].green : static_cast<std::uint8_t>(index);
            target[2] = known ? colors.palette[index].blue : static_cast<std::uint8_t>(index);
            if (index < colors.alpha_size && colors.alpha) target[3] = colors.alpha[index];
        } else if (wide) {
            const int value = source[0] << 8 | source[1];
            source += 2;
            target[0] = target[1] = target[2] = static_cast<std::uint8_t>((value + 128) / 257);
        } else {
            target[0] = *source++;
            target[1] = has_color ? *source++ : target[0];
            target[2] = has_color ? *source++ : target[0];
            if (has_alpha) target[3] = *source++;
        }
        if (key && (has_color ? target[0] == keyed(key->red) && target[1] == keyed(key->green) &&
                                    target[2] == keyed(key->blue)
                              : target[0] == keyed(key->gray))) {
            target[3] = 0;
        }
    }
}

}  // namespace

Decoded decode_png(const unsigned char *data, std::size_t size) {
    Reader reader(data, size);
    guard(reader, [](Reader &r) { png_read_info(r.png, r.info); });
    Decoded image;
    image.height = png_get_image_height(reader.png, reader.info);
    image.width = png_get_image_width(reader.png, reader.info);
    check_size(image.height, image.width);
    const int kind = png_get_color_type(reader.png, reader.info);
    const int depth = png_get_bit_depth(reader.png, reader.info);
    guard(reader, [](Reader &r) {
        const int color = png_get_color_type(r.png, r.info);
        png_set_packing(r.png);
        if (color == PNG_COLOR_TYPE_GRAY) {
            png_set_expand_gray_1_2_4_to_8(r.png);
        } else {
            png_set_strip_16(r.png);  // the high byte
        }
        png_set_interlace_handling(r.png);
        png_read_update_info(r.png, r.info);
    });
    const std::size_t stride = png_get_rowbytes(reader.png, reader.info);
    reader.raw.resize(stride * image.height);
    for (std::size_t y = 0; y < image.height; ++y) reader.rows.push_back(&reader.raw[y * stride]);
    guard(reader, [](Reader &r) { png_read_image(r.png, r.rows.data()); });
    // What is said after the pixels counts; if it is damaged, the pixels are there all the same.
    (void)succeeds(reader, [](Reader &r) { png_read_end(r.png, r.info); });
    read_metadata(reader, image);
    image.rgba.resize(image.height * image.width * 4);
    to_rgba(reader.raw, kind, depth, Colors(reader.png, reader.info), image.rgba);
    return image;
}

}  // namespace dsd

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <utility>

#include <jpeglib.h>
// after jpeglib.h, whose types it needs
#include <jerror.h>

#include "decoded.hpp"
#include "dsd/error.hpp"

namespace dsd {
namespace {

constexpr std::string_view kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);

struct Reader {
    jpeg_decompress_struct info{};
    jpeg_error_mgr errors{};
    std::jmp_buf jump{};
    char message[JMSG_LENGTH_MAX] = "";
    std::vector<unsigned char> row;
    Decoded image;

    Reader() {
        info.err = jpeg_std_error(&errors);
        info.client_data = this;
        errors.error_exit = [](j_common_ptr common) {
            auto *reader = static_cast<Reader *>(common->client_data);
            common->err->format_message(common, reader->message);
            std::longjmp(reader->jump, 1);
        };
        // libjpeg would paint grey what a truncated file lacks. Other damage is let pass.
        errors.emit_message = [](j_common_ptr common, int level) {
            if (level < 0 && common->err->msg_code == JWRN_JPEG_EOF) {
                auto *reader = static_cast<Reader *>(common->client_data);
                std::snprintf(reader->message, sizeof reader->message, "image file is truncated");
                std::longjmp(reader->jump, 1);
            }
        };
    }
    ~Reader() { jpeg_destroy_decompress(&info); }
    Reader(const Reader &) = delete;
    Reader &operator=(const Reader &) = delete;
};

// Runs a step that libjpeg may leave by longjmp, so one whose own frame has nothing to destroy.
void guard(Reader &reader, void (*step)(Reader &)) {
    if (setjmp(reader.jump) == 0) {
        step(reader);
        return;
    }
    throw Error(ErrorCode::image, std::string("cannot be decoded: ") + reader.message);
}

void read_markers(Reader &reader) {
    for (auto *marker = reader.info.marker_list; marker; marker = marker->next) {
        const std::string_view data(reinterpret_cast<const char *>(marker->data),
                                    marker->data_length);
        if (data.substr(0, kExif.size()) == kExif) {
            reader.image.exif += data.substr(kExif.size());
        } else if (data.substr(0, kXmp.size()) == kXmp) {
            if (reader.image.xmp.empty()) reader.image.xmp = data.substr(kXmp.size());
        }
    }
    reader.image.exif = without_prefix(reader.image.exif);
}

void append_row(Reader &reader, std::uint8_t *target) {
    const int channels = reader.info.output_components;
    const unsigned char *source = reader.row.data();
    for (std::size_t x = 0; x < reader.image.width; ++x, source += channels, target += 4) {
        for (int c = 0; c < 3; ++c) {
            if (channels == 4) {  // CMYK, inverted as Adobe writes it
                const int product = (255 - source[c]) * source[3] + 128;
                const int part = ((product >> 8) + product) >> 8;  // product / 255, rounded
                target[c] = static_cast<std::uint8_t>(source[3] - part);
            } else {
                target[c] = source[channels == 1 ? 0 : c];
            }
        }
        target[3] = 255;
    }
}

}  // namespace

Decoded decode_jpeg(const unsigned char *data, std::size_t size) {
    Reader reader;
    guard(reader, [](Reader &r) { jpeg_create_decompress(&r.info); });
    reader.info.client_data = &reader;
    jpeg_save_markers(&reader.info, JPEG_APP0 + 1, 0xFFFF);
    jpeg_mem_src(&reader.info, data, size);
    guard(reader, [](Reader &r) { jpeg_read_header(&r.info, TRUE); });
    read_markers(reader);

    auto &info = reader.info;
    Decoded &image = reader.image;
    image.height = info.image_height;
    image.width = info.image_width;
    check_size(image.height, image.width);
    switch (info.num_components) {
        case 1: info.out_color_space = JCS_GRAYSCALE; break;
        case 3: info.out_color_space = JCS_RGB; break;
        case 4: info.out_color_space = JCS_CMYK; break;
        default: throw Error(ErrorCode::image, "cannot be decoded: neither grey, RGB nor CMYK");
    }
    guard(reader, [](Reader &r) { jpeg_start_decompress(&r.info); });
    reader.row.resize(image.width * static_cast<std::size_t>(info.output_components));
    image.rgba.resize(image.height * image.width * 4);
    guard(reader, [](Reader &r) {
        while (r.info.output_scanline < r.info.output_height) {
            const std::size_t y = r.info.output_scanline;
            unsigned char *rows[] = {r.row.data()};
            jpeg_read_scanlines(&r.info, rows, 1);
            append_row(r, &r.image.rgba[y * r.image.width * 4]);
        }
        jpeg_finish_decompress(&r.info);  // reads on to the end: a scan may have been cut in two
    });
    return std::move(image);
}

}  // namespace dsd

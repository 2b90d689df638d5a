#include "dsd/scorer.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>

#include "dsd/scorer.hpp"
#include "unicode.hpp"

struct dsd_scorer {
    dsd::Scorer scorer;
};

namespace {

// Names of files, and what JSON is quoted, may hold anything.
std::string printable(std::string message) {
    try {
        dsd::unicode::decode(message);
    } catch (const dsd::Error &) {
        for (char &c : message) c = static_cast<unsigned char>(c) < 0x80 ? c : '?';
    }
    return message;
}

void write_error(dsd_error *error, dsd_status status, const std::string &message) {
    if (!error) return;
    error->status = status;
    const std::string text = printable(message);
    std::size_t length = std::min(text.size(), sizeof error->message - 1);
    // Not within a character, whose further bytes start with the bits 10.
    while (length < text.size() && length > 0 && (text[length] & 0xC0) == 0x80) --length;
    std::memcpy(error->message, text.c_str(), length);
    error->message[length] = 0;
}

// No exception gets past here: where there is no memory even for a message, there is none.
template <typename Work>
dsd_status guard(dsd_error *error, Work work) noexcept {
    dsd_status status = DSD_OTHER;
    try {
        try {
            work();
            status = DSD_OK;
            write_error(error, status, "");
        } catch (const dsd::Error &caught) {
            status = static_cast<dsd_status>(caught.code());
            write_error(error, status, caught.what());
        } catch (const std::exception &caught) {
            write_error(error, status, caught.what());
        }
    } catch (...) {
        if (error) {
            error->status = status = status == DSD_OK ? DSD_OTHER : status;
            error->message[0] = 0;
        }
    }
    return status;
}

void require(bool holds, const char *complaint) {
    if (!holds) throw dsd::Error(dsd::ErrorCode::input, complaint);
}

dsd::Image to_image(const dsd_image &image) {
    if (image.path) return dsd::Image::file(image.path);
    if (image.height == 0 && image.width == 0 && image.channels == 0) {
        return dsd::Image::encoded(image.data, image.size);
    }
    return dsd::Image::pixels(static_cast<const std::uint8_t *>(image.data), image.height,
                              image.width, image.channels);
}

}  // namespace

dsd_status dsd_open(const char *bundle, const dsd_options *options, dsd_scorer **scorer,
                    dsd_error *error) {
    return guard(error, [&] {
        require(bundle && scorer, "bundle and scorer must not be NULL");
        dsd::Options wanted;
        if (options) {
            wanted.threads = options->threads;
            wanted.self_check = !options->no_self_check;
            require(options->mode >= DSD_AUTO && options->mode <= DSD_MATRIX,
                    "mode must be DSD_AUTO, DSD_PAIR or DSD_MATRIX");
            wanted.mode = static_cast<dsd::Mode>(options->mode);
            if (options->device) wanted.device = options->device;
            if (options->memory_budget_mb != 0) wanted.memory_budget_mb = options->memory_budget_mb;
        }
        *scorer = new dsd_scorer{dsd::Scorer(bundle, wanted)};
    });
}

void dsd_close(dsd_scorer *scorer) { delete scorer; }

dsd_mode dsd_mode_of(const dsd_scorer *scorer) {
    return static_cast<dsd_mode>(scorer->scorer.mode());
}

size_t dsd_max_length(const dsd_scorer *scorer) { return scorer->scorer.max_length(); }

size_t dsd_resolution(const dsd_scorer *scorer) { return scorer->scorer.resolution(); }

int dsd_has_probability(const dsd_scorer *scorer, const double *levels, size_t level_count) {
    bool has = false;
    guard(nullptr, [&] {
        require(scorer && (levels || level_count == 0), "scorer must not be NULL");
        has = scorer->scorer.has_probability(std::vector<double>(levels, levels + level_count));
    });
    return has;
}

dsd_status dsd_score(const dsd_scorer *scorer, const dsd_image *images, size_t image_count,
                     const char *const *texts, size_t text_count, const double *levels,
                     size_t level_count, float *scores, float *probabilities,
                     dsd_error *image_errors, dsd_error *error) {
    return guard(error, [&] {
        require(scorer && (images || image_count == 0) && (texts || text_count == 0) &&
                    (levels || level_count == 0) && scores,
                "scorer, images, texts and scores must not be NULL");
        require(std::all_of(texts, texts + text_count, [](const char *text) { return text; }),
                "a text is NULL");
        std::vector<dsd::Image> given;
        std::transform(images, images + image_count, std::back_inserter(given), to_image);
        const dsd::Matrix matrix = scorer->scorer.score(
            given, {texts, texts + text_count}, std::vector<double>(levels, levels + level_count));
        std::copy(matrix.scores.begin(), matrix.scores.end(), scores);
        if (probabilities) {
            std::copy(matrix.probabilities.begin(), matrix.probabilities.end(), probabilities);
        }
        std::vector<dsd_status> statuses(image_count, DSD_ENGINE);
        for (const dsd::Failure &failure : matrix.failures) {
            if (failure.code == dsd::ErrorCode::image) statuses[*failure.image] = DSD_IMAGE;
        }
        for (std::size_t i = 0; image_errors && i < image_count; ++i) {
            const std::string &reason = matrix.errors[i];
            write_error(&image_errors[i], reason.empty() ? DSD_OK : statuses[i], reason);
        }
    });
}

dsd_status dsd_tokenize(const dsd_scorer *scorer, const char *text, int32_t *ids, float *mask,
                        size_t *words, dsd_error *error) {
    return guard(error, [&] {
        require(scorer && text && ids, "scorer, text and ids must not be NULL");
        const dsd::Tokens tokens = scorer->scorer.tokenize(text);
        std::copy(tokens.ids.begin(), tokens.ids.end(), ids);
        if (mask) std::copy(tokens.mask.begin(), tokens.mask.end(), mask);
        if (words) *words = tokens.words;
    });
}

dsd_status dsd_preprocess(const dsd_scorer *scorer, const dsd_image *image, uint8_t *pixels,
                          dsd_error *error) {
    return guard(error, [&] {
        require(scorer && image && pixels, "scorer, image and pixels must not be NULL");
        const auto bytes = scorer->scorer.preprocess(to_image(*image));
        std::copy(bytes.begin(), bytes.end(), pixels);
    });
}

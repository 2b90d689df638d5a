#include "dsd/scorer.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

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

template <std::size_t Size>
void write_text(char (&target)[Size], const std::string &message) {
    const std::string text = printable(message);
    std::size_t length = std::min(text.size(), Size - 1);
    // Not within a character, whose further bytes start with the bits 10.
    while (length < text.size() && length > 0 && (text[length] & 0xC0) == 0x80) --length;
    std::memcpy(target, text.c_str(), length);
    target[length] = 0;
}

void write_error(dsd_error *error, dsd_status status, const std::string &message) {
    if (!error) return;
    error->status = status;
    write_text(error->message, message);
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

// What a call is given, checked.
struct Call {
    Call(const dsd_scorer *scorer, const dsd_image *given, size_t image_count,
         const char *const *given_texts, size_t text_count, const double *given_levels,
         size_t level_count, const void *results) {
        require(scorer && (given || image_count == 0) && (given_texts || text_count == 0) &&
                    (given_levels || level_count == 0) && results,
                "scorer, images, texts and what results are written to must not be NULL");
        require(
            std::all_of(given_texts, given_texts + text_count, [](const char *it) { return it; }),
            "a text is NULL");
        std::transform(given, given + image_count, std::back_inserter(images), to_image);
        texts.assign(given_texts, given_texts + text_count);
        levels.assign(given_levels, given_levels + level_count);
    }

    std::vector<dsd::Image> images;
    std::vector<std::string> texts;
    std::vector<double> levels;
};

void write_image_errors(dsd_error *errors, const std::vector<std::string> &reasons,
                        const std::vector<dsd::Failure> &failures) {
    if (!errors) return;
    std::vector<dsd_status> statuses(reasons.size(), DSD_ENGINE);
    for (const dsd::Failure &failure : failures) {
        if (failure.code == dsd::ErrorCode::image) statuses[*failure.image] = DSD_IMAGE;
    }
    for (std::size_t i = 0; i < reasons.size(); ++i) {
        write_error(&errors[i], reasons[i].empty() ? DSD_OK : statuses[i], reasons[i]);
    }
}

double or_default(double accepted) { return accepted == 0 ? 0.01 : accepted; }

void write_best(const dsd::Best &best, std::size_t top_k, dsd_found *found, dsd_search *search,
                dsd_error *image_errors) {
    constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
    for (const auto &ranked : best.found) {
        for (std::size_t i = 0; i < top_k; ++i) {
            const dsd::Found none{std::numeric_limits<std::size_t>::max(), kNone, kNone};
            const dsd::Found &it = i < ranked.size() ? ranked[i] : none;
            *found++ = {it.index, it.score, it.probability};
        }
    }
    if (search) {
        search->passes = best.passes;
        search->walks = best.walks;
        search->lists = best.lists;
        search->audits = best.audits;
        search->failed_audits = best.failed_audits;
        write_text(search->warning, best.warning);
    }
    write_image_errors(image_errors, best.errors, best.failures);
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
        const Call call(scorer, images, image_count, texts, text_count, levels, level_count,
                        scores);
        const dsd::Matrix matrix = scorer->scorer.score(call.images, call.texts, call.levels);
        std::copy(matrix.scores.begin(), matrix.scores.end(), scores);
        if (probabilities) {
            std::copy(matrix.probabilities.begin(), matrix.probabilities.end(), probabilities);
        }
        write_image_errors(image_errors, matrix.errors, matrix.failures);
    });
}

dsd_status dsd_best_texts(const dsd_scorer *scorer, const dsd_image *images, size_t image_count,
                          const char *const *texts, size_t text_count, const double *levels,
                          size_t level_count, size_t top_k, double accepted, dsd_found *found,
                          dsd_search *search, dsd_error *image_errors, dsd_error *error) {
    return guard(error, [&] {
        const Call call(scorer, images, image_count, texts, text_count, levels, level_count, found);
        write_best(scorer->scorer.best_texts(call.images, call.texts, top_k, or_default(accepted),
                                             call.levels),
                   top_k, found, search, image_errors);
    });
}

dsd_status dsd_best_images(const dsd_scorer *scorer, const dsd_image *images, size_t image_count,
                           const char *const *texts, size_t text_count, const double *levels,
                           size_t level_count, size_t top_k, double accepted, dsd_found *found,
                           dsd_search *search, dsd_error *image_errors, dsd_error *error) {
    return guard(error, [&] {
        const Call call(scorer, images, image_count, texts, text_count, levels, level_count, found);
        write_best(scorer->scorer.best_images(call.texts, call.images, top_k, or_default(accepted),
                                              call.levels),
                   top_k, found, search, image_errors);
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

#include "dsd/scorer.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "files.hpp"
#include "pipeline.hpp"

namespace dsd {

Image Image::file(std::filesystem::path path) {
    Image image;
    image.path = std::move(path);
    return image;
}

Image Image::encoded(const void *data, std::size_t size) {
    Image image;
    image.data = data ? data : "";  // null would be a path
    image.size = size;
    return image;
}

Image Image::pixels(const std::uint8_t *data, std::size_t height, std::size_t width,
                    std::size_t channels) {
    Image image;
    const bool known = channels == 1 || channels == 3 || channels == 4;
    image.data = data ? data : reinterpret_cast<const std::uint8_t *>("");
    image.height = data ? height : 0;
    image.width = width;
    image.channels = known ? channels : 2;  // 2 is refused when it is loaded
    return image;
}

struct Scorer::Parts : Pipeline {
    using Pipeline::Pipeline;
};

Scorer::Scorer(const std::filesystem::path &bundle, const Options &options)
    : parts_(std::make_unique<const Parts>(bundle, options)) {}
Scorer::~Scorer() = default;
Scorer::Scorer(Scorer &&) noexcept = default;
Scorer &Scorer::operator=(Scorer &&) noexcept = default;

namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

// Gives every image that lacks a score the first reason for it, its own before a text's.
void tell_images(Matrix &matrix, const std::vector<std::string> &texts) {
    for (const bool own : {true, false}) {
        for (const Failure &failure : matrix.failures) {
            if (failure.image.has_value() != own) continue;
            const std::size_t first = failure.image.value_or(0);
            const std::size_t end = own ? first + 1 : matrix.images;
            const std::string named = failure.text ? "'" + texts[*failure.text] + "': " : "";
            for (std::size_t image = first; image < end; ++image) {
                std::string &error = matrix.errors[image];
                if (error.empty()) error = named + failure.reason;
            }
        }
    }
}

}  // namespace

Matrix Scorer::score(const std::vector<Image> &images, const std::vector<std::string> &texts,
                     const std::vector<double> &levels) const {
    const Parts &parts = *parts_;
    if (texts.empty()) throw Error(ErrorCode::input, "there must be a text");
    if (parts.process != ::getpid()) {
        throw Error(ErrorCode::engine,
                    "this process was forked from the one that opened the scorer, whose threads it "
                    "lacks. Open a scorer in a process that is started anew");
    }
    require_within(kImages, images.size());
    require_within(kTexts, texts.size());
    require_within(kPairs, images.size() * texts.size());
    const auto numbers = parts.level_numbers(levels);

    std::vector<Tokens> tokens;                  // of every distinct text
    std::vector<std::size_t> firsts, of_column;  // where it is first, and each column's among them
    std::unordered_map<std::string, std::size_t> places;
    for (std::size_t column = 0; column < texts.size(); ++column) {
        const auto found = places.emplace(texts[column], tokens.size());
        if (found.second) {
            tokens.push_back(parts.tokenize(texts[column]));
            if (tokens.back().words == 0) {
                throw Error(ErrorCode::input,
                            "a text has no words to score: '" + texts[column] + "'");
            }
            firsts.push_back(column);
        }
        of_column.push_back(found.first->second);
    }
    const Texts encoded = parts.encode(tokens), unconditional = parts.encode_unconditional();

    Matrix matrix{images.size(), texts.size(), {}, {}, std::vector<std::string>(images.size()), {}};
    matrix.scores.assign(images.size() * texts.size(), kNone);
    const std::vector<bool> known = parts.finite_texts(encoded);
    for (std::size_t text = 0; text < tokens.size(); ++text) {
        if (known[text]) continue;
        const std::string reason = parts.complaint("text encoder", "states");
        matrix.failures.push_back({std::nullopt, firsts[text], ErrorCode::engine, reason});
    }
    for (std::size_t start = 0; start < images.size(); start += parts.batch.images) {
        const std::size_t end = std::min(start + parts.batch.images, images.size());
        std::vector<std::vector<std::uint8_t>> pixels;
        std::vector<std::size_t> rows;  // which of the images each is
        std::vector<Failure> failures;
        for (std::size_t i = start; i < end; ++i) {
            try {
                pixels.push_back(parts.preprocess(images[i]));
                rows.push_back(i);
            } catch (const Error &error) {
                failures.push_back({i, std::nullopt, ErrorCode::image, error.what()});
            }
        }
        const Bytes latents = rows.empty() ? Bytes{} : parts.encode(pixels);
        const std::vector<bool> usable = parts.finite_latents(latents);
        std::vector<Pair> pairs;
        for (std::size_t row = 0; row < rows.size(); ++row) {
            if (!usable[row]) {
                failures.push_back({rows[row], std::nullopt, ErrorCode::engine,
                                    parts.complaint("image encoder", "a latent")});
            }
            for (std::size_t text = 0; usable[row] && text < tokens.size(); ++text) {
                if (known[text]) pairs.push_back({row, text});
            }
        }
        const auto scores = parts.mode == Mode::matrix
                                ? parts.score_matrix(latents, encoded, pairs, numbers)
                                : parts.score(latents, encoded, unconditional, pairs, numbers);
        std::vector<float> by_text(rows.size() * tokens.size(), kNone);
        std::vector<std::vector<std::size_t>> lost(rows.size());  // texts
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            by_text[pairs[i].image * tokens.size() + pairs[i].text] = scores[i];
            if (std::isnan(scores[i])) lost[pairs[i].image].push_back(pairs[i].text);
        }
        for (std::size_t row = 0; row < rows.size(); ++row) {
            for (std::size_t column = 0; column < texts.size(); ++column) {
                matrix.scores[rows[row] * texts.size() + column] =
                    by_text[row * tokens.size() + of_column[column]];
            }
            if (lost[row].empty()) continue;
            const std::string reason = parts.complaint(
                parts.mode == Mode::matrix ? "matrix scorer" : "pair scorer", "a score");
            if (lost[row].size() == tokens.size() && texts.size() > 1) {
                failures.push_back({rows[row], std::nullopt, ErrorCode::engine, reason});
                continue;
            }
            for (std::size_t text : lost[row]) {
                failures.push_back({rows[row], firsts[text], ErrorCode::engine, reason});
            }
        }
        std::stable_sort(failures.begin(), failures.end(),
                         [](const Failure &a, const Failure &b) { return a.image < b.image; });
        matrix.failures.insert(matrix.failures.end(), failures.begin(), failures.end());
    }
    tell_images(matrix, texts);
    matrix.probabilities.assign(matrix.scores.size(), kNone);
    if (const auto &fitted = parts.calibration(); has_probability(levels)) {
        const auto probability = [&](float score) {  // sigmoid by tanh, which cannot overflow
            return static_cast<float>(0.5 + 0.5 * std::tanh((fitted->a * score + fitted->b) / 2));
        };
        std::transform(matrix.scores.begin(), matrix.scores.end(), matrix.probabilities.begin(),
                       probability);
    }
    return matrix;
}

bool Scorer::has_probability(const std::vector<double> &levels) const {
    return parts_->calibration() &&
           parts_->level_numbers(levels).size() == parts_->bundle.levels.size();
}

Tokens Scorer::tokenize(const std::string &text) const { return parts_->tokenize(text); }

std::vector<std::uint8_t> Scorer::preprocess(const Image &image) const {
    return parts_->preprocess(image);
}

Mode Scorer::mode() const noexcept { return parts_->mode; }

std::size_t Scorer::max_length() const noexcept {
    return static_cast<std::size_t>(parts_->bundle.max_length);
}

std::size_t Scorer::resolution() const noexcept {
    return static_cast<std::size_t>(parts_->bundle.resolution);
}

}  // namespace dsd

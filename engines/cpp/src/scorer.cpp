#include "dsd/scorer.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#include "bundle.hpp"
#include "files.hpp"
#include "graph.hpp"
#include "image.hpp"
#include "tokenizer.hpp"

namespace dsd {
namespace {

// Texts as the pair scorer takes them, a row each.
struct Texts {
    Bytes states;
    std::vector<float> mask;
};

struct Pair {
    std::size_t image, text;
};

// What the pair scorer says of each pair, averaged over levels (Eq. 4).
struct Means {
    std::vector<double> score, denoising_error;
};

Bundle open_bundle(const std::filesystem::path &folder, const Options &options) {
    if (options.threads < 0 || !(options.memory_budget_mb > 0)) {
        throw Error(ErrorCode::input, "threads and the memory budget must not be negative");
    }
    Bundle bundle = read_bundle(folder);
    if (bundle.trained_for_matrix) {
        throw Error(ErrorCode::bundle,
                    "the bundle's adapter was trained for matrix mode, which this library does not "
                    "have. Train one for both: dsd-trt train --mode both");
    }
    return bundle;
}

void append_row(Bytes &target, const Bytes &rows, std::size_t row, std::size_t size) {
    const auto start = rows.begin() + static_cast<std::ptrdiff_t>(row * size);
    target.insert(target.end(), start, start + static_cast<std::ptrdiff_t>(size));
}

void require_within(const Limit &limit, std::size_t count) {
    const std::string fault = limit.fault(count);
    if (!fault.empty()) throw Error(ErrorCode::input, "a call has " + fault);
}

const float *floats(const Bytes &bytes) {
    // From operator new, so aligned for any number.
    return reinterpret_cast<const float *>(bytes.data());
}

}  // namespace

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

struct Scorer::Parts {
    Engine engine;  // first: where it cannot work, gigabytes need not be verified to say so
    Bundle bundle;
    Tokenizer tokenizer;
    BatchSizes batch;
    Graph image_encoder, text_encoder, pair_scorer;
    pid_t process = ::getpid();

    Parts(const std::filesystem::path &folder, const Options &options)
        : engine(options.threads),
          bundle(open_bundle(folder, options)),
          tokenizer(bundle.tokenizer),
          batch(Engine::batch_sizes(bundle, options.memory_budget_mb)),
          image_encoder(engine, bundle.image_encoder),
          text_encoder(engine, bundle.text_encoder),
          pair_scorer(engine, bundle.pair_scorer) {}

    Tokens lay_out(std::vector<std::int32_t> words) const;
    Tokens tokenize(const std::string &text) const;
    std::vector<std::uint8_t> preprocess(const Image &image) const;
    Texts encode(const std::vector<Tokens> &tokens) const;
    Bytes encode(const std::vector<std::vector<std::uint8_t>> &images) const;
    Means means(const Bytes &latents, const Texts &texts, const std::vector<Pair> &pairs,
                const std::vector<std::int32_t> &levels) const;
    std::vector<double> score(const Bytes &latents, std::size_t images, const Texts &texts,
                              const Texts &nothing, std::size_t text_count,
                              const std::vector<std::int32_t> &levels) const;
    std::vector<std::int32_t> level_numbers(const std::vector<double> &levels) const;
};

Tokens Scorer::Parts::lay_out(std::vector<std::int32_t> words) const {
    const auto length = static_cast<std::size_t>(bundle.max_length);
    const std::size_t kept = std::min(words.size(), length - 2);  // room for BOS and EOS
    Tokens tokens{std::vector<std::int32_t>(length, bundle.pad), std::vector<float>(length),
                  words.size()};
    tokens.ids[0] = bundle.bos;
    std::copy_n(words.begin(), kept, tokens.ids.begin() + 1);
    tokens.ids[1 + kept] = bundle.eos;
    // The first EOS ends a text, as in training, also where it is written out in the text.
    const auto found = std::find(tokens.ids.begin(), tokens.ids.end(), bundle.eos);
    const auto end = static_cast<std::size_t>(found - tokens.ids.begin());
    const bool all = bundle.token_mask == TokenMask::all;
    const std::size_t last = all ? length : bundle.token_mask == TokenMask::words ? end : end + 1;
    for (std::size_t i = all ? 0 : 1; i < last; ++i) tokens.mask[i] = 1;
    return tokens;
}

Tokens Scorer::Parts::tokenize(const std::string &text) const {
    // Bytes that go on with a character start with the bits 10.
    require_within(kTextCharacters,
                   static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
                       return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
                   })));
    Tokens tokens = lay_out(tokenizer(text));
    if (std::all_of(tokens.mask.begin(), tokens.mask.end(), [](float one) { return one == 0; })) {
        throw Error(ErrorCode::input, "a text has no words to score: '" + text + "'");
    }
    const std::int32_t highest = *std::max_element(tokens.ids.begin(), tokens.ids.end());
    if (highest >= bundle.vocabulary) {  // engines read past the embedding, or score zeros
        throw Error(ErrorCode::bundle, "'" + text + "' has a token with the id " +
                                           std::to_string(highest) +
                                           ", and the text encoder's embedding has " +
                                           std::to_string(bundle.vocabulary) +
                                           " rows; export the bundle again");
    }
    return tokens;
}

std::vector<std::uint8_t> Scorer::Parts::preprocess(const Image &image) const {
    const auto side = static_cast<std::size_t>(bundle.resolution);
    Rgb loaded = load_image(image);
    if (bundle.through_224) loaded = resize(loaded, 224, 224);
    return resize(loaded, side, side).pixels;
}

Texts Scorer::Parts::encode(const std::vector<Tokens> &tokens) const {
    Texts texts;
    std::vector<std::int32_t> ids;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        ids.insert(ids.end(), tokens[i].ids.begin(), tokens[i].ids.end());
        texts.mask.insert(texts.mask.end(), tokens[i].mask.begin(), tokens[i].mask.end());
        const std::size_t count = ids.size() / tokens[i].ids.size();
        if (count == batch.texts || i + 1 == tokens.size()) {
            const Bytes states = std::move(text_encoder.run(count, {ids.data()})[0]);
            texts.states.insert(texts.states.end(), states.begin(), states.end());
            ids.clear();
        }
    }
    return texts;
}

Bytes Scorer::Parts::encode(const std::vector<std::vector<std::uint8_t>> &images) const {
    std::vector<std::uint8_t> pixels;
    for (const auto &image : images) pixels.insert(pixels.end(), image.begin(), image.end());
    return std::move(image_encoder.run(images.size(), {pixels.data()})[0]);
}

Means Scorer::Parts::means(const Bytes &latents, const Texts &texts, const std::vector<Pair> &pairs,
                           const std::vector<std::int32_t> &levels) const {
    const std::size_t latent_size = bytes_of_one(bundle.image_encoder.outputs[0]);
    const std::size_t states_size = bytes_of_one(bundle.text_encoder.outputs[0]);
    const auto length = static_cast<std::size_t>(bundle.max_length);
    const std::size_t triples = pairs.size() * levels.size();
    std::vector<double> sums[2] = {std::vector<double>(pairs.size()),
                                   std::vector<double>(pairs.size())};
    for (std::size_t start = 0; start < triples; start += batch.triples) {
        const std::size_t count = std::min(batch.triples, triples - start);
        Bytes latent, states;
        std::vector<std::int32_t> level;
        std::vector<float> mask;
        for (std::size_t i = start; i < start + count; ++i) {
            const Pair &pair = pairs[i / levels.size()];
            append_row(latent, latents, pair.image, latent_size);
            append_row(states, texts.states, pair.text, states_size);
            level.push_back(levels[i % levels.size()]);
            const float *row = &texts.mask[pair.text * length];
            mask.insert(mask.end(), row, row + length);
        }
        std::vector<const void *> feeds{latent.data(), level.data(), states.data(), mask.data()};
        if (!bundle.adapter.empty()) feeds.push_back(bundle.adapter.data());
        const auto outputs = pair_scorer.run(count, feeds);
        for (const Bytes &output : outputs) {
            const float *numbers = floats(output);
            if (!std::all_of(numbers, numbers + output.size() / sizeof(float),
                             [](float number) { return std::isfinite(number); })) {
                throw Error(ErrorCode::engine,
                            std::string(Engine::name()) +
                                " computed a score that is no finite number. Export the bundle in "
                                "full precision: dsd-trt export --precision fp32");
            }
        }
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t pair = (start + i) / levels.size();
            sums[0][pair] += floats(outputs[0])[i];
            if (outputs.size() > 2) sums[1][pair] += floats(outputs[2])[i];
        }
    }
    for (auto &sum : sums) {
        for (double &value : sum) value /= static_cast<double>(levels.size());
    }
    return {std::move(sums[0]), std::move(sums[1])};
}

std::vector<double> Scorer::Parts::score(const Bytes &latents, std::size_t images,
                                         const Texts &texts, const Texts &nothing,
                                         std::size_t text_count,
                                         const std::vector<std::int32_t> &levels) const {
    std::vector<Pair> pairs, alone;
    for (std::size_t image = 0; image < images; ++image) {
        alone.push_back({image, 0});
        for (std::size_t text = 0; text < text_count; ++text) pairs.push_back({image, text});
    }
    Means with = means(latents, texts, pairs, levels);
    if (bundle.score == ScoreKind::attention) return std::move(with.score);
    // The error without a text is the same for all texts.
    const Means without = means(latents, nothing, alone, levels);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        const double d = without.denoising_error[pairs[i].image] - with.denoising_error[i];
        with.score[i] = bundle.score == ScoreKind::denoising
                            ? d
                            : with.score[i] + bundle.denoising_weight * d;
    }
    return std::move(with.score);
}

std::vector<std::int32_t> Scorer::Parts::level_numbers(const std::vector<double> &levels) const {
    for (double level : levels) {
        if (std::find(bundle.levels.begin(), bundle.levels.end(), level) == bundle.levels.end()) {
            throw Error(ErrorCode::input, "the bundle has no noise level " + std::to_string(level));
        }
    }
    std::vector<std::int32_t> numbers;
    for (std::size_t i = 0; i < bundle.levels.size(); ++i) {
        if (levels.empty() ||
            std::find(levels.begin(), levels.end(), bundle.levels[i]) != levels.end()) {
            numbers.push_back(static_cast<std::int32_t>(i));
        }
    }
    return numbers;
}

Scorer::Scorer(const std::filesystem::path &bundle, const Options &options)
    : parts_(std::make_unique<const Parts>(bundle, options)) {}
Scorer::~Scorer() = default;
Scorer::Scorer(Scorer &&) noexcept = default;
Scorer &Scorer::operator=(Scorer &&) noexcept = default;

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

    std::vector<Tokens> tokens;  // of every distinct text
    std::unordered_map<std::string, std::size_t> places;
    for (const std::string &text : texts) {
        if (places.emplace(text, tokens.size()).second) tokens.push_back(parts.tokenize(text));
    }
    const Texts encoded = parts.encode(tokens);
    Texts nothing;
    if (parts.bundle.score != ScoreKind::attention) {
        Tokens empty = parts.lay_out({});
        std::fill(empty.mask.begin(), empty.mask.end(), 0.0F);
        empty.mask[1] = 1;  // EOS alone counts
        nothing = parts.encode({empty});
    }

    Matrix matrix{images.size(), texts.size(), {}, {}, std::vector<std::string>(images.size())};
    matrix.scores.assign(images.size() * texts.size(), std::numeric_limits<float>::quiet_NaN());
    for (std::size_t start = 0; start < images.size(); start += parts.batch.images) {
        const std::size_t end = std::min(start + parts.batch.images, images.size());
        std::vector<std::vector<std::uint8_t>> pixels;
        std::vector<std::size_t> rows;  // which of the images each is
        for (std::size_t i = start; i < end; ++i) {
            try {
                pixels.push_back(parts.preprocess(images[i]));
                rows.push_back(i);
            } catch (const Error &error) {
                matrix.errors[i] = error.what();
            }
        }
        if (rows.empty()) continue;
        const auto scores = parts.score(parts.encode(pixels), rows.size(), encoded, nothing,
                                        tokens.size(), numbers);
        for (std::size_t row = 0; row < rows.size(); ++row) {
            for (std::size_t column = 0; column < texts.size(); ++column) {
                matrix.scores[rows[row] * texts.size() + column] = static_cast<float>(
                    scores[row * tokens.size() + places.at(texts[column])]);
            }
        }
    }
    for (float score : matrix.scores) {
        // sigmoid, written with tanh, which cannot overflow
        const double logit = parts.bundle.calibration_a * score + parts.bundle.calibration_b;
        matrix.probabilities.push_back(static_cast<float>(0.5 + 0.5 * std::tanh(logit / 2)));
    }
    return matrix;
}

Tokens Scorer::tokenize(const std::string &text) const { return parts_->tokenize(text); }

std::vector<std::uint8_t> Scorer::preprocess(const Image &image) const {
    return parts_->preprocess(image);
}

std::size_t Scorer::max_length() const noexcept {
    return static_cast<std::size_t>(parts_->bundle.max_length);
}

std::size_t Scorer::resolution() const noexcept {
    return static_cast<std::size_t>(parts_->bundle.resolution);
}

}  // namespace dsd

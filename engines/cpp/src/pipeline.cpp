#include "pipeline.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#include "image.hpp"
#include "self_check.hpp"

namespace dsd {
namespace {

Bundle open_bundle(const std::filesystem::path &folder, const Options &options) {
    if (options.threads < 0 || !(options.memory_budget_mb > 0)) {
        throw Error(ErrorCode::input, "threads and the memory budget must not be negative");
    }
    return read_bundle(folder);
}

Mode choose_mode(const Bundle &bundle, Mode mode, const Backend &backend) {
    if (mode == Mode::automatic) mode = bundle.trained_for_matrix ? Mode::matrix : Mode::pair;
    if (mode == Mode::pair) return mode;
    if (!bundle.matrix_scorer) {
        throw Error(ErrorCode::input,
                    "the bundle has no matrix scorer. Export it with one: dsd-trt export --matrix");
    }
    if (!Backend::has_matrix_mode()) {
        throw Error(ErrorCode::input, "matrix mode does not run on " + backend.name() +
                                          " yet: build with -DDSD_ENGINE=onnxruntime");
    }
    return mode;
}

// Opens a graph's form for CUDA where the backend takes one, and it opens and passes the
// self-check. Otherwise, and where the bundle has no self-check, the graph itself serves as well.
Engine open_engine(const Backend &backend, const Bundle &bundle, const Graph &graph,
                   std::size_t activation_bytes) {
    if (backend.takes_cuda_forms() && !graph.cuda_form.empty() && bundle.self_check) {
        Graph form = graph;
        form.path = graph.cuda_form;
        try {
            Engine engine(backend, form, activation_bytes);
            SelfCheck(bundle, backend).require(form, engine);
            return engine;
        } catch (const Error &) {
        }
    }
    return Engine(backend, graph, activation_bytes);
}

void append_row(Bytes &target, const Bytes &rows, std::size_t row, std::size_t size) {
    const auto start = rows.begin() + static_cast<std::ptrdiff_t>(row * size);
    target.insert(target.end(), start, start + static_cast<std::ptrdiff_t>(size));
}

const float *floats(const Bytes &bytes) {
    // From operator new, so aligned for any number.
    return reinterpret_cast<const float *>(bytes.data());
}

// Whether all numbers of each row of a graph's output are finite.
std::vector<bool> finite_rows(const Bytes &rows, const Tensor &output) {
    const auto finite = [&](const std::byte *number) {
        if (output.type == ElementType::float16) {
            std::uint16_t bits;
            std::memcpy(&bits, number, sizeof bits);
            return (bits & 0x7C00) != 0x7C00;
        }
        float value;
        std::memcpy(&value, number, sizeof value);
        return std::isfinite(value);
    };
    const std::size_t row = bytes_of_one(output), number = size_of(output.type);
    std::vector<bool> found(rows.size() / row, true);
    for (std::size_t at = 0; at < rows.size(); at += number) {
        if (!finite(&rows[at])) found[at / row] = false;
    }
    return found;
}

// NaN where it is no finite FP32 number.
float finite_or_nan(double score) {
    const bool finite = std::abs(score) <= std::numeric_limits<float>::max();
    return finite ? static_cast<float>(score) : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace

void require_within(const Limit &limit, std::size_t count) {
    const std::string fault = limit.fault(count);
    if (!fault.empty()) throw Error(ErrorCode::input, "a call has " + fault);
}

Pipeline::Pipeline(const std::filesystem::path &folder, const Options &options)
    : backend(options.threads, read_device(options.device)),
      bundle(open_bundle(folder, options)),
      mode(choose_mode(bundle, options.mode, backend)),
      tokenizer(bundle.tokenizer),
      batch(Backend::batch_sizes(bundle, options.memory_budget_mb)),
      image_encoder(open_engine(backend, bundle, bundle.image_encoder, batch.activation_bytes)),
      text_encoder(open_engine(backend, bundle, bundle.text_encoder, batch.activation_bytes)),
      scorer(open_engine(backend, bundle, scorer_graph(), batch.activation_bytes)),
      self_check_(options.self_check) {
    if (!options.self_check || !bundle.self_check) return;
    const SelfCheck check(bundle, backend);
    check.require(bundle.image_encoder, image_encoder);
    check.require(bundle.text_encoder, text_encoder);
    check.require(scorer_graph(), scorer);
}

const Graph &Pipeline::scorer_graph() const {
    return mode == Mode::matrix ? *bundle.matrix_scorer : bundle.pair_scorer;
}

const Engine &Pipeline::matrix_scorer() const {
    if (mode == Mode::matrix) return scorer;
    const std::lock_guard<std::mutex> lock(opening_);
    if (!lister_) {
        Engine engine = open_engine(backend, bundle, *bundle.matrix_scorer, batch.activation_bytes);
        if (self_check_ && bundle.self_check) {
            SelfCheck(bundle, backend).require(*bundle.matrix_scorer, engine);
        }
        lister_.emplace(std::move(engine));
    }
    return *lister_;
}

const std::optional<Calibration> &Pipeline::calibration() const {
    return mode == Mode::matrix ? bundle.matrix_calibration : bundle.calibration;
}

Tokens Pipeline::lay_out(std::vector<std::int32_t> words) const {
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

Tokens Pipeline::tokenize(const std::string &text) const {
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
        throw Error(ErrorCode::bundle,
                    "'" + text + "' has a token with the id " + std::to_string(highest) +
                        ", and the text encoder's embedding has " +
                        std::to_string(bundle.vocabulary) + " rows; export the bundle again");
    }
    return tokens;
}

std::vector<std::uint8_t> Pipeline::preprocess(const Image &image) const {
    const auto side = static_cast<std::size_t>(bundle.resolution);
    Rgb loaded = load_image(image);
    if (bundle.through_224) loaded = resize(loaded, 224, 224);
    return resize(loaded, side, side).pixels;
}

Texts Pipeline::encode(const std::vector<Tokens> &tokens) const {
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

Bytes Pipeline::encode(const std::vector<std::vector<std::uint8_t>> &images) const {
    std::vector<std::uint8_t> pixels;
    for (const auto &image : images) pixels.insert(pixels.end(), image.begin(), image.end());
    return std::move(image_encoder.run(images.size(), {pixels.data()})[0]);
}

Texts Pipeline::encode_unconditional() const {
    if (bundle.score == ScoreKind::attention || mode == Mode::matrix) return {};
    Tokens empty = lay_out({});
    std::fill(empty.mask.begin(), empty.mask.end(), 0.0F);
    empty.mask[1] = 1;  // EOS alone counts
    return encode({empty});
}

std::vector<bool> Pipeline::finite_latents(const Bytes &latents) const {
    return finite_rows(latents, bundle.image_encoder.outputs[0]);
}

std::vector<bool> Pipeline::finite_texts(const Texts &texts) const {
    return finite_rows(texts.states, bundle.text_encoder.outputs[0]);
}

Means Pipeline::means(const Bytes &latents, const Texts &texts, const std::vector<Pair> &pairs,
                      const std::vector<std::int32_t> &levels) const {
    const std::size_t latent_size = bytes_of_one(bundle.image_encoder.outputs[0]);
    const std::size_t states_size = bytes_of_one(bundle.text_encoder.outputs[0]);
    const auto length = static_cast<std::size_t>(bundle.max_length);
    const std::size_t passes = pairs.size() * levels.size();
    std::vector<double> sums[2] = {std::vector<double>(pairs.size()),
                                   std::vector<double>(pairs.size())};
    for (std::size_t start = 0; start < passes; start += batch.passes) {
        const std::size_t count = std::min(batch.passes, passes - start);
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
        const auto outputs = scorer.run(count, feeds);
        std::vector<bool> finite(count, true);
        for (std::size_t output = 0; output < outputs.size(); ++output) {
            const auto rows = finite_rows(outputs[output], bundle.pair_scorer.outputs[output]);
            for (std::size_t i = 0; i < count; ++i) finite[i] = finite[i] && rows[i];
        }
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t pair = (start + i) / levels.size();
            if (!finite[i]) sums[0][pair] = sums[1][pair] = std::nan("");
            sums[0][pair] += floats(outputs[0])[i];
            if (outputs.size() > 2) sums[1][pair] += floats(outputs[2])[i];
        }
    }
    for (auto &sum : sums) {
        for (double &value : sum) value /= static_cast<double>(levels.size());
    }
    return {std::move(sums[0]), std::move(sums[1])};
}

std::vector<float> Pipeline::score(const Bytes &latents, const Texts &texts,
                                   const Texts &unconditional, const std::vector<Pair> &pairs,
                                   const std::vector<std::int32_t> &levels) const {
    Means with = means(latents, texts, pairs, levels);
    if (bundle.score != ScoreKind::attention && !pairs.empty()) {
        if (!finite_texts(unconditional)[0]) {
            throw Error(ErrorCode::engine,
                        complaint("text encoder", "states of the unconditional text"));
        }
        // The error without a text is the same for all texts: once for every image.
        std::vector<Pair> alone;
        std::vector<std::size_t> place;  // among them, of each pair's image
        std::unordered_map<std::size_t, std::size_t> places;
        for (const Pair &pair : pairs) {
            const auto found = places.emplace(pair.image, alone.size());
            if (found.second) alone.push_back({pair.image, 0});
            place.push_back(found.first->second);
        }
        const Means without = means(latents, unconditional, alone, levels);
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            const double d = without.denoising_error[place[i]] - with.denoising_error[i];
            with.score[i] = bundle.score == ScoreKind::denoising
                                ? d
                                : with.score[i] + bundle.denoising_weight * d;
        }
    }
    std::vector<float> scores;
    for (double score : with.score) scores.push_back(finite_or_nan(score));
    return scores;
}

std::vector<float> Pipeline::score_matrix(const Bytes &latents, const Texts &texts,
                                          const std::vector<Pair> &pairs,
                                          const std::vector<std::int32_t> &levels) const {
    std::vector<std::size_t> rows, columns;  // images and texts
    for (const Pair &pair : pairs) {
        if (rows.empty() || rows.back() != pair.image) rows.push_back(pair.image);
        if (rows.size() == 1) columns.push_back(pair.text);
    }
    const std::size_t latent_size = bytes_of_one(bundle.image_encoder.outputs[0]);
    const std::size_t states_size = bytes_of_one(bundle.text_encoder.outputs[0]);
    const auto length = static_cast<std::size_t>(bundle.max_length);
    const std::size_t walks = rows.size() * levels.size();
    const Engine &engine = matrix_scorer();
    std::vector<double> sums(pairs.size());
    for (std::size_t first = 0; first < columns.size(); first += batch.matched) {
        const std::size_t count = std::min(batch.matched, columns.size() - first);
        Bytes states;
        std::size_t width = 0;  // no token counts beyond it
        for (std::size_t j = first; j < first + count; ++j) {
            append_row(states, texts.states, columns[j], states_size);
            const float *row = &texts.mask[columns[j] * length];
            for (std::size_t k = width; k < length; ++k) {
                if (row[k] != 0) width = k + 1;
            }
        }
        std::vector<float> mask;
        for (std::size_t j = first; j < first + count; ++j) {
            const float *row = &texts.mask[columns[j] * length];
            mask.insert(mask.end(), row, row + width);
        }
        for (std::size_t start = 0; start < walks; start += batch.walks) {
            const std::size_t walked = std::min(batch.walks, walks - start);
            Bytes latent;
            std::vector<std::int32_t> level;
            for (std::size_t i = start; i < start + walked; ++i) {
                append_row(latent, latents, rows[i / levels.size()], latent_size);
                level.push_back(levels[i % levels.size()]);
            }
            const auto outputs = engine.run(
                {walked, count, width}, {latent.data(), level.data(), states.data(), mask.data()});
            for (std::size_t i = 0; i < walked; ++i) {
                const std::size_t row = (start + i) / levels.size();
                for (std::size_t j = 0; j < count; ++j) {
                    sums[row * columns.size() + first + j] += floats(outputs[0])[i * count + j];
                }
            }
        }
    }
    std::vector<float> scores;
    for (double sum : sums)
        scores.push_back(finite_or_nan(sum / static_cast<double>(levels.size())));
    return scores;
}

std::vector<std::int32_t> Pipeline::level_numbers(const std::vector<double> &levels) const {
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

std::string Pipeline::complaint(const std::string &graph, const std::string &what) const {
    const bool half = bundle.text_encoder.outputs[0].type == ElementType::float16;
    return "the " + graph + " gave " + what + " with NaN or infinity (" + backend.name() + "). " +
           (half ? "Use a bundle in full precision: dsd-trt export --precision fp32"
                 : "To see where it begins: dsd-trt ranges " + bundle.folder.string());
}

}  // namespace dsd

// The graphs of a bundle, fed in batches: images and texts are encoded once each, and pairs scored.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "dsd/scorer.hpp"
#include "engine.hpp"
#include "files.hpp"
#include "tokenizer.hpp"

namespace dsd {

// Texts as the pair scorer takes them, a row each.
struct Texts {
    Bytes states;
    std::vector<float> mask;
};

// Rows of an image's latent and of a text.
struct Pair {
    std::size_t image, text;
};

// What the pair scorer says of each pair, averaged over levels (Eq. 4).
struct Means {
    std::vector<double> score, denoising_error;
};

// Throws dsd::Error, code input, where a call has more of something than it may.
void require_within(const Limit &limit, std::size_t count);

struct Pipeline {
    Backend backend;  // first: where it cannot work, gigabytes need not be verified to say so
    Bundle bundle;
    Mode mode;  // pair or matrix
    Tokenizer tokenizer;
    BatchSizes batch;
    Engine image_encoder, text_encoder, scorer;
    pid_t process = ::getpid();

    Pipeline(const std::filesystem::path &folder, const Options &options);

    Tokens lay_out(std::vector<std::int32_t> words) const;
    Tokens tokenize(const std::string &text) const;
    std::vector<std::uint8_t> preprocess(const Image &image) const;
    Texts encode(const std::vector<Tokens> &tokens) const;
    Texts encode_unconditional() const;  // where the score has a denoising term, else no row
    Bytes encode(const std::vector<std::vector<std::uint8_t>> &images) const;

    // Which latents, or texts' states, are finite. No other can be scored: engines differ in what
    // they make of a NaN.
    std::vector<bool> finite_latents(const Bytes &latents) const;
    std::vector<bool> finite_texts(const Texts &texts) const;

    // The score of each pair; NaN where the engine computed no finite number.
    std::vector<float> score(const Bytes &latents, const Texts &texts, const Texts &unconditional,
                             const std::vector<Pair> &pairs,
                             const std::vector<std::int32_t> &levels) const;
    // The same in matrix mode, where the pairs are all of some images with all of some texts.
    std::vector<float> score_matrix(const Bytes &latents, const Texts &texts,
                                    const std::vector<Pair> &pairs,
                                    const std::vector<std::int32_t> &levels) const;
    const Graph &scorer_graph() const;
    // In pair mode it is opened, and self-checked, when it is first asked for.
    const Engine &matrix_scorer() const;
    const std::optional<Calibration> &calibration() const;
    Means means(const Bytes &latents, const Texts &texts, const std::vector<Pair> &pairs,
                const std::vector<std::int32_t> &levels) const;
    std::vector<std::int32_t> level_numbers(const std::vector<double> &levels) const;

    // That a graph computed something, such as "a score", that is not finite, and what to do.
    std::string complaint(const std::string &graph, const std::string &what) const;

  private:
    bool self_check_;
    mutable std::mutex opening_;
    mutable std::optional<Engine> lister_;  // the matrix scorer of pair mode
};

}  // namespace dsd

// Scores how well texts describe images, with a bundle that `dsd-trt export` wrote.
//
//     const dsd::Scorer scorer("my-scorer");
//     const dsd::Matrix matrix = scorer.score({dsd::Image::file("photo.jpg")}, {"a red circle"});
//
// Everything that fails throws dsd::Error, but for an image that cannot be decoded, and an image,
// text or pair that the engine computes no finite number of: each costs its own scores alone. A
// Scorer may be used by several threads at once. Loading the library sets
// ORT_DISABLE_TELEMETRY=1, unless the environment has a value for it: ONNX Runtime 1.32 reports to
// its maker otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dsd/error.hpp"

namespace dsd {

// A reference to an image; what it refers to must stay while it is used.
struct Image {
    std::filesystem::path path;  // used where `data` is null
    const void *data = nullptr;
    std::size_t size = 0;                             // of `data`, in bytes
    std::size_t height = 0, width = 0, channels = 0;  // all 0 where `data` is an encoded file

    static Image file(std::filesystem::path path);
    // The bytes of a JPEG or PNG file.
    static Image encoded(const void *data, std::size_t size);
    // Rows of pixels without gaps, 8 bits a channel: 1 is grey, 3 is RGB, 4 is RGBA.
    static Image pixels(const std::uint8_t *data, std::size_t height, std::size_t width,
                        std::size_t channels);
};

// Which of a bundle's scorers: one pass through the U-Net per pair and level, or one walk per image
// and level that all texts are matched with. Their scores are not comparable.
enum class Mode {
    automatic,  // the one that the adapter was trained for; pair for both, and without an adapter
    pair,
    matrix
};

struct Options {
    int threads = 0;                 // of ONNX Runtime; 0 is one a physical core
    double memory_budget_mb = 1024;  // for activations; weights come on top; TensorRT's plans have
                                     // their own
    // "cpu", "cuda" (CUDA device 0) or "cuda:N". Empty is the CPU with ONNX Runtime, and with
    // TensorRT the CUDA device that is current in the thread that opens the scorer. A device that
    // cannot be used is an error, never replaced by another one.
    std::string device;
    // Whether graphs compute the items that the bundle has results of, when they are opened.
    // Without it, damage that hashes do not show scores wrong numbers.
    bool self_check = true;
    // An error, code input, where the bundle has no such scorer, or the library was built for
    // TensorRT and this is matrix mode.
    Mode mode = Mode::automatic;
};

// What could not be scored, and why.
struct Failure {
    std::optional<std::size_t> image;  // none: a text, with any image
    std::optional<std::size_t> text;   // none: an image, with any text; of equal texts the first
    ErrorCode code;                    // image: not decoded; engine: no finite number
    std::string reason;                // what went wrong and what to do
};

struct Matrix {
    std::size_t images, texts;
    std::vector<float> scores;         // (images, texts); NaN where there is a failure
    std::vector<float> probabilities;  // sigmoid(a s + b); NaN without a score, and everywhere
                                       // where none were fitted: see Scorer::has_probability
    std::vector<std::string> errors;   // one an image: why it lacks a score (the first reason, a
                                       // text's too), or empty where its row has no NaN
    std::vector<Failure> failures;     // texts, then images and pairs in the order of the images
};

// One of the best: a text of an image, or an image of a text.
struct Found {
    std::size_t index;         // among the texts, or images, that were given
    float score, probability;  // as in Matrix
};

// The best of a pruned search. Their scores and order are pair mode's own.
struct Best {
    // Of each image, or text: at most top_k, best first; of equal scores the first given leads.
    std::vector<std::vector<Found>> found;
    std::size_t passes;  // through the U-Net, walks included
    std::size_t walks;   // of them, to make lists
    std::size_t lists;   // 0: every candidate was scored at the first level
    std::size_t audits;  // of them, lists that were scored whole
    std::size_t failed_audits;
    std::string warning;  // what to do where lists lose more than was accepted, or empty
    std::vector<std::string> errors;  // one an image, as in Matrix
    std::vector<Failure> failures;    // as in Matrix
};

struct Tokens {
    std::vector<std::int32_t> ids;  // BOS, words, EOS, padding
    std::vector<float> mask;        // 1 where a token counts in the score
    std::size_t words;              // tokens before cutting, without BOS and EOS
};

class Scorer {
  public:
    // Opens a bundle's folder and verifies it whole: schema, sizes, hashes, graphs, and what these
    // compute.
    explicit Scorer(const std::filesystem::path &bundle, const Options &options = {});
    ~Scorer();
    Scorer(Scorer &&) noexcept;
    Scorer &operator=(Scorer &&) noexcept;

    // Scores every image against every text, UTF-8 with a word each. `levels` are noise levels to
    // average over, among the bundle's; none is all of them.
    Matrix score(const std::vector<Image> &images, const std::vector<std::string> &texts,
                 const std::vector<double> &levels = {}) const;

    // Finds the `top_k` best texts of each image, or images of each text, without scoring all at
    // every level. `error` is the accepted probability that an image, or text, loses one of them,
    // above 0 and at most a half. A bundle's lists are used where it has any for `top_k`, `levels`
    // are all of them, and the library runs matrix mode; the matrix scorer is opened when it is
    // first needed. Throws dsd::Error, code input, in matrix mode.
    Best best_texts(const std::vector<Image> &images, const std::vector<std::string> &texts,
                    std::size_t top_k, double error = 0.01,
                    const std::vector<double> &levels = {}) const;
    // Latents of all images are held in memory. A single text makes no list.
    Best best_images(const std::vector<std::string> &texts, const std::vector<Image> &images,
                     std::size_t top_k, double error = 0.01,
                     const std::vector<double> &levels = {}) const;

    // Whether scores over these levels have match probabilities. They have none in a bundle that
    // none were fitted for, nor over some of its levels: `dsd-trt calibrate` fits them.
    bool has_probability(const std::vector<double> &levels = {}) const;

    // What the graphs are fed. A text too long is cut, keeping EOS: then `words` exceeds
    // max_length() - 2.
    Tokens tokenize(const std::string &text) const;
    std::vector<std::uint8_t> preprocess(const Image &image) const;  // (resolution, resolution, 3)

    Mode mode() const noexcept;  // pair or matrix
    std::size_t max_length() const noexcept;
    std::size_t resolution() const noexcept;

  private:
    struct Parts;
    std::unique_ptr<const Parts> parts_;
};

}  // namespace dsd

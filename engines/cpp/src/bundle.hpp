// A bundle on disk: what bundle.json says, and proof that the files are what it says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lists.hpp"

namespace dsd {

enum class ElementType { uint8, int32, float16, float32 };

std::size_t size_of(ElementType type);

constexpr std::int64_t kItemSize = -1, kTextSize = -2, kTokenSize = -3;

// One input or output of a graph. A dimension below 0 is dynamic: kItemSize, or in the matrix
// scorer also kTextSize or kTokenSize.
struct Tensor {
    std::string name;
    ElementType type;
    std::vector<std::int64_t> shape;
};

std::string describe(const Tensor &tensor);

// A file of a bundle, with the tensors that it declares.
struct Graph {
    std::string name;
    std::filesystem::path path;
    std::string hash;                            // of all that a plan of it is compiled from
    std::vector<std::filesystem::path> weights;  // of all graphs; some engines take no links
    std::vector<Tensor> inputs, outputs;
    std::filesystem::path cuda_form{};  // the same graph for ONNX Runtime on CUDA, or none
};

// Inputs of the graphs, and what the PyTorch model computed of them.
struct SelfCheckFile {
    std::filesystem::path path;
    double tolerance;  // of the bundle's precision, relative to the largest number of an output
};

enum class ScoreKind { attention, denoising, both };
enum class TokenMask { words, words_eos, all };

// Match probability sigmoid(a score + b).
struct Calibration {
    double a, b;
};

struct Bundle {
    std::filesystem::path folder, tokenizer;
    std::int32_t max_length, bos, eos, pad;
    std::int32_t vocabulary;  // rows of the text encoder's embedding, the largest number if unknown
    TokenMask token_mask;

    int resolution;
    bool through_224;  // every image is first stretched to 224 x 224, which is what CLIP sees

    Graph image_encoder, text_encoder, pair_scorer;
    std::optional<Graph> matrix_scorer;
    std::optional<Lists> lists;  // of the matrix scorer, for pruned search
    int query_pool;              // side of the squares over which its finest queries are averaged
    std::vector<float> adapter;  // an input of the pair scorer; empty where it has none
    std::size_t fewest_heads;    // of a scored layer

    std::optional<SelfCheckFile> self_check;

    ScoreKind score;
    double denoising_weight;
    bool trained_for_matrix;     // the adapter, for that mode alone
    std::vector<double> levels;  // fractions s; a level's place here is its number
    // Of each mode's mean over all levels; none: not fitted.
    std::optional<Calibration> calibration, matrix_calibration;
};

// Reads and verifies a bundle whole, every file's size and SHA-256 included.
// Throws dsd::Error, code bundle.
Bundle read_bundle(const std::filesystem::path &folder);

}  // namespace dsd

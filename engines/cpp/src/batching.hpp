// How many items to push through each graph at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "bundle.hpp"

namespace dsd {

struct BatchSizes {
    std::size_t images, texts, passes;  // a pass: one image, one text, one noise level
    std::size_t walks, matched;    // per run of the matrix scorer: an image at a level, and texts
    std::size_t activation_bytes;  // of the most costly batch, by estimate
};

// What one item's activations cost, in FP32 numbers, is estimated generously from the widest point
// of each network, as the Python runtime does: see `batch_sizes` there.
inline BatchSizes batch_sizes(const Bundle &bundle, double budget_mb) {
    constexpr double kMostItems = 32, kMostMatched = 256;  // on CPUs nothing is gained beyond
    const auto fit = [&](double numbers, double most) {
        const double count = budget_mb * 1024 * 1024 / 4 / numbers;
        return static_cast<std::size_t>(std::clamp(count, 1.0, most));
    };
    const double side = bundle.resolution, length = bundle.max_length;
    const auto &latent = bundle.image_encoder.outputs[0].shape;
    const double n = static_cast<double>(latent[2]) * static_cast<double>(latent[3]);
    const auto width = static_cast<double>(bundle.text_encoder.outputs[0].shape[2]);
    const auto heads = static_cast<double>(bundle.fewest_heads);
    const double image = 3 * side * side * 128, text = length * 16 * width,
                 pass = n * (2 * heads * (n + length) + 16 * width);
    // Texts first, because every run repeats the walk.
    const double match = 3 * (bundle.query_pool > 1 ? std::floor(n / 4) : n) * heads * length;
    const std::size_t matched = fit(match, kMostMatched);
    const double walk = n * (2 * heads * n + 16 * width) + match * static_cast<double>(matched);
    // Of a single item, where it exceeds the budget.
    double bytes = std::max({budget_mb * 1024 * 1024, 4 * image, 4 * text, 4 * pass});
    if (bundle.matrix_scorer) bytes = std::max(bytes, 4 * walk);
    return {fit(image, kMostItems),
            fit(text, kMostItems),
            fit(pass, kMostItems),
            fit(walk, kMostItems),
            matched,
            static_cast<std::size_t>(std::min(bytes, 1e15))};
}

}  // namespace dsd

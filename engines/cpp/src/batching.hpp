// How many items to push through each graph at once.
#pragma once

#include <algorithm>
#include <cstddef>

#include "bundle.hpp"

namespace dsd {

struct BatchSizes {
    std::size_t images, texts, passes;  // a pass: one image, one text, one noise level
    std::size_t activation_bytes;       // of the most costly batch, by estimate
};

// What one item's activations cost, in FP32 numbers, is estimated generously from the widest point
// of each network, as the Python runtime does: see `batch_sizes` there.
inline BatchSizes batch_sizes(const Bundle &bundle, double budget_mb) {
    constexpr double kMost = 32;  // on CPUs nothing is gained beyond
    const auto fit = [&](double numbers) {
        const double count = budget_mb * 1024 * 1024 / 4 / numbers;
        return static_cast<std::size_t>(std::clamp(count, 1.0, kMost));
    };
    const double side = bundle.resolution, length = bundle.max_length;
    const auto &latent = bundle.image_encoder.outputs[0].shape;
    const double n = static_cast<double>(latent[2]) * static_cast<double>(latent[3]);
    const auto width = static_cast<double>(bundle.text_encoder.outputs[0].shape[2]);
    const auto heads = static_cast<double>(bundle.fewest_heads);
    const double image = 3 * side * side * 128, text = length * 16 * width,
                 pass = n * (2 * heads * (n + length) + 16 * width);
    // Of a single item, where it exceeds the budget.
    const double bytes = std::max({budget_mb * 1024 * 1024, 4 * image, 4 * text, 4 * pass});
    return {fit(image), fit(text), fit(pass), static_cast<std::size_t>(std::min(bytes, 1e15))};
}

}  // namespace dsd

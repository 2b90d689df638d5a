// How many items to push through each graph at once.
#pragma once

#include <algorithm>
#include <cstddef>

#include "bundle.hpp"

namespace dsd {

struct BatchSizes {
    std::size_t images, texts, passes;  // a pass: one image, one text, one noise level
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
    return {fit(3 * side * side * 128), fit(length * 16 * width),
            fit(n * (2 * heads * (n + length) + 16 * width))};
}

}  // namespace dsd

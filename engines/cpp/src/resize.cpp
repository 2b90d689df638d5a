#include <algorithm>
#include <cmath>

#include "image.hpp"

namespace dsd {
namespace {

constexpr int kFraction = 22;  // bits: sums of products with bytes still fit an int32

// Keys' cubic with a = -0.5.
double cubic(double x) {
    x = std::abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
    return 0;
}

// What one output pixel is made of: `weights` of the inputs from `first` on.
struct Taps {
    std::size_t first;
    std::vector<std::int32_t> weights;
};

std::vector<Taps> taps(std::size_t from, std::size_t to) {
    const double scale = static_cast<double>(from) / static_cast<double>(to);
    const double widening = std::max(scale, 1.0);  // the kernel widens when shrinking
    const double support = 2 * widening;
    std::vector<Taps> all(to);
    for (std::size_t i = 0; i < to; ++i) {
        const double center = (static_cast<double>(i) + 0.5) * scale;
        const auto first = static_cast<std::size_t>(std::max(center - support + 0.5, 0.0));
        const auto end = std::min(static_cast<std::size_t>(center + support + 0.5), from);
        std::vector<double> weights;
        double sum = 0;
        for (std::size_t j = first; j < end; ++j) {
            weights.push_back(cubic((static_cast<double>(j) - center + 0.5) * (1 / widening)));
            sum += weights.back();
        }
        all[i].first = first;
        for (double weight : weights) {
            const double fixed = weight / sum * (1 << kFraction);
            all[i].weights.push_back(static_cast<std::int32_t>(fixed + (fixed < 0 ? -0.5 : 0.5)));
        }
    }
    return all;
}

std::uint8_t round_off(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> kFraction, 0, 255));
}

constexpr std::int32_t kHalf = 1 << (kFraction - 1);

Rgb resize_width(const Rgb &image, std::size_t width) {
    Rgb result{image.height, width, std::vector<std::uint8_t>(image.height * width * 3)};
    const auto columns = taps(image.width, width);
    std::uint8_t *target = result.pixels.data();
    for (std::size_t y = 0; y < image.height; ++y) {
        const std::uint8_t *row = &image.pixels[y * image.width * 3];
        for (const Taps &column : columns) {
            std::int32_t sum[3] = {kHalf, kHalf, kHalf};
            const std::uint8_t *source = row + column.first * 3;
            for (std::int32_t weight : column.weights) {
                for (int c = 0; c < 3; ++c) sum[c] += weight * *source++;
            }
            for (std::int32_t value : sum) *target++ = round_off(value);
        }
    }
    return result;
}

Rgb resize_height(const Rgb &image, std::size_t height) {
    const std::size_t stride = image.width * 3;
    Rgb result{height, image.width, std::vector<std::uint8_t>(height * stride)};
    std::uint8_t *target = result.pixels.data();
    std::vector<std::int32_t> sums(stride);
    for (const Taps &row : taps(image.height, height)) {
        std::fill(sums.begin(), sums.end(), kHalf);
        const std::uint8_t *source = &image.pixels[row.first * stride];
        for (std::int32_t weight : row.weights) {
            for (std::int32_t &sum : sums) sum += weight * *source++;
        }
        for (std::int32_t sum : sums) *target++ = round_off(sum);
    }
    return result;
}

}  // namespace

Rgb resize(const Rgb &image, std::size_t height, std::size_t width) {
    if (image.width == width && image.height == height) return image;
    if (image.height == height) return resize_width(image, width);
    if (image.width == width) return resize_height(image, height);
    // Each pass rounds, so their order shows. This is Pillow's (13): the width first, but for
    // images that are much higher than they are wide.
    if (image.height > height && 2 * image.width < image.height + height) {
        return resize_width(resize_height(image, height), width);
    }
    return resize_height(resize_width(image, width), height);
}

}  // namespace dsd

// Attention of image tokens to text tokens, made sharp and averaged over the image tokens: all of
// LogSumExp pooling (Eq. 3) but its logarithm.
//
// For a head h, a text y and an image x, with keys and queries of `depth` numbers:
//
//   logits[t, i]    = sum_k keys[h, y, t, k] queries[h, k, x, i]
//   attention[t, i] = softmax over t
//   pooled[t]       = mean over i of exp(lambda attention[t, i])
//
// Attention itself is never written anywhere: a few image tokens at a time go through all three
// steps, and what is between the steps stays in the first-level cache.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace {

// As wide as the widest registers there are; of others it is several.
constexpr int64_t kLanes = 16;
constexpr size_t kBytes = sizeof(float) * kLanes;
typedef float Floats __attribute__((vector_size(kBytes)));
typedef float Unaligned __attribute__((vector_size(kBytes), aligned(sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kBytes)));

constexpr float kLog2 = 0.693147181f;

// What is below is compiled once for every kind of registers, within the functions that name them.
#define INLINE inline __attribute__((always_inline))

}  // namespace

extern "C" {

// One layer's heads. All arrays are dense, in this order:
struct Layer {
  const float* keys;     // (heads, texts, tokens, depth)
  const float* queries;  // (heads, depth, images, image_tokens)
  float* pooled;         // (heads, texts, counted, images)
  int64_t heads, texts, tokens, counted, depth, images, image_tokens;
  float lambda;  // at most 64: exp(lambda) summed over image tokens is a number
};

// Bits of the widest registers that this processor has and that are made use of: 512, 256 or, for
// any others, 128.
int64_t dsd_registers();

// With registers of so many bits. Returns 0, or 1 where memory or threads could not be had.
int dsd_pool_attention(const Layer* layers, int64_t count, int64_t threads, int64_t registers);
}

namespace {

// The second, if one is no number.
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

INLINE float sum(Floats x) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = x[i];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// 2^x for x in [-126, 127]: 2^n 2^f, |f| <= 1/2, and 2^f = sum of (f log 2)^k / k!, of which what is
// left out is below 1.3e-7. Of what is no number it makes what is no number.
INLINE Floats exponential(Floats x) {
  const Floats rounded = x + 12582912.0f;  // 1.5 2^23: n is in the last bits
  const Floats f = x - (rounded - 12582912.0f);
  Floats series = f * (kLog2 * kLog2 * kLog2 * kLog2 * kLog2 * kLog2 / 720) +
                  kLog2 * kLog2 * kLog2 * kLog2 * kLog2 / 120;
  series = series * f + kLog2 * kLog2 * kLog2 * kLog2 / 24;
  series = series * f + kLog2 * kLog2 * kLog2 / 6;
  series = series * f + kLog2 * kLog2 / 2;
  series = series * f + kLog2;
  series = series * f + 1.0f;
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(series) +
                                  (reinterpret_cast<Ints>(rounded) << 23));
}

// Logits of some text tokens and `width` times kLanes image tokens, and the largest so far.
template <int64_t rows, int width>
INLINE void multiply(const float* keys, int64_t depth, const Floats* queries,
                     const std::vector<int64_t>& places, Floats* logits, Floats* largest) {
  Floats sums[rows][width] = {};
  for (const int64_t place : places) {
    for (int64_t t = 0; t < rows; ++t)
      for (int c = 0; c < width; ++c) sums[t][c] += queries[c] * keys[t * depth + place];
    queries += width;
  }
  for (int64_t t = 0; t < rows; ++t)
    for (int c = 0; c < width; ++c) {
      logits[width * t + c] = sums[t][c];
      largest[c] = larger(largest[c], sums[t][c]);
    }
}

struct Scratch {
  Floats* queries;  // of one head and image: (steps, places, width)
  Floats* logits;   // (tokens, width)
  Floats* sums;     // (counted,)
  std::vector<int64_t> places;
};

// One head of one image with one text: so many text tokens at once, and `width` times kLanes image
// tokens.
template <int64_t rows, int width>
INLINE void pool(const Layer& layer, const float* keys, const Scratch& scratch, float* pooled) {
  const int64_t depth = layer.depth, tokens = layer.tokens, step = width * kLanes;
  const Floats* queries = scratch.queries;
  Floats *logits = scratch.logits, *sums = scratch.sums;
  Ints lane = {};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  std::fill(sums, sums + layer.counted, Floats{});
  for (int64_t start = 0; start < layer.image_tokens; start += step) {
    Floats largest[width];
    std::fill(largest, largest + width, Floats{} - INFINITY);
    int64_t t = 0;
    for (; t + rows <= tokens; t += rows)
      multiply<rows, width>(keys + t * depth, depth, queries, scratch.places,
                               logits + width * t, largest);
    if (t < tokens && tokens > rows) {  // the last ones, some of them a second time
      t = tokens - rows;
      multiply<rows, width>(keys + t * depth, depth, queries, scratch.places,
                               logits + width * t, largest);
      t = tokens;
    }
    for (; t < tokens; ++t)
      multiply<1, width>(keys + t * depth, depth, queries, scratch.places, logits + width * t,
                         largest);
    queries += width * scratch.places.size();

    Floats total[width] = {}, scale[width];
    for (t = 0; t < tokens; ++t)
      for (int c = 0; c < width; ++c) {
        Floats& logit = logits[width * t + c];
        logit = exponential(larger(Floats{} - 126.0f, (logit - largest[c]) * (1 / kLog2)));
        total[c] += logit;
      }
    for (int c = 0; c < width; ++c) scale[c] = layer.lambda / kLog2 / total[c];
    const int64_t left = layer.image_tokens - start;
    for (t = 0; t < layer.counted; ++t)
      for (int c = 0; c < width; ++c) {
        const Floats sharp = exponential(logits[width * t + c] * scale[c]);
        const int32_t inside = static_cast<int32_t>(std::min(left - c * kLanes, kLanes));
        sums[t] += left >= step ? sharp : lane < inside ? sharp : Floats{};
      }
  }
  for (int64_t t = 0; t < layer.counted; ++t)
    pooled[t * layer.images] = sum(sums[t]) / static_cast<float>(layer.image_tokens);
}

// One head of one image with all texts.
template <int64_t rows, int width>
INLINE void pool_texts(const Layer& layer, int64_t head, int64_t image, Scratch& scratch) {
  const int64_t step = width * kLanes, stride = layer.images * layer.image_tokens;
  const float* queries = layer.queries + head * layer.depth * stride + image * layer.image_tokens;
  // What an image has of its own is a row that is zero for all other images: those are left out.
  scratch.places.clear();
  for (int64_t k = 0; k < layer.depth; ++k) {
    const float* row = queries + k * stride;
    if (std::any_of(row, row + layer.image_tokens, [](float x) { return x != 0; }))
      scratch.places.push_back(k);
  }
  Floats* packed = scratch.queries;
  for (int64_t start = 0; start < layer.image_tokens; start += step)
    for (const int64_t place : scratch.places) {
      const float* from = queries + place * stride + start;
      const int64_t left = layer.image_tokens - start;
      for (int c = 0; c < width; ++c, from += kLanes, ++packed) {
        if (left >= (c + 1) * kLanes) {
          *packed = *reinterpret_cast<const Unaligned*>(from);
        } else {
          *packed = Floats{};
          for (int64_t i = 0; i < left - c * kLanes; ++i) (*packed)[i] = from[i];
        }
      }
    }
  const float* keys = layer.keys + head * layer.texts * layer.tokens * layer.depth;
  float* pooled = layer.pooled + head * layer.texts * layer.counted * layer.images + image;
  for (int64_t text = 0; text < layer.texts; ++text)
    pool<rows, width>(layer, keys + text * layer.tokens * layer.depth, scratch,
                pooled + text * layer.counted * layer.images);
}

// Sums fill half of the registers, and are enough to hide how long a multiplication takes.
#if defined(__x86_64__)
__attribute__((target("avx512f"))) void pool_head_512(const Layer& layer, int64_t head,
                                                      int64_t image, Scratch& scratch) {
  if (layer.image_tokens > kLanes)
    pool_texts<8, 2>(layer, head, image, scratch);
  else
    pool_texts<8, 1>(layer, head, image, scratch);
}

__attribute__((target("avx2,fma"))) void pool_head_256(const Layer& layer, int64_t head,
                                                       int64_t image, Scratch& scratch) {
  pool_texts<4, 1>(layer, head, image, scratch);
}
#endif

void pool_head_128(const Layer& layer, int64_t head, int64_t image, Scratch& scratch) {
  pool_texts<2, 1>(layer, head, image, scratch);
}

auto pool_head(int64_t registers) {
#if defined(__x86_64__)
  if (registers == 512) return pool_head_512;
  if (registers == 256) return pool_head_256;
#endif
  return pool_head_128;
}

struct Work {
  const Layer* layer;
  int64_t head, image;
};

// Takes work until there is none.
void pool_share(const std::vector<Work>& all, std::atomic<size_t>& next, int64_t registers) {
  size_t queries = 0, logits = 0, sums = 0, depth = 0;
  for (const Work& work : all) {
    const Layer& layer = *work.layer;
    const size_t steps = (layer.image_tokens + 2 * kLanes - 1) / (2 * kLanes);
    queries = std::max<size_t>(queries, steps * layer.depth * 2);
    logits = std::max<size_t>(logits, 2 * layer.tokens);
    sums = std::max<size_t>(sums, layer.counted);
    depth = std::max<size_t>(depth, layer.depth);
  }
  const auto free = [](void* memory) { ::operator delete(memory, std::align_val_t{kBytes}); };
  const std::unique_ptr<void, decltype(free)> memory(
      ::operator new(kBytes * (queries + logits + sums), std::align_val_t{kBytes}), free);
  Scratch scratch{static_cast<Floats*>(memory.get()), nullptr, nullptr, {}};
  scratch.logits = scratch.queries + queries;
  scratch.sums = scratch.logits + logits;
  scratch.places.reserve(depth);
  for (size_t i; (i = next++) < all.size();)
    pool_head(registers)(*all[i].layer, all[i].head, all[i].image, scratch);
}

}  // namespace

int64_t dsd_registers() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return 512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 256;
#endif
  return 128;
}

int dsd_pool_attention(const Layer* layers, int64_t count, int64_t threads,
                       int64_t registers) try {
  std::vector<Work> all;
  for (const Layer* layer = layers; layer != layers + count; ++layer)
    for (int64_t head = 0; head < layer->heads; ++head)
      for (int64_t image = 0; image < layer->images; ++image) all.push_back({layer, head, image});
  // What takes longest first, so that all threads end together.
  std::stable_sort(all.begin(), all.end(), [](const Work& a, const Work& b) {
    return a.layer->image_tokens > b.layer->image_tokens;
  });
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto share = [&] {
    try {
      pool_share(all, next, registers);
    } catch (const std::exception&) {
      failed = true;
    }
  };
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(share);
  } catch (const std::exception&) {
    failed = true;
  }
  share();
  for (std::thread& other : others) other.join();
  return failed;
} catch (const std::exception&) {
  return 1;
}

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

#if defined(__x86_64__)
#define X86 1
#if defined(__linux__) && __has_include(<amxbf16intrin.h>)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
#endif
#endif

namespace {

// As wide as the widest registers there are; of others it is several.
constexpr int64_t kLanes = 16;
constexpr size_t kBytes = sizeof(float) * kLanes;
typedef float Floats __attribute__((vector_size(kBytes)));
typedef float Unaligned __attribute__((vector_size(kBytes), aligned(sizeof(float)), may_alias));
typedef int32_t Ints __attribute__((vector_size(kBytes)));

// Registers that hold a matrix (Intel's AMX): 16 rows of 64 bytes, here of 32 BF16 numbers.
constexpr int64_t kTile = 8192;  // bits
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;

constexpr int64_t ceil(int64_t number, int64_t part) { return (number + part - 1) / part; }

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

// Bits of a register that holds a matrix, if this processor multiplies such in BF16 and Linux
// grants their use to this process, or 0.
int64_t dsd_tiles();

// With registers of so many bits: products are of BF16 numbers with tiles, of FP32 with others.
// Returns 0, or 1 where memory or threads could not be had.
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

// 2^x for x in [-126, 127]: 2^n 2^f, |f| <= 1/2, and 2^f = sum of (f log 2)^k / k!; what is
// left out of it is below 1.3e-7. Of what is no number it makes what is no number.
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
  Floats* queries;  // of one head and image, in the order they are multiplied in
  Floats* keys;     // of one head and text, in BF16
  Floats* logits;   // (tokens, width), twice
  Floats* sums;     // (counted,)
  std::vector<int64_t> places;
};

// From logits of `width` times kLanes image tokens, of which so many are left, to sums.
template <int width>
INLINE void sharpen(const Layer& layer, const Floats* largest, int64_t left, Floats* logits,
                    Floats* sums) {
  Floats total[width] = {}, scale[width];
  for (int64_t t = 0; t < layer.tokens; ++t)
    for (int c = 0; c < width; ++c) {
      Floats& logit = logits[width * t + c];
      logit = exponential(larger(Floats{} - 126.0f, (logit - largest[c]) * (1 / kLog2)));
      total[c] += logit;
    }
  for (int c = 0; c < width; ++c) scale[c] = layer.lambda / kLog2 / total[c];
  Ints lane = {};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t t = 0; t < layer.counted; ++t)
    for (int c = 0; c < width; ++c) {
      const Floats sharp = exponential(logits[width * t + c] * scale[c]);
      const int32_t inside = static_cast<int32_t>(std::min(left - c * kLanes, kLanes));
      sums[t] += left >= width * kLanes ? sharp : lane < inside ? sharp : Floats{};
    }
}

INLINE void finish(const Layer& layer, const Floats* sums, float* pooled) {
  for (int64_t t = 0; t < layer.counted; ++t)
    pooled[t * layer.images] = sum(sums[t]) / static_cast<float>(layer.image_tokens);
}

// kLanes numbers of a row, of which so many are left; the others are zero.
INLINE Floats load(const float* row, int64_t left) {
  if (left >= kLanes) return *reinterpret_cast<const Unaligned*>(row);
  Floats some = {};
  for (int64_t i = 0; i < left; ++i) some[i] = row[i];
  return some;
}

// One head of one image with one text: so many text tokens at once, and `width` times kLanes image
// tokens.
template <int64_t rows, int width>
INLINE void pool(const Layer& layer, const float* keys, const Scratch& scratch, float* pooled) {
  const int64_t depth = layer.depth, tokens = layer.tokens;
  const Floats* queries = scratch.queries;
  Floats* logits = scratch.logits;
  std::fill(scratch.sums, scratch.sums + layer.counted, Floats{});
  for (int64_t left = layer.image_tokens; left > 0; left -= width * kLanes) {
    Floats largest[width];
    std::fill(largest, largest + width, Floats{} - INFINITY);
    int64_t t = 0;
    for (; t + rows <= tokens; t += rows)
      multiply<rows, width>(keys + t * depth, depth, queries, scratch.places, logits + width * t,
                            largest);
    if (t < tokens && tokens > rows) {  // the last ones, some of them a second time
      t = tokens - rows;
      multiply<rows, width>(keys + t * depth, depth, queries, scratch.places, logits + width * t,
                            largest);
      t = tokens;
    }
    for (; t < tokens; ++t)
      multiply<1, width>(keys + t * depth, depth, queries, scratch.places, logits + width * t,
                         largest);
    queries += width * scratch.places.size();
    sharpen<width>(layer, largest, left, logits, scratch.sums);
  }
  finish(layer, scratch.sums, pooled);
}

// One head of one image, where its arrays have it.
struct Part {
  const float *keys, *queries;
  float* pooled;
  int64_t stride;  // from one number of a query to the next
};

Part part(const Layer& layer, int64_t head, int64_t image) {
  const int64_t stride = layer.images * layer.image_tokens;
  return {layer.keys + head * layer.texts * layer.tokens * layer.depth,
          layer.queries + head * layer.depth * stride + image * layer.image_tokens,
          layer.pooled + head * layer.texts * layer.counted * layer.images + image, stride};
}

// One head of one image with all texts.
template <int64_t rows, int width>
INLINE void pool_texts(const Layer& layer, int64_t head, int64_t image, Scratch& scratch) {
  const Part at = part(layer, head, image);
  // What an image has of its own is a row that is zero for all other images: those are left out.
  scratch.places.clear();
  for (int64_t k = 0; k < layer.depth; ++k) {
    const float* row = at.queries + k * at.stride;
    if (std::any_of(row, row + layer.image_tokens, [](float x) { return x != 0; }))
      scratch.places.push_back(k);
  }
  Floats* packed = scratch.queries;
  for (int64_t start = 0; start < layer.image_tokens; start += width * kLanes)
    for (const int64_t place : scratch.places)
      for (int64_t i = start; i < start + width * kLanes; i += kLanes)
        *packed++ = load(at.queries + place * at.stride + i, layer.image_tokens - i);
  for (int64_t text = 0; text < layer.texts; ++text)
    pool<rows, width>(layer, at.keys + text * layer.tokens * layer.depth, scratch,
                      at.pooled + text * layer.counted * layer.images);
}

// Sums fill half of the registers, and are enough to hide how long a multiplication takes.
#if X86
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

#if TILES
#define WITH_TILES __attribute__((target("avx512f,avx512bw,amx-tile,amx-bf16")))

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The BF16 that is nearest, in the upper half.
INLINE Ints nearest(Ints bits) { return bits + 0x7fff + ((bits >> 16) & 1); }

INLINE uint16_t to_bf16(float number) {
  uint32_t bits;
  __builtin_memcpy(&bits, &number, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// As pool_texts, with products in BF16 of whole tiles.
template <int width>
WITH_TILES INLINE void pool_texts_by_tiles(const Layer& layer, int64_t head, int64_t image,
                                           Scratch& scratch) {
  const Part at = part(layer, head, image);
  const int64_t blocks = ceil(layer.depth, kTileDepth), depth = blocks * kTileDepth;
  const int64_t rows = ceil(layer.tokens, kTileRows) * kTileRows, tile = kTileDepth / 2;
  // Of kLanes image tokens: two numbers each in a row, one after the other, depth / 2 rows.
  Floats* packed = scratch.queries;
  const int64_t steps = ceil(layer.image_tokens, width * kLanes);
  for (int64_t start = 0; start < steps * width * kLanes; start += kLanes)
    for (int64_t k = 0; k < depth; k += 2) {
      Ints pair[2];
      for (int i = 0; i < 2; ++i) {
        const int64_t left = k + i < layer.depth ? layer.image_tokens - start : 0;
        pair[i] = nearest(
            reinterpret_cast<Ints>(load(at.queries + (k + i) * at.stride + start, left)));
      }
      const Ints low = (pair[0] >> 16) & 0xffff, high = pair[1] & ~0xffff;
      *packed++ = reinterpret_cast<Floats>(low | high);
    }
  uint16_t* keys = reinterpret_cast<uint16_t*>(scratch.keys);
  std::fill(keys, keys + rows * depth, 0);
  for (int64_t text = 0; text < layer.texts; ++text) {
    const float* from = at.keys + text * layer.tokens * layer.depth;
    for (int64_t t = 0; t < layer.tokens; ++t)
      for (int64_t k = 0; k < layer.depth; ++k)
        keys[t * depth + k] = to_bf16(from[t * layer.depth + k]);
    std::fill(scratch.sums, scratch.sums + layer.counted, Floats{});
    asm volatile("" ::: "memory");  // compilers do not know that tiles are read from memory
    // Tiles take long, but on their own: the next ones are multiplied while these are sharpened.
    for (int64_t step = 0; step <= steps; ++step) {
      if (step < steps) {
        const Floats* queries = scratch.queries + step * width * blocks * tile;
        Floats* logits = scratch.logits + step % 2 * width * rows;
        for (int64_t t = 0; t < rows; t += kTileRows) {
          _tile_zero(0);
          _tile_zero(1);
          for (int64_t block = 0; block < blocks; ++block) {
            _tile_loadd(2, keys + t * depth + block * kTileDepth, depth * sizeof(uint16_t));
            _tile_loadd(3, queries + block * tile, kBytes);
            _tile_dpbf16ps(0, 2, 3);
            if (width == 2) {
              _tile_loadd(4, queries + (blocks + block) * tile, kBytes);
              _tile_dpbf16ps(1, 2, 4);
            }
          }
          _tile_stored(0, logits + width * t, width * kBytes);
          if (width == 2) _tile_stored(1, logits + width * t + 1, width * kBytes);
        }
      }
      if (step > 0) {
        Floats* logits = scratch.logits + (step - 1) % 2 * width * rows;
        Floats largest[width];
        for (int c = 0; c < width; ++c) largest[c] = logits[c];
        for (int64_t t = 1; t < layer.tokens; ++t)
          for (int c = 0; c < width; ++c) largest[c] = larger(largest[c], logits[width * t + c]);
        const int64_t left = layer.image_tokens - (step - 1) * width * kLanes;
        sharpen<width>(layer, largest, left, logits, scratch.sums);
      }
    }
    finish(layer, scratch.sums, at.pooled + text * layer.counted * layer.images);
  }
}

WITH_TILES void pool_head_tiles(const Layer& layer, int64_t head, int64_t image,
                                Scratch& scratch) {
  TileConfig ours, others;  // who used tiles on this thread before may rely on theirs
  std::fill(ours.row_bytes, ours.row_bytes + 5, kBytes);
  std::fill(ours.rows, ours.rows + 5, kTileRows);
  _tile_storeconfig(&others);
  _tile_loadconfig(&ours);
  if (layer.image_tokens > kLanes)
    pool_texts_by_tiles<2>(layer, head, image, scratch);
  else
    pool_texts_by_tiles<1>(layer, head, image, scratch);
  _tile_loadconfig(&others);
}
#endif

void pool_head_128(const Layer& layer, int64_t head, int64_t image, Scratch& scratch) {
  pool_texts<2, 1>(layer, head, image, scratch);
}

auto pool_head(int64_t registers, int64_t depth) {
#if TILES
  // Filled to less than a row, tiles are no faster.
  if (registers == kTile && depth > kTileDepth) return pool_head_tiles;
#endif
#if X86
  if (registers >= 512) return pool_head_512;
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
  int64_t queries = 0, keys = 0, tokens = 0, depth = 0;
  for (const Work& work : all) {
    const Layer& layer = *work.layer;
    const int64_t steps = 2 * ceil(layer.image_tokens, 2 * kLanes);
    const int64_t rows = ceil(layer.tokens, kTileRows) * kTileRows;
    const int64_t blocks = ceil(layer.depth, kTileDepth);
    queries = std::max(queries, steps * std::max(layer.depth, blocks * kTileDepth / 2));
    keys = std::max(keys, rows * blocks);  // 32 BF16 numbers are as large as Floats
    tokens = std::max(tokens, rows);
    depth = std::max(depth, layer.depth);
  }
  const auto free = [](void* memory) { ::operator delete(memory, std::align_val_t{kBytes}); };
  const std::unique_ptr<void, decltype(free)> memory(
      ::operator new(kBytes * (queries + keys + 5 * tokens), std::align_val_t{kBytes}), free);
  Scratch scratch{};
  scratch.queries = static_cast<Floats*>(memory.get());
  scratch.keys = scratch.queries + queries;
  scratch.logits = scratch.keys + keys;
  scratch.sums = scratch.logits + 4 * tokens;
  scratch.places.reserve(depth);
  for (size_t i; (i = next++) < all.size();)
    pool_head(registers, all[i].layer->depth)(*all[i].layer, all[i].head, all[i].image, scratch);
}

}  // namespace

int64_t dsd_tiles() {
#if TILES
  static const bool granted = [] {
    unsigned eax, ebx, ecx, edx;
    const bool known = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1) &&
                       (edx >> 24 & 1) && __builtin_cpu_supports("avx512bw");
    return known && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
  }();
  return granted ? kTile : 0;
#else
  return 0;
#endif
}

int64_t dsd_registers() {
#if X86
  if (__builtin_cpu_supports("avx512f")) return 512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 256;
#endif
  return 128;
}

int dsd_pool_attention(const Layer* layers, int64_t count, int64_t threads,
                       int64_t registers) try {
  if (registers != dsd_tiles()) registers = std::min(registers, dsd_registers());
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

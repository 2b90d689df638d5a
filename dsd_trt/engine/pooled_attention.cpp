// Attention of image tokens to text tokens, made sharp and averaged over the image tokens: all of
// LogSumExp pooling (Eq. 3) but its logarithm.
//
// For a head h, a text y and an image x, with keys and queries of `depth` numbers:
//
//   logits[t, i]    = sum_k keys[h, y, t, k] queries[h, k, x, i]
//   attention[t, i] = softmax over t
//   pooled[t]       = mean over i of exp(lambda attention[t, i])
//   moments[t, k]   = sum over i of (exp(lambda attention[t, i]) - 1) basis[i, k], on request
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
#include <utility>
#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "for x86-64 and Arm (AArch64): elsewhere OpenVINO writes the maps"
#endif

#if defined(__x86_64__) && defined(__linux__) && \
    (__has_include(<amxintrin.h>) || __has_include(<amxbf16intrin.h>))
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
#endif

namespace {

constexpr int64_t kWidest = 16;  // FP32 numbers of the widest registers
constexpr size_t kAlignment = sizeof(float) * kWidest;

// Registers that hold a matrix (Intel's AMX): 16 rows of 64 bytes, here of 32 BF16 numbers.
constexpr int64_t kTileRows = 16, kTileDepth = 32;

constexpr int kMoments = 3;  // of a map: its mass, and its mass times x and y

constexpr int64_t ceil(int64_t number, int64_t part) { return (number + part - 1) / part; }

constexpr float kLog2 = 0.693147181f;

// Everything a target's functions call is compiled within them, for their target.
#define INLINE inline __attribute__((always_inline))

}  // namespace

extern "C" {

// One layer's heads. All arrays are dense, in this order:
struct Layer {
    const float *keys;     // (heads, texts, tokens, depth)
    const float *queries;  // (heads, depth, images, image_tokens)
    float *pooled;         // (heads, texts, counted, images)
    const float *basis;    // (image_tokens, 3); or null, and no moments
    float *moments;        // (heads, texts, counted, images, 3)
    int64_t heads, texts, tokens, counted, depth, images, image_tokens;
    float lambda;  // at most 64: exp(lambda) summed over image tokens is a number
};

// Bytes of a layer, by which a library of another version shows.
int64_t dsd_layer_bytes();

// Bits of the widest registers that this processor has: 512 or 256 on x86-64, and 0 where it has
// narrower ones, with which it is slower than to write maps; 128 on Arm.
int64_t dsd_registers();

// Bits of a register that holds a matrix, if this processor multiplies such in BF16 and Linux
// grants their use to this process, or 0.
int64_t dsd_tiles();

// With registers of so many bits, which are 256 on x86-64, or what either of those above returned:
// products are of BF16 numbers with tiles, of FP32 with others. Returns 0, or 1 where memory or
// threads could not be had.
int dsd_pool_attention(const Layer *layers, int64_t count, int64_t threads, int64_t registers);
}

namespace {

struct Scratch {
    float *queries;  // of one head and image, in the order they are multiplied in
    float *keys;     // of one head and text, in BF16
    float *logits;   // (tokens, width, lanes), twice
    float *sums;     // (counted, 1, lanes), or with moments (counted, 1 + kMoments, lanes)
    float *basis;    // (steps, kMoments, width, lanes)
    std::vector<int64_t> places;
};

// One head of one image, where its arrays have it.
struct Part {
    const float *keys, *queries;
    float *pooled, *moments;
    int64_t stride;  // from one number of a query to the next
};

// Sums that a text token has.
int64_t sums_each(const Layer &layer) { return layer.basis == nullptr ? 1 : 1 + kMoments; }

Part part(const Layer &layer, int64_t head, int64_t image) {
    const int64_t stride = layer.images * layer.image_tokens;
    const int64_t place = head * layer.texts * layer.counted * layer.images + image;
    return {layer.keys + head * layer.texts * layer.tokens * layer.depth,
            layer.queries + head * layer.depth * stride + image * layer.image_tokens,
            layer.pooled + place,
            layer.basis == nullptr ? nullptr : layer.moments + place * kMoments, stride};
}

// Registers of FP32 numbers. Compilers make slow code of wider ones than a target has, and GCC
// takes no vector's size from a template.
#if defined(__aarch64__)
struct Bits128 {  // Arm's NEON, which every AArch64 processor has: 32 registers
    static constexpr int64_t kLanes = 4;
    typedef float Floats __attribute__((vector_size(16)));
    typedef float Unaligned __attribute__((vector_size(16), aligned(sizeof(float)), may_alias));
    typedef int32_t Ints __attribute__((vector_size(16)));
};
#else
struct Bits256 {
    static constexpr int64_t kLanes = 8;
    typedef float Floats __attribute__((vector_size(32)));
    typedef float Unaligned __attribute__((vector_size(32), aligned(sizeof(float)), may_alias));
    typedef int32_t Ints __attribute__((vector_size(32)));
};

struct Bits512 {
    static constexpr int64_t kLanes = 16;
    typedef float Floats __attribute__((vector_size(64)));
    typedef float Unaligned __attribute__((vector_size(64), aligned(sizeof(float)), may_alias));
    typedef int32_t Ints __attribute__((vector_size(64)));
};
#endif

template <class Registers>
struct Kernel {
    static constexpr int64_t kLanes = Registers::kLanes;
    using Floats = typename Registers::Floats;
    using Ints = typename Registers::Ints;
    static constexpr float kRound = 12582912.0f;  // 1.5 2^23: in a sum, the last bits are integers

    // The second, if one is no number.
    static INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

    static INLINE float sum(Floats x) {
        float each[kLanes];
        for (int i = 0; i < kLanes; ++i) each[i] = x[i];
        for (int half = kLanes / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) each[i] += each[i + half];
        return each[0];
    }

    // 2^f - 1 for |f| <= 1/2, divided by f: 2^f = sum of (f log 2)^k / k!; what is left out of it
    // is below 1.3e-7.
    static INLINE Floats taylor(Floats f) {
        Floats series = f * (kLog2 * kLog2 * kLog2 * kLog2 * kLog2 * kLog2 / 720) +
                        kLog2 * kLog2 * kLog2 * kLog2 * kLog2 / 120;
        series = series * f + kLog2 * kLog2 * kLog2 * kLog2 / 24;
        series = series * f + kLog2 * kLog2 * kLog2 / 6;
        series = series * f + kLog2 * kLog2 / 2;
        return series * f + kLog2;
    }

    // 2^x for x in [-126, 127]: 2^n 2^f. Of what is no number it makes what is no number.
    static INLINE Floats exponential(Floats x) {
        const Floats rounded = x + kRound, f = x - (rounded - kRound);
        const Floats part = taylor(f) * f + 1.0f;
        return reinterpret_cast<Floats>(reinterpret_cast<Ints>(part) +
                                        (reinterpret_cast<Ints>(rounded) << 23));
    }

    // 2^x - 1, to as many digits where x is small: 2^n (2^f - 1) + (2^n - 1).
    static INLINE Floats exponential_less_one(Floats x) {
        const Floats rounded = x + kRound, f = x - (rounded - kRound);
        const Floats scale = reinterpret_cast<Floats>(reinterpret_cast<Ints>(Floats{} + 1.0f) +
                                                      (reinterpret_cast<Ints>(rounded) << 23));
        return taylor(f) * f * scale + (scale - 1.0f);
    }

    // As many numbers of a row as a register has, of which so many are left; the others are zero.
    static INLINE Floats load(const float *row, int64_t left) {
        if (left >= kLanes) return *reinterpret_cast<const typename Registers::Unaligned *>(row);
        Floats some = {};
        for (int64_t i = 0; i < left; ++i) some[i] = row[i];
        return some;
    }

    // Logits of some text tokens and `width` registers of image tokens, and the largest so far.
    template <int64_t rows, int width>
    static INLINE void multiply(const float *keys, int64_t depth, const Floats *queries,
                                const std::vector<int64_t> &places, Floats *logits,
                                Floats *largest) {
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

    // Of register c of `width`, the numbers of image tokens, of which so many are left.
    template <int width>
    static INLINE Floats of_image(Floats x, int c, int64_t left) {
        Ints lane = {};
        for (int i = 0; i < kLanes; ++i) lane[i] = i;
        const int32_t inside = static_cast<int32_t>(std::min(left - c * kLanes, kLanes));
        return left >= width * kLanes ? x : lane < inside ? x : Floats{};
    }

    // From logits of `width` registers of image tokens, of which so many are left, to sums.
    template <int width>
    static INLINE void sharpen(const Layer &layer, const Floats *largest, int64_t left,
                               Floats *logits, const Floats *basis, Floats *sums) {
        Floats total[width] = {}, scale[width];
        for (int64_t t = 0; t < layer.tokens; ++t)
            for (int c = 0; c < width; ++c) {
                Floats &logit = logits[width * t + c];
                logit = exponential(larger(Floats{} - 126.0f, (logit - largest[c]) * (1 / kLog2)));
                total[c] += logit;
            }
        for (int c = 0; c < width; ++c) scale[c] = layer.lambda / kLog2 / total[c];
        if (layer.basis == nullptr) {
            for (int64_t t = 0; t < layer.counted; ++t)
                for (int c = 0; c < width; ++c)
                    sums[t] +=
                        of_image<width>(exponential(logits[width * t + c] * scale[c]), c, left);
            return;
        }
        for (int64_t t = 0; t < layer.counted; ++t, sums += 1 + kMoments) {
            Floats found[1 + kMoments] = {};
            for (int c = 0; c < width; ++c) {
                const Floats less = exponential_less_one(logits[width * t + c] * scale[c]);
                found[0] += of_image<width>(less + 1.0f, c, left);
                // Beyond the image, the basis is zero.
                for (int k = 0; k < kMoments; ++k) found[1 + k] += less * basis[width * k + c];
            }
            for (int k = 0; k <= kMoments; ++k) sums[k] += found[k];
        }
    }

    static INLINE void finish(const Layer &layer, const Floats *sums, const Part &at,
                              int64_t text) {
        const int64_t each = sums_each(layer);
        for (int64_t t = 0; t < layer.counted; ++t, sums += each) {
            const int64_t place = (text * layer.counted + t) * layer.images;
            at.pooled[place] = sum(sums[0]) / static_cast<float>(layer.image_tokens);
            for (int64_t k = 1; k < each; ++k) at.moments[place * kMoments + k - 1] = sum(sums[k]);
        }
    }

    // Every `width` registers of image tokens: each column of the basis, zero beyond the image.
    template <int width>
    static INLINE void pack_basis(const Layer &layer, float *packed) {
        if (layer.basis == nullptr) return;
        for (int64_t start = 0; start < layer.image_tokens; start += width * kLanes)
            for (int k = 0; k < kMoments; ++k)
                for (int64_t i = start; i < start + width * kLanes; ++i)
                    *packed++ = i < layer.image_tokens ? layer.basis[i * kMoments + k] : 0;
    }

    // One head of one image with one text: so many text tokens at once, and `width` registers of
    // image tokens.
    template <int64_t rows, int width>
    static INLINE void pool(const Layer &layer, const Part &at, int64_t text,
                            const Scratch &scratch) {
        const int64_t depth = layer.depth, tokens = layer.tokens;
        const float *keys = at.keys + text * tokens * depth;
        const Floats *queries = reinterpret_cast<Floats *>(scratch.queries);
        Floats *logits = reinterpret_cast<Floats *>(scratch.logits);
        const Floats *basis = reinterpret_cast<Floats *>(scratch.basis);
        Floats *sums = reinterpret_cast<Floats *>(scratch.sums);
        std::fill(sums, sums + layer.counted * sums_each(layer), Floats{});
        for (int64_t left = layer.image_tokens; left > 0; left -= width * kLanes) {
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
                multiply<1, width>(keys + t * depth, depth, queries, scratch.places,
                                   logits + width * t, largest);
            queries += width * scratch.places.size();
            sharpen<width>(layer, largest, left, logits, basis, sums);
            basis += kMoments * width;
        }
        finish(layer, sums, at, text);
    }

    // One head of one image with all texts.
    template <int64_t rows, int width>
    static INLINE void pool_texts(const Layer &layer, int64_t head, int64_t image,
                                  Scratch &scratch) {
        static_assert(2 * kWidest % (width * kLanes) == 0);  // for what scratch has room
        const Part at = part(layer, head, image);
        // What an image has of its own is a row that is zero for all others: those are left out.
        scratch.places.clear();
        for (int64_t k = 0; k < layer.depth; ++k) {
            const float *row = at.queries + k * at.stride;
            if (std::any_of(row, row + layer.image_tokens, [](float x) { return x != 0; }))
                scratch.places.push_back(k);
        }
        Floats *packed = reinterpret_cast<Floats *>(scratch.queries);
        for (int64_t start = 0; start < layer.image_tokens; start += width * kLanes)
            for (const int64_t place : scratch.places)
                for (int64_t i = start; i < start + width * kLanes; i += kLanes)
                    *packed++ = load(at.queries + place * at.stride + i, layer.image_tokens - i);
        pack_basis<width>(layer, scratch.basis);
        for (int64_t text = 0; text < layer.texts; ++text)
            pool<rows, width>(layer, at, text, scratch);
    }
};

// Sums fill most of the registers, and are enough to hide how long a multiplication takes.
#if defined(__aarch64__)
// With 6 rows GCC 12 keeps some of the sums in memory.
void pool_head_128(const Layer &layer, int64_t head, int64_t image, Scratch &scratch) {
    Kernel<Bits128>::pool_texts<5, 4>(layer, head, image, scratch);
}

auto pool_head(int64_t, int64_t) { return pool_head_128; }
#else
__attribute__((target("avx512f"))) void pool_head_512(const Layer &layer, int64_t head,
                                                      int64_t image, Scratch &scratch) {
    if (layer.image_tokens > kWidest)
        Kernel<Bits512>::pool_texts<8, 2>(layer, head, image, scratch);
    else
        Kernel<Bits512>::pool_texts<8, 1>(layer, head, image, scratch);
}

__attribute__((target("avx2,fma"))) void pool_head_256(const Layer &layer, int64_t head,
                                                       int64_t image, Scratch &scratch) {
    Kernel<Bits256>::pool_texts<6, 2>(layer, head, image, scratch);
}

#if TILES
#define WITH_TILES __attribute__((target("avx512f,avx512bw,amx-tile,amx-bf16")))

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Products in BF16, of whole tiles.
struct Tiles : Kernel<Bits512> {
    static constexpr int64_t kBits = 8192, kTileBytes = 64;    // of all, and of a row
    static constexpr int64_t kTile = kTileDepth / 2 * kLanes;  // of two BF16 numbers each

    // The BF16 that is nearest, in the upper half.
    static INLINE Ints nearest(Ints bits) { return bits + 0x7fff + ((bits >> 16) & 1); }

    static INLINE uint16_t to_bf16(float number) {
        uint32_t bits;
        __builtin_memcpy(&bits, &number, sizeof bits);
        return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }

    // Of kLanes image tokens: two numbers each in a row, one after the other, depth / 2 rows.
    static INLINE void pack_queries(const Layer &layer, const Part &at, int64_t depth,
                                    int64_t image_tokens, float *packed) {
        Ints *pairs = reinterpret_cast<Ints *>(packed);
        for (int64_t start = 0; start < image_tokens; start += kLanes)
            for (int64_t k = 0; k < depth; k += 2) {
                Ints pair[2];
                for (int i = 0; i < 2; ++i) {
                    const int64_t left = k + i < layer.depth ? layer.image_tokens - start : 0;
                    const float *row = at.queries + (k + i) * at.stride + start;
                    pair[i] = nearest(reinterpret_cast<Ints>(load(row, left)));
                }
                *pairs++ = ((pair[0] >> 16) & 0xffff) | (pair[1] & ~0xffff);
            }
    }

    // Logits of all text tokens and `width` registers of image tokens.
    template <int width>
    WITH_TILES static INLINE void multiply(const uint16_t *keys, int64_t rows, int64_t depth,
                                           const float *queries, float *logits) {
        const float *others = queries + depth / kTileDepth * kTile;  // in the second register
        for (int64_t t = 0; t < rows; t += kTileRows, keys += kTileRows * depth) {
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t k = 0, place = 0; k < depth; k += kTileDepth, place += kTile) {
                _tile_loadd(2, keys + k, depth * sizeof(uint16_t));
                _tile_loadd(3, queries + place, kTileBytes);
                _tile_dpbf16ps(0, 2, 3);
                if (width == 2) {
                    _tile_loadd(4, others + place, kTileBytes);
                    _tile_dpbf16ps(1, 2, 4);
                }
            }
            _tile_stored(0, logits + width * t * kLanes, width * kTileBytes);
            if (width == 2) _tile_stored(1, logits + (width * t + 1) * kLanes, width * kTileBytes);
        }
    }

    // As the other, of all text tokens' logits.
    template <int width>
    static INLINE void sharpen(const Layer &layer, int64_t left, float *from, const float *basis,
                               float *to) {
        Floats *logits = reinterpret_cast<Floats *>(from);
        Floats largest[width];
        for (int c = 0; c < width; ++c) largest[c] = logits[c];
        for (int64_t t = 1; t < layer.tokens; ++t)
            for (int c = 0; c < width; ++c) largest[c] = larger(largest[c], logits[width * t + c]);
        Kernel::sharpen<width>(layer, largest, left, logits,
                               reinterpret_cast<const Floats *>(basis),
                               reinterpret_cast<Floats *>(to));
    }

    template <int width>
    WITH_TILES static INLINE void pool_texts(const Layer &layer, int64_t head, int64_t image,
                                             Scratch &scratch) {
        const Part at = part(layer, head, image);
        const int64_t depth = ceil(layer.depth, kTileDepth) * kTileDepth;
        const int64_t rows = ceil(layer.tokens, kTileRows) * kTileRows;
        const int64_t steps = ceil(layer.image_tokens, width * kLanes);
        pack_queries(layer, at, depth, steps * width * kLanes, scratch.queries);
        pack_basis<width>(layer, scratch.basis);
        uint16_t *keys = reinterpret_cast<uint16_t *>(scratch.keys);
        std::fill(keys, keys + rows * depth, 0);
        for (int64_t text = 0; text < layer.texts; ++text) {
            const float *from = at.keys + text * layer.tokens * layer.depth;
            for (int64_t t = 0; t < layer.tokens; ++t)
                for (int64_t k = 0; k < layer.depth; ++k)
                    keys[t * depth + k] = to_bf16(from[t * layer.depth + k]);
            std::fill(scratch.sums, scratch.sums + layer.counted * sums_each(layer) * kLanes, 0.0f);
            asm volatile("" ::: "memory");  // compilers do not know that tiles are read from memory
            // Tiles take long, but on their own: the next are multiplied while these are sharpened.
            float *logits = scratch.logits, *next = logits + width * rows * kLanes;
            multiply<width>(keys, rows, depth, scratch.queries, logits);
            for (int64_t step = 1; step <= steps; ++step, std::swap(logits, next)) {
                if (step < steps)
                    multiply<width>(keys, rows, depth,
                                    scratch.queries + step * width * kLanes * depth / 2, next);
                sharpen<width>(layer, layer.image_tokens - (step - 1) * width * kLanes, logits,
                               scratch.basis + (step - 1) * kMoments * width * kLanes,
                               scratch.sums);
            }
            finish(layer, reinterpret_cast<Floats *>(scratch.sums), at, text);
        }
    }
};

WITH_TILES void pool_head_tiles(const Layer &layer, int64_t head, int64_t image, Scratch &scratch) {
    TileConfig ours, others;  // who used tiles on this thread before may rely on theirs
    std::fill(ours.row_bytes, ours.row_bytes + 5, Tiles::kTileBytes);
    std::fill(ours.rows, ours.rows + 5, kTileRows);
    _tile_storeconfig(&others);
    _tile_loadconfig(&ours);
    if (layer.image_tokens > kWidest)
        Tiles::pool_texts<2>(layer, head, image, scratch);
    else
        Tiles::pool_texts<1>(layer, head, image, scratch);
    _tile_loadconfig(&others);
}
#endif

auto pool_head(int64_t registers, [[maybe_unused]] int64_t depth) {
#if TILES
    // Filled to less than a row, tiles are no faster.
    if (registers == Tiles::kBits && depth > kTileDepth) return pool_head_tiles;
#endif
    return registers == 256 ? pool_head_256 : pool_head_512;
}
#endif

struct Work {
    const Layer *layer;
    int64_t head, image;
};

// Takes work until there is none.
void pool_share(const std::vector<Work> &all, std::atomic<size_t> &next, int64_t registers) {
    int64_t queries = 0, keys = 0, tokens = 0, depth = 0, sums = 0, basis = 0;
    for (const Work &work : all) {
        const Layer &layer = *work.layer;
        const int64_t image_tokens = ceil(layer.image_tokens, 2 * kWidest) * 2 * kWidest;
        const int64_t rows = ceil(layer.tokens, kTileRows) * kTileRows;
        const int64_t blocks = ceil(layer.depth, kTileDepth);
        queries = std::max(queries, image_tokens * std::max(layer.depth, blocks * kTileDepth / 2));
        keys = std::max(keys, rows * blocks * kTileDepth / 2);
        tokens = std::max(tokens, rows * kWidest);
        depth = std::max(depth, layer.depth);
        sums = std::max(sums, layer.counted * sums_each(layer) * kWidest);
        if (layer.basis != nullptr) basis = std::max(basis, image_tokens * kMoments);
    }
    const auto free = [](void *memory) { ::operator delete(memory, std::align_val_t{kAlignment}); };
    const std::unique_ptr<void, decltype(free)> memory(
        ::operator new(sizeof(float) * (queries + keys + 4 * tokens + sums + basis),
                       std::align_val_t{kAlignment}),
        free);
    Scratch scratch{};
    scratch.queries = static_cast<float *>(memory.get());
    scratch.keys = scratch.queries + queries;
    scratch.logits = scratch.keys + keys;
    scratch.sums = scratch.logits + 4 * tokens;
    scratch.basis = scratch.sums + sums;
    scratch.places.reserve(depth);
    for (size_t i; (i = next++) < all.size();)
        pool_head(registers, all[i].layer->depth)(*all[i].layer, all[i].head, all[i].image,
                                                  scratch);
}

}  // namespace

int64_t dsd_layer_bytes() { return sizeof(Layer); }

int64_t dsd_tiles() {
#if TILES
    static const bool granted = [] {
        __builtin_cpu_init();
        unsigned eax, ebx, ecx, edx;
        const bool known = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1) &&
                           (edx >> 24 & 1) && __builtin_cpu_supports("avx512bw");
        return known && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    }();
    return granted ? Tiles::kBits : 0;
#else
    return 0;
#endif
}

int64_t dsd_registers() {
#if defined(__aarch64__)
    return 128;
#else
    __builtin_cpu_init();  // not all compilers' libraries do it on loading
    if (__builtin_cpu_supports("avx512f")) return 512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 256 : 0;
#endif
}

int dsd_pool_attention(const Layer *layers, int64_t count, int64_t threads, int64_t registers) try {
    std::vector<Work> all;
    for (const Layer *layer = layers; layer != layers + count; ++layer)
        for (int64_t head = 0; head < layer->heads; ++head)
            for (int64_t image = 0; image < layer->images; ++image)
                all.push_back({layer, head, image});
    // What takes longest first, so that all threads end together.
    std::stable_sort(all.begin(), all.end(), [](const Work &a, const Work &b) {
        return a.layer->image_tokens > b.layer->image_tokens;
    });
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    const auto share = [&] {
        try {
            pool_share(all, next, registers);
        } catch (const std::exception &) {
            failed = true;
        }
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (int64_t i = 1; i < threads; ++i) others.emplace_back(share);
    } catch (const std::exception &) {
        failed = true;
    }
    share();
    for (std::thread &other : others) other.join();
    return failed;
} catch (const std::exception &) {
    return 1;
}

// The kernel of dsd_trt/engine/pooled_attention.cpp as a program, for emulators.
//
// pool_attention KERNEL < layers > pooled. Numbers are those of this processor, one after the
// other:
//
//   in:   layers, threads; and per layer its seven sizes, moments, lambda, keys, queries, and the
//         basis if it has moments
//   out:  bits of the registers, bits of tiles; and per layer what is pooled, and its moments

#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace {

enum Size { kHeads, kTexts, kTokens, kCounted, kDepth, kImages, kImageTokens, kSizes };

struct Layer {  // the kernel's
    const float *keys, *queries;
    float *pooled;
    const float *basis;
    float *moments;
    int64_t sizes[kSizes];
    float lambda;
};

using Array = std::unique_ptr<float[]>;  // no longer than it has to be, for sanitizers

[[noreturn]] void fail(const char *why) {
    std::fprintf(stderr, "pool_attention: %s\n", why);
    std::exit(1);
}

template <class T>
void read(T *to, size_t count) {
    if (std::fread(to, sizeof(T), count, stdin) != count) fail("the input ends early");
}

template <class T>
void write(const T *from, size_t count) {
    if (std::fwrite(from, sizeof(T), count, stdout) != count) fail("the output is closed");
}

template <class Function>
Function *find(void *kernel, const char *name) {
    void *found = dlsym(kernel, name);
    if (found == nullptr) fail(dlerror());
    return reinterpret_cast<Function *>(found);
}

}  // namespace

int main(int, char **arguments) {
    void *kernel = dlopen(arguments[1], RTLD_NOW);
    if (kernel == nullptr) fail(dlerror());
    const int64_t widths[] = {find<int64_t()>(kernel, "dsd_registers")(),
                              find<int64_t()>(kernel, "dsd_tiles")()};
    int64_t count, threads;
    read(&count, 1);
    read(&threads, 1);
    std::vector<Layer> layers(count);
    std::vector<Array> arrays;
    std::vector<size_t> pooled, moments;
    const auto array = [&](size_t size) {
        arrays.emplace_back(new float[size]);
        return arrays.back().get();
    };
    for (Layer &layer : layers) {
        const int64_t (&sizes)[kSizes] = layer.sizes;
        int64_t each;  // 3, or 0
        read(layer.sizes, kSizes);
        read(&each, 1);
        read(&layer.lambda, 1);
        const size_t keys = sizes[kHeads] * sizes[kTexts] * sizes[kTokens] * sizes[kDepth];
        const size_t queries = sizes[kHeads] * sizes[kDepth] * sizes[kImages] * sizes[kImageTokens];
        pooled.push_back(sizes[kHeads] * sizes[kTexts] * sizes[kCounted] * sizes[kImages]);
        float *given = array(keys);
        read(given, keys);
        layer.keys = given;
        given = array(queries);
        read(given, queries);
        layer.queries = given;
        layer.pooled = array(pooled.back());
        for (size_t i = 0; i < pooled.back(); ++i) layer.pooled[i] = NAN;
        layer.basis = nullptr;
        layer.moments = nullptr;
        moments.push_back(each * pooled.back());
        if (each == 0) continue;
        given = array(sizes[kImageTokens] * each);
        read(given, sizes[kImageTokens] * each);
        layer.basis = given;
        layer.moments = array(moments.back());
        for (size_t i = 0; i < moments.back(); ++i) layer.moments[i] = NAN;
    }
    const auto pool =
        find<int(const Layer *, int64_t, int64_t, int64_t)>(kernel, "dsd_pool_attention");
    if (pool(layers.data(), count, threads, widths[0]) != 0) fail("no memory or threads");
    write(widths, 2);
    for (int64_t i = 0; i < count; ++i) {
        write(layers[i].pooled, pooled[i]);
        if (moments[i] > 0) write(layers[i].moments, moments[i]);
    }
}

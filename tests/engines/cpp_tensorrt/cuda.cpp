// Stands in for the CUDA runtime: the GPU's memory is the host's, and its addresses are checked.

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "stand_in.hpp"

namespace {

std::mutex mutex;
std::map<const std::byte *, std::size_t> sizes;  // of what is allocated, by address
std::size_t used = 0;

// What is still in `sizes` is no leak to the sanitizers.
struct AllIsFreed {
    ~AllIsFreed() {
        if (!sizes.empty()) std::abort();
    }
} all_is_freed;

}  // namespace

extern "C" {

bool stand_in_on_device(const void *start, std::size_t size) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto *from = static_cast<const std::byte *>(start);
    auto after = sizes.upper_bound(from);
    if (after == sizes.begin()) return false;
    const auto &[address, room] = *--after;
    return from + size <= address + room;
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorNoDevice           ? "no device"
           : error == cudaErrorMemoryAllocation ? "out of memory"
                                                : "invalid value";
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = std::stoi(setting("STAND_IN_DEVICES", "1"));
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 6;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, std::size_t size) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (used + size > std::stoull(setting("STAND_IN_MEMORY", "1000000000"))) {
        return cudaErrorMemoryAllocation;
    }
    *memory = std::malloc(size);
    sizes[static_cast<std::byte *>(*memory)] = size;
    used += size;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = sizes.find(static_cast<std::byte *>(memory));
    if (found == sizes.end()) std::abort();
    used -= found->second;
    sizes.erase(found);
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, std::size_t size,
                            enum cudaMemcpyKind kind, cudaStream_t stream) {
    const bool up = kind == cudaMemcpyHostToDevice;
    if (!stand_in_on_device(up ? target : source, size) ||
        stand_in_on_device(up ? source : target, 1)) {
        return cudaErrorInvalidValue;
    }
    stream->add([=] { std::memcpy(target, source, size); });
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = new CUstream_st;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // threads get in each other's way
    for (const auto &work : stream->work) work();
    stream->work.clear();
    return stream->failed ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream->work.empty()) std::abort();  // nobody waited for it
    delete stream;
    return cudaSuccess;
}
}

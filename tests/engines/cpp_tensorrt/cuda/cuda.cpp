// Stands in for the CUDA runtime: the GPUs' memory is the host's, and its addresses are checked.

#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "stream.hpp"

namespace {

std::mutex mutex;

struct Allocation {
    std::size_t size;
    int device;
};
std::map<const std::byte *, Allocation> allocated;  // by address
std::map<int, std::size_t> used;                    // by device

thread_local int current = 0;

std::string setting(const char *name, const char *otherwise) {
    const char *value = std::getenv(name);
    return value ? value : otherwise;
}

int devices() { return std::stoi(setting("STAND_IN_DEVICES", "1")); }

// What is still in `allocated` is no leak to the sanitizers.
struct AllIsFreed {
    ~AllIsFreed() {
        if (!allocated.empty()) std::abort();
    }
} all_is_freed;

}  // namespace

extern "C" {

bool stand_in_on_device(const void *start, std::size_t size, int device) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto *from = static_cast<const std::byte *>(start);
    auto after = allocated.upper_bound(from);
    if (after == allocated.begin()) return false;
    const auto &[address, found] = *--after;
    return from + size <= address + found.size && found.device == device;
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorNoDevice           ? "no device"
           : error == cudaErrorMemoryAllocation ? "out of memory"
                                                : "invalid value";
}

cudaError_t cudaGetDeviceCount(int *count) {
    if (std::getenv("STAND_IN_DRIVER")) dlopen("libcuda.so.1", RTLD_NOW);  // as NVIDIA's does
    *count = devices();
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= devices()) return cudaErrorInvalidDevice;
    current = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    // The second and further ones are of another kind.
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : device ? 9 : 6;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, std::size_t size) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (used[current] + size > std::stoull(setting("STAND_IN_MEMORY", "1000000000"))) {
        return cudaErrorMemoryAllocation;
    }
    *memory = std::malloc(size);
    allocated[static_cast<std::byte *>(*memory)] = {size, current};
    used[current] += size;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = allocated.find(static_cast<std::byte *>(memory));
    if (found == allocated.end()) std::abort();
    used[found->second.device] -= found->second.size;
    allocated.erase(found);
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, std::size_t size,
                            enum cudaMemcpyKind kind, cudaStream_t stream) {
    const bool up = kind == cudaMemcpyHostToDevice;
    if (!stand_in_on_device(up ? target : source, size, stream->device) ||
        stand_in_on_device(up ? source : target, 1, stream->device)) {
        return cudaErrorInvalidValue;
    }
    stream->add([=] { std::memcpy(target, source, size); });
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = new CUstream_st{current};
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

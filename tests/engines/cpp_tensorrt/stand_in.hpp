// What the stand-in for TensorRT asks of the CUDA runtime it was built for: host.cpp answers for
// the stand-in in cuda/, device.cpp for NVIDIA's. Environment variables say how both behave:
//
//     STAND_IN_FAILS  the engine cannot run, which it says "at once" or, in cuda/ alone, "later"
//     STAND_IN_LOG    a file that gets a line a run: profile and rows
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

// Memory of the GPU.
struct Range {
    void *start;
    std::size_t size;
};

// Whether it lies within what is allocated on the GPU that is current.
bool on_device(const Range &range);

// Gets the addresses, in host memory, of what it reads, and of what it writes.
using Work = std::function<void(const std::vector<void *> &, const std::vector<void *> &)>;

// Has the host compute something after all that was put into a stream before. Whether that worked.
bool add_to(cudaStream_t stream, const std::vector<Range> &inputs,
            const std::vector<Range> &outputs, Work work);

// Has the stream fail when it gets there.
void fail_in(cudaStream_t stream);

inline std::string setting(const char *name, const char *otherwise) {
    const char *value = std::getenv(name);
    return value ? value : otherwise;
}

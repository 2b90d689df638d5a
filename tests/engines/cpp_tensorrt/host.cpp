// For the stand-in for the CUDA runtime, whose GPUs' memory is the host's.

#include "cuda/stream.hpp"
#include "stand_in.hpp"

bool on_device(const Range &range) {
    int current = 0;
    return cudaGetDevice(&current) == cudaSuccess &&
           stand_in_on_device(range.start, range.size, current);
}

bool add_to(cudaStream_t stream, const std::vector<Range> &inputs,
            const std::vector<Range> &outputs, Work work) {
    std::vector<void *> starts[2];
    for (const Range &range : inputs) starts[0].push_back(range.start);
    for (const Range &range : outputs) starts[1].push_back(range.start);
    stream->add([work, from = starts[0], to = starts[1]] { work(from, to); });
    return true;
}

void fail_in(cudaStream_t stream) {
    stream->add([=] { stream->failed = true; });
}

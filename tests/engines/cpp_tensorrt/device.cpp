// For NVIDIA's CUDA runtime: inputs are copied from the GPU, computed with on the host, and outputs
// copied back, all in the stream's order.

#include <list>
#include <memory>
#include <mutex>
#include <utility>

#include "stand_in.hpp"

namespace {

struct FreePinned {
    void operator()(void *memory) const { cudaFreeHost(memory); }
};
using Pinned = std::unique_ptr<void, FreePinned>;  // pageable memory would be copied at once

struct Job {
    cudaStream_t stream;
    std::vector<Pinned> memory[2];  // of inputs and outputs
    Work work;
};

std::mutex mutex;
std::list<Job> jobs;  // which streams may still be busy with

// A job's memory is freed when its stream is found idle, by the next job.
Job &add_job(cudaStream_t stream, Work work) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (cudaStreamQuery(stream) == cudaSuccess) {
        jobs.remove_if([=](const Job &job) { return job.stream == stream; });
    }
    jobs.push_back({stream, {}, std::move(work)});
    return jobs.back();
}

void *pinned(std::vector<Pinned> &memory, std::size_t size) {
    void *start = nullptr;
    if (cudaMallocHost(&start, size) != cudaSuccess) return nullptr;
    return memory.emplace_back(start).get();
}

void compute(void *data) {
    const Job &job = *static_cast<Job *>(data);
    std::vector<void *> starts[2];
    for (int side : {0, 1}) {
        for (const Pinned &one : job.memory[side]) starts[side].push_back(one.get());
    }
    job.work(starts[0], starts[1]);
}

}  // namespace

bool on_device(const Range &range) {
    int current = 0;
    if (cudaGetDevice(&current) != cudaSuccess) return false;
    const auto *start = static_cast<const std::byte *>(range.start);
    for (const std::byte *at : {start, start + range.size - 1}) {
        cudaPointerAttributes found{};
        if (cudaPointerGetAttributes(&found, at) != cudaSuccess ||
            found.type != cudaMemoryTypeDevice || found.device != current) {
            return false;
        }
    }
    return true;
}

bool add_to(cudaStream_t stream, const std::vector<Range> &inputs,
            const std::vector<Range> &outputs, Work work) {
    Job &job = add_job(stream, std::move(work));
    for (const Range &range : inputs) {
        void *copy = pinned(job.memory[0], range.size);
        if (!copy || cudaMemcpyAsync(copy, range.start, range.size, cudaMemcpyDeviceToHost,
                                     stream) != cudaSuccess) {
            return false;
        }
    }
    for (const Range &range : outputs) {
        if (!pinned(job.memory[1], range.size)) return false;
    }
    if (cudaLaunchHostFunc(stream, compute, &job) != cudaSuccess) return false;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        if (cudaMemcpyAsync(outputs[i].start, job.memory[1][i].get(), outputs[i].size,
                            cudaMemcpyHostToDevice, stream) != cudaSuccess) {
            return false;
        }
    }
    return true;
}

void fail_in(cudaStream_t) {}  // nothing that the host does makes a stream fail

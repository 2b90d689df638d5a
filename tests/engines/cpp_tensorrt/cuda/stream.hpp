// What the stand-in for the CUDA runtime shares with host.cpp. Environment variables say how it
// behaves:
//
//     STAND_IN_DEVICES  how many GPUs there are; 1 where it is not set
//     STAND_IN_MEMORY   bytes of each GPU's memory
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

// Work is done when somebody waits for it, so that what is read too early or freed too early shows.
// It is one thread's until then, in which the stream's own device is current.
struct CUstream_st {
    int device;
    std::vector<std::function<void()>> work{};
    std::thread::id thread{};
    bool failed = false;

    void add(std::function<void()> one) {
        int current = 0;
        cudaGetDevice(&current);
        if (work.empty()) thread = std::this_thread::get_id();
        if (thread != std::this_thread::get_id() || current != device) std::abort();
        work.push_back(std::move(one));
    }
};

// Whether a range lies within one allocation on a device.
extern "C" bool stand_in_on_device(const void *start, std::size_t size, int device);

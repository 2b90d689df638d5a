// What the two stand-ins know of each other. Environment variables say how they behave:
//
//     STAND_IN_DEVICES  how many GPUs there are; 1 where it is not set
//     STAND_IN_MEMORY   bytes of the GPU's memory
//     STAND_IN_FAILS    the engine cannot run, which it says "at once" or "later"
//     STAND_IN_LOG      a file that gets a line a run: profile and rows
#pragma once

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// Work is done when somebody waits for it, so that what is read too early or freed too early shows.
// It is one thread's until then.
struct CUstream_st {
    std::vector<std::function<void()>> work;
    std::thread::id thread;
    bool failed = false;

    void add(std::function<void()> one) {
        if (work.empty()) thread = std::this_thread::get_id();
        if (thread != std::this_thread::get_id()) std::abort();
        work.push_back(std::move(one));
    }
};

// Whether a range lies within one allocation.
extern "C" bool stand_in_on_device(const void *start, std::size_t size);

inline std::string setting(const char *name, const char *otherwise) {
    const char *value = std::getenv(name);
    return value ? value : otherwise;
}

// Three threads score with one scorer, on a device, and get what one thread gets. Which device is
// current stays what it was.

#include <cuda_runtime_api.h>

#include <dsd/scorer.hpp>
#include <iostream>
#include <thread>

int current() {
    int device = -1;
    cudaGetDevice(&device);
    return device;
}

int main(int, char **arguments) {
    dsd::Options options;
    options.device = arguments[3];
    const dsd::Scorer scorer(arguments[1], options);
    const std::vector<dsd::Image> images{dsd::Image::file(arguments[2])};
    const std::vector<std::string> texts{"a red circle", "a blue square", "a green star"};
    const auto expected = scorer.score(images, texts).scores;
    if (current() != 0) return 1;
    std::vector<float> got[3];
    bool kept[3] = {};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 3; ++thread) {
        threads.emplace_back([&, thread] {
            for (int i = 0; i < 5; ++i) got[thread] = scorer.score(images, texts).scores;
            kept[thread] = current() == 0;
        });
    }
    for (auto &thread : threads) thread.join();
    for (int thread = 0; thread < 3; ++thread) {
        if (got[thread] != expected || !kept[thread]) return 1;
    }
    std::cout << "equal\n";
}

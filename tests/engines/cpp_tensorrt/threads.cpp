// Three threads score with one scorer, and get what one thread gets.

#include <dsd/scorer.hpp>
#include <iostream>
#include <thread>

int main(int, char **arguments) {
    const dsd::Scorer scorer(arguments[1]);
    const std::vector<dsd::Image> images{dsd::Image::file(arguments[2])};
    const std::vector<std::string> texts{"a red circle", "a blue square", "a green star"};
    const auto expected = scorer.score(images, texts).scores;
    std::vector<float> got[3];
    std::vector<std::thread> threads;
    for (auto &scores : got) {
        threads.emplace_back([&] {
            for (int i = 0; i < 5; ++i) scores = scorer.score(images, texts).scores;
        });
    }
    for (auto &thread : threads) thread.join();
    for (const auto &scores : got) {
        if (scores != expected) return 1;
    }
    std::cout << "equal\n";
}

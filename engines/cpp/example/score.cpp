// Prints what `dsd-trt score --bundle BUNDLE --format csv IMAGES... TEXTS` prints.
//
//     dsd-score [--device DEVICE] [--memory-budget-mb MB] [--mode MODE] [--no-self-check]
//         [--top-k K [--error E]] BUNDLE IMAGES... TEXTS
//
// DEVICE is cpu, cuda or cuda:N; MB bounds the memory of activations, 1024 by default; MODE is
// auto, the default, pair or matrix. With --top-k it prints the K best texts of each image, best
// first, by the search of the Python command's --prune; E is the accepted probability that an image
// loses one of them, 0.01 by default. IMAGES are JPEG and PNG files, and folders of them; TEXTS is
// a UTF-8 file with one text a line. Exits with 3 where some images, texts or pairs could not be
// scored, else as the Python command does.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iostream>
#include <map>
#include <set>

#include "dsd/scorer.hpp"

namespace fs = std::filesystem;

namespace {

std::vector<fs::path> images_of(const fs::path &path) {
    if (!fs::exists(path)) {
        throw dsd::Error(dsd::ErrorCode::input, "no file or directory '" + path.string() + "'");
    }
    if (!fs::is_directory(path)) return {path};
    std::vector<fs::path> found;
    for (auto entry = fs::recursive_directory_iterator(path); entry != fs::end(entry); ++entry) {
        std::string ending = entry->path().extension().string();
        for (char &c : ending) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
        const bool hidden = entry->path().filename().string()[0] == '.';
        if (hidden && entry->is_directory()) entry.disable_recursion_pending();
        const bool wanted = std::set<std::string>{".jpg", ".jpeg", ".png"}.count(ending);
        if (!hidden && wanted && entry->is_regular_file()) found.push_back(entry->path());
    }
    std::sort(found.begin(), found.end());
    return found;
}

std::vector<std::string> read_texts(const fs::path &path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) throw dsd::Error(dsd::ErrorCode::input, "cannot read texts from " + path.string());
    std::vector<std::string> texts;
    for (std::string line; std::getline(stream, line);) {
        if (texts.empty() && line.compare(0, 3, "\xEF\xBB\xBF") == 0) line.erase(0, 3);
        const char *spaces = " \t\r\n\f\v";
        const auto first = line.find_first_not_of(spaces);
        if (first == line.npos) continue;
        texts.push_back(line.substr(first, line.find_last_not_of(spaces) - first + 1));
    }
    return texts;
}

std::string cell(const std::string &text) {
    if (text.find_first_of(",\"\r\n") == text.npos) return text;
    std::string quoted = "\"";
    for (char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
    return quoted + '"';
}

// The fewest digits that are read back as the same number; nothing where there is none.
std::string shortest(float number) {
    if (std::isnan(number)) return "";
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof digits, number).ptr;
    return std::string(digits, end);
}

struct Arguments {
    dsd::Options options;
    std::size_t top_k = 0;  // 0 is all
    double error = 0.01;
    std::vector<std::string> rest;
};

void print_row(const std::string &image, const std::string &text, float score, float probability) {
    std::cout << cell(image) << ',' << cell(text) << ',' << shortest(score) << ','
              << shortest(probability) << '\n';
}

// Prints the best texts of each image. Returns what could not be scored.
std::vector<dsd::Failure> print_best(const dsd::Scorer &scorer, const Arguments &given,
                                     const std::vector<std::string> &names,
                                     const std::vector<dsd::Image> &images,
                                     const std::vector<std::string> &texts) {
    const dsd::Best best = scorer.best_texts(images, texts, given.top_k, given.error);
    for (std::size_t image = 0; image < images.size(); ++image) {
        for (const dsd::Found &it : best.found[image]) {
            print_row(names[image], texts[it.index], it.score, it.probability);
        }
    }
    if (!best.warning.empty()) std::cerr << "warning: " << best.warning << '\n';
    std::cerr << "passes: " << best.passes << ", of which " << best.walks << " made lists\n";
    return best.failures;
}

std::vector<dsd::Failure> print_all(const dsd::Scorer &scorer,
                                    const std::vector<std::string> &names,
                                    const std::vector<dsd::Image> &images,
                                    const std::vector<std::string> &texts) {
    const dsd::Matrix matrix = scorer.score(images, texts);
    for (std::size_t i = 0; i < matrix.scores.size(); ++i) {
        if (std::isnan(matrix.scores[i])) continue;
        print_row(names[i / matrix.texts], texts[i % matrix.texts], matrix.scores[i],
                  matrix.probabilities[i]);
    }
    return matrix.failures;
}

int run(const Arguments &given) {
    const std::vector<std::string> &arguments = given.rest;
    const dsd::Scorer scorer(arguments.front(), given.options);
    const auto texts = read_texts(arguments.back());
    std::vector<std::string> names;
    std::vector<dsd::Image> images;
    for (std::size_t i = 1; i + 1 < arguments.size(); ++i) {
        for (const fs::path &path : images_of(arguments[i])) {
            names.push_back(path.string());
            images.push_back(dsd::Image::file(path));
        }
    }
    if (!scorer.has_probability()) {
        std::cerr << "warning: no match probabilities: none were fitted to this bundle's scores, "
                     "which rank without them. Fit them to labelled pairs: dsd-trt calibrate "
                  << arguments.front() << " --data TABLE\n";
    }
    std::cout << "image,text,score,probability\n";
    const std::vector<dsd::Failure> failures = given.top_k
                                                   ? print_best(scorer, given, names, images, texts)
                                                   : print_all(scorer, names, images, texts);
    for (const dsd::Failure &failure : failures) {
        if (failure.image) std::cerr << names[*failure.image];
        if (failure.image && failure.text) std::cerr << " and ";
        if (failure.text) std::cerr << "'" << texts[*failure.text] << "'";
        std::cerr << ": " << failure.reason << '\n';
    }
    return failures.empty() ? 0 : 3;
}

template <typename Number>
bool read_number(const std::string &text, Number &number) {
    const char *end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, number);
    return read.ec == std::errc() && read.ptr == end;
}

// Takes the options off the front of the arguments; whether they are understood.
bool read_options(Arguments &given) {
    std::vector<std::string> &arguments = given.rest;
    dsd::Options &options = given.options;
    bool error = false;
    while (!arguments.empty() && arguments.front().compare(0, 2, "--") == 0) {
        const std::string name = arguments.front();
        const std::size_t taken = name == "--no-self-check" ? 1 : 2;
        if (arguments.size() < taken) return false;
        const std::string value = arguments[taken - 1];
        if (name == "--no-self-check") {
            options.self_check = false;
        } else if (name == "--device") {
            options.device = value;
        } else if (name == "--mode") {
            const std::map<std::string, dsd::Mode> modes{{"auto", dsd::Mode::automatic},
                                                         {"pair", dsd::Mode::pair},
                                                         {"matrix", dsd::Mode::matrix}};
            const auto found = modes.find(value);
            if (found == modes.end()) return false;
            options.mode = found->second;
        } else if (name == "--memory-budget-mb") {
            if (!read_number(value, options.memory_budget_mb)) return false;
        } else if (name == "--top-k") {
            if (!read_number(value, given.top_k) || given.top_k == 0) return false;
        } else if (name == "--error") {
            if (!read_number(value, given.error)) return false;
            error = true;
        } else {
            return false;
        }
        arguments.erase(arguments.begin(), arguments.begin() + static_cast<std::ptrdiff_t>(taken));
    }
    return arguments.size() >= 3 && (given.top_k || !error);
}

}  // namespace

int main(int argc, char **argv) {
    Arguments given;
    given.rest.assign(argv + 1, argv + argc);
    if (!read_options(given)) {
        std::cerr << "usage: dsd-score [--device cpu|cuda|cuda:N] [--memory-budget-mb MB] "
                     "[--mode auto|pair|matrix] [--no-self-check] [--top-k K [--error E]] "
                     "BUNDLE IMAGES... TEXTS\n";
        return 2;
    }
    try {
        return run(given);
    } catch (const dsd::Error &error) {
        std::cerr << "error: " << error.what() << '\n';
        return error.code() == dsd::ErrorCode::engine ? 4 : 2;
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}

// Prints what `dsd-trt score --bundle BUNDLE --format csv IMAGES... TEXTS` prints.
//
//     dsd-score [--device DEVICE] [--memory-budget-mb MB] [--mode MODE] [--no-self-check]
//         BUNDLE IMAGES... TEXTS
//
// DEVICE is cpu, cuda or cuda:N; MB bounds the memory of activations, 1024 by default; MODE is
// auto, the default, pair or matrix. IMAGES are JPEG and PNG files, and folders of them; TEXTS is a
// UTF-8 file with one text a line. Exits with 3 where some images, texts or pairs could not be
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

int run(const std::vector<std::string> &arguments, const dsd::Options &options) {
    const dsd::Scorer scorer(arguments.front(), options);
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
    const dsd::Matrix matrix = scorer.score(images, texts);
    std::cout << "image,text,score,probability\n";
    for (std::size_t i = 0; i < matrix.scores.size(); ++i) {
        if (std::isnan(matrix.scores[i])) continue;
        std::cout << cell(names[i / matrix.texts]) << ',' << cell(texts[i % matrix.texts]) << ','
                  << shortest(matrix.scores[i]) << ',' << shortest(matrix.probabilities[i]) << '\n';
    }
    for (const dsd::Failure &failure : matrix.failures) {
        if (failure.image) std::cerr << names[*failure.image];
        if (failure.image && failure.text) std::cerr << " and ";
        if (failure.text) std::cerr << "'" << texts[*failure.text] << "'";
        std::cerr << ": " << failure.reason << '\n';
    }
    return matrix.failures.empty() ? 0 : 3;
}

// Takes the options off the front of the arguments; whether they are understood.
bool read_options(std::vector<std::string> &arguments, dsd::Options &options) {
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
            const char *end = value.data() + value.size();
            const auto read = std::from_chars(value.data(), end, options.memory_budget_mb);
            if (read.ec != std::errc() || read.ptr != end) return false;
        } else {
            return false;
        }
        arguments.erase(arguments.begin(), arguments.begin() + static_cast<std::ptrdiff_t>(taken));
    }
    return arguments.size() >= 3;
}

}  // namespace

int main(int argc, char **argv) {
    std::vector<std::string> arguments(argv + 1, argv + argc);
    dsd::Options options;
    if (!read_options(arguments, options)) {
        std::cerr << "usage: dsd-score [--device cpu|cuda|cuda:N] [--memory-budget-mb MB] "
                     "[--mode auto|pair|matrix] [--no-self-check] BUNDLE IMAGES... TEXTS\n";
        return 2;
    }
    try {
        return run(arguments, options);
    } catch (const dsd::Error &error) {
        std::cerr << "error: " << error.what() << '\n';
        return error.code() == dsd::ErrorCode::engine ? 4 : 2;
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}

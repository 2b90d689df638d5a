#include "engine.hpp"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <system_error>

#include "dsd/error.hpp"

namespace dsd {

Device read_device(const std::string &text) {
    if (text.empty()) return {Device::Kind::unnamed, 0};
    if (text == "cpu") return {Device::Kind::cpu, 0};
    if (text == "cuda") return {Device::Kind::cuda, 0};
    constexpr std::string_view kStart = "cuda:";
    int number = 0;
    const char *digits = text.c_str() + kStart.size(), *end = text.c_str() + text.size();
    if (text.compare(0, kStart.size(), kStart) == 0 && digits != end && *digits != '-') {
        const auto read = std::from_chars(digits, end, number);
        if (read.ec == std::errc() && read.ptr == end) return {Device::Kind::cuda, number};
    }
    throw Error(ErrorCode::input,
                "no device named '" + text + "': it is cpu, cuda, or cuda:N with a number");
}

bool batched(const Tensor &tensor) { return tensor.shape[0] < 0; }

std::size_t bytes_of_one(const Tensor &tensor) {
    std::size_t count = size_of(tensor.type);
    for (std::int64_t size : tensor.shape) count *= size < 0 ? 1 : static_cast<std::size_t>(size);
    return count;
}

std::size_t bytes_of(const Tensor &tensor, const Sizes &sizes) {
    std::size_t count = size_of(tensor.type);
    for (std::int64_t size : shape_of(tensor, sizes)) count *= static_cast<std::size_t>(size);
    return count;
}

std::vector<std::int64_t> shape_of(const Tensor &tensor, const Sizes &sizes) {
    std::vector<std::int64_t> shape = tensor.shape;
    for (std::int64_t &size : shape) {
        if (size == kItemSize) size = static_cast<std::int64_t>(sizes.items);
        if (size == kTextSize) size = static_cast<std::int64_t>(sizes.texts);
        if (size == kTokenSize) size = static_cast<std::int64_t>(sizes.tokens);
    }
    return shape;
}

bool agree(const std::vector<std::int64_t> &found, const Tensor &declared) {
    return std::equal(found.begin(), found.end(), declared.shape.begin(), declared.shape.end(),
                      [](auto size, auto wanted) { return size < 0 || size == wanted; });
}

void check_signature(const std::string &path, const std::vector<Tensor> &declared,
                     const std::vector<std::string> &names,
                     const std::function<bool(std::size_t, const Tensor &)> &agrees) {
    bool good = names.size() == declared.size();
    std::string wanted;
    for (const Tensor &tensor : declared) {
        const auto at = std::find(names.begin(), names.end(), tensor.name);
        good = good && at != names.end() &&
               agrees(static_cast<std::size_t>(at - names.begin()), tensor);
        wanted += (wanted.empty() ? "" : "; ") + describe(tensor);
    }
    if (!good) {
        throw Error(ErrorCode::engine,
                    path + " does not have the tensors that its bundle says it has: " + wanted);
    }
}

}  // namespace dsd

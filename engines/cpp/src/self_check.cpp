#include "self_check.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <locale>
#include <map>
#include <sstream>

#include "dsd/error.hpp"

namespace dsd {
namespace {

constexpr double kLeast = 1e-2;  // of a largest number: of smaller ones FP32 keeps fewer digits
constexpr const char *kAdvice =
    "The bundle's weights, a plan, a driver or the processor is not what it was. Copy the bundle "
    "again, build its plans again (dsd-trt build), or try another engine; Options::self_check = "
    "false (dsd-score --no-self-check) scores all the same";

double half(std::uint16_t bits) {
    const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
    double value =
        exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    if (exponent == 0x1F) value = fraction ? std::nan("") : HUGE_VAL;
    return bits & 0x8000 ? -value : value;
}

template <typename Number>
Number at(const Bytes &bytes, std::size_t place) {
    Number number;
    std::memcpy(&number, &bytes[place * sizeof number], sizeof number);
    return number;
}

std::vector<double> numbers(const Bytes &bytes, ElementType type) {
    std::vector<double> found(bytes.size() / size_of(type));
    for (std::size_t i = 0; i < found.size(); ++i) {
        switch (type) {
            case ElementType::uint8: found[i] = at<std::uint8_t>(bytes, i); break;
            case ElementType::int32: found[i] = at<std::int32_t>(bytes, i); break;
            case ElementType::float16: found[i] = half(at<std::uint16_t>(bytes, i)); break;
            case ElementType::float32: found[i] = at<float>(bytes, i); break;
        }
    }
    return found;
}

// Where a number is among an output's, such as "[0, 3]".
std::string place_of(std::size_t place, const std::vector<std::uint64_t> &shape) {
    std::string text;
    for (auto size = shape.rbegin(); size != shape.rend(); ++size) {
        text = std::to_string(place % *size) + (text.empty() ? "" : ", ") + text;
        place /= static_cast<std::size_t>(*size);
    }
    return "[" + text + "]";
}

}  // namespace

SelfCheck::SelfCheck(const Bundle &bundle, const Backend &backend)
    : bundle_(bundle), backend_(backend) {
    const auto &path = bundle.self_check->path;
    try {
        tensors_ = read_tensor_file(path);
        for (const Graph *graph :
             {&bundle.image_encoder, &bundle.text_encoder, &bundle.pair_scorer}) {
            check_fit(*graph);
        }
        if (bundle.matrix_scorer) check_fit(*bundle.matrix_scorer);
    } catch (const Error &error) {
        throw Error(error.code(), "bundle " + bundle.folder.string() + ": file '" +
                                      path.filename().string() + "': " + error.what());
    }
}

const StoredTensor &SelfCheck::stored(const Graph &graph, const Tensor &tensor) const {
    return tensors_.at(graph.name + "." + tensor.name);
}

// Inputs and outputs that agree in their dynamic sizes, and of the types and sizes of the graph.
void SelfCheck::check_fit(const Graph &graph) const {
    std::vector<Tensor> wanted = graph.outputs;
    std::copy_if(graph.inputs.begin(), graph.inputs.end(), std::back_inserter(wanted), batched);
    std::map<std::int64_t, std::uint64_t> sizes;  // of dynamic dimensions
    for (const Tensor &tensor : wanted) {
        const std::string name = graph.name + "." + tensor.name;
        const auto refuse = [&](const std::string &complaint) {
            throw Error(ErrorCode::bundle, "tensor '" + name + "' " + complaint);
        };
        const auto found = tensors_.find(name);
        if (found == tensors_.end()) refuse("is missing");
        const auto &[type, shape, content] = found->second;
        bool fits = type == tensor.type && shape.size() == tensor.shape.size();
        for (std::size_t i = 0; fits && i < shape.size(); ++i) {
            const std::int64_t size = tensor.shape[i];
            const auto known = size < 0 ? sizes.emplace(size, shape[i]).first->second
                                        : static_cast<std::uint64_t>(size);
            fits = shape[i] == known && known > 0;
        }
        if (!fits) refuse("is not " + describe(tensor));
        // What an engine reads for an index beyond a table is its own affair.
        const bool ids = tensor.name == "input_ids", level = tensor.name == "level";
        const double most = ids     ? bundle_.vocabulary
                            : level ? static_cast<double>(bundle_.levels.size())
                                    : HUGE_VAL;
        for (const double number : numbers(content, type)) {
            if (!std::isfinite(number)) refuse("is not finite");
            if (number >= most || ((ids || level) && number < 0)) refuse("is beyond its table");
        }
    }
}

void SelfCheck::require(const Graph &graph, const Engine &engine) const {
    if (bundle_.matrix_scorer && graph.name == bundle_.matrix_scorer->name) {
        return require_matrix(graph, engine);
    }
    const auto items = static_cast<std::size_t>(stored(graph, graph.outputs[0]).shape[0]);
    std::vector<Bytes> computed(graph.outputs.size());
    for (std::size_t item = 0; item < items; ++item) {
        std::vector<Bytes> rows;
        for (const Tensor &input : graph.inputs) {
            if (!batched(input)) continue;
            const auto first = stored(graph, input).content.begin() +
                               static_cast<std::ptrdiff_t>(item * bytes_of_one(input));
            rows.emplace_back(first, first + static_cast<std::ptrdiff_t>(bytes_of_one(input)));
        }
        std::vector<const void *> feeds;
        for (const Bytes &row : rows) feeds.push_back(row.data());
        if (feeds.size() < graph.inputs.size()) feeds.push_back(bundle_.adapter.data());
        const auto outputs = engine.run(1, feeds);
        for (std::size_t i = 0; i < outputs.size(); ++i) {
            computed[i].insert(computed[i].end(), outputs[i].begin(), outputs[i].end());
        }
    }
    for (std::size_t i = 0; i < computed.size(); ++i) {
        compare(graph, graph.outputs[i], computed[i]);
    }
}

void SelfCheck::require_matrix(const Graph &graph, const Engine &engine) const {
    const auto &rows = stored(graph, graph.inputs[0]).shape;
    const auto &mask = stored(graph, graph.inputs[3]).shape;
    std::vector<const void *> feeds;
    for (const Tensor &input : graph.inputs) feeds.push_back(stored(graph, input).content.data());
    const Sizes sizes(static_cast<std::size_t>(rows[0]), static_cast<std::size_t>(mask[0]),
                      static_cast<std::size_t>(mask[1]));
    compare(graph, graph.outputs[0], engine.run(sizes, feeds)[0]);
}

void SelfCheck::compare(const Graph &graph, const Tensor &output, const Bytes &computed) const {
    const StoredTensor &known = stored(graph, output);
    const auto got = numbers(computed, output.type), expected = numbers(known.content, known.type);
    double largest = kLeast, farthest = -1;
    std::size_t place = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        largest = std::max(largest, std::abs(expected[i]));
        const double difference = std::abs(got[i] - expected[i]);
        if (std::isnan(farthest) || difference <= farthest) continue;
        farthest = difference;
        place = i;
    }
    const double allowed = backend_.tolerance(bundle_.self_check->tolerance);
    if (farthest / largest <= allowed) return;  // not where it is NaN
    std::string name = graph.name;
    std::replace(name.begin(), name.end(), '_', ' ');
    std::ostringstream message;
    message.imbue(std::locale::classic());
    message << backend_.name() << ": self-check of the " << name << ": " << output.name
            << place_of(place, known.shape) << " is " << got[place] << " instead of "
            << expected[place] << " (allowed is a difference of " << allowed << " of the largest). "
            << kAdvice;
    throw Error(ErrorCode::engine, message.str());
}

}  // namespace dsd

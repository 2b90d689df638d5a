#include "external_data.hpp"

#include <cstdint>
#include <vector>

#include "dsd/error.hpp"

namespace dsd {
namespace {

enum class Kind { model, training, graph, function, node, attribute, sparse, tensor, entry, none };
enum WireType { varint, fixed64, bytes, group, group_end, fixed32 };

// What a message's field holds, by its number, as onnx.proto has them.
Kind child(Kind kind, std::uint64_t field) {
    switch (kind) {
        case Kind::model:
            return field == 7    ? Kind::graph
                   : field == 20 ? Kind::training
                   : field == 25 ? Kind::function
                                 : Kind::none;
        case Kind::training: return field == 1 || field == 2 ? Kind::graph : Kind::none;
        case Kind::graph:
            return field == 1    ? Kind::node
                   : field == 5  ? Kind::tensor
                   : field == 15 ? Kind::sparse
                                 : Kind::none;
        case Kind::function:
            return field == 7 ? Kind::node : field == 11 ? Kind::attribute : Kind::none;
        case Kind::node: return field == 5 ? Kind::attribute : Kind::none;
        case Kind::attribute:
            return field == 5 || field == 10    ? Kind::tensor
                   : field == 6 || field == 11  ? Kind::graph
                   : field == 22 || field == 23 ? Kind::sparse
                                                : Kind::none;
        case Kind::sparse: return field == 1 || field == 2 ? Kind::tensor : Kind::none;
        case Kind::tensor: return field == 13 ? Kind::entry : Kind::none;
        default: return Kind::none;
    }
}

// Reads the fields of one message.
class Message {
  public:
    Message(const std::string &model, std::size_t at, std::size_t end)
        : model_(model), at_(at), end_(end) {}

    // Goes on to the next field that is a message or a string; false if there is none.
    bool next() {
        for (int depth = 0; at_ < end_ || depth;) {  // of groups, which readers pass over
            const auto tag = static_cast<std::uint32_t>(number());  // engines' readers cut it so
            field = tag >> 3;
            switch (tag & 7) {
                case varint: number(); break;
                case fixed64: advance(8); break;
                case fixed32: advance(4); break;
                case bytes: {
                    const std::uint64_t size = number();
                    begin = at_;
                    advance(size);
                    if (!depth) return true;
                    break;
                }
                case group: ++depth; break;
                case group_end:
                    if (depth--) break;
                    [[fallthrough]];
                default: throw Error(ErrorCode::bundle, "it has a field of an unknown type");
            }
        }
        return false;
    }

    std::size_t end() const { return at_; }

    std::uint64_t field = 0;
    std::size_t begin = 0;  // of the field's content, which ends at `end`

  private:
    void advance(std::uint64_t size) {
        if (size > end_ - at_) throw Error(ErrorCode::bundle, "it is cut short");
        at_ += static_cast<std::size_t>(size);
    }

    std::uint64_t number() {
        std::uint64_t value = 0;
        for (int shift = 0; at_ < end_ && shift < 70; shift += 7) {
            const auto byte = static_cast<unsigned char>(model_[at_++]);
            if (shift < 64) value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return value;
        }
        throw Error(ErrorCode::bundle, "it is cut short");
    }

    const std::string &model_;
    std::size_t at_, end_;
};

}  // namespace

std::set<std::string> external_files(const std::string &model) {
    struct Part {
        Kind kind;
        std::size_t begin, end;
    };
    std::set<std::string> found;
    bool seen_graph = false;
    std::vector<Part> waiting{{Kind::model, 0, model.size()}};
    while (!waiting.empty()) {
        const Part part = waiting.back();
        waiting.pop_back();
        Message message(model, part.begin, part.end);
        std::string key, value;  // of an entry; of a field that occurs twice, the last one counts
        while (message.next()) {
            if (part.kind == Kind::entry) {
                const std::string content =
                    model.substr(message.begin, message.end() - message.begin);
                if (message.field == 1) key = content;
                if (message.field == 2) value = content;
            } else if (const Kind kind = child(part.kind, message.field); kind != Kind::none) {
                seen_graph = seen_graph || kind == Kind::graph;
                waiting.push_back({kind, message.begin, message.end()});
            }
        }
        if (key == "location") found.insert(value);
    }
    if (!seen_graph) throw Error(ErrorCode::bundle, "it holds no graph");
    return found;
}

}  // namespace dsd

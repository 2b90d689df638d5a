#include "tensor_file.hpp"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <utility>

#include "fields.hpp"
#include "files.hpp"

namespace dsd {
namespace {

constexpr std::uint64_t kMaxHeader = 100000000;  // bytes, as the format has it
constexpr std::size_t kLength = 8;               // bytes that the header's length takes
constexpr const char *kTypes[] = {"U8", "I32", "F16", "F32"};  // in the order of ElementType

// One tensor of the header.
struct Entry {
    std::uint64_t begin, end;  // within the data
    std::string name;
    ElementType type;
    std::vector<std::uint64_t> shape;
};

std::vector<std::uint64_t> sizes(Fields &fields, const std::string &key) {
    std::vector<std::uint64_t> found;
    for (const Json &size : fields.list(key)) {
        if (!size.is_number_unsigned()) throw field_error(fields.at(key), "must be of sizes");
        found.push_back(size.get<std::uint64_t>());
    }
    return found;
}

Entry read_entry(const std::string &name, const Json &json) {
    Fields fields(json, name.substr(0, 60));
    const auto type = static_cast<ElementType>(fields.choice("dtype", kTypes));
    auto shape = sizes(fields, "shape");
    const auto offsets = sizes(fields, "data_offsets");
    if (offsets.size() != 2) throw field_error(fields.at("data_offsets"), "must be two");
    fields.nothing_else();
    return {offsets[0], offsets[1], name, type, std::move(shape)};
}

void check_metadata(const Json &metadata) {
    Fields fields(metadata, "__metadata__");
    for (const auto &item : metadata.items()) fields.text(item.key());
}

// Bytes of a tensor; something above `most` where they are more, however many.
std::uint64_t bytes_of(const Entry &entry, std::uint64_t most) {
    if (std::count(entry.shape.begin(), entry.shape.end(), 0U)) return 0;
    std::uint64_t bytes = size_of(entry.type);
    for (const std::uint64_t size : entry.shape) {
        if (bytes > most / size) return most + 1;
        bytes *= size;
    }
    return bytes;
}

// The header's tensors, in the order of their bytes, which are all of the data and overlap nowhere.
std::vector<Entry> read_header(const std::string &header, std::uint64_t data) {
    std::istringstream stream(header);
    const Json json = parse_json(stream);
    if (!json.is_object()) throw Error(ErrorCode::bundle, "its header is no JSON object");
    std::vector<Entry> entries;
    for (const auto &item : json.items()) {
        if (item.key() == "__metadata__") {
            check_metadata(item.value());
        } else {
            entries.push_back(read_entry(item.key(), item.value()));
        }
    }
    std::stable_sort(entries.begin(), entries.end(), [](const Entry &one, const Entry &other) {
        return std::make_pair(one.begin, one.end) < std::make_pair(other.begin, other.end);
    });
    std::uint64_t end = 0;
    for (const Entry &entry : entries) {
        const std::uint64_t bytes = bytes_of(entry, data);
        if (bytes > data - end || entry.begin != end || entry.end != end + bytes) {
            throw field_error(entry.name.substr(0, 60) + ".data_offsets",
                              "are not where the tensor's bytes have to be");
        }
        end = entry.end;
    }
    if (end != data) {
        throw Error(ErrorCode::bundle, "its tensors end at " + std::to_string(end) + " of " +
                                           std::to_string(data) + " bytes");
    }
    return entries;
}

// Numbers are little-endian in the file.
void to_native(Bytes &content, std::size_t number) {
    const std::uint16_t one = 1;
    unsigned char first;
    std::memcpy(&first, &one, sizeof first);
    if (first == 1) return;
    const auto size = static_cast<std::ptrdiff_t>(number);
    for (auto at = content.begin(); at != content.end(); at += size) std::reverse(at, at + size);
}

}  // namespace

StoredTensors read_tensor_file(const std::filesystem::path &path) {
    const std::string file = read_regular(path, kFileBytes, ErrorCode::bundle);
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < kLength && i < file.size(); ++i) {
        length |= static_cast<std::uint64_t>(static_cast<unsigned char>(file[i])) << (8 * i);
    }
    if (file.size() < kLength || length > file.size() - kLength || length > kMaxHeader) {
        throw Error(ErrorCode::bundle, "its header of " + std::to_string(length) +
                                           " bytes is longer than the file's " +
                                           std::to_string(file.size()));
    }
    const std::size_t begin = kLength + static_cast<std::size_t>(length);
    StoredTensors tensors;
    try {
        const std::string header = file.substr(kLength, static_cast<std::size_t>(length));
        for (Entry &entry : read_header(header, file.size() - begin)) {
            const auto *data = reinterpret_cast<const std::byte *>(file.data()) + begin;
            Bytes content(data + entry.begin, data + entry.end);
            to_native(content, size_of(entry.type));
            tensors[entry.name] = {entry.type, std::move(entry.shape), std::move(content)};
        }
    } catch (const Json::exception &error) {
        throw Error(ErrorCode::bundle,
                    std::string("its header is not valid JSON: ") + error.what());
    }
    return tensors;
}

}  // namespace dsd

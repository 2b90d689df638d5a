#include "tokenizer.hpp"

#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <queue>
#include <string>
#include <tuple>

#include "fields.hpp"
#include "unicode.hpp"

namespace dsd {
namespace {

using std::u32string;
using std::u32string_view;

constexpr u32string_view kSpecials[] = {U"<|startoftext|>", U"<|endoftext|>"};
constexpr u32string_view kContractions[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
constexpr const char *kSpecialsPattern = R"(<\|startoftext\|>|<\|endoftext\|>|)";
constexpr const char *kWordsPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";

void require(bool holds, const std::string &what) {
    if (!holds) throw Error(ErrorCode::bundle, what);
}

// A token's id. The library would cut a number down to the bits there is room for.
std::int32_t read_id(const Json &value) {
    require(value.is_number_unsigned() && value <= std::numeric_limits<std::int32_t>::max(),
            "a token's id is " + value.dump());
    return value.get<std::int32_t>();
}

bool starts_with(u32string_view text, u32string_view start) {
    return text.substr(0, start.size()) == start;
}

u32string normalize(u32string_view text) {
    u32string spaced;
    bool in_space = false;
    for (char32_t c : unicode::compose(text)) {
        const bool space = unicode::is_space(c);
        if (!space) spaced += c;
        if (space && !in_space) spaced += U' ';
        in_space = space;
    }
    return unicode::lower_case(spaced);
}

// Takes out of a text the tokens that stand in it verbatim, the longest where several start;
// `rest` is told of what lies between them.
template <typename Added, typename Ids, typename Rest>
void split_at(const std::vector<Added> &added, u32string_view text, Ids &ids, Rest rest) {
    std::size_t start = 0;
    for (std::size_t i = 0; i < text.size();) {
        const Added *longest = nullptr;
        for (const Added &token : added) {
            if ((!longest || token.content.size() > longest->content.size()) &&
                token.content[0] == text[i] && starts_with(text.substr(i), token.content)) {
                longest = &token;
            }
        }
        if (!longest) {
            ++i;
            continue;
        }
        if (i > start) rest(text.substr(start, i - start));
        ids.push_back(longest->id);
        i += longest->content.size();
        start = i;
    }
    if (start < text.size()) rest(text.substr(start));
}

// Byte-level BPE writes a byte as a visible character: itself where it is one in Latin-1, else
// the next unused code point from 256 on.
std::array<char32_t, 256> byte_characters() {
    std::array<char32_t, 256> characters{};
    char32_t next = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        characters[byte] = visible ? byte : next++;
    }
    return characters;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
}

}  // namespace

Tokenizer::Tokenizer(const std::filesystem::path &file) {
    std::ifstream stream(file, std::ios::binary);
    try {
        read(parse_json(stream));
    } catch (const Json::exception &error) {
        throw Error(ErrorCode::bundle, file.string() + " is not a tokenizer: " + error.what());
    } catch (const Error &error) {
        throw Error(error.code(), file.string() + " is not a CLIP tokenizer: " + error.what());
    }
}

void Tokenizer::read(const Json &file) {
    require(file.is_object(), "it is not a JSON object");
    // Normal form C, runs of white space as one space, lower case.
    const Json &normal = file.at("normalizer").at("normalizers");
    require(normal.size() == 3 && normal[0].at("type") == "NFC" &&
                normal[1].at("type") == "Replace" &&
                normal[1].at("pattern").at("Regex") == R"(\s+)" && normal[1].at("content") == " " &&
                normal[2].at("type") == "Lowercase",
            "it normalizes in another way");
    const Json &split = file.at("pre_tokenizer").at("pretokenizers");
    require(split.size() == 2 && split[0].at("type") == "Split" &&
                split[0].at("behavior") == "Removed" && split[0].at("invert") == true &&
                split[1].at("type") == "ByteLevel" && split[1].at("add_prefix_space") == false,
            "it splits words in another way");
    const std::string pattern = split[0].at("pattern").at("Regex");
    specials_in_pattern_ = pattern == kSpecialsPattern + std::string(kWordsPattern);
    require(specials_in_pattern_ || pattern == kWordsPattern, "it splits words in another way");
    split_twice_ = split[1].value("use_regex", true);
    read_model(file.at("model"));
    read_added_tokens(file.at("added_tokens"));
}

void Tokenizer::read_added_tokens(const Json &tokens) {
    for (const Json &token : tokens) {
        require(!token.value("single_word", false) && !token.value("lstrip", false) &&
                    !token.value("rstrip", false),
                "an added token takes in what is around it");
        u32string content = unicode::decode(token.at("content").get<std::string>());
        const bool normalized = token.value("normalized", false);
        if (normalized) content = normalize(content);
        if (content.empty()) continue;
        (normalized ? normalized_ : raw_).push_back({content, read_id(token.at("id"))});
    }
}

void Tokenizer::read_model(const Json &model) {
    const Json &prefix = model.at("continuing_subword_prefix");
    require(model.at("type") == "BPE" && model.at("dropout").is_null() &&
                (prefix.is_null() || prefix == "") && !model.value("fuse_unk", false) &&
                !model.value("byte_fallback", false) && !model.value("ignore_merges", false),
            "its model is another one");
    const auto &vocabulary = model.at("vocab").get_ref<const Json::object_t &>();
    const auto id_of = [&](const std::string &token) -> std::optional<std::int32_t> {
        const auto found = vocabulary.find(token);
        if (found == vocabulary.end()) return std::nullopt;
        return read_id(found->second);
    };
    const Json &suffix = model.at("end_of_word_suffix");
    const std::string end = suffix.is_null() ? "" : suffix.get<std::string>();
    const auto characters = byte_characters();
    for (std::size_t byte = 0; byte < characters.size(); ++byte) {
        std::string token;
        unicode::append_utf8(token, characters[byte]);
        bytes_[byte] = id_of(token);
        last_bytes_[byte] = id_of(token + end);
    }
    if (const Json &unknown = model.at("unk_token"); !unknown.is_null()) {
        unknown_ = id_of(unknown.get<std::string>());
        require(unknown_.has_value(), "its unknown token has no id");
    }
    std::int32_t rank = 0;
    for (const Json &merge : model.at("merges")) {
        std::string left, right;
        if (merge.is_string()) {  // as older files write it
            const std::string both = merge;
            const std::size_t space = both.find(' ');
            require(space != std::string::npos, "a merge is malformed");
            left = both.substr(0, space);
            right = both.substr(space + 1);
        } else {
            require(merge.size() == 2, "a merge is malformed");
            left = merge[0];
            right = merge[1];
        }
        const auto first = id_of(left), second = id_of(right), whole = id_of(left + right);
        require(first && second && whole, "a merge names a token that has no id");
        merges_[pair_key(*first, *second)] = {rank++, *whole};
    }
}

std::vector<std::int32_t> Tokenizer::operator()(std::string_view utf8) const {
    Ids ids;
    const u32string text = unicode::decode(utf8);
    split_at(raw_, text, ids, [&](u32string_view piece) {
        const u32string normal = normalize(piece);
        split_at(normalized_, normal, ids, [&](u32string_view rest) { words(rest, ids); });
    });
    return ids;
}

void Tokenizer::words(u32string_view text, Ids &ids) const {
    using unicode::is_letter, unicode::is_number, unicode::is_space;
    const auto is_other = [](char32_t c) { return !is_space(c) && !is_letter(c) && !is_number(c); };
    const auto run = [&](auto belongs) {
        std::size_t end = 1;
        while (end < text.size() && belongs(text[end])) ++end;
        return end;
    };
    const auto literal = [&](const auto &list) -> std::size_t {
        for (u32string_view one : list) {
            if (starts_with(text, one)) return one.size();
        }
        return 0;
    };
    for (std::size_t length; !text.empty(); text.remove_prefix(length)) {
        if (is_space(text[0])) {
            length = 1;
            continue;
        }
        if (specials_in_pattern_ && (length = literal(kSpecials))) {
            const std::size_t inner = length - 4;
            if (split_twice_) {
                word(text.substr(0, 2), ids);
                word(text.substr(2, inner), ids);
                word(text.substr(2 + inner, 2), ids);
            } else {
                word(text.substr(0, length), ids);
            }
            continue;
        }
        if (!(length = literal(kContractions))) {
            length = is_letter(text[0]) ? run(is_letter) : is_number(text[0]) ? 1 : run(is_other);
        }
        word(text.substr(0, length), ids);
    }
}

void Tokenizer::word(u32string_view text, Ids &ids) const {
    std::string utf8;
    for (char32_t c : text) unicode::append_utf8(utf8, c);

    // A doubly linked list of symbols, in an array: a merged one is unlinked.
    struct Symbol {
        std::int32_t id;
        std::ptrdiff_t previous, next;
        bool merged;
    };
    std::vector<Symbol> symbols;
    symbols.reserve(utf8.size());
    for (std::size_t i = 0; i < utf8.size(); ++i) {
        const auto &table = i + 1 == utf8.size() ? last_bytes_ : bytes_;
        auto id = table[static_cast<unsigned char>(utf8[i])];
        if (!id) id = unknown_;
        const auto place = static_cast<std::ptrdiff_t>(symbols.size());
        if (id) symbols.push_back({*id, place - 1, place + 1, false});
    }
    if (symbols.empty()) return;
    symbols.back().next = -1;

    // The merge of lowest rank comes first, of several the leftmost.
    using Candidate = std::tuple<std::int32_t, std::ptrdiff_t, std::int32_t>;  // rank, place, id
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto merge_at = [&](std::ptrdiff_t place) -> const Merge * {
        if (place < 0 || symbols[place].merged || symbols[place].next < 0) return nullptr;
        const auto found =
            merges_.find(pair_key(symbols[place].id, symbols[symbols[place].next].id));
        return found == merges_.end() ? nullptr : &found->second;
    };
    const auto enqueue = [&](std::ptrdiff_t place) {
        if (const Merge *merge = merge_at(place)) queue.emplace(merge->rank, place, merge->id);
    };
    for (std::size_t i = 0; i < symbols.size(); ++i) enqueue(static_cast<std::ptrdiff_t>(i));
    while (!queue.empty()) {
        const auto [rank, place, id] = queue.top();
        queue.pop();
        const Merge *merge = merge_at(place);
        if (!merge || merge->id != id) continue;  // one of the two went into another merge
        Symbol &symbol = symbols[place];
        Symbol &right = symbols[symbol.next];
        symbol.id = id;
        symbol.next = right.next;
        right.merged = true;
        if (symbol.next >= 0) symbols[symbol.next].previous = place;
        enqueue(symbol.previous);
        enqueue(place);
    }
    for (std::ptrdiff_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace dsd

#include "unicode.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "dsd/error.hpp"

namespace dsd::unicode {
namespace {

struct Range {
    char32_t first, last;
};
struct Mapping {
    char32_t from;
    char32_t to[4];  // ends at 0
};
struct Composition {
    char32_t first, second, whole;
};
struct Order {
    char32_t c;
    std::uint8_t order;
};

#include "unicode_tables.inc"

// Hangul is arithmetic: a leading consonant, a vowel, perhaps a trailing consonant.
constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTrails = 0x11A7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTrailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTrailCount;

template <std::size_t N>
bool contains(const Range (&ranges)[N], char32_t c) {
    const auto before = [](char32_t value, const Range &range) { return value < range.first; };
    const Range *after = std::upper_bound(ranges, ranges + N, c, before);
    return after != ranges && c <= std::prev(after)->last;
}

template <std::size_t N>
const char32_t *find(const Mapping (&table)[N], char32_t c) {
    const Mapping *at = std::lower_bound(
        table, table + N, c, [](const Mapping &row, char32_t value) { return row.from < value; });
    return at != table + N && at->from == c ? at->to : nullptr;
}

void append(std::u32string &target, const char32_t *mapped) {
    for (int i = 0; i < 4 && mapped[i] != 0; ++i) target += mapped[i];
}

// 0 for a starter; else greater than another's where its canonical combining class is.
std::uint8_t order_of(char32_t c) {
    if (c < combining_order[0].c) return 0;
    const Order *end = std::end(combining_order);
    const Order *at = std::lower_bound(
        combining_order, end, c, [](const Order &row, char32_t value) { return row.c < value; });
    return at != end && at->c == c ? at->order : 0;
}

char32_t join(char32_t first, char32_t second) {
    const char32_t lead = first - kLeads, vowel = second - kVowels;
    if (first >= kLeads && lead < kLeadCount && second >= kVowels && vowel < kVowelCount) {
        return kSyllables + (lead * kVowelCount + vowel) * kTrailCount;
    }
    const char32_t syllable = first - kSyllables, trail = second - kTrails;
    if (first >= kSyllables && syllable < kSyllableCount && syllable % kTrailCount == 0 &&
        second > kTrails && trail < kTrailCount) {
        return first + trail;
    }
    const Composition *end = std::end(compositions);
    const auto wanted = std::make_pair(first, second);
    const Composition *at =
        std::lower_bound(compositions, end, wanted, [](const Composition &row, const auto &pair) {
            return std::make_pair(row.first, row.second) < pair;
        });
    return at != end && at->first == first && at->second == second ? at->whole : 0;
}

std::u32string decompose(std::u32string_view text) {
    std::u32string parts;
    parts.reserve(text.size());
    for (char32_t c : text) {
        const char32_t syllable = c - kSyllables;
        if (c >= kSyllables && syllable < kSyllableCount) {
            parts += kLeads + syllable / (kVowelCount * kTrailCount);
            parts += kVowels + syllable / kTrailCount % kVowelCount;
            if (syllable % kTrailCount != 0) parts += kTrails + syllable % kTrailCount;
        } else if (const char32_t *mapped = find(decompositions, c)) {
            append(parts, mapped);
        } else {
            parts += c;
        }
    }
    // Marks between two starters go in the order of their classes, equal ones as they came.
    for (auto start = parts.begin(); start != parts.end();) {
        if (order_of(*start) == 0) {
            ++start;
            continue;
        }
        auto end = std::find_if(start, parts.end(), [](char32_t c) { return order_of(c) == 0; });
        std::stable_sort(start, end,
                         [](char32_t a, char32_t b) { return order_of(a) < order_of(b); });
        start = end;
    }
    return parts;
}

}  // namespace

std::u32string decode(std::string_view utf8) {
    std::u32string text;
    text.reserve(utf8.size());
    for (std::size_t i = 0; i < utf8.size();) {
        const auto lead = static_cast<unsigned char>(utf8[i]);
        const std::size_t length = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
        char32_t c = length == 1 ? lead : lead & (0x7F >> length);
        bool valid = lead < 0x80 || (lead >= 0xC2 && lead <= 0xF4 && i + length <= utf8.size());
        for (std::size_t k = 1; valid && k < length; ++k) {
            const auto next = static_cast<unsigned char>(utf8[i + k]);
            valid = (next & 0xC0) == 0x80;
            c = (c << 6) | (next & 0x3F);
        }
        constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
        if (!valid || c < kSmallest[length] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) {
            throw Error(ErrorCode::input, "a text is not UTF-8 (byte " + std::to_string(i) + ")");
        }
        text += c;
        i += length;
    }
    return text;
}

void append_utf8(std::string &target, char32_t c) {
    if (c < 0x80) {
        target += static_cast<char>(c);
        return;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;  // bytes after the first
    constexpr unsigned kLead[] = {0, 0xC0, 0xE0, 0xF0};
    target += static_cast<char>(kLead[more] | c >> (6 * more));
    for (int k = more - 1; k >= 0; --k) target += static_cast<char>(0x80 | (c >> (6 * k) & 0x3F));
}

std::u32string compose(std::u32string_view text) {
    if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0xC0; })) {
        return std::u32string(text);
    }
    const std::u32string parts = decompose(text);
    std::u32string result;
    result.reserve(parts.size());
    std::size_t starter = std::u32string::npos;  // where the last one is in `result`
    int last = -1;  // order of what was appended after it, -1 where nothing was
    for (char32_t c : parts) {
        const int order = order_of(c);
        // A mark is kept from the starter by another of its own class, anything by a starter.
        if (starter != std::u32string::npos && last < order) {
            if (const char32_t whole = join(result[starter], c)) {
                result[starter] = whole;
                continue;
            }
        }
        if (order == 0) {
            starter = result.size();
            last = -1;
        } else {
            last = order;
        }
        result += c;
    }
    return result;
}

std::u32string lower_case(std::u32string_view text) {
    std::u32string result;
    result.reserve(text.size());
    for (char32_t c : text) {
        if (const char32_t *mapped = find(lower_case_of, c)) {
            append(result, mapped);
        } else {
            result += c;
        }
    }
    return result;
}

bool is_letter(char32_t c) { return contains(letters, c); }
bool is_number(char32_t c) { return contains(numbers, c); }
bool is_space(char32_t c) { return contains(spaces, c); }

}  // namespace dsd::unicode

// What the CLIP tokenizer asks about Unicode: normal form C, lower case, letters, numbers, spaces.
#pragma once

#include <string>
#include <string_view>

namespace dsd::unicode {

// Throws dsd::Error where `utf8` is not valid UTF-8.
std::u32string decode(std::string_view utf8);

void append_utf8(std::string &target, char32_t c);

std::u32string compose(std::u32string_view text);  // normal form C

// One code point at a time, as Rust's `char::to_lowercase`: a final sigma is no special case.
std::u32string lower_case(std::u32string_view text);

bool is_letter(char32_t c);
bool is_number(char32_t c);
bool is_space(char32_t c);

}  // namespace dsd::unicode

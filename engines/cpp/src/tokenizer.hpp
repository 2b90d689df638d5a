// CLIP's tokenizer, read from the tokenizer.json that a bundle carries.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dsd {

class Tokenizer {
  public:
    // Throws dsd::Error, code bundle, where the file is another kind of tokenizer.
    explicit Tokenizer(const std::filesystem::path &file);

    // Ids of a text's words, however many, without BOS and EOS.
    // Throws dsd::Error, code input, where the text is not UTF-8.
    std::vector<std::int32_t> operator()(std::string_view utf8) const;

  private:
    using Ids = std::vector<std::int32_t>;
    struct Added {
        std::u32string content;
        std::int32_t id;
    };
    struct Merge {
        std::int32_t rank, id;
    };

    void read(const nlohmann::json &file);
    void read_added_tokens(const nlohmann::json &tokens);
    void read_model(const nlohmann::json &model);
    void words(std::u32string_view text, Ids &ids) const;
    void word(std::u32string_view text, Ids &ids) const;

    std::vector<Added> raw_;         // found in a text as it comes
    std::vector<Added> normalized_;  // found in what normalising makes of it
    bool specials_in_pattern_ = false, split_twice_ = false;
    std::array<std::optional<std::int32_t>, 256> bytes_, last_bytes_;  // ids, inside and at the end
    std::optional<std::int32_t> unknown_;
    std::unordered_map<std::uint64_t, Merge> merges_;
};

}  // namespace dsd

// A JSON object read strictly: what is missing, unknown or of another type is named and refused.
#pragma once

#include <cmath>
#include <cstdint>
#include <istream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "dsd/error.hpp"

namespace dsd {

using Json = nlohmann::json;

// Parses JSON, and refuses what parsers read differently: a key that is twice in an object, and
// more levels of objects and lists than any file of ours has.
inline Json parse_json(std::istream &stream) {
    constexpr int kDeepest = 64;
    std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
    return Json::parse(stream, [&](int depth, Json::parse_event_t event, Json &parsed) {
        using Event = Json::parse_event_t;
        if ((event == Event::object_start || event == Event::array_start) && depth >= kDeepest) {
            throw Error(ErrorCode::bundle,
                        "it is nested deeper than " + std::to_string(kDeepest) + " levels");
        }
        if (event == Event::object_start) keys.emplace_back();
        if (event == Event::object_end) keys.pop_back();
        if (event == Event::key) {
            const auto key = parsed.get<std::string>();
            if (!keys.back().insert(key).second) {
                throw Error(ErrorCode::bundle,
                            "the key '" + key.substr(0, 60) + "' is there twice");
            }
        }
        return true;
    });
}

inline Error field_error(const std::string &where, const std::string &complaint) {
    return Error(ErrorCode::bundle, "field '" + where + "' " + complaint);
}

class Fields {
  public:
    Fields(const Json &object, std::string where) : object_(object), where_(std::move(where)) {
        if (!object.is_object()) throw field_error(where_, "must be an object");
    }

    // Where a field is, for messages.
    std::string at(const std::string &key) const {
        return where_.empty() ? key : where_ + "." + key;
    }

    const Json &operator[](const std::string &key) {
        read_.insert(key);
        const auto found = object_.find(key);
        if (found == object_.end()) throw field_error(at(key), "is missing");
        return *found;
    }

    // Whether an optional field is there.
    bool has(const std::string &key) {
        read_.insert(key);
        const auto found = object_.find(key);
        return found != object_.end() && !found->is_null();
    }

    Fields object(const std::string &key) { return Fields((*this)[key], at(key)); }

    const Json &list(const std::string &key) {
        const Json &value = (*this)[key];
        if (!value.is_array()) throw field_error(at(key), "must be a list");
        return value;
    }

    std::string text(const std::string &key) {
        const Json &value = (*this)[key];
        if (!value.is_string()) throw field_error(at(key), "must be a string");
        return value.get<std::string>();
    }

    std::int32_t integer(const std::string &key, std::int32_t least,
                         std::int32_t most = std::numeric_limits<std::int32_t>::max()) {
        const Json &value = (*this)[key];
        if (!value.is_number_integer() || value < least || value > most) {
            throw field_error(at(key), "must be an integer from " + std::to_string(least) + " to " +
                                           std::to_string(most));
        }
        return value.get<std::int32_t>();
    }

    double number(const std::string &key) {
        const Json &value = (*this)[key];
        if (!value.is_number() || !std::isfinite(value.get<double>())) {
            throw field_error(at(key), "must be a finite number");
        }
        return value.get<double>();
    }

    // One of several names, as its place among them.
    template <std::size_t N>
    std::size_t choice(const std::string &key, const char *const (&names)[N]) {
        const std::string value = text(key);
        for (std::size_t i = 0; i < N; ++i) {
            if (value == names[i]) return i;
        }
        throw field_error(at(key), "has an unknown value, '" + value + "'");
    }

    // A newer writer's field may change what a score is, so it is not passed over.
    void nothing_else() const {
        for (const auto &item : object_.items()) {
            if (!read_.count(item.key())) throw field_error(at(item.key()), "is not known");
        }
    }

  private:
    const Json &object_;
    std::string where_;
    std::set<std::string> read_;
};

}  // namespace dsd

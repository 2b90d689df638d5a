// Every error the library raises on purpose.
#pragma once

#include <stdexcept>
#include <string>

namespace dsd {

enum class ErrorCode {
    input = 1,   // what the caller passed: no texts, a text that is not UTF-8, an unknown level
    bundle = 2,  // missing, incomplete, altered, or of a schema this version does not know
    image = 3,   // one image cannot be decoded
    engine = 4,  // no GPU, no plan, a graph refused, or numbers that are not finite
    other = 5,   // memory ran out, or the like
};

class Error : public std::runtime_error {
  public:
    Error(ErrorCode code, const std::string &message) : std::runtime_error(message), code_(code) {}
    ErrorCode code() const noexcept { return code_; }

  private:
    ErrorCode code_;
};

}  // namespace dsd

// SHA-256, of bytes as they come.
#pragma once

#include <openssl/evp.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace dsd {

class Sha256 {
  public:
    Sha256();
    void add(std::string_view bytes);
    std::string hex();  // of all that was added; asked once

  private:
    std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX *)> context_;
};

}  // namespace dsd

#include "files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <system_error>

namespace dsd {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

// What is there instead of a regular file, or nothing.
std::string other_kind(mode_t mode) {
    if (S_ISREG(mode)) return "";
    if (S_ISDIR(mode)) return reason(EISDIR);
    const char *kind = S_ISFIFO(mode)                   ? "a pipe"
                       : S_ISCHR(mode) || S_ISBLK(mode) ? "a device"
                       : S_ISSOCK(mode)                 ? "a socket"
                                                        : "something else";
    return std::string(kind) + ", not a regular file";
}

// A large count in a readable unit, or nothing.
std::string readable(std::size_t count, std::string_view unit) {
    struct Unit {
        std::string_view of;
        const char *name;
        double size;
    };
    constexpr Unit kUnits[] = {
        {"bytes", "GiB", 1 << 30}, {"bytes", "MiB", 1 << 20}, {"pixels", "million", 1e6}};
    for (const auto &[of, name, size] : kUnits) {
        const double shown = static_cast<double>(count) / size;
        if (of != unit || shown < 1) continue;
        char text[40];
        std::snprintf(text, sizeof text, " (%.3g %s)", shown, name);
        return text;
    }
    return "";
}

struct Descriptor {
    int number;
    ~Descriptor() {
        if (number >= 0) ::close(number);
    }
};

}  // namespace

std::size_t Limit::value() const {
    const char *given = std::getenv(variable);
    if (!given || !*given) return standard;
    const std::string digits(given);
    const bool number =
        digits.size() < 19 &&
        std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    const std::size_t value = number ? std::strtoull(given, nullptr, 10) : 0;
    if (value == 0) {
        throw Error(ErrorCode::input, std::string(variable) +
                                          " must be a whole number above 0, got '" + digits + "'");
    }
    return value;
}

std::string Limit::fault(std::size_t count) const {
    const std::size_t most = value();
    if (count <= most) return "";
    return "more than " + std::to_string(most) + " " + unit + readable(most, unit) +
           "; the limit is " + variable;
}

std::string read_regular(const std::filesystem::path &path, const Limit &most, ErrorCode code) {
    const auto refuse = [&](const std::string &complaint) { throw Error(code, complaint); };
    struct stat status{};
    // Before it is opened, since some devices do something on that; and after, since it may be
    // another one by then.
    if (::stat(path.c_str(), &status) != 0) refuse(reason(errno));
    if (!S_ISREG(status.st_mode)) refuse(other_kind(status.st_mode));
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
    if (file.number < 0 || ::fstat(file.number, &status) != 0) refuse(reason(errno));
    if (!S_ISREG(status.st_mode)) refuse(other_kind(status.st_mode));
    const auto size = static_cast<std::size_t>(status.st_size);
    if (const std::string fault = most.fault(size); !fault.empty()) refuse(fault);

    std::string content(size + 1, '\0');  // one more: where nothing more comes, this was all
    std::size_t count = 0;
    while (true) {
        const ssize_t got = ::read(file.number, &content[count], content.size() - count);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno != EAGAIN) refuse(reason(errno));
        if (got <= 0) break;
        count += static_cast<std::size_t>(got);
        if (const std::string fault = most.fault(count); !fault.empty()) refuse(fault);
        if (count == content.size()) content.resize(count + (std::size_t{1} << 20));
    }
    content.resize(count);
    return content;
}

}  // namespace dsd

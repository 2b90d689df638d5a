#include "elf.hpp"

#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <set>
#include <string_view>
#include <system_error>
#include <vector>

namespace dsd {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOfCuda[] = {"libcuda.so.", "libcudart.so.", "libcublas",
                                        "libcudnn",    "libcufft",      "libcurand.so.",
                                        "libnvrtc",    "libnvJitLink"};

// Bytes up to the end of the last segment that is loaded; 0 for what the loader refuses.
std::uint64_t loaded_size(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    Elf64_Ehdr head{};
    if (!file.read(reinterpret_cast<char *>(&head), sizeof head) ||
        std::memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64 ||
        head.e_ident[EI_DATA] != ELFDATA2LSB || head.e_phentsize < sizeof(Elf64_Phdr)) {
        return 0;
    }
    std::uint64_t end = 0;
    for (std::uint64_t i = 0; i < head.e_phnum; ++i) {
        Elf64_Phdr segment{};
        file.seekg(static_cast<std::streamoff>(head.e_phoff + i * head.e_phentsize));
        if (!file.read(reinterpret_cast<char *>(&segment), sizeof segment)) return 0;
        if (segment.p_type == PT_LOAD) end = std::max(end, segment.p_offset + segment.p_filesz);
    }
    return end;
}

// Folders where the loader searches, in its order.
std::vector<fs::path> searched_folders() {
    void *program = dlopen(nullptr, RTLD_LAZY);
    Dl_serinfo needed{};
    std::vector<fs::path> folders;
    if (program && dlinfo(program, RTLD_DI_SERINFOSIZE, &needed) == 0) {
        std::vector<std::byte> memory(needed.dls_size);
        auto *found = reinterpret_cast<Dl_serinfo *>(memory.data());
        found->dls_size = needed.dls_size;
        found->dls_cnt = needed.dls_cnt;
        if (dlinfo(program, RTLD_DI_SERINFO, found) == 0) {
            const Dl_serpath *places = found->dls_serpath;
            for (unsigned i = 0; i < found->dls_cnt; ++i) folders.emplace_back(places[i].dls_name);
        }
    }
    if (program) dlclose(program);
    return folders;
}

bool is_of_cuda(const std::string &name) {
    const auto begins = [&](std::string_view start) { return name.rfind(start, 0) == 0; };
    return name.find(".so.") != name.npos &&
           std::any_of(std::begin(kOfCuda), std::end(kOfCuda), begins);
}

}  // namespace

std::string why_cut(const fs::path &path) {
    std::error_code error;
    if (!fs::is_regular_file(path, error)) return "";
    const std::uintmax_t size = fs::file_size(path, error);
    if (error) return "";  // loading it gives the reason
    const std::uint64_t needed = loaded_size(path);
    if (size >= needed) return "";
    return path.string() + " is cut short: it has " + std::to_string(size) + " bytes, and " +
           std::to_string(needed) + " or more are loaded";
}

std::string why_cuda_cut() {
    std::set<std::string> seen;  // the loader takes the first of a name
    for (const fs::path &folder : searched_folders()) {
        std::set<fs::path> paths;  // in the same order every time
        std::error_code error;
        for (fs::directory_iterator at(folder, error), end; !error && at != end;
             at.increment(error)) {
            const std::string name = at->path().filename().string();
            if (is_of_cuda(name) && seen.insert(name).second) paths.insert(at->path());
        }
        for (const fs::path &path : paths) {
            if (const std::string why = why_cut(path); !why.empty()) return why;
        }
    }
    return "";
}

}  // namespace dsd

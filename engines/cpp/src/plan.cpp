#include "plan.hpp"

#include <algorithm>
#include <fstream>
#include <system_error>

#include "fields.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;

namespace dsd {
namespace {

constexpr const char *kFolder = "engines", *kSidecar = "engine.json", *kPlan = "engine.plan";

struct Sidecar {
    fs::path folder;
    std::string graph, graph_hash, library, version, sha256;
    std::vector<std::string> compute_capabilities;
    std::int32_t most;  // of the last profile
    std::uintmax_t size;
};

Sidecar read_sidecar(const fs::path &path) {
    std::ifstream stream(path, std::ios::binary);
    const Json json = parse_json(stream);
    Fields fields(json, "");
    Sidecar sidecar{};
    sidecar.folder = path.parent_path();
    sidecar.graph = fields.text("graph");
    sidecar.graph_hash = fields.text("graph_hash");
    sidecar.library = fields.text("library");
    sidecar.version = fields.text("version");
    sidecar.sha256 = fields.text("sha256");
    (void)fields["precision"];  // the graph's, so the hash covers it
    for (const Json &capability : fields.list("compute_capabilities")) {
        sidecar.compute_capabilities.push_back(capability.get<std::string>());
    }
    for (const Json &item : fields.list("profiles")) {
        Fields profile(item, "profiles");
        profile.integer("min", 1);
        profile.integer("opt", 1);
        sidecar.most = profile.integer("max", 1);
        profile.nothing_else();
    }
    // Parts of the matrix scorer are for Python; under these names nothing here looks for them.
    if (fields.has("part")) sidecar.graph += "." + fields.text("part");
    for (const char *sizes : {"texts", "tokens"}) (void)fields.has(sizes);
    if (sidecar.most == 0) throw field_error("profiles", "is empty");
    const Json &size = fields["size"];
    if (!size.is_number_unsigned()) throw field_error("size", "must be an integer of at least 0");
    sidecar.size = size.get<std::uintmax_t>();
    fields.nothing_else();
    return sidecar;
}

std::vector<Sidecar> read_sidecars(const fs::path &bundle) {
    std::vector<fs::path> paths;
    std::error_code none;  // no folder, no plans
    for (const auto &entry : fs::directory_iterator(bundle / kFolder, none)) {
        const bool unfinished = entry.path().filename().string()[0] == '.';
        if (!unfinished && fs::is_regular_file(entry.path() / kSidecar)) {
            paths.push_back(entry.path() / kSidecar);
        }
    }
    std::sort(paths.begin(), paths.end());
    std::vector<Sidecar> sidecars;
    for (const fs::path &path : paths) {
        try {
            sidecars.push_back(read_sidecar(path));
        } catch (const std::exception &error) {
            throw Error(ErrorCode::engine,
                        path.string() + " cannot be read: " + error.what() +
                            ". Remove its folder and build again: dsd-trt build " +
                            bundle.string());
        }
    }
    return sidecars;
}

// Keeps what fits. Where nothing does, `complaint` says what is wrong with the last.
template <typename Fits, typename Complaint>
void keep(std::vector<Sidecar> &found, const std::string &again, Fits fits, Complaint complaint) {
    const Sidecar last = found.back();
    found.erase(
        std::remove_if(found.begin(), found.end(), [&](const Sidecar &it) { return !fits(it); }),
        found.end());
    if (found.empty()) {
        throw Error(ErrorCode::engine,
                    "the plan " + last.folder.string() + " " + complaint(last) + ". " + again);
    }
}

Sidecar find(const fs::path &bundle, const Graph &graph, const PlanTarget &target,
             const std::string &again) {
    std::vector<Sidecar> found;
    for (const Sidecar &sidecar : read_sidecars(bundle)) {
        if (sidecar.graph == graph.name && sidecar.library == target.library) {
            found.push_back(sidecar);
        }
    }
    if (found.empty()) {
        throw Error(ErrorCode::engine, bundle.string() + " has no " + target.library +
                                           " plan of its " + graph.name + ". " + again);
    }
    keep(
        found, again,
        [&](const Sidecar &it) { return (it.version + ".").rfind(target.version + ".", 0) == 0; },
        [&](const Sidecar &it) {
            return "was built with " + it.library + " " + it.version + ", here is " +
                   target.version;
        });
    keep(
        found, again,
        [&](const Sidecar &it) {
            const auto &able = it.compute_capabilities;
            return std::count(able.begin(), able.end(), target.compute_capability) > 0;
        },
        [&](const Sidecar &) {
            return "was built for GPUs of other compute capabilities, this one has " +
                   target.compute_capability;
        });
    keep(
        found, again, [&](const Sidecar &it) { return it.graph_hash == graph.hash; },
        [](const Sidecar &) {
            return "was built from another export: the bundle has changed since";
        });
    return *std::max_element(found.begin(), found.end(), [](const auto &one, const auto &other) {
        return one.most < other.most;
    });
}

}  // namespace

Plan read_plan(const Graph &graph, const PlanTarget &target) {
    const fs::path bundle = graph.path.parent_path();
    const std::string again =
        "Build one: dsd-trt build " + bundle.string() + " --engine " + target.library;
    const Sidecar sidecar = find(bundle, graph, target, again);
    Plan plan{sidecar.folder / kPlan, {}};
    const auto refuse = [&](const std::string &why) {
        throw Error(ErrorCode::engine, plan.path.string() + " " + why + ". " + again);
    };
    std::error_code unreadable;
    const std::uintmax_t size = fs::file_size(plan.path, unreadable);
    if (unreadable) refuse("cannot be read: " + unreadable.message());
    if (size != sidecar.size) {
        refuse("has " + std::to_string(size) + " bytes instead of " + std::to_string(sidecar.size));
    }
    plan.content.resize(size);
    std::ifstream stream(plan.path, std::ios::binary);
    stream.read(plan.content.data(), static_cast<std::streamsize>(size));
    if (!stream) refuse("cannot be read");
    Sha256 hash;
    hash.add({plan.content.data(), plan.content.size()});
    if (hash.hex() != sidecar.sha256) refuse("was altered (sha256 differs)");
    return plan;
}

}  // namespace dsd

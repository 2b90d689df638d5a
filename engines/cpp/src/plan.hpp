// Plans that `dsd-trt build` put into a bundle, each for one library in one version on some GPUs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace dsd {

// What is here for a plan to run on.
struct PlanTarget {
    std::string library;             // as `dsd-trt build --engine` calls it
    std::string version;             // the build number aside
    std::string compute_capability;  // such as "8.6"
};

struct Plan {
    std::filesystem::path path;
    std::vector<char> content;
};

// The plan of a graph that fits; of several, the one that takes the largest batches. It is chosen,
// and every byte of it verified, by what lies beside it in engine.json, as the Python runtime does.
// Throws dsd::Error, code engine: there is none, what about the nearest does not fit, or it is not
// what engine.json says.
Plan read_plan(const Graph &graph, const PlanTarget &target);

}  // namespace dsd

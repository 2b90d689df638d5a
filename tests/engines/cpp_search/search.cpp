// The library's pruned search of given candidates, for tests to call.
#include <algorithm>
#include <cstdint>

#include "pruned_search.hpp"

extern "C" {

// Searches of several lists, as of one call. `scores` are (lists, candidates, levels), `estimates`
// (lists, candidates). Written are the means, (lists, candidates); of each list its turn, and how
// many scores it took; and the audits that failed. Returns whether they ended the lists.
bool search(std::size_t lists, std::size_t candidates, std::size_t levels, std::size_t best,
            double error, std::size_t batch, std::int32_t measured_candidates, double slope,
            std::size_t measured_best, std::int32_t measured_count, std::size_t needs,
            const double *need, std::size_t gaps, const double *gap, const float *scores,
            const float *estimates, float *means, std::int32_t *turns, std::int32_t *asked,
            std::int32_t *failures) {
    const dsd::Measured measured{measured_count, {need, need + needs}, {gap, gap + gaps}};
    const dsd::Lists known{0, measured_candidates, slope, {{measured_best, measured}}, {}};
    dsd::PrunedSearch pruned(levels, best, error, &known, &known.texts, batch);
    for (std::size_t list = 0; list < lists; ++list) {
        const float *of_list = scores + list * candidates * levels;
        const float *estimated = estimates + list * candidates;
        asked[list] = 0;
        const auto score_at = [&](const std::vector<std::size_t> &some, std::size_t level) {
            std::vector<float> found;
            for (std::size_t it : some) found.push_back(of_list[it * levels + level]);
            asked[list] += static_cast<std::int32_t>(some.size());
            return found;
        };
        const dsd::Turn turn = pruned.turn(candidates);
        turns[list] = static_cast<std::int32_t>(turn);
        const std::vector<float> found = pruned.find(turn, score_at, candidates, [&] {
            return std::vector<float>(estimated, estimated + candidates);
        });
        std::copy(found.begin(), found.end(), means + list * candidates);
    }
    *failures = static_cast<std::int32_t>(pruned.audits().failures());
    return pruned.audits().ended();
}
}

// The library's pruned search of given candidates, for tests to call.
#include <algorithm>
#include <cstdint>

#include "pruned_search.hpp"

extern "C" {

// How many searches of so many candidates may be made together, after 40 lists of equal scores.
std::size_t together(std::size_t candidates) {
    const dsd::Measured measured{1000, {1.0}, {}};
    const dsd::Lists known{0, 60, 0.0, {{1, measured}}, {}, dsd::kRule};
    dsd::PrunedSearch pruned(4, 1, 0.01, &known, &known.texts, 256);
    for (int list = 0; list < 40; ++list) {
        std::vector<dsd::Search> begun = pruned.begin(1, 60, std::vector<float>(60));
        dsd::answer_together(begun, [&](const std::vector<std::size_t> &, std::size_t) {
            return std::vector<float>(begun[0].request().candidates.size());
        });
        pruned.note(begun[0]);
    }
    return pruned.together(candidates);
}

// Searches of several lists, as of one call. `scores` are (lists, candidates, levels), `estimates`
// (lists, candidates). Written are the means, (lists, candidates); of each list its outcome, -1
// without one, and how many scores it took; and of each turn of searches that are made together
// how many are answered, how many scores they take, and the level. Returns the number of turns;
// `room` is that of those that can be written.
std::size_t search(std::size_t lists, std::size_t candidates, std::size_t levels, std::size_t best,
                   double error, std::size_t batch, std::int32_t measured_candidates, double slope,
                   std::size_t measured_best, std::int32_t measured_count, std::size_t needs,
                   const double *need, std::size_t gaps, const double *gap, const float *scores,
                   const float *estimates, float *means, std::int32_t *outcomes,
                   std::int32_t *asked, std::int32_t *turns, std::size_t room) {
    const dsd::Measured measured{measured_count, {need, need + needs}, {gap, gap + gaps}};
    const dsd::Lists known{0,  measured_candidates, slope, {{measured_best, measured}},
                           {}, dsd::kRule};
    dsd::PrunedSearch pruned(levels, best, error, &known, &known.texts, batch);
    std::fill(asked, asked + lists, 0);
    std::size_t turn = 0;
    for (std::size_t done = 0, count = 0; done < lists; done += count) {
        count = std::min(pruned.together(candidates), lists - done);
        std::vector<float> estimated;
        if (pruned.has_lists(candidates)) {
            estimated.assign(estimates + done * candidates,
                             estimates + (done + count) * candidates);
        }
        std::vector<dsd::Search> begun = pruned.begin(count, candidates, estimated);
        dsd::answer_together(begun, [&](const std::vector<std::size_t> &some, std::size_t level) {
            std::vector<float> found;
            for (std::size_t number : some) {
                const std::vector<std::size_t> &requested = begun[number].request().candidates;
                for (std::size_t it : requested) {
                    found.push_back(scores[((done + number) * candidates + it) * levels + level]);
                }
                asked[done + number] += static_cast<std::int32_t>(requested.size());
            }
            if (turn < room) {
                turns[3 * turn] = static_cast<std::int32_t>(some.size());
                turns[3 * turn + 1] = static_cast<std::int32_t>(found.size());
                turns[3 * turn + 2] = static_cast<std::int32_t>(level);
            }
            ++turn;
            return found;
        });
        for (std::size_t i = 0; i < count; ++i) {
            pruned.note(begun[i]);
            const auto &outcome = begun[i].outcome();
            outcomes[done + i] = outcome ? static_cast<std::int32_t>(*outcome) : -1;
            std::copy(begun[i].means().begin(), begun[i].means().end(),
                      means + (done + i) * candidates);
        }
    }
    return turn;
}
}

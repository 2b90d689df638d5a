// The best of some candidates, without scoring all of them at every noise level.
// dsd_trt/search.py and dsd_trt/pruned_search.py have the same rules, in words.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <vector>

#include "lists.hpp"

namespace dsd {

// Scores of some candidates at one level, by its place among the levels; NaN drops a candidate.
using ScoreAt = std::function<std::vector<float>(const std::vector<std::size_t> &candidates,
                                                 std::size_t level)>;

// Successive elimination. Returns each candidate's mean over all levels, NaN for those that were
// dropped: they would overtake the last of the best with a probability below `error`, which all
// candidates share.
std::vector<float> eliminate(const ScoreAt &score_at, std::size_t count, std::size_t levels,
                             std::size_t best, double error);

// What a search scores at the first level: all, its list up to the cut, or its list and the rest.
enum class Turn { all, list, audit };

// The searches of one call, which share their audits.
class PrunedSearch {
  public:
    // `lists` and `kind`, its lists of texts or of images, are null where there are none. `batch`
    // is the number of passes per run of the engine.
    PrunedSearch(std::size_t levels, std::size_t top_k, double error, const Lists *lists,
                 const std::map<std::size_t, Measured> *kind, std::size_t batch);

    // Of the next search, of `count` candidates.
    Turn turn(std::size_t count) const;

    // Finds the best of `count` candidates, at least one, as `eliminate` returns them. `estimates`
    // is called for a list alone.
    std::vector<float> find(Turn turn, const ScoreAt &score_at, std::size_t count,
                            const std::function<std::vector<float>()> &estimates);

    const Audits &audits() const { return audits_; }

  private:
    std::size_t levels_, top_k_, batch_;
    double error_;
    std::optional<Rule> rule_;
    Audits audits_;
};

}  // namespace dsd

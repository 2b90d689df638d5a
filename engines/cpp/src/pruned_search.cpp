#include "pruned_search.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace dsd {
namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
constexpr double kOfList = 0.75;    // share of the error for a list; elimination has the rest
constexpr std::size_t kFirst = 16;  // candidates whose second level gives the first scatter

// The number that a standard normal one exceeds with this probability, at most a half.
double exceeded_with(double probability) {
    double low = 0, high = 40;
    for (int i = 0; i < 100; ++i) {
        const double middle = (low + high) / 2;
        (std::erfc(middle / std::sqrt(2.0)) / 2 > probability ? low : high) = middle;
    }
    return low;
}

// Candidates of one search, with their scores at the levels so far.
struct Candidates {
    std::size_t levels;
    std::vector<double> scores;     // (candidates, levels)
    std::vector<std::size_t> seen;  // levels scored so far
    std::vector<bool> alive;

    std::size_t most() const { return *std::max_element(seen.begin(), seen.end()); }

    double mean(std::size_t candidate, std::size_t over) const {
        const auto row = scores.begin() + static_cast<std::ptrdiff_t>(candidate * levels);
        return std::accumulate(row, row + static_cast<std::ptrdiff_t>(over), 0.0) /
               static_cast<double>(over);
    }

    // Standard deviation of single-level scores about the means of candidate and level.
    double scatter() const {
        double total = 0, freedom = 0;
        for (std::size_t common = 2; common <= most(); ++common) {
            std::vector<std::size_t> block;
            std::vector<double> means(common);  // of each level's deviations
            for (std::size_t it = 0; it < seen.size(); ++it) {
                if (seen[it] != common || std::isnan(mean(it, common))) continue;
                block.push_back(it);
                for (std::size_t level = 0; level < common; ++level) {
                    means[level] += scores[it * levels + level] - mean(it, common);
                }
            }
            if (block.size() < 2) continue;
            const auto rows = static_cast<double>(block.size());
            for (std::size_t it : block) {
                for (std::size_t level = 0; level < common; ++level) {
                    const double rest = scores[it * levels + level] - mean(it, common);
                    total += std::pow(rest - means[level] / rows, 2);
                }
            }
            freedom += (rows - 1) * (static_cast<double>(common) - 1);
        }
        return freedom > 0 ? std::sqrt(total / freedom) : std::numeric_limits<double>::infinity();
    }

    // Drops those that can no longer overtake the last of the leaders.
    void drop_hopeless(std::size_t best, double z) {
        const std::size_t most_seen = most();
        std::vector<std::size_t> leaders;
        for (std::size_t it = 0; it < seen.size(); ++it) {
            if (alive[it] && seen[it] == most_seen) leaders.push_back(it);
        }
        if (leaders.size() < best) return;
        std::stable_sort(leaders.begin(), leaders.end(), [&](std::size_t a, std::size_t b) {
            return mean(a, most_seen) > mean(b, most_seen);
        });
        const std::size_t last = leaders[best - 1];
        const double scatter_now = scatter();
        for (std::size_t it = 0; it < seen.size(); ++it) {
            if (!alive[it]) continue;
            const std::size_t common = seen[it];
            // Standard deviation of a difference of two means over `common` levels from the one
            // over all levels; zero once all levels are scored.
            const double left = 1 / static_cast<double>(common) - 1 / static_cast<double>(levels);
            const double spread = common < levels ? scatter_now * std::sqrt(2 * left) : 0;
            if (mean(last, common) - mean(it, common) > z * spread) alive[it] = false;
        }
    }
};

// Whether the best of all have higher scores than the best of those that a list kept.
bool is_better(const std::vector<float> &every, const std::vector<std::size_t> &kept,
               std::size_t best) {
    std::vector<float> all, of_list;
    for (float score : every) {
        if (!std::isnan(score)) all.push_back(score);
    }
    for (std::size_t it : kept) {
        if (!std::isnan(every[it])) of_list.push_back(every[it]);
    }
    for (auto *scores : {&all, &of_list}) {
        std::sort(scores->begin(), scores->end(), std::greater<float>());
        scores->resize(std::min(best, scores->size()));
    }
    return all != of_list;  // of the same scores, so otherwise one is higher
}

}  // namespace

std::vector<float> eliminate(const ScoreAt &score_at, std::size_t count, std::size_t levels,
                             std::size_t best, double error) {
    Candidates all{levels, std::vector<double>(count * levels, std::nan("")),
                   std::vector<std::size_t>(count), std::vector<bool>(count, true)};
    const auto score = [&](const std::vector<std::size_t> &some, std::size_t level) {
        const std::vector<float> scored = score_at(some, level);
        for (std::size_t i = 0; i < some.size(); ++i) {
            all.scores[some[i] * levels + level] = scored[i];
            ++all.seen[some[i]];
            if (std::isnan(scored[i])) all.alive[some[i]] = false;
        }
    };
    std::vector<std::size_t> turn(count);
    std::iota(turn.begin(), turn.end(), std::size_t{0});
    score(turn, 0);
    const double z = exceeded_with(error / static_cast<double>(std::max<std::size_t>(count, 2)));
    while (true) {
        std::size_t least = levels;
        for (std::size_t it = 0; it < count; ++it) {
            if (all.alive[it]) least = std::min(least, all.seen[it]);
        }
        if (least == levels) break;
        turn.clear();
        for (std::size_t it = 0; it < count; ++it) {
            if (all.alive[it] && all.seen[it] == least) turn.push_back(it);
        }
        if (all.most() == 1) {  // no estimate of the scatter yet
            std::stable_sort(turn.begin(), turn.end(), [&](std::size_t a, std::size_t b) {
                return all.scores[a * levels] > all.scores[b * levels];
            });
            turn.resize(std::min(turn.size(), std::max(kFirst, 4 * std::min(best, count))));
        }
        score(turn, least);
        all.drop_hopeless(best, z);
    }
    std::vector<float> means;
    for (std::size_t it = 0; it < count; ++it) {
        means.push_back(all.alive[it] ? static_cast<float>(all.mean(it, levels)) : kNone);
    }
    return means;
}

PrunedSearch::PrunedSearch(std::size_t levels, std::size_t top_k, double error, const Lists *lists,
                           const std::map<std::size_t, Measured> *kind, std::size_t batch)
    : levels_(levels),
      top_k_(top_k),
      batch_(batch),
      error_(error),
      rule_(lists && kind ? Rule::of(*lists, *kind, top_k, kOfList * error) : std::nullopt),
      audits_(kOfList * error) {}

Turn PrunedSearch::turn(std::size_t count) const {
    if (!rule_ || audits_.ended() || count <= rule_->first_stop(batch_)) return Turn::all;
    return audits_.due() ? Turn::audit : Turn::list;
}

std::vector<float> PrunedSearch::find(Turn turn, const ScoreAt &score_at, std::size_t count,
                                      const std::function<std::vector<float>()> &estimates) {
    if (turn == Turn::all) return eliminate(score_at, count, levels_, top_k_, error_);
    std::vector<float> first(count, kNone);
    const auto at_first = [&](const std::vector<std::size_t> &some) { return score_at(some, 0); };
    std::vector<std::size_t> kept = rule_->follow(estimates(), at_first, batch_, first);
    std::sort(kept.begin(), kept.end());
    if (turn == Turn::list) {
        audits_.add(ListOutcome::followed);
        return eliminated(score_at, first, kept);
    }
    std::vector<std::size_t> every(count), cut;
    std::iota(every.begin(), every.end(), std::size_t{0});
    std::set_difference(every.begin(), every.end(), kept.begin(), kept.end(),
                        std::back_inserter(cut));
    if (!cut.empty()) {
        const std::vector<float> scores = score_at(cut, 0);
        for (std::size_t i = 0; i < cut.size(); ++i) first[cut[i]] = scores[i];
    }
    const std::vector<float> found = eliminated(score_at, first, every);
    const bool failed = is_better(found, kept, top_k_);
    audits_.add(failed ? ListOutcome::failed : ListOutcome::passed);
    return found;
}

// Means of the candidates that were scored at the first level; NaN for all others.
std::vector<float> PrunedSearch::eliminated(const ScoreAt &score_at,
                                            const std::vector<float> &first,
                                            const std::vector<std::size_t> &scored) const {
    const auto score = [&](const std::vector<std::size_t> &some, std::size_t level) {
        std::vector<std::size_t> candidates;
        std::vector<float> known;
        for (std::size_t it : some) {
            candidates.push_back(scored[it]);
            known.push_back(first[scored[it]]);
        }
        return level ? score_at(candidates, level) : known;
    };
    const std::vector<float> found =
        eliminate(score, scored.size(), levels_, top_k_, (1 - kOfList) * error_);
    std::vector<float> means(first.size(), kNone);
    for (std::size_t i = 0; i < scored.size(); ++i) means[scored[i]] = found[i];
    return means;
}

}  // namespace dsd

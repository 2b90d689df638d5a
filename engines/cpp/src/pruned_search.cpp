#include "pruned_search.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace dsd {
namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
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

// Noise levels in the order in which a search scores them: the two ends first.
std::vector<std::size_t> level_order(std::size_t levels) {
    std::vector<std::size_t> order(levels);
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (levels > 2) std::rotate(order.begin() + 1, order.end() - 1, order.end());
    return order;
}

// Candidates of one search, with their scores at the levels so far.
struct Candidates {
    std::size_t levels;
    std::vector<double> scores;     // (candidates, levels), columns in the order of `level_order`
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

// The scores that are numbers, falling, at most `best` of them.
std::vector<float> best_of(std::vector<float> scores, std::size_t best) {
    const auto none = [](float score) { return std::isnan(score); };
    scores.erase(std::remove_if(scores.begin(), scores.end(), none), scores.end());
    std::sort(scores.begin(), scores.end(), std::greater<float>());
    scores.resize(std::min(best, scores.size()));
    return scores;
}

// Scores of one search, each asked for once.
class Known {
  public:
    Known(const ScoreAt &score_at, std::size_t count, std::size_t levels)
        : score_at_(score_at),
          scores_(levels, std::vector<float>(count, kNone)),
          asked_(levels, std::vector<bool>(count)) {}

    std::vector<float> operator()(const std::vector<std::size_t> &some, std::size_t level) {
        std::vector<std::size_t> missing;
        for (std::size_t it : some) {
            if (!asked_[level][it]) missing.push_back(it);
        }
        if (!missing.empty()) {
            const std::vector<float> scored = score_at_(missing, level);
            for (std::size_t i = 0; i < missing.size(); ++i) {
                scores_[level][missing[i]] = scored[i];
                asked_[level][missing[i]] = true;
            }
        }
        std::vector<float> found;
        for (std::size_t it : some) found.push_back(scores_[level][it]);
        return found;
    }

  private:
    const ScoreAt &score_at_;
    std::vector<std::vector<float>> scores_;  // by level
    std::vector<std::vector<bool>> asked_;
};

// Means of the best of a list's candidates before the cut; NaN for all others.
std::vector<float> within_margin(Known &known, const std::vector<std::size_t> &kept,
                                 std::size_t count, std::size_t levels, const Rule &rule) {
    std::vector<float> means(count, kNone);
    const std::vector<float> first = known(kept, 0);
    const std::vector<float> leaders = best_of(first, rule.best);
    if (leaders.empty()) return means;
    std::vector<std::size_t> near;
    for (std::size_t i = 0; i < kept.size(); ++i) {
        if (first[i] >= leaders.back() - rule.margin) near.push_back(kept[i]);
    }
    std::vector<double> sums(near.size());
    for (std::size_t level = 0; level < levels; ++level) {
        const std::vector<float> scores = known(near, level);
        for (std::size_t i = 0; i < near.size(); ++i) sums[i] += scores[i];
    }
    for (std::size_t i = 0; i < near.size(); ++i) {
        means[near[i]] = static_cast<float>(sums[i] / static_cast<double>(levels));
    }
    return means;
}

}  // namespace

std::vector<float> eliminate(const ScoreAt &score_at, std::size_t count, std::size_t levels,
                             std::size_t best, double error) {
    Candidates all{levels, std::vector<double>(count * levels, std::nan("")),
                   std::vector<std::size_t>(count), std::vector<bool>(count, true)};
    const std::vector<std::size_t> order = level_order(levels);
    const auto score = [&](const std::vector<std::size_t> &some, std::size_t column) {
        const std::vector<float> scored = score_at(some, order[column]);
        for (std::size_t i = 0; i < some.size(); ++i) {
            all.scores[some[i] * levels + column] = scored[i];
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
    // Summed by level, so that a mean is that of a search for all to the last bit.
    std::vector<float> means;
    for (std::size_t it = 0; it < count; ++it) {
        std::vector<double> by_level(levels);
        for (std::size_t i = 0; i < levels; ++i) by_level[order[i]] = all.scores[it * levels + i];
        const double sum = std::accumulate(by_level.begin(), by_level.end(), 0.0);
        means.push_back(all.alive[it] ? static_cast<float>(sum / static_cast<double>(levels))
                                      : kNone);
    }
    return means;
}

PrunedSearch::PrunedSearch(std::size_t levels, std::size_t top_k, double error, const Lists *lists,
                           const std::map<std::size_t, Measured> *kind, std::size_t batch)
    : levels_(levels),
      top_k_(top_k),
      batch_(batch),
      error_(error),
      rule_(lists && kind ? Rule::of(*lists, *kind, top_k, error) : std::nullopt),
      audits_(kOfList * error) {}

Turn PrunedSearch::turn(std::size_t count) const {
    if (!rule_ || audits_.ended() || count <= rule_->first_stop(batch_)) return Turn::all;
    return audits_.due() ? Turn::audit : Turn::list;
}

std::vector<float> PrunedSearch::find(Turn turn, const ScoreAt &score_at, std::size_t count,
                                      const std::function<std::vector<float>()> &estimates) {
    if (turn == Turn::all) return eliminate(score_at, count, levels_, top_k_, error_);
    Known known(score_at, count, levels_);
    const auto cached = [&](const std::vector<std::size_t> &some, std::size_t level) {
        return known(some, level);
    };
    const auto at_first = [&](const std::vector<std::size_t> &some) { return known(some, 0); };
    std::vector<float> scores(count, kNone);
    std::vector<std::size_t> kept = rule_->follow(estimates(), at_first, batch_, scores);
    std::sort(kept.begin(), kept.end());
    const double rest = (1 - kOfList) * error_;
    std::vector<float> followed;
    if (std::isinf(rule_->margin)) {
        const auto of_kept = [&](const std::vector<std::size_t> &some, std::size_t level) {
            std::vector<std::size_t> candidates;
            for (std::size_t it : some) candidates.push_back(kept[it]);
            return known(candidates, level);
        };
        const std::vector<float> found = eliminate(of_kept, kept.size(), levels_, top_k_, rest);
        followed.assign(count, kNone);
        for (std::size_t i = 0; i < kept.size(); ++i) followed[kept[i]] = found[i];
    } else {
        followed = within_margin(known, kept, count, levels_, *rule_);
    }
    if (turn == Turn::list) {
        audits_.add(ListOutcome::followed);
        return followed;
    }
    const std::vector<float> found = eliminate(cached, count, levels_, top_k_, rest);
    const bool failed = best_of(found, top_k_) != best_of(followed, top_k_);
    audits_.add(failed ? ListOutcome::failed : ListOutcome::passed);
    return found;
}

}  // namespace dsd

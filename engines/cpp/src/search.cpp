#include "search.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace dsd {
namespace {

constexpr std::size_t kFirstCompared = 16;  // candidates whose second level gives the first scatter
constexpr std::size_t kMostFreedom = 200;   // beyond it, Student's t is the normal distribution
constexpr double kLeastProbability = 1e-15;  // what can be told from 0 in a tail
constexpr double kPi = 3.14159265358979323846;

// Probability that a variable with Student's t distribution exceeds t, at least 0. The closed form
// for whole degrees of freedom is Abramowitz and Stegun, 26.7.3 and 26.7.4.
double student_tail(double t, std::size_t freedom) {
    const auto nu = static_cast<double>(freedom);
    const std::size_t odd = freedom % 2;
    const double cosine = std::sqrt(nu / (nu + t * t));
    double total = 0, term = odd ? cosine : 1.0;
    for (std::size_t i = 1 + odd; i < freedom; i += 2) {
        total += term;
        term *= cosine * cosine * static_cast<double>(i) / static_cast<double>(i + 1);
    }
    double within = total * t / std::sqrt(nu + t * t);
    if (odd) within = (within + std::atan(t / std::sqrt(nu))) * 2 / kPi;
    return (1 - within) / 2;
}

// The number that such a variable exceeds with a probability, at most a half.
double student_quantile(double probability, std::size_t freedom) {
    freedom = std::min(freedom, kMostFreedom);
    probability = std::max(probability, kLeastProbability);
    double low = 0, high = 1;
    while (student_tail(high, freedom) > probability && high < 1e12) {
        low = high;
        high *= 2;
    }
    for (int i = 0; i < 60; ++i) {
        const double middle = (low + high) / 2;
        (student_tail(middle, freedom) > probability ? low : high) = middle;
    }
    return high;
}

// Noise levels in the order in which a search scores them: the two ends first.
std::vector<std::size_t> level_order(std::size_t levels) {
    std::vector<std::size_t> order(levels);
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (levels > 2) std::rotate(order.begin() + 1, order.end() - 1, order.end());
    return order;
}

}  // namespace

Elimination::Elimination(std::size_t count, std::size_t levels, std::size_t best, double error)
    : levels_(levels),
      best_(best),
      each_(error / static_cast<double>(std::max<std::size_t>(count, 2))),
      order_(level_order(levels)),
      scores_(count * levels, std::nan("")),
      seen_(count),
      alive_(count, true),
      request_{std::vector<std::size_t>(count), 0} {
    std::iota(request_.candidates.begin(), request_.candidates.end(), std::size_t{0});
}

void Elimination::answer(const std::vector<float> &scores) {
    for (std::size_t i = 0; i < scores.size(); ++i) {
        const std::size_t candidate = request_.candidates[i];
        scores_[candidate * levels_ + seen_[candidate]++] = scores[i];
        if (std::isnan(scores[i])) alive_[candidate] = false;
    }
    if (most() > 1) drop_hopeless();
    request_next();
}

std::vector<float> Elimination::means() const {
    std::vector<float> means;
    std::vector<double> by_level(levels_);
    for (std::size_t it = 0; it < seen_.size(); ++it) {
        // Summed by level, so that a mean is that of a search for all to the last bit.
        for (std::size_t i = 0; i < levels_; ++i) by_level[order_[i]] = scores_[it * levels_ + i];
        const double sum = std::accumulate(by_level.begin(), by_level.end(), 0.0);
        means.push_back(alive_[it] ? static_cast<float>(sum / static_cast<double>(levels_))
                                   : std::numeric_limits<float>::quiet_NaN());
    }
    return means;
}

std::size_t Elimination::most() const { return *std::max_element(seen_.begin(), seen_.end()); }

double Elimination::mean(std::size_t candidate, std::size_t over) const {
    const auto row = scores_.begin() + static_cast<std::ptrdiff_t>(candidate * levels_);
    return std::accumulate(row, row + static_cast<std::ptrdiff_t>(over), 0.0) /
           static_cast<double>(over);
}

// Standard deviation of single-level scores about the means of candidate and level, times the
// quantile of its estimate; infinite before any candidate has two levels.
double Elimination::allowed() const {
    double total = 0;
    std::size_t freedom = 0;
    for (std::size_t common = 2; common <= most(); ++common) {
        std::vector<std::size_t> block;
        std::vector<double> means(common);  // of each level's deviations
        for (std::size_t it = 0; it < seen_.size(); ++it) {
            if (seen_[it] != common || std::isnan(mean(it, common))) continue;
            block.push_back(it);
            for (std::size_t level = 0; level < common; ++level) {
                means[level] += scores_[it * levels_ + level] - mean(it, common);
            }
        }
        if (block.size() < 2) continue;
        const auto rows = static_cast<double>(block.size());
        for (std::size_t it : block) {
            for (std::size_t level = 0; level < common; ++level) {
                const double rest = scores_[it * levels_ + level] - mean(it, common);
                total += std::pow(rest - means[level] / rows, 2);
            }
        }
        freedom += (block.size() - 1) * (common - 1);
    }
    if (freedom == 0) return std::numeric_limits<double>::infinity();
    return student_quantile(each_, freedom) * std::sqrt(total / static_cast<double>(freedom));
}

// Drops those that can no longer overtake the last of the leaders.
void Elimination::drop_hopeless() {
    const std::size_t most_seen = most();
    std::vector<std::size_t> leaders;
    for (std::size_t it = 0; it < seen_.size(); ++it) {
        if (alive_[it] && seen_[it] == most_seen) leaders.push_back(it);
    }
    if (leaders.size() < best_) return;
    std::stable_sort(leaders.begin(), leaders.end(), [&](std::size_t a, std::size_t b) {
        return mean(a, most_seen) > mean(b, most_seen);
    });
    const std::size_t last = leaders[best_ - 1];
    const double allowed_now = allowed();
    for (std::size_t it = 0; it < seen_.size(); ++it) {
        if (!alive_[it]) continue;
        const std::size_t common = seen_[it];
        // Standard deviation of a difference of two means over `common` levels from the one over
        // all levels; zero once all levels are scored.
        const double left = 1 / static_cast<double>(common) - 1 / static_cast<double>(levels_);
        const double within = common < levels_ ? allowed_now * std::sqrt(2 * left) : 0;
        if (mean(last, common) - mean(it, common) > within) alive_[it] = false;
    }
}

// Of the candidates that were scored at the fewest levels the next one.
void Elimination::request_next() {
    std::size_t least = levels_;
    for (std::size_t it = 0; it < seen_.size(); ++it) {
        if (alive_[it]) least = std::min(least, seen_[it]);
    }
    std::vector<std::size_t> &turn = request_.candidates;
    turn.clear();
    if (least == levels_) return;
    for (std::size_t it = 0; it < seen_.size(); ++it) {
        if (alive_[it] && seen_[it] == least) turn.push_back(it);
    }
    if (most() == 1) {  // no estimate of the scatter yet
        std::stable_sort(turn.begin(), turn.end(), [&](std::size_t a, std::size_t b) {
            return scores_[a * levels_] > scores_[b * levels_];
        });
        turn.resize(
            std::min(turn.size(), std::max(kFirstCompared, 4 * std::min(best_, seen_.size()))));
    }
    request_.level = order_[least];
}

}  // namespace dsd

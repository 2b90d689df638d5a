#include "lists.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <locale>
#include <numeric>
#include <sstream>
#include <utility>

namespace dsd {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::size_t kFewest = 4;        // candidates that are scored at least
constexpr std::size_t kSmallBatch = 8;    // up to which a chunk fills batches of the engine
constexpr std::size_t kEvery = 64;        // lists of which one is audited
constexpr std::size_t kAfterFailure = 8;  // lists that are all audited: a change is noticed sooner
constexpr double kImplausible = 0.01;     // probability of that many failures below which lists end

// Falling estimates, those that are NaN first.
std::vector<std::size_t> list_order(const std::vector<float> &estimates) {
    std::vector<std::size_t> order(estimates.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto known = [&](std::size_t at) {
        return std::isnan(estimates[at]) ? std::numeric_limits<float>::infinity() : estimates[at];
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return known(a) > known(b); });
    return order;
}

// Exact probability of at least some failures in independent trials.
double at_least(std::size_t failures, std::size_t trials, double probability) {
    double fewer = 0, ways = 0;  // logarithm of the ways to choose i trials
    for (std::size_t i = 0; i < failures; ++i) {
        const auto rest = static_cast<double>(trials - i), number = static_cast<double>(i);
        fewer += std::exp(ways + number * std::log(probability) + rest * std::log1p(-probability));
        ways += std::log(rest) - std::log(number + 1);
    }
    return std::max(0.0, 1 - fewer);
}

}  // namespace

double Measured::bound(double error) const {
    // Split conformal: a new need is below the n-th smallest of `count` with a probability of at
    // most n / (count + 1).
    const double place = std::floor(error * (static_cast<double>(count) + 1));
    if (place < 1) return -kInfinity;
    if (needs.empty()) return kInfinity;
    return needs[std::min(static_cast<std::size_t>(place), needs.size()) - 1];
}

double Measured::margin(double error) const {
    const double place = std::floor(error * (static_cast<double>(count) + 1));
    if (place < 1 || gaps.empty()) return kInfinity;
    return gaps[std::min(static_cast<std::size_t>(place), gaps.size()) - 1];
}

std::optional<Rule> Rule::of(const Lists &lists, const std::map<std::size_t, Measured> &kind,
                             std::size_t best, double error) {
    const auto enough = kind.lower_bound(best);
    if (enough == kind.end() || lists.rule != kRule) return std::nullopt;
    const double bound = enough->second.bound(kOfList * error);
    if (bound == -kInfinity) return std::nullopt;
    const double margin = enough->second.margin(kOfMargin * error);
    return Rule{enough->first, bound, lists.slope, lists.candidates, margin};
}

std::size_t Rule::first_stop(std::size_t batch) const {
    const std::size_t unit = batch <= kSmallBatch ? batch : kFewest;
    return unit * ((std::max(kFewest, best + 3) + unit - 1) / unit);
}

std::size_t Rule::too_few(std::size_t batch) const {
    return std::max(first_stop(batch), 2 * first_stop(1));
}

std::size_t Rule::next_stop(std::size_t place, std::size_t batch) const {
    const std::size_t unit = batch <= kSmallBatch ? batch : kFewest;
    std::size_t chunk = unit;  // a power of two of them, at most a quarter of the place
    while (8 * chunk <= place) chunk *= 2;
    return place + chunk;
}

FollowedList::FollowedList(const Rule &rule, std::vector<float> estimates, std::size_t batch)
    : rule_(rule),
      batch_(batch),
      estimates_(std::move(estimates)),
      order_(list_order(estimates_)),
      request_{{}, 0} {
    request_to(rule.first_stop(batch));
}

void FollowedList::request_to(std::size_t place) {
    const auto from = order_.begin() + static_cast<std::ptrdiff_t>(place_);
    place_ = std::min(place, order_.size());
    request_.candidates.assign(from, order_.begin() + static_cast<std::ptrdiff_t>(place_));
}

void FollowedList::answer(const std::vector<float> &scores) {
    for (std::size_t i = 0; i < scores.size(); ++i) {
        const float estimate = estimates_[request_.candidates[i]];
        if (std::isnan(scores[i]) || std::isnan(estimate)) continue;
        exceeded_ += static_cast<double>(scores[i]) - static_cast<double>(estimate);
        ++compared_;
    }
    std::copy_if(scores.begin(), scores.end(), std::back_inserter(scores_),
                 [](float score) { return !std::isnan(score); });
    std::sort(scores_.begin(), scores_.end(), std::greater<float>());
    request_.candidates.clear();
    if (place_ < order_.size() && !is_cut()) request_to(rule_.next_stop(place_, batch_));
}

std::vector<std::size_t> FollowedList::scored() const {
    return {order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(place_)};
}

bool FollowedList::is_cut() const {
    const double following = estimates_[order_[place_]];
    if (scores_.size() < rule_.best || compared_ == 0 || std::isnan(following)) return false;
    const double corrected = following + exceeded_ / static_cast<double>(compared_);
    const double place = static_cast<double>(place_) * rule_.candidates;
    const double reach = corrected - scores_[rule_.best - 1] -
                         rule_.slope * std::log(place / static_cast<double>(order_.size()));
    return reach < rule_.bound;
}

bool Audits::due(std::size_t ahead) const {
    if (more_ > ahead) return true;
    const std::size_t number = lists_ + ahead;
    return number > kEvery ? number % kEvery == 0 : (number & (number - 1)) == 0;
}

void Audits::add(ListOutcome outcome) {
    ++lists_;
    if (outcome == ListOutcome::followed) return;
    const bool failed = outcome == ListOutcome::failed;
    more_ = failed ? kAfterFailure : more_ - (more_ > 0);
    ++audits_;
    failures_ += failed;
    if (!failed || ended() || at_least(failures_, audits_, error_) >= kImplausible) return;
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text << failures_ << " of " << audits_
         << " audited lists would have lost one of the best, more than an error of " << error_
         << " explains: from there on every candidate was scored. Your images and texts differ "
            "from those that the bundle's lists were measured on. Measure lists on your own: "
            "dsd-trt imitate, then dsd-trt export --matrix";
    warning_ = text.str();
}

}  // namespace dsd

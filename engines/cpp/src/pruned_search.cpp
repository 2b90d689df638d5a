#include "pruned_search.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

namespace dsd {
namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
constexpr std::size_t kTogether = 32;   // searches that are made together
constexpr std::size_t kHeld = 1000000;  // candidates of these

std::vector<std::size_t> numbers_to(std::size_t count) {
    std::vector<std::size_t> numbers(count);
    std::iota(numbers.begin(), numbers.end(), std::size_t{0});
    return numbers;
}

// The scores that are numbers, falling, at most `best` of them.
std::vector<float> best_of(std::vector<float> scores, std::size_t best) {
    const auto none = [](float score) { return std::isnan(score); };
    scores.erase(std::remove_if(scores.begin(), scores.end(), none), scores.end());
    std::sort(scores.begin(), scores.end(), std::greater<float>());
    scores.resize(std::min(best, scores.size()));
    return scores;
}

// Whether the best of all have higher scores than the best of those that a list kept.
bool is_better(const std::vector<float> &every, const std::vector<float> &kept, std::size_t best) {
    const std::vector<float> all = best_of(every, best), found = best_of(kept, best);
    if (found.size() < all.size()) return true;
    // There are fewer of all where those that displaced the others later had no score themselves.
    return !std::equal(all.begin(), all.end(), found.begin(), std::less_equal<float>());
}

}  // namespace

KnownScores::KnownScores(std::size_t count, std::size_t levels)
    : scores_(levels, std::vector<float>(count, kNone)), known_(levels, std::vector<bool>(count)) {}

std::vector<std::size_t> KnownScores::missing(const Request &wanted) const {
    std::vector<std::size_t> missing;
    for (std::size_t it : wanted.candidates) {
        if (!known_[wanted.level][it]) missing.push_back(it);
    }
    return missing;
}

std::vector<float> KnownScores::of(const Request &wanted) const {
    std::vector<float> scores;
    for (std::size_t it : wanted.candidates) scores.push_back(scores_[wanted.level][it]);
    return scores;
}

void KnownScores::add(const Request &answered, const std::vector<float> &scores) {
    for (std::size_t i = 0; i < scores.size(); ++i) {
        scores_[answered.level][answered.candidates[i]] = scores[i];
        known_[answered.level][answered.candidates[i]] = true;
    }
}

Search::Search(std::size_t count, std::size_t levels, std::size_t best, double error)
    : turn_(Turn::all),
      levels_(levels),
      best_(best),
      error_(error),
      known_(count, levels),
      stage_(Elimination(count, levels, best, error)),
      places_(numbers_to(count)),
      means_(count, kNone) {
    go_on();
}

Search::Search(Turn turn, const Rule &rule, std::vector<float> estimates, std::size_t levels,
               std::size_t best, double error, std::size_t batch)
    : turn_(turn),
      rule_(rule),
      levels_(levels),
      best_(best),
      error_(error),
      known_(estimates.size(), levels),
      stage_(FollowedList(rule, estimates, batch)),
      places_(numbers_to(estimates.size())),
      means_(estimates.size(), kNone) {
    go_on();
}

void Search::answer(const std::vector<float> &scores) {
    known_.add(request_, scores);
    go_on();
}

// What the stage requests, by the candidates' numbers in this search.
Request Search::wanted() const {
    const Request &of_stage =
        std::visit([](const auto &stage) -> const Request & { return stage.request(); }, stage_);
    Request wanted{{}, of_stage.level};
    for (std::size_t it : of_stage.candidates) wanted.candidates.push_back(places_[it]);
    return wanted;
}

// Goes on, through the stages, until something is requested that is not known.
void Search::go_on() {
    while (true) {
        const Request next = wanted();
        request_ = {known_.missing(next), next.level};
        if (!request_.candidates.empty()) return;
        if (!next.candidates.empty()) {
            std::visit([&](auto &stage) { stage.answer(known_.of(next)); }, stage_);
        } else if (!enter_next_stage()) {
            return;
        }
    }
}

// Whether there is another stage after the one that is done; else there is a result.
bool Search::enter_next_stage() {
    if (const auto *list = std::get_if<FollowedList>(&stage_)) {
        find_best_of_list(list->scored());
        return true;
    }
    const std::vector<float> found = std::get<Elimination>(stage_).means();
    std::fill(means_.begin(), means_.end(), kNone);
    for (std::size_t i = 0; i < found.size(); ++i) means_[places_[i]] = found[i];
    if (turn_ == Turn::all) return false;
    if (turn_ == Turn::list) {
        outcome_ = ListOutcome::followed;
        return false;
    }
    if (followed_.empty()) {
        followed_ = means_;
        places_ = numbers_to(means_.size());
        stage_ = Elimination(places_.size(), levels_, best_, (1 - kOfList) * error_);
        return true;
    }
    const bool failed = is_better(means_, followed_, best_);
    outcome_ = failed ? ListOutcome::failed : ListOutcome::passed;
    return false;
}

// Enters the stage that finds the best of those before the cut by elimination, of those within the
// margin if one was measured.
void Search::find_best_of_list(const std::vector<std::size_t> &scored) {
    places_ = scored;
    std::sort(places_.begin(), places_.end());
    double share = 1 - kOfList;
    if (!std::isinf(rule_->margin)) {
        share -= kOfMargin;
        const std::vector<float> first = known_.of({places_, 0});
        const std::vector<float> leaders = best_of(first, rule_->best);
        std::vector<std::size_t> near;
        for (std::size_t i = 0; i < first.size() && !leaders.empty(); ++i) {
            if (first[i] >= leaders.back() - rule_->margin) near.push_back(places_[i]);
        }
        places_ = std::move(near);
    }
    stage_ = Elimination(places_.size(), levels_, best_, share * error_);
}

PrunedSearch::PrunedSearch(std::size_t levels, std::size_t top_k, double error, const Lists *lists,
                           const std::map<std::size_t, Measured> *kind, std::size_t batch)
    : levels_(levels),
      top_k_(top_k),
      batch_(batch),
      error_(error),
      rule_(lists && kind ? Rule::of(*lists, *kind, top_k, error) : std::nullopt),
      audits_(error) {}

std::size_t PrunedSearch::together(std::size_t candidates) const {
    candidates = std::max<std::size_t>(1, candidates);
    const std::size_t fitting = std::min(kTogether, kHeld / candidates);
    const std::size_t filling = has_lists(candidates) ? std::min(batch_, audits_.lists())
                                                      : (batch_ + candidates - 1) / candidates;
    return std::max<std::size_t>(1, std::min(fitting, filling));
}

bool PrunedSearch::has_lists(std::size_t candidates) const {
    return rule_ && !audits_.ended() && candidates > rule_->too_few(batch_);
}

std::vector<Search> PrunedSearch::begin(std::size_t searches, std::size_t candidates,
                                        const std::vector<float> &estimates) const {
    std::vector<Search> begun;
    const bool listed = has_lists(candidates);
    const std::size_t shared =
        std::max<std::size_t>(1, batch_ / std::max<std::size_t>(1, searches));
    for (std::size_t ahead = 0; ahead < searches; ++ahead) {
        if (!listed) {
            begun.emplace_back(candidates, levels_, top_k_, error_);
            continue;
        }
        const Turn turn = audits_.due(ahead) ? Turn::audit : Turn::list;
        const auto from = estimates.begin() + static_cast<std::ptrdiff_t>(ahead * candidates);
        const std::vector<float> of_list(from, from + static_cast<std::ptrdiff_t>(candidates));
        begun.emplace_back(turn, *rule_, of_list, levels_, top_k_, error_, shared);
    }
    return begun;
}

void PrunedSearch::note(const Search &search) {
    if (search.outcome()) audits_.add(*search.outcome());
}

void answer_together(std::vector<Search> &searches, const ScoreTogether &score) {
    while (true) {
        std::map<std::size_t, std::size_t> requested;  // scores of each level
        for (const Search &it : searches) {
            if (!it.done()) requested[it.request().level] += it.request().candidates.size();
        }
        if (requested.empty()) return;
        const auto most =
            std::max_element(requested.begin(), requested.end(),
                             [](const auto &a, const auto &b) { return a.second < b.second; });
        std::vector<std::size_t> numbers;
        for (std::size_t i = 0; i < searches.size(); ++i) {
            const bool chosen = !searches[i].done() && searches[i].request().level == most->first;
            if (chosen) numbers.push_back(i);
        }
        const std::vector<float> scores = score(numbers, most->first);
        auto from = scores.begin();
        for (std::size_t number : numbers) {
            const auto count = searches[number].request().candidates.size();
            const auto next = from + static_cast<std::ptrdiff_t>(count);
            searches[number].answer({from, next});
            from = next;
        }
    }
}

}  // namespace dsd

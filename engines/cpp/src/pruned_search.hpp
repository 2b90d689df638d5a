// Pruned search: the best candidates of one search after another, and their lists.
// dsd_trt/pruned_search.py has the same rules, in words.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <variant>
#include <vector>

#include "lists.hpp"
#include "search.hpp"

namespace dsd {

// What a search scores at the first level: all, its list up to the cut, or its list and the rest.
enum class Turn { all, list, audit };

// Scores of one search, each requested once.
class KnownScores {
  public:
    KnownScores(std::size_t count, std::size_t levels);

    std::vector<std::size_t> missing(const Request &wanted) const;
    std::vector<float> of(const Request &wanted) const;
    void add(const Request &answered, const std::vector<float> &scores);

  private:
    std::vector<std::vector<float>> scores_;  // (levels, candidates)
    std::vector<std::vector<bool>> known_;    // likewise
};

// One search, which goes on when its request is answered, so searches can be made together. A list
// is followed in stages: it is scored up to the cut; the best of it are found; in an audit also the
// best of all. What one stage has requested is known to the next.
class Search {
  public:
    // A search for the `best` of all candidates, at least one.
    Search(std::size_t count, std::size_t levels, std::size_t best, double error);
    // A search with a list, or the audit of one. `batch` is the number of passes per run of the
    // engine that it may have.
    Search(Turn turn, const Rule &rule, std::vector<float> estimates, std::size_t levels,
           std::size_t best, double error, std::size_t batch);

    const Request &request() const { return request_; }
    void answer(const std::vector<float> &scores);
    bool done() const { return request_.candidates.empty(); }

    // Once it is done: each candidate's mean over all levels, NaN for those that were dropped, and
    // the outcome of its list.
    const std::vector<float> &means() const { return means_; }
    const std::optional<ListOutcome> &outcome() const { return outcome_; }

  private:
    Request wanted() const;
    void go_on();
    bool enter_next_stage();
    void find_best_of_list(const std::vector<std::size_t> &scored);

    Turn turn_;
    std::optional<Rule> rule_;
    std::size_t levels_, best_;
    double error_;  // of the search
    KnownScores known_;
    std::variant<FollowedList, Elimination> stage_;
    std::vector<std::size_t> places_;  // the candidates that the stage numbers
    std::vector<float> followed_;      // means that the list led to, of an audit
    std::vector<float> means_;
    std::optional<ListOutcome> outcome_;
    Request request_;
};

// The searches of one call, which share their audits.
class PrunedSearch {
  public:
    // `lists` and `kind`, its lists of texts or of images, are null where there are none. `batch`
    // is the number of passes per run of the engine.
    PrunedSearch(std::size_t levels, std::size_t top_k, double error, const Lists *lists,
                 const std::map<std::size_t, Measured> *kind, std::size_t batch);

    // Number of searches to make together next, of so many candidates each. Lists are no more than
    // those before them, so that a useless estimate is noticed by the first audits, and no more
    // than passes per run of the engine. Searches without lists are as many as fill such a run.
    // Memory bounds both.
    std::size_t together(std::size_t candidates) const;

    // Whether the next searches, of so many candidates each, have lists, which take estimates.
    bool has_lists(std::size_t candidates) const;

    // The next searches, as many as `together` allows or fewer. `estimates` are (searches,
    // candidates), and none where there are no lists.
    std::vector<Search> begin(std::size_t searches, std::size_t candidates,
                              const std::vector<float> &estimates) const;

    // Counts a search that is done, in the order in which they were begun.
    void note(const Search &search);

    const Audits &audits() const { return audits_; }

  private:
    std::size_t levels_, top_k_, batch_;
    double error_;
    std::optional<Rule> rule_;
    Audits audits_;
};

// The scores that some searches request, by their numbers, all at one level: one request's after
// another's.
using ScoreTogether =
    std::function<std::vector<float>(const std::vector<std::size_t> &searches, std::size_t level)>;

// Answers searches until all are done. At each turn, all requests for the level that most scores
// are requested of are answered. The others wait, so that they become more.
void answer_together(std::vector<Search> &searches, const ScoreTogether &score);

}  // namespace dsd

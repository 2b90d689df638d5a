// Lists: candidates in the order of an estimate of their score, scored only as far as needed.
// dsd_trt/lists.py states the rule; dsd_trt/bundle/lists.py has what a bundle knows of lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "search.hpp"

namespace dsd {

// Shares of the accepted error for the cut and for the margin; elimination has the rest.
constexpr double kOfList = 0.666, kOfMargin = 0.333;

// Lists that `dsd-trt imitate` scored in full at the first noise level.
struct Measured {
    std::int32_t count;         // of these lists
    std::vector<double> needs;  // their smallest needs, ascending; infinite ones are not stored
    std::vector<double> gaps;   // their largest gaps, descending; empty if they were not measured

    // The bound below which at most this share of lists is cut too early; -inf cuts none.
    double bound(double error) const;

    // The gap that at most this share of lists exceeds; inf if it is not known.
    double margin(double error) const;
};

// Lists that the matrix scorer makes, by its estimate of pair mode's score.
struct Lists {
    std::int32_t level;                      // number of the level of the walk that makes a list
    std::int32_t candidates;                 // of each measured list
    double slope;                            // decrease of the reach with the place's logarithm
    std::map<std::size_t, Measured> texts;   // by the number of best candidates
    std::map<std::size_t, Measured> images;  // likewise
    std::int32_t rule;                       // that they were measured for
};

// The rule that this code follows; lists that were measured for another one are not made.
constexpr std::int32_t kRule = 2;

// Says where a list is cut: after k candidates whose reach T_k is below the bound. Of those, the
// ones within the margin of the first level's leaders are scored at all levels.
struct Rule {
    std::size_t best;  // number of best candidates that the bound was measured for
    double bound, slope;
    std::int32_t candidates;
    double margin;  // inf where it was not measured: elimination is of all

    // None if the lists were not measured for that many, or not often enough for this error.
    static std::optional<Rule> of(const Lists &lists, const std::map<std::size_t, Measured> &kind,
                                  std::size_t best, double error);

    // The first place up to which a list is scored, and the one after another.
    std::size_t first_stop(std::size_t batch) const;
    std::size_t next_stop(std::size_t place, std::size_t batch) const;

    // Number of candidates up to which no list pays: most would be scored in any case.
    std::size_t too_few(std::size_t batch) const;
};

// A list that is scored until it is cut. It goes on when its request is answered.
class FollowedList {
  public:
    // `batch` is the number of passes per run of the engine that this list may have.
    FollowedList(const Rule &rule, std::vector<float> estimates, std::size_t batch);

    const Request &request() const { return request_; }
    void answer(const std::vector<float> &scores);

    // Candidates before the cut, in the order of the list, once it is done.
    std::vector<std::size_t> scored() const;

  private:
    void request_to(std::size_t place);
    bool is_cut() const;

    Rule rule_;
    std::size_t batch_;
    std::vector<float> estimates_;
    std::vector<std::size_t> order_;
    std::size_t place_ = 0;      // up to which it is scored
    std::vector<float> scores_;  // so far, those that are numbers, falling
    double exceeded_ = 0;        // sum of what scores exceed their estimates by
    std::size_t compared_ = 0;   // scores in this sum
    Request request_;
};

enum class ListOutcome { followed, passed, failed };  // followed by the rule alone, or audited

// Notices in a call that lists lose more than was accepted, and ends them. An audited list is
// scored whole; its audit fails if the list lost one of the best.
class Audits {
  public:
    explicit Audits(double error) : error_(error) {}

    // Whether a list is audited: the next one, or the one that many lists after it.
    bool due(std::size_t ahead = 0) const;
    bool ended() const { return !warning_.empty(); }
    void add(ListOutcome outcome);

    std::size_t lists() const { return lists_; }
    std::size_t audits() const { return audits_; }
    std::size_t failures() const { return failures_; }
    const std::string &warning() const { return warning_; }  // empty unless they ended

  private:
    double error_;
    std::size_t lists_ = 0, audits_ = 0, failures_ = 0;
    std::size_t more_ = 0;  // lists to audit after a failure
    std::string warning_;
};

}  // namespace dsd

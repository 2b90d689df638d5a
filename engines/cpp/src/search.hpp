// The best of some candidates, without scoring all of them at every noise level.
// dsd_trt/search.py has the same rule, in words.
#pragma once

#include <cstddef>
#include <vector>

namespace dsd {

// Scores that a search needs before it goes on; NaN drops a candidate. Without candidates the
// search is done.
struct Request {
    std::vector<std::size_t> candidates;
    std::size_t level;  // its place among the levels
};

// Successive elimination, which goes on when its request is answered. A candidate is dropped once
// it would overtake the last of the best with a probability below `error`, which all share.
class Elimination {
  public:
    Elimination(std::size_t count, std::size_t levels, std::size_t best, double error);

    const Request &request() const { return request_; }
    void answer(const std::vector<float> &scores);

    // Each candidate's mean over all levels, once it is done; NaN for those that were dropped.
    std::vector<float> means() const;

  private:
    std::size_t most() const;  // levels that a candidate has been scored at
    double mean(std::size_t candidate, std::size_t over) const;
    double allowed() const;
    void drop_hopeless();
    void request_next();

    std::size_t levels_, best_;
    double each_;                     // of each candidate
    std::vector<std::size_t> order_;  // of the levels
    std::vector<double> scores_;      // (candidates, levels), columns in that order
    std::vector<std::size_t> seen_;   // levels scored so far
    std::vector<bool> alive_;
    Request request_;
};

}  // namespace dsd

// The self-check: graphs compute a few items whose results are known, before anything is scored.
// dsd_trt/engine/self_check.py has the same rules.
#pragma once

#include "bundle.hpp"
#include "engine.hpp"
#include "tensor_file.hpp"

namespace dsd {

class SelfCheck {
  public:
    // Reads the file of a bundle that has one; bundle and backend outlive this. Throws dsd::Error,
    // code bundle, where it does not fit the bundle's graphs.
    SelfCheck(const Bundle &bundle, const Backend &backend);

    // Runs a graph's engine, an item at a time, the matrix scorer's at once. Throws dsd::Error,
    // code engine, with both numbers, where it computes anything else than the PyTorch model did.
    void require(const Graph &graph, const Engine &engine) const;

  private:
    const StoredTensor &stored(const Graph &graph, const Tensor &tensor) const;
    void require_matrix(const Graph &graph, const Engine &engine) const;
    void check_fit(const Graph &graph) const;
    void compare(const Graph &graph, const Tensor &output, const Bytes &computed) const;

    const Bundle &bundle_;
    const Backend &backend_;
    StoredTensors tensors_;
};

}  // namespace dsd

// Which files the tensors of an ONNX graph lie in: a walk over its protobuf.
#pragma once

#include <set>
#include <string>

namespace dsd {

// Names of the files that a graph takes tensors from, wherever in it these are: subgraphs,
// attributes, sparse tensors, functions and training graphs included.
// dsd_trt/bundle/external_data.py is the same walk. `model` is the content of the ONNX file. Throws
// dsd::Error, code bundle, if it is no graph.
std::set<std::string> external_files(const std::string &model);

}  // namespace dsd

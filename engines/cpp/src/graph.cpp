#include "graph.hpp"

#include <algorithm>
#include <utility>

#include "dsd/error.hpp"

namespace dsd {
namespace {

ONNXTensorElementDataType onnx_type(ElementType type) {
    constexpr ONNXTensorElementDataType kTypes[] = {
        ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
    return kTypes[static_cast<int>(type)];
}

Ort::Session open(Ort::Env &env, const std::string &path, int threads) {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(3);  // errors, which are thrown as well
    options.SetIntraOpNumThreads(threads);
    // Waiting threads sleep: faster at small batches, and it leaves cores to others.
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");
    try {
        return Ort::Session(env, path.c_str(), options);
    } catch (const Ort::Exception &error) {
        throw Error(ErrorCode::engine, "ONNX Runtime refuses " + path + ": " + error.what());
    }
}

// A dimension that the file leaves open agrees with any size.
bool agree(const Ort::TypeInfo &found, const Tensor &declared) {
    if (found.GetONNXType() != ONNX_TYPE_TENSOR) return false;
    const auto tensor = found.GetTensorTypeAndShapeInfo();
    const auto shape = tensor.GetShape();
    return tensor.GetElementType() == onnx_type(declared.type) &&
           std::equal(shape.begin(), shape.end(), declared.shape.begin(), declared.shape.end(),
                      [](auto size, auto wanted) { return size < 0 || size == wanted; });
}

template <typename Names, typename TypeAt>
void check(const std::string &path, const std::vector<Tensor> &declared, const Names &names,
           TypeAt type_at) {
    bool good = names.size() == declared.size();
    std::string wanted;
    for (const Tensor &tensor : declared) {
        const auto at = std::find(names.begin(), names.end(), tensor.name);
        good = good && at != names.end() &&
               agree(type_at(static_cast<std::size_t>(at - names.begin())), tensor);
        wanted += (wanted.empty() ? "" : "; ") + describe(tensor);
    }
    if (!good) {
        throw Error(ErrorCode::engine,
                    path + " does not have the tensors that its bundle says it has: " + wanted);
    }
}

std::vector<std::int64_t> shape_of(const Tensor &tensor, std::size_t batch) {
    std::vector<std::int64_t> shape = tensor.shape;
    if (shape[0] < 0) shape[0] = static_cast<std::int64_t>(batch);
    return shape;
}

}  // namespace

std::size_t bytes_of_one(const Tensor &tensor) {
    std::size_t count = size_of(tensor.type);
    for (std::int64_t size : tensor.shape) count *= size < 0 ? 1 : static_cast<std::size_t>(size);
    return count;
}

Ort::Env open_runtime() {
    if (!OrtGetApiBase()->GetApi(ORT_API_VERSION)) {
        throw Error(ErrorCode::engine, std::string("ONNX Runtime ") +
                                           OrtGetApiBase()->GetVersionString() +
                                           " is older than the headers this was built with, 1." +
                                           std::to_string(ORT_API_VERSION));
    }
    return Ort::Env(ORT_LOGGING_LEVEL_ERROR, "dsd");
}

Graph::Graph(Ort::Env &env, const GraphFile &file, int threads)
    : inputs_(file.inputs),
      outputs_(file.outputs),
      path_(file.path.string()),
      session_(open(env, path_, threads)) {
    check(path_, inputs_, session_.GetInputNames(),
          [&](std::size_t i) { return session_.GetInputTypeInfo(i); });
    check(path_, outputs_, session_.GetOutputNames(),
          [&](std::size_t i) { return session_.GetOutputTypeInfo(i); });
}

std::vector<Bytes> Graph::run(std::size_t batch, const std::vector<const void *> &feeds) const {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<const char *> input_names, output_names;
    std::vector<Ort::Value> values;
    try {
        for (std::size_t i = 0; i < inputs_.size(); ++i) {
            const Tensor &tensor = inputs_[i];
            const auto shape = shape_of(tensor, batch);
            const std::size_t bytes = bytes_of_one(tensor) * (tensor.shape[0] < 0 ? batch : 1);
            input_names.push_back(tensor.name.c_str());
            // The runtime reads inputs only.
            values.push_back(Ort::Value::CreateTensor(memory, const_cast<void *>(feeds[i]), bytes,
                                                      shape.data(), shape.size(),
                                                      onnx_type(tensor.type)));
        }
        for (const Tensor &tensor : outputs_) output_names.push_back(tensor.name.c_str());
        const auto results = session_.Run(Ort::RunOptions{}, input_names.data(), values.data(),
                                          values.size(), output_names.data(), output_names.size());
        std::vector<Bytes> outputs;
        for (std::size_t i = 0; i < results.size(); ++i) {
            if (results[i].GetTensorTypeAndShapeInfo().GetShape() != shape_of(outputs_[i], batch)) {
                throw Error(ErrorCode::engine, path_ + " computed " + outputs_[i].name +
                                                   " of another shape than its bundle says");
            }
            const auto *data = static_cast<const std::byte *>(results[i].GetTensorRawData());
            outputs.emplace_back(data, data + bytes_of_one(outputs_[i]) * batch);
        }
        return outputs;
    } catch (const Ort::Exception &error) {
        throw Error(ErrorCode::engine, "ONNX Runtime failed: " + std::string(error.what()));
    }
}

}  // namespace dsd

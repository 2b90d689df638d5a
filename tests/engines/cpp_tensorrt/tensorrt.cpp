// Stands in for TensorRT: a plan names an ONNX file, which is run in ONNX Runtime. Its lines are
//
//     stand-in
//     PATH
//     MIN OPT MAX
//
// with one more such line for each further profile.

#include <NvInferRuntime.h>
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>

#include "stand_in.hpp"

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::TensorIOMode;

struct Tensor {
    TensorIOMode mode;
    ONNXTensorElementDataType onnx_type;
    Dims dims;
};

struct Model {
    Ort::Env env{ORT_LOGGING_LEVEL_ERROR, "stand-in"};
    Ort::Session session{nullptr};
    std::vector<std::string> names;
    std::map<std::string, Tensor> tensors;
    std::vector<std::array<std::int64_t, 3>> profiles;
};

DataType data_type(ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return DataType::kFLOAT;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return DataType::kHALF;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return DataType::kINT32;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return DataType::kUINT8;
        default: return DataType::kINT64;
    }
}

std::size_t bytes(ONNXTensorElementDataType type, const Dims &dims) {
    std::size_t count = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8     ? 1
                        : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2
                                                                        : 4;
    for (int i = 0; i < dims.nbDims; ++i) count *= static_cast<std::size_t>(dims.d[i]);
    return count;
}

void compute(Model &model, const std::map<std::string, Dims> &shapes,
             const std::vector<void *> &inputs, const std::vector<void *> &outputs) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<const char *> names[2];
    std::vector<Ort::Value> feeds;
    for (const std::string &name : model.names) {
        const Tensor &tensor = model.tensors.at(name);
        const bool input = tensor.mode == TensorIOMode::kINPUT;
        names[input ? 0 : 1].push_back(name.c_str());
        if (!input) continue;
        const Dims &dims = shapes.at(name);
        feeds.push_back(Ort::Value::CreateTensor(
            memory, inputs[feeds.size()], bytes(tensor.onnx_type, dims), dims.d,
            static_cast<std::size_t>(dims.nbDims), tensor.onnx_type));
    }
    const auto results = model.session.Run(Ort::RunOptions{}, names[0].data(), feeds.data(),
                                           feeds.size(), names[1].data(), names[1].size());
    for (std::size_t i = 0; i < results.size(); ++i) {
        const std::string name = names[1][i];
        std::memcpy(outputs[i], results[i].GetTensorRawData(),
                    bytes(model.tensors.at(name).onnx_type, shapes.at(name)));
    }
}

class Context : public nvinfer1::IExecutionContext {
  public:
    Context(std::shared_ptr<Model> model, nvinfer1::ILogger &logger)
        : model_(std::move(model)), logger_(logger) {}

    std::int32_t getOptimizationProfile() const noexcept override { return profile_; }

    bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t) noexcept override {
        profile_ = index;
        shapes_.clear();
        return index >= 0 && static_cast<std::size_t>(index) < model_->profiles.size();
    }

    bool setInputShape(char const *name, Dims const &dims) noexcept override {
        const Dims &declared = model_->tensors.at(name).dims;
        const auto &profile = model_->profiles[static_cast<std::size_t>(profile_)];
        shapes_[name] = dims;
        return dims.nbDims == declared.nbDims &&
               (declared.d[0] < 0 ? profile[0] <= dims.d[0] && dims.d[0] <= profile[2]
                                  : dims.d[0] == declared.d[0]) &&
               std::equal(dims.d + 1, dims.d + dims.nbDims, declared.d + 1);
    }

    Dims getTensorShape(char const *name) const noexcept override {
        const Tensor &tensor = model_->tensors.at(name);
        if (tensor.mode == TensorIOMode::kINPUT) return shapes_.at(name);
        Dims dims = tensor.dims;
        if (dims.d[0] < 0) dims.d[0] = rows();
        return dims;
    }

    bool setTensorAddress(char const *name, void *data) noexcept override {
        addresses_[name] = data;
        return true;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        std::map<std::string, Dims> shapes;
        for (const auto &[name, tensor] : model_->tensors) {
            const bool input = tensor.mode == TensorIOMode::kINPUT;
            if (input && !shapes_.count(name)) return false;
            shapes[name] = getTensorShape(name.c_str());
        }
        std::vector<Range> ranges[2];  // of inputs and outputs, in the model's order
        for (const std::string &name : model_->names) {
            const Tensor &tensor = model_->tensors.at(name);
            if (!addresses_.count(name)) return false;
            const Range range{addresses_[name], bytes(tensor.onnx_type, shapes[name])};
            if (!on_device(range)) return false;
            ranges[tensor.mode == TensorIOMode::kINPUT ? 0 : 1].push_back(range);
        }
        const std::string fails = setting("STAND_IN_FAILS", "");
        if (fails == "at once") {
            logger_.log(nvinfer1::ILogger::Severity::kERROR, "the stand-in was told to fail");
            return false;
        }
        if (const std::string log = setting("STAND_IN_LOG", ""); !log.empty()) {
            std::ofstream(log, std::ios::app) << profile_ << ' ' << rows() << '\n';
        }
        if (fails == "later") fail_in(stream);
        return add_to(stream, ranges[0], ranges[1],
                      [model = model_, shapes](const std::vector<void *> &inputs,
                                               const std::vector<void *> &outputs) {
                          compute(*model, shapes, inputs, outputs);
                      });
    }

  private:
    std::int64_t rows() const {
        for (const auto &[name, dims] : shapes_) {
            if (model_->tensors.at(name).dims.d[0] < 0) return dims.d[0];
        }
        return -1;
    }

    std::shared_ptr<Model> model_;
    nvinfer1::ILogger &logger_;
    std::int32_t profile_ = 0;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, void *> addresses_;
};

class Engine : public nvinfer1::ICudaEngine {
  public:
    Engine(std::shared_ptr<Model> model, nvinfer1::ILogger &logger)
        : model_(std::move(model)), logger_(logger) {}

    std::int32_t getNbIOTensors() const noexcept override {
        return static_cast<std::int32_t>(model_->names.size());
    }
    char const *getIOTensorName(std::int32_t index) const noexcept override {
        return model_->names[static_cast<std::size_t>(index)].c_str();
    }
    TensorIOMode getTensorIOMode(char const *name) const noexcept override {
        return model_->tensors.at(name).mode;
    }
    DataType getTensorDataType(char const *name) const noexcept override {
        return data_type(model_->tensors.at(name).onnx_type);
    }
    Dims getTensorShape(char const *name) const noexcept override {
        return model_->tensors.at(name).dims;
    }
    std::int32_t getNbOptimizationProfiles() const noexcept override {
        return static_cast<std::int32_t>(model_->profiles.size());
    }
    Dims getProfileShape(char const *name, std::int32_t index,
                         nvinfer1::OptProfileSelector select) const noexcept override {
        Dims dims = model_->tensors.at(name).dims;
        const auto &profile = model_->profiles[static_cast<std::size_t>(index)];
        if (dims.d[0] < 0) dims.d[0] = profile[static_cast<std::size_t>(select)];
        return dims;
    }
    nvinfer1::IExecutionContext *createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy) noexcept override {
        return new Context(model_, logger_);
    }

  private:
    std::shared_ptr<Model> model_;
    nvinfer1::ILogger &logger_;
};

std::shared_ptr<Model> read_plan(std::istream &plan) {
    std::string line;
    std::getline(plan, line);
    if (line != "stand-in") return nullptr;
    std::getline(plan, line);
    auto model = std::make_shared<Model>();
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    model->session = Ort::Session(model->env, line.c_str(), options);
    for (std::array<std::int64_t, 3> one; plan >> one[0] >> one[1] >> one[2];) {
        model->profiles.push_back(one);
    }
    const auto add = [&](const std::string &name, TensorIOMode mode, const Ort::TypeInfo &type) {
        const auto info = type.GetTensorTypeAndShapeInfo();
        const auto shape = info.GetShape();
        Tensor tensor{mode, info.GetElementType(), {}};
        tensor.dims.nbDims = static_cast<std::int32_t>(shape.size());
        std::copy(shape.begin(), shape.end(), tensor.dims.d);
        model->names.push_back(name);
        model->tensors.emplace(name, tensor);
    };
    const Ort::Session &session = model->session;
    for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
        add(session.GetInputNames()[i], TensorIOMode::kINPUT, session.GetInputTypeInfo(i));
    }
    for (std::size_t i = 0; i < session.GetOutputCount(); ++i) {
        add(session.GetOutputNames()[i], TensorIOMode::kOUTPUT, session.GetOutputTypeInfo(i));
    }
    return model;
}

class Runtime : public nvinfer1::IRuntime {
  public:
    explicit Runtime(nvinfer1::ILogger &logger) : logger_(logger) {}

    nvinfer1::ICudaEngine *deserializeCudaEngine(void const *blob,
                                                 std::size_t size) noexcept override {
        std::istringstream plan(std::string(static_cast<const char *>(blob), size));
        if (auto model = read_plan(plan)) return new Engine(std::move(model), logger_);
        logger_.log(nvinfer1::ILogger::Severity::kERROR, "this is no plan of the stand-in's");
        return nullptr;
    }

  private:
    nvinfer1::ILogger &logger_;
};

}  // namespace

extern "C" void *createInferRuntime_INTERNAL(void *logger, std::int32_t) noexcept {
    return static_cast<nvinfer1::IRuntime *>(
        new Runtime(*static_cast<nvinfer1::ILogger *>(logger)));
}

extern "C" std::int32_t getInferLibVersion() noexcept { return 101303; }

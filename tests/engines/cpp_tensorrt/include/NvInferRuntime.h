// Stands in for NVIDIA's header of this name: what the C++ library calls of TensorRT 10, declared
// with the same names and types. There the functions are inline and reach the library through
// tables of their own; here they are virtual.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT32 = 3, kUINT8 = 5, kINT64 = 8 };
enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class ExecutionContextAllocationStrategy : int32_t { kSTATIC = 0 };

class Dims64 {
  public:
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};
using Dims = Dims64;

class ILogger {
  public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2 };
    virtual void log(Severity severity, char const *msg) noexcept = 0;
    ILogger() = default;
    virtual ~ILogger() = default;
};

class IExecutionContext {
  public:
    virtual ~IExecutionContext() noexcept = default;
    virtual int32_t getOptimizationProfile() const noexcept = 0;
    virtual bool setOptimizationProfileAsync(int32_t profileIndex,
                                             cudaStream_t stream) noexcept = 0;
    virtual bool setInputShape(char const *tensorName, Dims const &dims) noexcept = 0;
    virtual Dims getTensorShape(char const *tensorName) const noexcept = 0;
    virtual bool setTensorAddress(char const *tensorName, void *data) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
  public:
    virtual ~ICudaEngine() noexcept = default;
    virtual int32_t getNbIOTensors() const noexcept = 0;
    virtual char const *getIOTensorName(int32_t index) const noexcept = 0;
    virtual TensorIOMode getTensorIOMode(char const *tensorName) const noexcept = 0;
    virtual DataType getTensorDataType(char const *tensorName) const noexcept = 0;
    virtual Dims getTensorShape(char const *tensorName) const noexcept = 0;
    virtual int32_t getNbOptimizationProfiles() const noexcept = 0;
    virtual Dims getProfileShape(char const *tensorName, int32_t profileIndex,
                                 OptProfileSelector select) const noexcept = 0;
    virtual IExecutionContext *createExecutionContext(
        ExecutionContextAllocationStrategy strategy =
            ExecutionContextAllocationStrategy::kSTATIC) noexcept = 0;
};

class IRuntime {
  public:
    virtual ~IRuntime() noexcept = default;
    virtual ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept = 0;
};

}  // namespace nvinfer1

extern "C" void *createInferRuntime_INTERNAL(void *logger, int32_t version) noexcept;
extern "C" int32_t getInferLibVersion() noexcept;

namespace nvinfer1 {

inline IRuntime *createInferRuntime(ILogger &logger) noexcept {
    return static_cast<IRuntime *>(createInferRuntime_INTERNAL(&logger, 101303));
}

}  // namespace nvinfer1

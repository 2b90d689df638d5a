# Builds plans inside NVIDIA's TensorRT container, whose library then is the one that runs them. It
# needs the GPU that the plans are for. No Docker engine was at hand when this was written: it is
# linted, and has yet to run.
#
#   docker build -f engines/docker/build.Dockerfile --build-arg TENSORRT_IMAGE=IMAGE -t dsd-trt-build .
#   docker run --gpus all -v "$PWD":/work dsd-trt-build my-scorer --engine tensorrt
ARG TENSORRT_IMAGE
FROM ${TENSORRT_IMAGE}
COPY . /source
# The container has its own tensorrt, so that the extra "gpu" is not asked for.
RUN python3 -m pip install --no-cache-dir --constraint /source/constraints.txt \
        /source cuda-bindings \
    && rm -r /source
WORKDIR /work
ENTRYPOINT ["dsd-trt", "build"]

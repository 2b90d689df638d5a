# Scores on a GPU: the lean runtime with TensorRT, for bundles whose plans were built with the same
# version. No Docker engine was at hand when this was written: it is linted, and has yet to run.
#
#   docker build -f engines/docker/runtime.Dockerfile -t dsd-trt .
#   docker run --gpus all -v "$PWD":/work dsd-trt score images texts.txt \
#     --bundle my-scorer --engine tensorrt
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE}
ARG TENSORRT=11.4.0.106
COPY . /source
RUN python -m pip install --no-cache-dir --constraint /source/constraints.txt \
        "/source[gpu]" "tensorrt==${TENSORRT}" \
    && rm -r /source \
    && useradd --uid 1000 --create-home scorer
USER 1000
WORKDIR /work
ENTRYPOINT ["dsd-trt"]

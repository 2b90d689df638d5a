"""TensorRT and TensorRT-RTX: plans compiled into the bundle, run on a GPU."""

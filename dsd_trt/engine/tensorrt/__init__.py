"""TensorRT and TensorRT-RTX: plans that were built into a bundle, on a GPU."""

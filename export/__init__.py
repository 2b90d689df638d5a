"""Tracing the PyTorch model to ONNX graphs and writing them as a bundle that was checked."""

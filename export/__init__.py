"""Export: trace the PyTorch model to ONNX graphs and write them as a verified bundle."""

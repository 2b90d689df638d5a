"""Serve a bundle with Triton Inference Server."""

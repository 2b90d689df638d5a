"""Serving a bundle with Triton Inference Server."""

"""Models for Triton's python backend: each module becomes a model's `model.py`.

What it imports of the package is copied beside it, see `dsd_trt.engines.triton.runtime`.
"""

"""Models for Triton's python backend: each module becomes a model's `model.py`."""

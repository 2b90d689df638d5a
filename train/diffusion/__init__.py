"""Stable Diffusion checkpoints: found, read strictly, put together."""

"""Stable Diffusion checkpoints: finding, strict reading and validation."""

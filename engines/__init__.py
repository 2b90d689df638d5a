"""Compiling bundles for GPUs and deploying them."""

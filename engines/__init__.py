"""Compile bundles for GPUs, and deploy them with Triton and C++."""

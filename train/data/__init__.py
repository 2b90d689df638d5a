"""Readers of data sets, which yield `Question` objects. This package does not import torch."""

"""Subcommands for training and evaluation, one module each."""

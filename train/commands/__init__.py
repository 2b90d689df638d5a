"""Subcommands that learn and measure, one module each."""

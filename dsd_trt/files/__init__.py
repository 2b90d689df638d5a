"""Strict reading of files from others, and atomic writing."""

"""From image files to the pixels a graph takes: formats by their specification, no metadata."""

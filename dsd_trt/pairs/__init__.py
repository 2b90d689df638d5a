"""Pairs of an image and a text from a table or a WebDataset, scored row for row."""

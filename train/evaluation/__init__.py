"""Measuring: questions asked of a scorer, answers counted, figures with their uncertainty."""

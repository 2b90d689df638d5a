"""Data sets as questions: candidates of which one is right. Imports no torch."""

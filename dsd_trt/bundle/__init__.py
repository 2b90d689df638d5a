"""The bundle: a folder with everything a runtime needs to score."""

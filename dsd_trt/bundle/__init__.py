"""The bundle: a folder with everything a runtime needs for scoring."""

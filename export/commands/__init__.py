"""The commands `export`, `adapt`, `ranges` and `bench`, one module each."""

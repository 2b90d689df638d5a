"""The commands `export`, `adapt`, `ranges`, `bench` and `gpu-check`, one module each."""

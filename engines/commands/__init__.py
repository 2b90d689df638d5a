"""The commands `build`, `gpu-check` and `triton`, one module each."""

"""The commands `build` and `triton`, one module each."""

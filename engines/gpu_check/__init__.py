"""`dsd-trt gpu-check`: a bundle on a GPU, right or wrong, and how fast."""

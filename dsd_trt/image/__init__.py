"""What image files need beyond Pillow's decoders: pixels by the specification, no metadata."""

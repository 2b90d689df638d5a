"""The index: latents of images on disk, so that scoring new texts needs no image encoder."""

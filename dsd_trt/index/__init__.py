"""The index: latents of images on disk, so that new texts need no image encoder."""

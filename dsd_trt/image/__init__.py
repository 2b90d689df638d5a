"""Image files to pixels, following the formats' specifications; metadata is ignored."""

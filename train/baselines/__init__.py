"""What the paper compares with (Sect. 5.3): CLIP as it is, with its heads tuned, with prompts."""

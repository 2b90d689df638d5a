"""The paper's CLIP baselines (Sect. 5.3): zero-shot, fine-tuned heads and learned prompts."""

"""The score: noise (Eq. 1), cross-attention pooled and averaged (Eq. 3 and 4), prompts (Eq. 5)."""

"""Few-shot training of an adapter: prompts and head weights learned on a frozen base model."""

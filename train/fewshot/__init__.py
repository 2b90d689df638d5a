"""Few-shot training of an adapter: the base model frozen, prompts and head weights learned."""

"""Learning: the scoring model in PyTorch, few-shot adapters, the demonstration."""

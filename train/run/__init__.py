"""Parts of every training run: saved state, progress, losses, device, memory."""

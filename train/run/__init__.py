"""What every training run needs: state, progress, losses, device."""

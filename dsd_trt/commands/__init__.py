"""The runtime's commands, one per module, imported when called."""

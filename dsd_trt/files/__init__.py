"""Reading what others wrote, and writing whole files or none."""

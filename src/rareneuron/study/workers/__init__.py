"""Who computes a study's checkpoints: this process, several beside it, or a Ray cluster."""

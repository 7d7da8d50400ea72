"""Runs a whole study: plans it, chooses its tokens, gives its checkpoints to workers, writes its conclusions."""

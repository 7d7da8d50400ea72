"""A whole study: planned, its tokens chosen, its checkpoints given to workers, its end written."""

"""Has a study's checkpoints computed by this process, by several local ones, or by a Ray cluster."""

"""A study, stage by stage, from texts and checkpoints to a run folder."""

"""What a study says over all its checkpoints: the trajectory, the checks, the evidence and the verdicts."""

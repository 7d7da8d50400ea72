"""Measures one checkpoint: captures tokens, computes every neuron's effect, groups, experiments and details."""

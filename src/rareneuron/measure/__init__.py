"""One checkpoint measured: captured tokens, every neuron's effect, groups, experiments, details; then put in place."""

"""The known kinds of neurons and the thresholds that decide them, written down before any trained model was judged."""

KINDS = ("entropy", "token-frequency", "prediction", "suppression", "partition")
LEAST_NORM_SHARE = 0.5  # of an entropy neuron
LEAST_FREQUENCY_SHARE = 0.25  # of a token-frequency neuron
PEAKED = 10.0  # kurtosis of a neuron that is about few types; a Gaussian has 3

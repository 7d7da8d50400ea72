"""The small checkpoint series shipped with the package, and the English it is analysed on."""

from pathlib import Path

SERIES = Path(__file__).parent / "series"
"""`step<N>/` folders in Hugging Face form, tokenizer, training counts and recipe."""
COUNTS = SERIES / "unigrams.npy"
"""How often each token stands in the training windows."""

"""Texts, token windows, what is rare in them, and the tokens that are analysed."""

from typing import Literal

Rule = Literal["types", "occurrences", "elbow", "none"]
"""What makes a type rare; here, since settings name it without loading what applies it (`rarity.rare_types`)."""

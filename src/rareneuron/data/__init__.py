"""Texts, token windows, what is rare in them, and the tokens that are analysed."""

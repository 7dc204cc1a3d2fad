"""Tokenizers: from text to tokens and back, cut at safe places."""

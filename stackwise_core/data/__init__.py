"""Data: from text to token sequences, and from sequences to draws."""

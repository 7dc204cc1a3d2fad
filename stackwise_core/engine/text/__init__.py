"""Text: from a corpus to token sequences on disk."""

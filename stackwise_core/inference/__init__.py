"""Use of a trained rack: its likelihood, and texts from it."""

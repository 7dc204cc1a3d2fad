"""Files of a run: its directory, manifest and metrics, and what is made of finished runs."""

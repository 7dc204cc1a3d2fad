"""The loss of a phase."""

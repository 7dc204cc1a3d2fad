"""Boundaries: hidden states between stacks, their names, number formats and stores."""

"""Offload: where the training state of stacks waits that aren't at work."""

"""The training loop: phases, steps, checkpoints, events."""

"""Weights in and out: from runs and checkpoints, merged, copied, exported."""

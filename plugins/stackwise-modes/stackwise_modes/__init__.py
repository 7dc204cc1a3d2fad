"""Trainer modes for Stackwise: which phases a rack is trained in."""

"""Trainer modes for Stackwise: plans of the phases in which a rack is trained."""

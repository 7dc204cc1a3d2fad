"""Trainer modes for Stackwise: blockwise, layerwise and end-to-end."""

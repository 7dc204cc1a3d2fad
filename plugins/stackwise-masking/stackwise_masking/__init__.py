"""Mask schedules for Stackwise: constant, linear, exponential and cosine."""

"""Curves of a Stackwise run for TensorBoard."""

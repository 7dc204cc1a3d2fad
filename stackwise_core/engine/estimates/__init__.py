"""Estimates: memory, disk, parameters and FLOPs of a phase."""

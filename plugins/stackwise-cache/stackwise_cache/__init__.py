"""Boundary caches for Stackwise: in memory and on disk."""

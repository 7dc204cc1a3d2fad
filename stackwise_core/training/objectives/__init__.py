"""The objectives that the core brings."""

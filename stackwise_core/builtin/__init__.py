"""The implementations that the core brings itself, registered as any plugin's."""

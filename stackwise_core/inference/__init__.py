"""Using a rack: its likelihood."""

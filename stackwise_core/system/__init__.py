"""The machine and its file system: files that count whole or not at all, limits, calls that a system lacks."""

"""The configuration: its tables, how TOML becomes them, and errors with location and nearest right value."""

"""The configuration: its tables, how TOML becomes them, and errors that say where and what instead."""

"""The run directory: weights and records, each with a checksum."""

"""Files of a run: names, schemas and readers, for files whole or damaged. Without torch."""

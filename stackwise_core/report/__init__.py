"""What a run's files tell of it, read without torch, be they whole or damaged."""

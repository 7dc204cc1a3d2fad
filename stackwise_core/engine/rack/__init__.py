"""The model: blocks, stacks, embedding and head, and where they are held."""

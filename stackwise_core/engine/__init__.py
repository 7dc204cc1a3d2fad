"""The engine: everything that imports torch, in rooms with one way through them."""

"""Events of a run: what is told to listeners, recorded, and asked by signals."""

"""Phases executed: objective, boundaries, optimisation, and the engine that runs a plan."""

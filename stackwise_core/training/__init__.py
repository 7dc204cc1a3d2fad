"""Execution of phases: objective, boundaries, optimisation, and the engine that runs a plan."""

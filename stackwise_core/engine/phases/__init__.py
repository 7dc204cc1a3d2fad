"""Phases: what they are built from, their steps, adapters and boundaries."""

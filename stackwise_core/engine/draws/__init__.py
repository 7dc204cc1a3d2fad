"""Draws: which samples a step has, in which order, and what is masked in them."""

"""Stackwise: train transformers stack by stack with a masked-diffusion objective."""

__version__ = "0.1.0"

"""Hugging Face checkpoints for Stackwise: racks start from them and become them."""

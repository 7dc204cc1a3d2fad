"""4-bit and 8-bit frozen stacks for Stackwise, by bitsandbytes."""

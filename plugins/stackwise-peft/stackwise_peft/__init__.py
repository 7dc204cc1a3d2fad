"""Adapters for Stackwise through peft: LoRA, DoRA, rsLoRA, PiSSA, OLoRA and (IA)³."""

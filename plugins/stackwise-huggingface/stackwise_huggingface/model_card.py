"""The README.md of an exported model."""

from __future__ import annotations

import math

from stackwise_core.interfaces.checkpoint_format import ExportedRack
from stackwise_huggingface.model_config import Target


def model_card(rack: ExportedRack, target: Target) -> str:
    """Write the model card: what the model is, and how to load it."""
    spec, name = rack.spec, rack.name
    parameters = sum(math.prod(shape) for shape in rack.shapes.values())
    both_ways = spec.attention == "bidirectional"
    auto = "AutoModelForCausalLM" if target.model_type == "llama" else "AutoModelForMaskedLM"
    tied = "tied embeddings" if spec.tie_embeddings else "a head of its own"
    heads = f"{spec.n_heads} heads ({spec.n_kv_heads} for keys and values)"
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'fill-mask' if both_ways else 'text-generation'}",
        "tags: [stackwise, masked-diffusion]" if both_ways else "tags: [stackwise]",
        "---",
        "",
        f"# {name}",
        "",
        f"Trained stack by stack with Stackwise, and exported as `{target.model_class}`: {parameters:,} "
        f"parameters, {rack.blocks} blocks, d_model {spec.d_model}, {heads}, {spec.vocab_size:,} tokens, {tied}, "
        f"sequences of {spec.seq_len}.",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("{name}", attn_implementation="sdpa").eval()',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        "```",
        "",
        f"It needs transformers {target.needs} or newer, and no code from elsewhere.",
    ]
    if both_ways and target.model_type == "llama":
        lines.append("Older versions load it without an error and run it causally, which gives other numbers.")
    if both_ways:
        lines += ["", "The mask token is never predicted: take its logit out before a softmax."]
    for text in rack.loading:
        lines += ["", text]
    return "\n".join(lines) + "\n"

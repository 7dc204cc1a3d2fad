"""A rack as a model of transformers: its config.json."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from stackwise_core.interfaces.rack_spec import RackSpec
from stackwise_huggingface.options import Architecture, Number

NUMBERS: dict[Number, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Number formats by the names that torch and config.json have for them."""


@frozen
class Target:
    """A model of transformers."""

    model_type: Architecture
    model_class: str
    needs: str
    """The first version of transformers that computes what the rack does."""


EUROBERT = Target("eurobert", "EuroBertForMaskedLM", "5.3.0")
LLAMA_BOTH_WAYS = Target("llama", "LlamaForCausalLM", "5.2.0")
LLAMA = Target("llama", "LlamaForCausalLM", "4.57.1")


def target_of(spec: RackSpec, architecture: Architecture | None) -> Target:
    """Return the architecture that a rack is exported as.

    Args:
        architecture: the user's choice. None: EuroBERT for a bidirectional rack, Llama for a causal one.
    """
    if spec.attention == "causal":
        return LLAMA
    return LLAMA_BOTH_WAYS if architecture == "llama" else EUROBERT


def model_config(spec: RackSpec, target: Target, number: Number, mask: int, pad: int) -> dict[str, Any]:
    """Return the contents of config.json.

    Args:
        mask: the mask token's id.
        pad: the padding token's.
    """
    config: dict[str, Any] = {
        "architectures": [target.model_class],
        "model_type": target.model_type,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_ff,
        "num_hidden_layers": sum(spec.blocks),
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.seq_len,
        "initializer_range": spec.init_std,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": spec.tie_embeddings,
        "mask_token_id": mask,
        "pad_token_id": pad,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": NUMBERS[number],
        "transformers_version": target.needs,
    }
    if target.model_type == "llama":
        config["rope_theta"] = spec.rope_theta  # where transformers 4 looks for it
        config["is_causal"] = spec.attention == "causal"
    return config

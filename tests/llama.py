"""transformers' Llama in a rack's shape: the same computation, written by others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stackwise_core.interfaces.rack_spec import RackSpec

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def llama_like(spec: RackSpec, vocab_size: int) -> LlamaForCausalLM:
    """A Llama with other weights than the rack's."""
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=spec.d_model,
            intermediate_size=spec.d_ff,
            num_hidden_layers=sum(spec.blocks),
            num_attention_heads=spec.n_heads,
            num_key_value_heads=spec.n_kv_heads,
            rms_norm_eps=spec.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
            tie_word_embeddings=spec.tie_embeddings,
            attn_implementation="sdpa",
        )
    )

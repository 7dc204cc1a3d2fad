"""The rack's shape, with defaults for keys that the configuration leaves out."""

from typing import Any

from stackwise_core.config.model import Config


def rack_shape(config: Config) -> dict[str, Any]:
    """Return all that two racks must share for one to hold the other's weights, by the names of ``RackSpec``.

    The objective of a finished run isn't asked for any more: its plan has the attention.
    """
    rack, causal = config.rack, getattr(config.objective.options, "causal", False)
    return {
        "d_model": rack.d_model,
        "n_heads": rack.n_heads,
        "n_kv_heads": rack.n_kv_heads or rack.n_heads,
        "d_ff": rack.d_ff or -(-8 * rack.d_model // (3 * 64)) * 64,
        "attention": "causal" if causal else rack.attention,
        "tie_embeddings": rack.tie_embeddings,
        "rope_theta": rack.rope_theta,
        "norm_eps": rack.norm_eps,
    }

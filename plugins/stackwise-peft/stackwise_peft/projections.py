"""The projections of a block that can carry an adapter, and their shapes."""

from typing import Literal, get_args

from stackwise_core.interfaces.rack_spec import RackSpec

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
FEED_FORWARD: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")


def features(rack: RackSpec) -> dict[str, tuple[int, int]]:
    """Input and output features of each projection of a block."""
    model, inner = rack.d_model, rack.d_ff
    queries, keys = rack.n_heads * rack.head_dim, rack.n_kv_heads * rack.head_dim
    return {
        "q_proj": (model, queries),
        "k_proj": (model, keys),
        "v_proj": (model, keys),
        "o_proj": (queries, model),
        "gate_proj": (model, inner),
        "up_proj": (model, inner),
        "down_proj": (inner, model),
    }

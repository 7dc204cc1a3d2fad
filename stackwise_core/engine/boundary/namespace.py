"""Provenance of a boundary, and the name of its store, which follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from attrs import asdict
from torch import Tensor

from stackwise_core.engine.rack.placement import Placement
from stackwise_core.interfaces.cache_backend import Layout

FORMAT = 3


def provenance(
    placement: Placement, trunk: Sequence[int], layout: Layout, chunk: int, settings: Mapping[str, object]
) -> dict[str, object]:
    """Return all that decides the bits of a boundary but the draw, as JSON values.

    Args:
        chunk: samples that pass the trunk together.
        settings: what else decides them: tokenizer, precisions and their options, versions, device.
    """
    spec = placement.spec
    ends = placement.ends(trunk[0]).state_dict()
    return {
        "format": FORMAT,
        "layout": asdict(layout),
        "chunk": chunk,
        "heads": [spec.n_heads, spec.n_kv_heads, spec.attention, spec.rope_theta, spec.norm_eps],
        "time": [spec.time_encoding, *spec.time_fractions],
        **settings,
        "embedding": _hash_of({name: tensor for name, tensor in ends.items() if name.startswith("embed_")}),
        "stacks": [placement.fingerprint(index) for index in trunk],
    }


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def namespace(provenance: Mapping[str, object]) -> str:
    """Return the name of a boundary's store: a hash of everything that the boundary is made of."""
    return hashlib.blake2b(json.dumps(provenance, sort_keys=True).encode(), digest_size=16).hexdigest()

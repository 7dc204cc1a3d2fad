import math

import pytest
from attrs import evolve

from stackwise_core.engine.rack.rack import Stack
from stackwise_core.interfaces.checkpoint_format import Checkpoint, ExportedRack, tensor_shapes
from stackwise_core.testing.small import small_rack

SIZES = {
    "title": "a model",
    "blocks": 2,
    "vocab_size": 50,
    "d_model": 16,
    "n_heads": 2,
    "n_kv_heads": 1,
    "d_ff": 24,
    "attention": "causal",
    "tie_embeddings": True,
    "rope_theta": 1e4,
    "norm_eps": 1e-6,
    "tokenizer": "bytes",
    "files": ("weights",),
}
WRONG = {
    "blocks": (0, "2", True, None),
    "vocab_size": (-1, 1 << 50),
    "n_heads": (3, 16, 0),
    "n_kv_heads": (2.0, 3),
    "attention": ("both",),
    "tie_embeddings": (1, "no"),
    "rope_theta": (0, "10000", float("nan")),
    "norm_eps": (-1e-5,),
    "special_ids": ({"mask": -1}, {"mask": "7"}),
    "seq_len": (0,),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_sizes_that_no_rack_has_are_refused(key, value):
    """A format may take them from a file as they are: the error names the one that is wrong."""
    Checkpoint(**SIZES)
    with pytest.raises(ValueError, match=f"expected {key} to be|expected {key} to divide"):
        Checkpoint(**{**SIZES, key: value})


@pytest.mark.parametrize("tied", [True, False])
def test_shapes_are_those_of_the_rack_s_own_modules(tied):
    """Names and shapes of a stack of three blocks, and as many weights as the rack has."""
    spec = evolve(small_rack(3), tie_embeddings=tied)
    expected = {name: tuple(tensor.shape) for name, tensor in Stack(spec, 0).state_dict().items()}
    shapes = ExportedRack(name="", spec=spec).shapes
    ends = {"embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert {name: shape for name, shape in shapes.items() if name not in ends} == expected
    assert sum(math.prod(shape) for shape in shapes.values()) == spec.parameters


def test_what_is_said_of_an_exported_rack_describes_a_checkpoint():
    """Its fields are those of the record, and so are the shapes."""
    rack = ExportedRack(name="", spec=small_rack(1, 2))
    described = Checkpoint(title="", tokenizer="bytes", files=(), **rack.described)
    assert described.shapes == rack.shapes == tensor_shapes(rack.spec, 3, 50, head=False)

"""Weights that a format reads: whatever it does wrong is an error with its name, before anything trains on them."""

import pytest
import torch
from attrs import evolve

from stackwise_core.config.source_checkpoint import read_checkpoint
from stackwise_core.engine.weights.checkpoint_weights import CheckpointWeights
from stackwise_core.errors import StackwiseError
from stackwise_core.interfaces.checkpoint_format import EMBEDDING, HEAD, Checkpoint, CheckpointFormat
from stackwise_core.testing.small import small_rack

SIZES = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "d_ff": 192, "rope_theta": 1e4, "norm_eps": 1e-5}
ROWS = 258


class Counting(CheckpointFormat):
    """Every number of a tensor is its place in the order of the shapes."""

    tied, head = True, False

    def recognises(self, directory):
        return True

    def describe(self, directory):
        ends = {"tie_embeddings": self.tied, "has_head_tensor": self.head}
        whose = {"title": "counted", "attention": "causal", "tokenizer": "bytes", "files": ()}
        return Checkpoint(blocks=3, vocab_size=ROWS, **SIZES, **ends, **whose)

    def read(self, directory, checkpoint, name, into):
        into.fill_(list(checkpoint.shapes).index(name))

    def write(self, rack, tensors, tokenizer, directory):
        raise NotImplementedError


class SameHead(Counting):
    head = True

    def read(self, directory, checkpoint, name, into):
        into.fill_(7)


class OtherHead(Counting):
    head = True


class Untied(Counting):
    tied, head = False, True


class Forgets(Counting):
    def read(self, directory, checkpoint, name, into):
        into[:1] = 0


class Fails(Counting):
    def read(self, directory, checkpoint, name, into):
        raise KeyError("no such tensor")


class FullDisk(Counting):
    def read(self, directory, checkpoint, name, into):
        raise OSError(5, "Input/output error")


def weights(made: type, tmp_path) -> CheckpointWeights:
    format = made(None)
    format.origin = f'checkpoint_format "{made.__name__.lower()}"'
    return CheckpointWeights(read_checkpoint(tmp_path, format))


def rack(tied=True, rows=ROWS):
    return evolve(small_rack(3), tie_embeddings=tied, vocab_size=rows)


def test_blocks_become_those_of_a_stack(tmp_path):
    """The second and the third, under the stack's own names, with the one norm."""
    found = weights(Counting, tmp_path).stack(range(1, 3))
    order = list(read_checkpoint(tmp_path, Counting(None)).described.shapes)
    assert float(found["layers.0.mlp.up_proj.weight"][0, 0]) == order.index("layers.1.mlp.up_proj.weight")
    assert float(found["layers.1.mlp.up_proj.weight"][0, 0]) == order.index("layers.2.mlp.up_proj.weight")
    assert float(found["norm.weight"][0]) == order.index("norm.weight")
    assert len(found) == 19


def test_rows_that_it_lacks_are_the_mean_of_its_tokens(tmp_path):
    """Of embedding and head."""
    found = weights(Untied, tmp_path).ends(rack(tied=False, rows=ROWS + 4), None)
    assert found[EMBEDDING].shape == found[HEAD].shape == (ROWS + 4, 64)
    assert torch.equal(found[HEAD], torch.full_like(found[HEAD], float(found[HEAD][0, 0])))


def test_a_tied_checkpoint_may_have_its_embedding_as_head(tmp_path):
    """Another one isn't the model that it says it is."""
    assert weights(SameHead, tmp_path).ends(rack(), None).keys() == {EMBEDDING}
    with pytest.raises(StackwiseError, match=r"lm_head\.weight isn't the embedding, though the two are tied there"):
        weights(OtherHead, tmp_path).ends(rack(), None)
    assert weights(OtherHead, tmp_path).embedding(rack()).keys() == {EMBEDDING}


def test_what_a_format_leaves_unfilled_is_refused(tmp_path):
    """No weight is what was in memory before."""
    with pytest.raises(StackwiseError, match=rf"{tmp_path}: norm\.weight isn't finite: nan at \[1\]"):
        weights(Forgets, tmp_path).stack(range(1))


def test_what_a_format_raises_has_its_name(tmp_path):
    """But for what the system says, which has its own words."""
    said = r"norm\.weight can't be read by checkpoint_format \"fails\": KeyError: 'no such tensor'"
    with pytest.raises(StackwiseError, match=said):
        weights(Fails, tmp_path).stack(range(1))
    with pytest.raises(OSError, match="Input/output error"):
        weights(FullDisk, tmp_path).stack(range(1))

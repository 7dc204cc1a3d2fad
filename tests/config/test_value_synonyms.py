"""Every synonym leads to a value that some key has."""

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

import attrs
import pytest

from stackwise_core.config import value_synonyms
from stackwise_core.config.model import Config
from stackwise_core.config.value_synonyms import same_as
from stackwise_core.interfaces.cache_backend import Format
from stackwise_core.registry.official import OFFICIAL


def words(table: type) -> Iterator[set[str]]:
    """The values of every key that takes one of some words."""
    attrs.resolve_types(table)
    for attribute in attrs.fields(table):
        for kind in (attribute.type, *get_args(attribute.type)):
            if get_origin(kind) is Literal:
                yield set(get_args(kind))
            elif isinstance(kind, type) and attrs.has(kind):
                yield from words(kind)


VALUES = [
    *words(Config),
    set(get_args(Format)),
    {"bf16", "fp16", "fp32"},
    set(OFFICIAL["optimizer"]),
    set(OFFICIAL["objective"]),
]


@pytest.mark.parametrize(("others", "ours"), value_synonyms._SYNONYMS.items())
def test_each_leads_to_a_value(others, ours):
    """And isn't the word that such a key takes already."""
    keys = [values for values in VALUES if ours in values]
    assert keys
    assert all(others not in values for values in keys)


def test_only_what_the_key_knows_is_suggested():
    """Whatever the case, and however the words are joined; "gpu" says nothing about an objective."""
    assert same_as("GPU", ("auto", "cpu", "cuda")) == "cuda"
    assert same_as("masked-diffusion", ("mask_diffusion", "mlm", "clm")) == "mask_diffusion"
    assert same_as("gpu", ("mask_diffusion", "mlm", "clm")) is None
    assert same_as("cuda:0", ("auto", "cpu", "cuda")) is None

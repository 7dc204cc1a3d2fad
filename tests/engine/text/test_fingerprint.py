"""Names of tokenised corpora: those that earlier versions gave to text files, whatever reads them."""

import json

import pytest
from attrs import evolve

from stackwise_core.config.model import SourceConfig
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from tests.texts import files, prepared

ALONE, SEVERAL = "f4a63f958469dc36314ba84ec91758c7", "22d1e47b50f15ee0b04412eba3234a0e"
"""Of the texts below, by the version that had its file formats in the core."""


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "a.txt").write_text("In the beginning. " * 40)
    lines = (json.dumps({"body": f"Document {number}."}) + "\n" for number in range(40))
    (tmp_path / "b.jsonl").write_text("".join(lines))
    (tmp_path / "c.md").write_text("Held out. " * 40)
    return tmp_path


def test_names_are_those_of_earlier_versions(texts, data):
    """Tokens that were made before are found again: a file; and sources with weight, field and a validation text."""
    tokenizer = load_tokenizer("bytes", mask_token=None)
    assert prepared(evolve(data, corpus=files(texts / "a.txt")), tokenizer).fingerprint == ALONE
    sources = {
        "one": SourceConfig(files(texts / "a.txt"), weight=2.0),
        "two": SourceConfig(files(texts / "b.jsonl"), text_field="body"),
    }
    several = evolve(data, sources=sources, validation=files(texts / "c.md"))
    assert prepared(several, tokenizer).fingerprint == SEVERAL

"""The corpus against the conformance kit."""

import json

import pytest

from stackwise_core.testing.corpus import CorpusContract
from stackwise_core.testing.plugin import PluginContract
from stackwise_text.corpus import Files
from stackwise_text.options import FilesOptions


class TestPlugin(PluginContract):
    hooks = "stackwise_text.hooks"


class TestFiles(CorpusContract):
    """A directory of several formats, one of them with a field."""

    @pytest.fixture
    def make(self, tmp_path):
        (tmp_path / "a.txt").write_text("A text.\n")
        (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "", "two")))
        return lambda: Files(FilesOptions(str(tmp_path)))

    @pytest.fixture
    def change(self, tmp_path):
        return lambda: (tmp_path / "a.txt").write_text("A test.\n")


class TestDataSet(CorpusContract):
    """A data set with splits of its own."""

    @pytest.fixture
    def make(self, tmp_path):
        for split in ("train", "validation", "test"):
            (tmp_path / f"{split}.txt").write_text(f"For {split}.\n")
        return lambda: Files(FilesOptions(str(tmp_path)))

    @pytest.fixture
    def change(self, tmp_path):
        return lambda: (tmp_path / "train.txt").write_text("For trail.\n")

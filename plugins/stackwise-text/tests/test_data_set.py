"""The splits of data sets, against what the library ``datasets`` makes of the same directory."""

import pytest
from datasets import DownloadConfig
from datasets.data_files import DataFilesPatternsDict
from datasets.load import LocalDatasetModuleFactory

from stackwise_text.data_set import read_data_set
from stackwise_text.finding import find_corpus


def write(folder, names, card=None):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "words"}\n')
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# A card\n")


def by_the_library(folder, subset=None):
    """Files by split, as ``datasets.load_dataset`` would read them."""
    configs = LocalDatasetModuleFactory(str(folder)).get_module().builder_configs_parameters.builder_configs
    config = next(each for each in configs if subset in (None, each.name))
    if isinstance(config.data_files, DataFilesPatternsDict):
        config._resolve_data_files(base_path=str(folder), download_config=DownloadConfig())
    return {
        str(split): sorted(file.removeprefix(f"{folder}/") for file in files)
        for split, files in config.data_files.items()
    }


def by_us(folder, subset=""):
    data_set, _ = read_data_set(folder, subset)
    if not data_set.splits:
        return {"train": [str(file.path.relative_to(folder)) for file in data_set.files]}
    return {
        split: sorted(str(file.path.relative_to(folder)) for file in files())
        for split, files in data_set.splits.items()
    }


NAMES = {
    "plain": ["a.jsonl", "b/c.jsonl"],
    "shards": ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
    "strange shards": ["data/sft-00000-of-00001.jsonl", "data/dpo-00000-of-00001.jsonl", "train.jsonl"],
    "files": ["train.jsonl", "validation.jsonl", "test.jsonl", "words.jsonl"],
    "other words": ["training.jsonl", "dev.jsonl", "evaluation.jsonl"],
    "in the middle": ["wiki.train.txt", "wiki.valid.txt", "wiki_test_1.txt"],
    "folders": ["train/a.jsonl", "train/b/c.jsonl", "val/a.jsonl", "testing/a.jsonl"],
    "folders with more": ["x/train-1/a.jsonl", "x/my eval/b.jsonl"],
    "folders before files": ["train/dev.jsonl", "test/a.jsonl"],
    "compressed": ["train.jsonl.gz", "test.jsonl.zst"],
    "hidden": [".cache/test.jsonl", "train.jsonl", ".test.jsonl"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_of_files(tmp_path, names):
    """Without a card the names of files and folders say the splits, and the README isn't one of them."""
    write(tmp_path, [*names, "dataset_infos.json", "load.py", ".gitattributes"], "license: mit")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert by_us(tmp_path) == by_the_library(tmp_path)


FILES = ["data/train-1.jsonl", "data/train-2.jsonl", "held/out.jsonl", "en/train.jsonl", "en/test.jsonl", "LICENSE.txt"]
CARDS = {
    "a path": "configs:\n- config_name: default\n  data_files: data/*.jsonl",
    "paths": "configs:\n- config_name: x\n  data_files:\n  - data/train-1.jsonl\n  - held/*",
    "splits": (
        "configs:\n- config_name: x\n  data_files:\n  - split: train\n    path: data/*\n  - split: test\n    path:\n"
        "    - held/**\n    - en/t[e]st.jsonl"
    ),
    "a folder": "configs:\n- config_name: x\n  data_dir: en",
    "a folder and paths": "configs:\n- config_name: x\n  data_dir: data\n  data_files: '**/train-*'",
    "any depth": "configs:\n- config_name: x\n  data_files: '**/train*.jsonl'",
    "twice the same": "configs:\n- config_name: x\n  data_files:\n  - data/*\n  - data/train-1.jsonl",
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_cards(tmp_path, card):
    """A card's patterns mean the files that they mean to the library."""
    write(tmp_path, FILES, card)
    theirs = {split: sorted(set(files)) for split, files in by_the_library(tmp_path).items()}
    assert by_us(tmp_path) == theirs


def test_subsets(tmp_path):
    """Each subset of a card has its own splits; the default is taken where none is named."""
    card = (
        "configs:\n- config_name: fr\n  data_files: fr/*.jsonl\n- config_name: en\n  default: true\n  data_files:\n"
        "  - split: train\n    path: en/train.jsonl\n  - split: test\n    path: en/test.jsonl"
    )
    write(tmp_path, ["fr/a.jsonl", "en/train.jsonl", "en/test.jsonl"], card)
    for subset in ("fr", "en"):
        assert by_us(tmp_path, subset) == by_the_library(tmp_path, subset)
    assert by_us(tmp_path) == by_us(tmp_path, "en")


def test_a_file_beside_the_card(tmp_path):
    """What stands in .huggingface.yaml wins over the card, as in the library."""
    write(tmp_path, FILES, CARDS["a path"])
    (tmp_path / ".huggingface.yaml").write_text(CARDS["splits"])
    assert by_us(tmp_path) == by_the_library(tmp_path)


def names(corpus, use="training"):
    return [str(file.path).removeprefix(f"{corpus}/") for file in find_corpus(str(corpus), use).files]


def test_a_test_file_beside_others(tmp_path):
    """Where only held-out files are named, the others are for training; the library would drop them."""
    write(tmp_path, ["a.jsonl", "b.jsonl", "test.jsonl"])
    assert names(tmp_path) == ["a.jsonl", "b.jsonl"]
    assert find_corpus(str(tmp_path)).left_out == ("split test",)


def test_pages_are_no_splits(tmp_path):
    """Documentation of a trainer has pages called training and evaluation, and all of it is text."""
    pages = ["README.md", "evaluation.md", "index.md", "training.md"]
    write(tmp_path, pages)
    assert names(tmp_path) == pages
    (tmp_path / "index.md").unlink()
    (tmp_path / "README.md").unlink()
    assert names(tmp_path) == ["training.md"]


def test_what_tells_of_a_data_set_is_no_text(tmp_path):
    """Beside records a README, a licence and the like are not read; in a folder of prose they are."""
    prose = ["LICENSE.txt", "README.md", "a.txt", "requirements.txt"]
    write(tmp_path, prose)
    assert names(tmp_path) == prose
    write(tmp_path, ["b.jsonl"])
    assert names(tmp_path) == ["a.txt", "b.jsonl"]
    assert find_corpus(str(tmp_path)).left_out == ("LICENSE.txt, README.md, requirements.txt",)


def test_a_card_is_no_text(tmp_path):
    """README.md isn't read where its YAML is a data set's, and is where it is some other page's."""
    write(tmp_path, ["a.txt"], "license: mit\nlanguage: [no]")
    assert names(tmp_path) == ["a.txt"]
    write(tmp_path, ["a.txt"], "title: Home\nlayout: page")
    assert names(tmp_path) == ["README.md", "a.txt"]
    (tmp_path / "README.md").write_text("---\nNo YAML: at all: here\n---\n")
    assert names(tmp_path) == ["README.md", "a.txt"]


def test_several_data_sets_in_a_folder(tmp_path, complaint):
    """A data set below, whose card divides it, is to be named itself."""
    (tmp_path / "one").mkdir()
    write(tmp_path / "one", ["x.jsonl"], CARDS["a path"])
    code, message = complaint(tmp_path)
    assert code == 2
    assert f"name {tmp_path}/one itself" in message

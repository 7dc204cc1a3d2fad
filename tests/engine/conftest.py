"""Real tokenizer.json files, and a way to prepare small corpora."""

import pytest
from attrs import evolve

from stackwise_core.config.model import DataConfig
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from tests import texts as given


def train_bpe(path, special_tokens):
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    tokenizer.enable_truncation(5)  # as many a published file has it; both must be switched off
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def plain_bpe(tmp_path_factory):
    """A byte-level BPE of 600 tokens without any special one."""
    return train_bpe(tmp_path_factory.mktemp("plain") / "tokenizer.json", [])


@pytest.fixture(scope="session")
def masked_bpe(tmp_path_factory):
    """The same with [PAD], [MASK] and <|end|>."""
    return train_bpe(tmp_path_factory.mktemp("masked") / "tokenizer.json", ["[PAD]", "[MASK]", "<|end|>"])


@pytest.fixture
def data(tmp_path):
    """Options that keep everything in the test's own directory."""
    return DataConfig(tokens_directory=str(tmp_path / "tokens"), seq_len=8)


@pytest.fixture
def prepared(tmp_path, data):
    """A function that writes texts, a file each, and prepares them."""

    def run(texts, tokenizer="bytes", mask_token=None, progress=None, *, causal=False, **options):
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for number, text in enumerate(texts):
            (folder / f"{number:04}.txt").write_bytes(text.encode())
        tokenizer = load_tokenizer(str(tokenizer), mask_token=mask_token)
        return given.prepared(evolve(data, corpus=given.files(folder), **options), tokenizer, progress, causal=causal)

    return run

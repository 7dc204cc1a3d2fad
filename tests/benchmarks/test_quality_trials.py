"""Identity of a run of the quality benchmark."""

import pytest

from tests.benchmarks.quality.trials import Bench
from tests.tiny import TEXT


def keys(tmp_path, **changes):
    """The key of each seed's blockwise run."""
    settings = {
        "corpora": {"kjv": TEXT},
        "tokens_directory": tmp_path / "tokens",
        "steps": 64,
        "seeds": 2,
        "threads": 1,
        "device": "cpu",
        "changes": {"cache_backend.use": "memory"},
    }
    bench = Bench(**settings | changes)
    return [trial.key for trial in bench.trials("blockwise", "kjv", bench.target("kjv"))]


def test_a_run_is_found_again_wherever_its_files_are(tmp_path):
    """Neither where tokens are kept nor the corpus's path decides a result, but its text does."""
    copy = tmp_path / "copy.txt"
    copy.write_text(TEXT.read_text())
    first = keys(tmp_path)
    assert keys(tmp_path, tokens_directory=tmp_path / "elsewhere", corpora={"kjv": copy}) == first
    copy.write_text(TEXT.read_text().upper())
    assert not set(keys(tmp_path, corpora={"kjv": copy})) & set(first)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"steps": 96}, {"threads": 2}, {"changes": {"training.block_lr": 1e-3}}])
def test_what_decides_a_result_makes_another_run(tmp_path, change):
    """And each seed is a run of its own."""
    first = keys(tmp_path)
    assert len(set(first)) == 2
    assert not set(keys(tmp_path, **change)) & set(first)

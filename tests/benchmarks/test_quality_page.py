"""Table and page of the quality benchmark."""

import pytest

from stackwise_core.errors import UsageError
from tests.benchmarks.quality.page import table, write_page
from tests.benchmarks.quality.results import append_result, read_results
from tests.benchmarks.quality.table import rows
from tests.benchmarks.quality.trials import Trial


def trial(regime, seed):
    return Trial(
        corpus="kjv",
        regime=regime,
        seed=seed,
        steps_per_stack=5,
        config={},
        flops=1.0,
        tokens=8,
        state_bytes=100,
        key=f"{regime}{seed}",
    )


def result(seed, bound, state=100):
    return {
        "seed": seed,
        "nats_per_byte": bound,
        "state_bytes": state,
        "flops": 4.0,
        "tokens": 8,
        "peak_bytes": 3_000_000,
        "seconds": 61.0,
        "steps_per_stack": 5,
    }


TRIALS = [trial(regime, seed) for regime in ("end_to_end", "blockwise", "banded") for seed in (0, 1)]
RESULTS = {
    "end_to_end0": result(0, 2.0),
    "end_to_end1": result(1, 4.0),
    "blockwise0": result(0, 2.2, state=25),
    "blockwise1": result(1, 4.04, state=25),
}


def test_gaps_are_paired_by_seed():
    """Each seed is compared with the baseline's own, which means over the seeds would not show."""
    baseline, blockwise = rows(TRIALS, RESULTS, "kjv")
    assert baseline.gaps == (0.0, 0.0)
    assert blockwise.gaps == pytest.approx((10.0, 1.0))
    assert blockwise.gap == pytest.approx(5.5)
    assert blockwise.state == 0.25


def test_a_seed_without_its_baseline_has_no_gap():
    """A benchmark that is cut short compares only what can be compared."""
    few = {key: value for key, value in RESULTS.items() if key != "end_to_end1"}
    _, blockwise = rows(TRIALS, few, "kjv")
    assert blockwise.gaps == pytest.approx((10.0,))
    assert len(blockwise.nelbo) == 2


def test_a_table_has_only_what_was_run():
    """A regime without a result isn't in it, and another corpus has none."""
    assert [row.regime for row in rows(TRIALS, RESULTS, "kjv")] == ["end_to_end", "blockwise"]
    assert rows(TRIALS, RESULTS, "shakespeare") == []


def test_the_table_says_mean_deviation_and_range():
    """The numbers of a row are the ones that a reader would compute from the runs."""
    text = table(rows(TRIALS, RESULTS, "kjv"), {"unigram": 6.0})
    expected = "| blockwise | 3.1200 ± 1.3011 | +5.5 % (+1.0 to +10.0) | 0.25 | 3 MB | 1.00 | 1.00 | 1:01 |"
    assert expected in text.splitlines()
    assert "| *unigram* | 6.0000 | +100.0 % | | | | | |" in text.splitlines()


def test_what_people_wrote_survives(tmp_path):
    """Only what stands between the markers is written anew."""
    page = tmp_path / "quality.md"
    sections = {"setting": "one", "table": "two", "regimes": "three"}
    write_page(page, sections)
    page.write_text(page.read_text() + "\nWhat follows from it.\n")
    before = page.read_text()
    write_page(page, sections)
    assert page.read_text() == before
    write_page(page, sections | {"table": r"a \1 table"})
    assert page.read_text() == before.replace("two", r"a \1 table")


def test_a_page_without_markers_is_refused(tmp_path):
    """A page is never overwritten because its markers are gone, and the message names the one that is missing."""
    page = tmp_path / "quality.md"
    page.write_text("<!-- table: begin -->\nnumbers\n")
    with pytest.raises(UsageError, match="<!-- table: end -->"):
        write_page(page, {"table": "new"})
    assert page.read_text() == "<!-- table: begin -->\nnumbers\n"


def test_results_survive_a_line_that_was_cut_short(tmp_path):
    """What a crash left is passed over, and the next result is read all the same."""
    path = tmp_path / "results.jsonl"
    append_result(path, {"key": "a", "seed": 0})
    with path.open("a") as file:
        file.write('{"key": "b", "se')
    append_result(path, {"key": "c", "seed": 1})
    assert read_results(path) == {"a": {"key": "a", "seed": 0}, "c": {"key": "c", "seed": 1}}

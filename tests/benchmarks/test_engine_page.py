"""The tables of training steps say what was measured, and whether the targets hold."""

import pytest

from tests.benchmarks.steps.page import DOCUMENTS, ENGINE, HAND, RECOMPUTED, TENSORS, TRAINER, CaseTable, lines
from tests.benchmarks.steps.shapes import SHAPES

PROFILE = {"largest": [["aten::mm", 0.5, 12.0]], "products": 0.6, "others": 0.3, "idle": 0.1}


def case(**seconds):
    """A measured case of these seconds a step by way, in three rounds."""
    return {
        "seconds": {name: [base, 2 * base, base] for name, base in seconds.items()},
        "tokens": 1000,
        "flops": 5e6,
        "agree": {},
        "waited": 0.02,
        "profiles": {ENGINE: PROFILE, HAND: PROFILE},
    }


def rows(found, name):
    """Ways, what they are compared with, and whether the target holds."""
    return [
        tuple(row.split(" | ")[index] for index in (2, 3, 5, 6)) for row in CaseTable(found, 1e12).targets("s", name)
    ]


def test_each_way_of_the_engines_is_held_against_its_targets():
    """The loop by hand, Trainer, and one document a row; medians, of rounds that are compared with each other."""
    found = case(**{HAND: 0.5, ENGINE: 0.52, DOCUMENTS: 0.53, TRAINER: 0.7})
    assert rows(found, "end to end") == [
        (ENGINE, HAND, "0.98", "**no** |"),
        (ENGINE, TRAINER, "1.3", "yes |"),
        (DOCUMENTS, ENGINE, "0.95", "yes |"),
    ]


def test_a_cached_step_is_held_against_an_input_that_is_there_and_one_that_is_computed():
    """By hand and in the engine's own step."""
    tier = f"{ENGINE}, disk tier"
    found = case(**{HAND: 0.5, TENSORS: 0.5, tier: 0.51, RECOMPUTED: 0.4})
    assert rows(found, "input cached") == [
        (tier, HAND, "0.95", "yes |"),
        (tier, TENSORS, "0.95", "yes |"),
        (tier, RECOMPUTED, "1.0", "**no** |"),
    ]


def test_compiled_blocks_are_held_against_compiled_ones():
    """Where both are there."""
    compiled = f"{ENGINE}, compiled"
    found = case(**{HAND: 0.5, f"{HAND}, compiled": 0.3, compiled: 0.4})
    assert rows(found, "end to end") == [(compiled, f"{HAND}, compiled", "0.98", "**no** |")]


def test_the_share_of_the_peak_counts_the_plans_operations():
    """Tokens a second, times operations a token, over those of a large product."""
    (_, engine) = CaseTable(case(**{HAND: 0.5, ENGINE: 0.25}), 1e11).rows("end to end")
    assert engine == "| end to end | engine | 4,000 | 2.00 (2.00 to 2.00) |  | 0.20 |"


def test_a_case_that_failed_is_named():
    """With its reason, beside those that were measured."""
    from cattrs import unstructure

    cases = {"end to end": case(**{HAND: 0.5, ENGINE: 0.5}), "streamed": {"failed": "NotTheSame: losses differ"}}
    found = {
        "peaks": {"bf16": 1e12, "fp32": 5e11, "copied": 1e10},
        "shapes": {"256": {"shape": unstructure(SHAPES["256"]), "cases": cases}},
    }
    text = "\n".join(lines(found))
    assert "- streamed: NotTheSame: losses differ" in text
    assert "| 256 | end to end | engine | by hand | 1.00 (1.00 to 1.00) | 0.98 | yes |" in text
    assert "Large products reach 1 TFLOP/s in bf16 and 0.5 in fp32" in text


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_shapes_windows_are_whole(shape):
    """A round's steps are whole windows of those before it, which hold whole chunks of sequences."""
    from stackwise_core.engine.phases.setup import CHUNK_TOKENS

    assert shape.steps == 2 * shape.warm_up
    assert shape.warm_up * shape.batch % max(1, CHUNK_TOKENS["cpu"] // shape.seq_len) == 0

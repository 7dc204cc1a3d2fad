"""Changes of software since a run began, one a line."""

import pytest

from stackwise_core.engine.runs.software import changed_plugins, differences

BEFORE = {
    "torch": "2.13.0",
    "plugins": {
        "mask_schedule": {"use": "geo", "distribution": "stackwise-geospan", "version": "1.0"},
        "precision.active": {"use": "own", "distribution": "mine", "version": "0" * 64},
    },
    "packages": {"peft": "0.17"},
}


def now(where: str, **changes: str) -> dict:
    return {**BEFORE, "plugins": {**BEFORE["plugins"], where: {**BEFORE["plugins"][where], **changes}}}


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (now("mask_schedule", version="1.1"), "stackwise-geospan 1.0 -> 1.1"),
        (now("precision.active", version="1" * 64), "the file mine.py has changed"),
        (
            now("mask_schedule", distribution="other", version="2.0"),
            "mask_schedule: geo of stackwise-geospan 1.0 -> geo of other 2.0",
        ),
        (now("precision.active", version="1.0"), "mine 0000 -> 1.0"),
        ({**BEFORE, "packages": {"peft": "0.18"}}, "peft 0.17 -> 0.18"),
        ({**BEFORE, "torch": "2.14.0"}, "torch: 2.13.0 -> 2.14.0"),
        ({**BEFORE, "threads": 2}, "threads: unknown -> 2"),
    ],
)
def test_a_difference_is_a_short_line(after, line):
    """It names the distribution with both versions, or the file."""
    (found,) = differences(BEFORE, after)
    assert found.replace("0" * 64, "0000") == line


def test_one_distribution_is_named_once():
    """Though several hooks have it."""
    plugin = {"use": "fp32", "distribution": "ours", "version": "1"}
    before = {"precision.active": plugin, "precision.trunk": plugin}
    after = {where: {**plugin, "version": "2"} for where in before}
    assert changed_plugins(before, after) == ["ours 1 -> 2"]


@pytest.mark.parametrize(
    "before", [None, [], "text", {"mask_schedule": 1}, {"mask_schedule": {"version": "\x1b" * 999}}]
)
def test_what_no_run_wrote_is_short_and_plain(before):
    """Whatever stands in the file."""
    (line,) = changed_plugins(before, {"mask_schedule": BEFORE["plugins"]["mask_schedule"]})
    assert len(line) < 400
    assert line.isprintable()

"""Checks of options' values, at their bounds."""

import pytest

from stackwise_core.options import LONGEST_NAME, LONGEST_PATH, counted, path_text


@pytest.mark.parametrize("value", [None, "runs", "~/runs", "/", "é" * (LONGEST_NAME // 2), "ab/" * (LONGEST_PATH // 3)])
def test_a_path_that_file_systems_take(value):
    """Up to the longest name, in bytes, and the longest path."""
    path_text(None, None, value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (" ", "not empty"),
        ("a\0b", "without the character 0"),
        ("runs/" + "é" * (LONGEST_NAME // 2 + 1), "names of at most 255 bytes"),
        ("ab/" * (LONGEST_PATH // 3) + "a", "a path of at most 4095 bytes"),
    ],
)
def test_a_path_that_they_do_not_take(value, said):
    """Found when the configuration is checked, not when the file is written."""
    with pytest.raises(ValueError, match=said):
        path_text(None, None, value)


def test_a_number_of_things():
    """Both bounds are numbers that may be."""
    check = counted(2, 5)
    for value in (None, 2, 5):
        check(None, None, value)
    for value, said in ((1, "at least 2"), (6, "at most 5")):
        with pytest.raises(ValueError, match=said):
            check(None, None, value)

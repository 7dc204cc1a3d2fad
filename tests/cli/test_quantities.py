"""Numbers as people read them."""

import math

import pytest

from stackwise_core.cli.quantities import count, rough_duration
from stackwise_core.options import ByteSize


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (78, "78"),
        (999, "999"),
        (999.6, "1k"),
        (1000, "1k"),
        (456_000, "456k"),
        (999_499, "999k"),
        (999_999, "1M"),
        (1.23e6, "1.23M"),
        (2.4e19, "24E"),
        (5.6e21, "5.6Z"),
        (7.5e26, "750Y"),
        (2.4e27, "2.4 x 10^27"),
        (1e40, "1 x 10^40"),
        (math.inf, "inf"),
    ],
)
def test_counts_have_three_digits_and_a_letter(number, text):
    """Rounded before the letter is chosen; what has none is a power of ten."""
    assert count(number) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_999, "1 MB"),
        (1_230_000_000, "1.23 GB"),
        (240 * 10**12, "240 TB"),
        (2_400 * 10**12, "2.4 PB"),
        (24 * 10**18, "24 EB"),
    ],
)
def test_sizes_too(size, text):
    """And what is printed can be read."""
    assert str(ByteSize(size)) == text
    assert ByteSize.parse(text) == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123, "0.12 s"),
        (39.6, "40 s"),
        (59.7, "1 min"),
        (90, "1.5 min"),
        (12.4 * 60, "12 min"),
        (59.8 * 60, "1 h"),
        (3.54 * 3600, "3.5 h"),
        (23.9 * 3600, "1 day"),
        (12 * 86_400, "12 days"),
        (360 * 86_400, "360 days"),
        (500 * 86_400, "1.4 years"),
        (4_120 * 31_557_600, "4.1k years"),
    ],
)
def test_estimates_of_time_have_two_digits(seconds, text):
    """In the largest unit that leaves at least one."""
    assert rough_duration(seconds) == text

"""A few hostile cases for each reader, the same ones each time; ``python -m tests.survival.fuzz`` tries many."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.survival.fuzz.driver import Target, accepts, warm_up
from tests.survival.fuzz.specimens import specimens
from tests.survival.fuzz.targets import TARGETS
from tests.survival.fuzz.watch import Broken

pytestmark = pytest.mark.slow

CASES = 60
"""Of a cheap target; dear ones have a share of it, and three at least."""


@pytest.fixture(scope="module", autouse=True)
def _specimens():
    """The runs that hostile ones are made of."""
    specimens()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_hostile_input_is_refused_or_harmless(target):
    """A value that is sane or the documented exception: no other, no way out of the directory, no memory."""
    warm_up(target)

    @settings(
        max_examples=max(3, round(target.share * CASES)),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases())
    def feed(case):
        accepts(target, case)

    feed()


def reader(work):
    return Target("a reader", lambda: st.none(), lambda case, inside: work(inside))


@pytest.mark.parametrize(
    "work",
    [
        lambda inside: (inside.parent / "secret" / "file.json").read_text(),
        lambda inside: (inside / ".." / "elsewhere").write_text("x"),
        lambda inside: (inside.parent / "secret" / "file.json").unlink(),
        lambda inside: (inside / "link").symlink_to("../secret") or (inside / "link" / "new").touch(),
        lambda inside: bytearray(2**32),
        lambda inside: __import__("pickle").loads(b"cos\nsystem\n."),
        lambda inside: __import__("os").system("true"),
        lambda inside: {}["nothing"],
    ],
    ids=["reads a secret", "writes outside", "deletes", "by a link", "memory", "pickle", "a process", "KeyError"],
)
def test_the_watch_sees_what_must_not_be(work):
    """Each of the things that no reader may do is noticed when one does it."""
    with pytest.raises((Broken, MemoryError, KeyError)):
        accepts(reader(work), None)


def test_the_watch_lets_a_reader_work():
    """Reading and writing in its own directory is no offence."""
    assert accepts(reader(lambda inside: (inside / "a").write_text("x") and (inside / "a").read_text()), None)

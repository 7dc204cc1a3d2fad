"""Fixtures by which tests show that a check of the kit can fail."""

from collections.abc import Callable, Iterable

import pytest

Refuses = Callable[..., None]


@pytest.fixture
def refuses() -> Refuses:
    """Call one check of a contract with something wrong: it must fail, or pass on what the wrong thing raised."""

    def refuses(contract: object, check: str, *raised: type[Exception], **fixtures: object) -> None:
        with pytest.raises((AssertionError, pytest.fail.Exception, *raised)):
            getattr(contract, check)(**fixtures)

    return refuses


@pytest.fixture
def every_check() -> Callable[[type, Iterable[str]], None]:
    """Hold that a contract's checks are just these, so that none is without something that it refuses."""

    def every_check(contract: type, refused: Iterable[str]) -> None:
        assert {name for name in vars(contract) if name.startswith("test_")} == set(refused)

    return every_check

import torch

from stackwise_core.engine.process.readings import Readings


def test_numbers_come_with_what_they_are_about_in_order():
    """Those of the host are there at once, and each is given once."""
    readings: Readings[str] = Readings()
    for number, about in enumerate(("first", "second")):
        readings.add(torch.tensor([number, 2.5], dtype=torch.float64), about)
    assert list(readings.arrived()) == [([0.0, 2.5], "first"), ([1.0, 2.5], "second")]
    readings.add(torch.tensor([3.0], dtype=torch.float64), "third")
    assert list(readings.all()) == [([3.0], "third")]
    assert not list(readings.arrived())


class Copied:
    """Stands for the event of a copy on a device."""

    def __init__(self, there: bool) -> None:
        self.there = there

    def query(self) -> bool:
        return self.there

    def synchronize(self) -> None:
        self.there = True


def test_numbers_that_are_not_there_are_not_waited_for():
    """Nor are those behind them given before; asked for all, it waits."""
    readings: Readings[int] = Readings()
    for about, there in enumerate((True, False, True)):
        readings._coming.append((torch.zeros(1, dtype=torch.float64), Copied(there), about))
    assert [about for _, about in readings.arrived()] == [0]
    assert [about for _, about in readings.all()] == [1, 2]

"""A run's measurements as curves: a folder a phase, all of them on one axis of steps."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stackwise_core.interfaces.tracker import Measurement, TrackedRun, Tracker
from stackwise_tensorboard.event_files import EventFiles
from stackwise_tensorboard.options import TensorBoardOptions

STEP_CURVES = ("loss", "grad_norm", "tokens_per_second", "peak_bytes", "masked")


class Curves(Tracker):
    """Tracker that writes the measurements that can be drawn; bad steps and spikes have no curve of their own."""

    options: TensorBoardOptions

    def begin(self, run: TrackedRun) -> None:
        own = self.options.directory
        self._files = EventFiles(run.directory / "tensorboard" if own is None else Path(own) / run.directory.name)
        self._phases = run.phases
        self._evaluates, self._first = False, 0

    def begin_phase(self, phase: int, done: int, first: int) -> None:
        self._first = first
        digits = len(str(len(self._phases)))
        self._files.begin(f"{phase + 1:0{digits}d} {self._phases[phase].name}", first + done + 1)

    def record(self, measurement: Measurement) -> None:
        values = measurement.values
        if measurement.kind == "step":
            curves = {name: values[name] for name in STEP_CURVES if values[name] is not None}
            rates = {f"learning_rate/{part}": rate for part, rate in values["learning_rates"].items()}
            self._files.write(self._first + measurement.step, {**curves, **rates})
        elif measurement.kind == "validation":
            self._files.write(self._first + measurement.step, {"validation_loss": values["loss"]})
        elif measurement.kind == "likelihood":
            if not self._evaluates:
                self._files.begin("evaluation", 0)
                self._evaluates = True
            self._files.write(measurement.step, dict(_of_depth(values)))

    def close(self) -> None:
        self._files.close()


def _of_depth(likelihood: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield a likelihood's numbers by name; its depth is their step."""
    for name in ("nats_per_token", "bits_per_byte"):
        yield name, likelihood[name]
    for each in likelihood["bands"]:
        low, high = (f"{100 * fraction:.3g}" for fraction in each["band"])
        yield f"nats_per_token/{low}-{high} %", each["nats_per_token"]

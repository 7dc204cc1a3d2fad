import json

from stackwise_core.run_files.metrics import Metrics


def test_lines_are_json_and_there_at_once(tmp_path):
    """A reader sees each line as soon as it is written."""
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.write("step", loss=1.5)
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"kind": "step", "loss": 1.5}


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    """NaN shows in the log, as text, since JSON has no number for it."""
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.write("step", loss=float("nan"))
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: 1 / 0)["loss"] == "nan"

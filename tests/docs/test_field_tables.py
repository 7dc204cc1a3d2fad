"""The tables of record fields in the docs are what the records say."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = {
    "../run-directory.md": {
        "PlanFile",
        "RackRecord",
        "PhaseRecord",
        "HostMemoryRecord",
        "MemoryRecord",
        "BoundaryRecord",
        "SpeedRecord",
        "ProgressFile",
        "PhaseResult",
        "FinishedFile",
        "EnvironmentFile",
        "PluginRecord",
    },
    "trainer_mode.md": {"Phase", "RackSpec", "Budget", "Route"},
    "adapter.md": {"SavedAdapter"},
    "cache_backend.md": {"Layout", "CacheStats"},
    "objective.md": {"ObjectiveOptions", "Predicted"},
    "tracker.md": {"Measurement", "TrackedRun", "TrackedPhase"},
    "command.md": {"EndedRun", "NextStep"},
    "checkpoint_format.md": {
        "Checkpoint",
        "Refusal",
        "ExportedRack",
        "ExportedTokenizer",
        "Written",
    },
    "corpus.md": {"Document", "Found", "TextField"},
}


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_field_tables", DOCS / "make_field_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", RECORDS)
def test_tables_are_up_to_date(maker, name):
    """Every record that crosses the hook, or is written, has its table of today; ``make docs`` writes it anew."""
    page = (DOCS / "hooks" / name).read_text()
    assert {match[4] for match in maker.MARK.finditer(page)} == RECORDS[name]
    assert maker.filled(page) == page


def test_a_field_without_words_is_refused(maker, tmp_path, monkeypatch):
    """A field that nobody explained can't get into a page."""
    (tmp_path / "silent_record.py").write_text(
        'class Silent:\n    explained: int\n    """Yes."""\n    silent: int = 1\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LookupError, match=r"Silent\.silent"):
        maker.fields("silent_record", "Silent")

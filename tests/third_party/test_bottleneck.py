"""An adapter from elsewhere that can be neither merged nor exported, in files of its own names."""

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.errors import UsageError
from stackwise_core.testing.adapter import AdapterContract
from stackwise_core.testing.plugin import PluginContract
from tests.tiny import run_tiny

pytestmark = pytest.mark.usefixtures("packages")

CHANGES = {
    "precision": {"active": "fp32", "trunk": "fp8"},
    "adapter": {"stack": {"use": "bottleneck", "width": 3}},
    "training.adapter_lr": 0.01,
    "training.steps_per_stack": 4,
    "rack.stacks": 2,
    "evaluation": {"sequences": 4, "draws": 1},
}
IT = 'adapter "bottleneck" of stackwise-bottleneck 1.0'


def bottleneck():
    from stackwise_bottleneck.bottleneck import Bottleneck
    from stackwise_bottleneck.options import BottleneckOptions

    return Bottleneck(BottleneckOptions())


class TestPlugin(PluginContract):
    hooks = "stackwise_bottleneck.hooks"


class TestBottleneck(AdapterContract):
    @pytest.fixture
    def adapter(self, packages):
        return bottleneck()


@pytest.mark.slow
def test_a_run_with_it_is_used_and_never_merged_nor_exported(tmp_path):
    """It trains, is kept with checksums, evaluated and restored; two commands refuse it before they write anything."""
    ran = run_tiny(tmp_path, CHANGES)
    files = RunDirectory(ran.directory)
    assert [name for name in files.manifest if name.startswith("adapters/")] == [
        f"adapters/00{stack}/stack/bottleneck.safetensors" for stack in (0, 1)
    ]
    before = sorted(tmp_path.rglob("*"))

    def stackwise(*words):
        return CliRunner().invoke(main, [*words])

    run = str(ran.directory)
    merged = stackwise("merge", run)
    assert (merged.exit_code, merged.stderr) == (
        2,
        f"{run}: {IT} can't be merged: it has a nonlinearity, and no matrix is the same.\n",
    )
    exported = stackwise("export", run, "--to", "hf", str(tmp_path / "hf"))
    assert (exported.exit_code, exported.stderr) == (
        2,
        f"{run}: {IT} can't be exported: no other library has it after a block of this kind.\n",
    )
    assert sorted(tmp_path.rglob("*")) == before
    restored = stackwise("restore", run, "--precision", "nvfp4", "--to", str(tmp_path / "restored"))
    assert restored.exit_code == 0, restored.output
    for directory in (run, str(tmp_path / "restored")):
        assert stackwise("verify", directory).exit_code == 0
        assert stackwise("evaluate", directory).exit_code == 0


@pytest.mark.slow
def test_growth_by_merging_is_refused_with_the_reason(tmp_path):
    """Before anything is trained or written; growing by going on is fine."""
    growing = CHANGES | {
        "adapter": {"trunk": {"use": "bottleneck"}, "growth": "merge"},
        "trainer_mode": {"use": "progressive", "trunk": "adapters"},
    }
    said = r'^adapter\.growth = "merge": adapter\.trunk = "bottleneck" can.t be merged: it has a nonlinearity, .*\. Use'
    with pytest.raises(UsageError, match=said):
        run_tiny(tmp_path, growing)
    assert not (tmp_path / "runs").exists()
    ran = run_tiny(tmp_path, growing | {"adapter": {"trunk": {"use": "bottleneck"}}})
    assert RunDirectory(ran.directory).adapters(0) == ["trunk"]


@pytest.mark.slow
def test_the_end_of_a_run_names_no_export(tmp_path, monkeypatch):
    """Nor does what the command line prints suggest it."""
    from tests.command_line import CONFIG

    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG + '[adapter]\nstack = "bottleneck"\n')
    said = CliRunner().invoke(main, ["run", "small.toml", "--set", "training.steps_per_stack=2"])
    assert said.exit_code == 0, said.output
    assert "What next:" in said.output
    assert "stackwise export" not in said.output

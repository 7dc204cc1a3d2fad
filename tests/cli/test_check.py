import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from stackwise_core.cli.check import check
from stackwise_core.config.errors import ConfigError

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "numpy")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A configuration in the working directory, under the name that the command takes by default."""
    monkeypatch.chdir(tmp_path)
    path = Path("stackwise.toml")
    path.write_text('[precision]\ntrunk = "bf16"\n')
    return path


def invoke(*arguments):
    return CliRunner().invoke(check, arguments)


def test_a_good_file(file):
    """One line says that it is fine, and one for each hook says what it comes to."""
    result = invoke()
    assert result.exit_code == 0
    first, *rest = result.output.splitlines()
    assert first == "stackwise.toml is fine."
    assert [line.split()[:3] for line in rest] == [
        ["mask_schedule", "linear", "stackwise-masking"],
        ["precision.active", "fp32", "stackwise-precision"],
        ["precision.trunk", "bf16", "stackwise-precision"],
        ["trainer_mode", "blockwise", "stackwise-modes"],
        ["optimizer", "adamw", "stackwise-core"],
        ["objective", "mask_diffusion", "stackwise-core"],
    ]


def test_every_choice_is_listed(file, install, hook_source, implementation_source):
    """Those of a table by number, and an alias as what it comes to."""
    modules = {"other_hooks": hook_source(aliases=("wave",)), "somebody": implementation_source}
    install("other", modules, {"other": "other_hooks"})
    file.write_text('mask_schedule = "wave"\n[precision.stacks]\n12 = "bf16"\n3 = "fp16"\n')
    assert [line.split()[:3] for line in invoke().output.splitlines()[1:]] == [
        ["mask_schedule", "sine", "other"],
        ["precision.active", "fp32", "stackwise-precision"],
        ["precision.stacks.3", "fp16", "stackwise-precision"],
        ["precision.stacks.12", "bf16", "stackwise-precision"],
        ["trainer_mode", "blockwise", "stackwise-modes"],
        ["optimizer", "adamw", "stackwise-core"],
        ["objective", "mask_diffusion", "stackwise-core"],
    ]


def test_set(file):
    """``--set`` wins over the file."""
    assert "mask_schedule     cosine" in invoke("stackwise.toml", "--set", "mask_schedule=cosine").output


def test_a_mistake_is_raised(file):
    """Mistakes are raised, for the command line's own handler to print."""
    assert isinstance(invoke("--set", "training.batch_size=0").exception, ConfigError)


def test_json(file):
    """``--json`` says what it comes to, and lists the mistakes on stdout with their exit code."""
    result = invoke("--json")
    assert json.loads(result.output)["uses"]["trainer_mode"]["use"] == "blockwise"
    result = invoke("--json", "--set", "training.batch_size=0")
    assert result.exit_code == 2
    report = json.loads(result.output)
    assert report["ok"] is False
    assert [problem["key"] for problem in report["problems"]] == ["training.batch_size"]
    result = invoke("--json", "-p", "no:masking")
    assert result.exit_code == 3
    assert json.loads(result.output)["problems"][0]["unavailable"] is True


def test_it_imports_nothing_heavy(file):
    """Checking a configuration that uses every hook imports no torch, no transformers, no numpy."""
    file.write_text(file.read_text() + '[cache_backend]\nuse = "disk"\n')
    script = f"""
import sys
from stackwise_core.cli import main
try:
    main(["check"])
except SystemExit as done:
    assert done.code in (0, None), done.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cache_backend" in result.stdout


def test_the_command_line_prints_the_report(file):
    """Through ``stackwise`` itself: the report is on stderr, nothing on stdout, and the exit code is 2."""
    file.write_text("[training]\nbatch_size = 0\n")
    command = [sys.executable, "-c", "from stackwise_core.cli import main; main()", "check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "stackwise.toml:2:14: training.batch_size: expected at least 1, found 0",
        "  2 | batch_size = 0",
        "    |              ^",
        "",
        "1 error. Nothing was run.",
    ]


def test_the_first_document_of_a_text_is_read(file):
    """A field that isn't there, or a column, is found before anything is tokenised; a saved data set waits."""
    Path("texts.jsonl").write_text('{"body": "words"}\n')
    parquet.write_table(pyarrow.table({"body": ["words"]}), "texts.parquet")
    for name, kind in (("texts.jsonl", "field"), ("texts.parquet", "column")):
        file.write_text(f'[data]\ncorpus = "{name}"\n')
        with pytest.raises(ConfigError, match=rf'toml:2:10: data\.corpus: .*{kind} "text" .* the nearest is "body"'):
            check.callback("stackwise.toml", (), (), as_json=False)
        file.write_text(f'[data]\ncorpus = "{name}"\ntext_field = "body"\n')
        assert invoke().exit_code == 0

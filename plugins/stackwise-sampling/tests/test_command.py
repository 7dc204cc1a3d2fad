"""``stackwise sample`` on a real run."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from stackwise_core.cli import main
from stackwise_core.engine.tokenizer.tokenizer import ByteTokenizer
from stackwise_sampling.gapped_text import GappedText
from stackwise_sampling.sampling import Sampling, sample
from stackwise_sampling.unmasking_view import piped, print_texts, visible, watching
from tests.tiny import run_tiny

pytestmark = pytest.mark.slow

SHORT = {"evaluation": {"sequences": 2, "draws": 1}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of finished runs by name."""
    parent = tmp_path_factory.mktemp("sample")
    kinds = {"masked": {}, "clm": {"objective": "clm"}}
    return {name: run_tiny(parent, {"run.name": name, **SHORT, **changes}).directory for name, changes in kinds.items()}


def run(*arguments) -> Result:
    return CliRunner().invoke(main, ["sample", *map(str, arguments)])


def test_a_pipe_gets_the_text_alone(runs):
    """Nothing but the text goes to stdout, the same each time, and another with another seed."""
    result = run(runs["masked"], "--prompt", "And God said", "--length", 15)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("And God said")
    assert result.stdout.endswith("\n")
    assert result.stdout == run(runs["masked"], "--prompt", "And God said", "--length", 15).stdout
    assert result.stdout != run(runs["masked"], "--prompt", "And God said", "--length", 15, "--seed", 4).stdout


def test_several_texts_are_told_apart(runs):
    """A line before each text has its number, and the first is what it is alone."""
    alone = run(runs["masked"]).stdout
    result = run(runs["masked"], "--num", 3).stdout
    assert re.findall(r"^--- (\d) of 3 ---$", result, re.MULTILINE) == ["1", "2", "3"]
    assert result.startswith(f"--- 1 of 3 ---\n{alone}--- 2 of 3 ---\n")


def test_json_has_it_all(runs):
    """Ids, texts, what was filled, steps, forward passes and seconds."""
    result = run(runs["masked"], "--infill", "a [MASK:6] b", "--steps", 3, "--order", "entropy", "--num", 2, "--json")
    found = json.loads(result.stdout)
    assert (found["steps"], found["forward_passes"], found["filled"]) == (3, 3, list(range(2, 8)))
    assert (found["order"], found["seed"], found["depth"]) == ("entropy", 3, 3)
    assert found["seconds"] > 0
    for each in found["samples"]:
        assert each["text"] == ByteTokenizer().decode(each["ids"])
        assert each["ids"][:2] + each["ids"][8:] == list(b"a  b")


def test_a_file_with_gaps_keeps_its_bytes(runs, tmp_path):
    """What is given comes out as it stood in the file, line ends and escapes too."""
    file = tmp_path / "gaps.txt"
    file.write_bytes("é\r\n\t\x1b[1m[MASK:2]\r\n\\[MASK] end\n".encode())
    result = run(runs["masked"], "--infill-file", file)
    assert result.stdout_bytes.startswith("é\r\n\t\x1b[1m".encode())
    assert result.stdout_bytes.endswith(b"\r\n[MASK] end\n")
    piped = CliRunner().invoke(main, ["sample", str(runs["masked"]), "--infill-file", "-"], input=file.read_bytes())
    assert piped.stdout_bytes == result.stdout_bytes


def test_longer_than_the_rack_sees(runs):
    """Blocks are said on stderr, and so is a causal rack's window."""
    result = run(runs["masked"], "--length", 70, "--steps", 10)
    assert (
        "note: 70 tokens, of which the rack sees 32 at a time: filled from left to right in 5 blocks of up to 16"
        in (result.stderr)
    )
    assert "note" not in result.stdout
    result = run(runs["clm"], "--prompt", "And ", "--length", 70)
    assert "32 at a time: each token from those before it" in result.stderr
    assert len(result.stdout) > 50


def test_depth_and_precision_are_heeded(runs):
    """A shallower or a coarser rack writes another text; JSON says which it was."""
    whole = json.loads(run(runs["masked"], "--num", 20, "--json").stdout)
    for option, value in (("depth", 1), ("precision", "nf4")):
        found = json.loads(run(runs["masked"], "--num", 20, f"--{option}", value, "--json").stdout)
        assert found[option] == value
        assert found["samples"] != whole["samples"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["maskd"], 2, 'Did you mean "masked"?'),
        (["masked", "--infill", "no gap"], 2, "--infill: expected a text with gaps"),
        (["masked", "--infill", "a [MASK:0]"], 2, "--infill:1:3: expected [MASK] or [MASK:20]"),
        (["masked", "--infill", "[MASK]", "--length", "3"], 2, "--infill with --length"),
        (["masked", "--infill", "[MASK]", "--infill-file", "latin"], 2, "--infill with --infill-file"),
        (["masked", "--infill-file", "latin"], 2, "latin: expected UTF-8"),
        (["masked", "--infill-file", "nowhere"], 2, "nowhere"),
        (["masked", "--depth", "9"], 2, "can be read out at 1, 2, 3"),
        (["masked", "--precision", "nf5"], 2, "nf4"),
        (["masked", "--order", "best"], 2, "confidence"),
        (["masked", "--temperature", "nan"], 2, "temperature nan"),
        (["masked", "--length", "70", "--steps", "2"], 2, "steps 2: expected at least 5"),
        (["masked", "--length", "70", "--block", "40"], 2, "block 40: expected at most 32"),
        (["masked", "--prompt", "\udcff"], 2, "--prompt: expected UTF-8"),
        (["clm", "--infill", "a [MASK] b"], 2, "can't fill gaps"),
        (["clm"], 2, "needs a prompt"),
    ],
)
def test_mistakes_have_one_message(runs, monkeypatch, arguments, code, message):
    """What can't be sampled is said without a traceback, and nothing is printed."""
    monkeypatch.chdir(runs["masked"].parent)
    (runs["masked"].parent / "latin").write_bytes(b"caf\xe9 [MASK]")
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_control_characters_are_signs():
    """No byte that a model writes can drive a terminal; new lines and tabs stay."""
    everything = "".join(map(chr, range(0x300))) + "\u202e\u2066é日🙂"
    seen = visible(everything)
    assert not [each for each in seen if each not in "\n\t" and (ord(each) < 32 or 0x7F <= ord(each) < 0xA0)]
    assert visible("\x1b[2J\r\x00\x7f") == "␛[2J␍␀␡"
    assert visible("a\n\tü 日本") == "a\n\tü 日本"


def in_gap(text: str, before: str = "") -> tuple[GappedText, np.ndarray]:
    gapped = GappedText.of([before, len(text.encode())], ByteTokenizer())
    return gapped, np.frombuffer((before + text).encode(), np.uint8).astype(np.int64)


def test_what_a_model_writes_is_safe_in_a_pipe():
    """Its escapes are shown; those that were given are left as they are."""
    gapped, ids = in_gap("\x1b]0;title\x07", before="\x1b[1m")
    assert piped(gapped, ids) == "\x1b[1m␛]0;title␇\n"


def terminal(width: int = 40, height: int = 12) -> Console:
    return Console(force_terminal=True, width=width, height=height, record=True, color_system="standard", _environ={})


def test_a_terminal_gets_no_escapes_from_a_text(capsys):
    """Neither what was given nor what was written reaches a terminal unseen; markup is text."""
    gapped, ids = in_gap("\x1b[2J[red]x[/red]", before="\x1b[9m")
    print_texts(terminal(), gapped, ids[None])
    out = capsys.readouterr().out
    assert "␛[9m" in out
    assert "␛[2J[red]x[/red]" in out
    assert "\x1b[2J" not in out
    assert "\x1b[9m" not in out


class Letters:
    """Predicts the letter x everywhere."""

    def predict(self, inputs, segments, fraction, where):
        import torch

        logits = torch.zeros(len(where), 258)
        logits[:, ord("x")] = 50
        return logits


def test_a_terminal_shows_each_step_and_nothing_is_left(capsys, monkeypatch):
    """Masked tokens are blocks, more and more of them letters, within the terminal's height; a pipe sees nothing."""
    monkeypatch.setattr("stackwise_sampling.unmasking_view.SECONDS_BETWEEN_FRAMES", 0)
    text = GappedText.of(["so:", 900], ByteTokenizer())
    console = terminal()
    with watching(console, text, shown=True) as show:
        for step in sample(Letters(), text, Sampling(steps=6, order="margin", num=2), seq_len=1000):
            show(step)
    out = capsys.readouterr().out
    frames = re.split(r"step (\d)/6", out)
    assert frames[1::2] == ["1", "2", "3", "4", "5", "6", "6"]  # the last one once more, before it is taken away
    shown = [re.sub(r"\x1b\[[\d;]*m", "", frame) for frame in frames[::2]]
    assert all(frame.count("\n") <= 12 for frame in shown)
    assert "x" in shown[0]
    assert "░" in shown[0]
    assert "░" not in shown[5]
    for quiet in (Console(force_terminal=False), console):
        with watching(quiet, text, shown=quiet is not console) as show:
            show(step)
    assert capsys.readouterr().out == ""

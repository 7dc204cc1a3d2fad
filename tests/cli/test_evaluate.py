"""``stackwise evaluate`` on real runs."""

import json
import math
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from stackwise_core.cli import main
from stackwise_core.cli.likelihood_tables import print_likelihoods
from stackwise_core.inference.evaluate import BandLikelihood, BandRoute, Likelihood
from stackwise_core.training.events import PhaseDone
from tests.tiny import TEXT, run_tiny

RUNS = {
    "blockwise": {"evaluation": {"draws": 2, "bands": 2}},
    "banded": {"trainer_mode": {"use": "banded", "cycles": 1}, "training.weighting": "nelbo"},
    "clm": {"training.objective": "clm"},
    "time": {"training.time": "input", "precision": {"active": "bf16"}},
    "per_stack": {"trainer_mode": {"use": "banded", "cycles": 1, "shared": "per_stack"}, "rack.tie_embeddings": False},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, object]:
    """Finished runs by name."""
    parent = tmp_path_factory.mktemp("evaluate")
    return {name: run_tiny(parent, {"run.name": name, **changes}) for name, changes in RUNS.items()}


def evaluate(*arguments) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.mark.parametrize("name", RUNS)
def test_it_says_what_the_run_said(runs, name):
    """From the files on disk every depth and band comes out to the bit as it did when the run ended."""
    ran = runs[name]
    result = evaluate(ran.directory, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)["likelihoods"]
    for found, expected in zip(measured, ran.result.likelihoods, strict=True):
        assert found["depth"] == expected.depth
        assert found["nats_per_token"] == expected.nats_per_token
        assert found["standard_error"] == expected.standard_error
        assert [band["nats_per_token"] for band in found["bands"]] == [band.nats_per_token for band in expected.bands]


def test_tables_by_depth_and_by_band(runs):
    """In a pipe it prints a row a depth and a row a band, each with its standard error."""
    result = evaluate(runs["blockwise"].directory)
    lines = result.output.splitlines()
    depths = [line for line in lines if line.split()[1:2] in (["stack"], ["stacks"])]
    bands = [line.split()[0] for line in lines if line.endswith("%")]
    assert [line.split()[0] for line in depths] == ["1", "2", "3"]
    assert all("±" in line for line in depths)
    assert bands == ["0-50", "50-100"]
    assert "\x1b" not in result.output


def test_a_banded_rack_names_its_stacks(runs):
    """Each band of a banded rack has the stack that serves it."""
    lines = evaluate(runs["banded"].directory).output.splitlines()
    assert [line.split()[2] for line in lines if line.endswith("%")] == ["0", "1", "2"]


def test_causal_text_has_no_bands(runs):
    """The likelihood itself is no bound, and has no mask fractions."""
    output = evaluate(runs["clm"].directory).output
    assert "validation NLL at" in output
    assert "masked" not in output


def test_another_text(runs):
    """``--corpus`` measures on the whole of a text: what was trained on scores far better than digits."""
    directory = runs["blockwise"].directory
    digits = directory.parent / "digits.txt"
    digits.write_text("0123456789" * 50)
    scores = []
    for corpus in (TEXT, digits):
        measured = json.loads(evaluate(directory, "--corpus", corpus, "--draws", 8, "--json").stdout)
        assert measured["corpus"] == str(corpus)
        scores.append(measured["likelihoods"][-1]["nats_per_token"])
    assert measured["likelihoods"][-1]["tokens"] == len(digits.read_bytes())
    assert scores[0] < scores[1] - 1


def test_masks_depend_on_the_seed(runs):
    """Another seed has other masks, and the same again the same."""
    first, again, other = (evaluate(runs["blockwise"].directory, "--seed", seed).output for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["blockwse"], 2, "no such directory: blockwse. Did you mean blockwise?"),
        (["."], 2, "there is no plan.json"),
        (["blockwise", "--corpus", "no.txt"], 2, "no.txt"),
        (["blockwise", "--draws", "0"], 2, "0 is not in the range"),
    ],
)
def test_mistakes_have_one_message(runs, monkeypatch, arguments, code, message):
    """What can't be measured is said without a traceback."""
    monkeypatch.chdir(runs["blockwise"].directory.parent)
    result = evaluate(*arguments)
    assert (result.exit_code, message in result.output, "Traceback" in result.output) == (code, True, False)


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("stacks/001.safetensors", "flip", "damaged"),
        ("embedding.safetensors", "remove", "missing"),
        ("plan.json", "empty", "plan.json"),
        ("finished.json", "remove", "never finished"),
        ("config.toml", "empty", "damaged; it has 0 bytes"),
    ],
)
def test_a_harmed_run_is_refused(runs, tmp_path, file, harm, message):
    """Nothing is measured with weights or a plan that aren't what the run wrote."""
    directory = tmp_path / "harmed"
    shutil.copytree(runs["blockwise"].directory, directory)
    victim = Path(directory / file)
    if harm == "flip":
        data = bytearray(victim.read_bytes())
        data[-5] ^= 1
        victim.write_bytes(data)
    elif harm == "remove":
        victim.unlink()
    else:
        victim.write_text("")
    result = evaluate(directory)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_run_that_broke_off(tmp_path):
    """A mode that writes every stack early on is not taken for finished when it is interrupted later."""

    class Interrupted(Exception):
        pass

    def break_off(ran):
        def listener(event):
            if isinstance(event, PhaseDone):
                raise Interrupted

        ran.engine._listener = listener

    changes = {"trainer_mode": {"use": "end_to_end", "scope": "stackwise", "cycles": 1}}
    with pytest.raises(Interrupted):
        run_tiny(tmp_path, changes, before=break_off)
    directory = tmp_path / "runs" / "tiny"
    assert (directory / "stacks" / "002.safetensors").exists()
    result = evaluate(directory)
    assert result.exit_code == 2
    assert "never finished" in result.output


def printed(likelihood: Likelihood, capsys) -> str:
    print_likelihoods(Console(), [likelihood], [BandRoute((0,), (0.0, 1.0))])
    return capsys.readouterr().out


def test_a_perplexity_beyond_floats(capsys):
    """It is said to be more than a float holds, and no infinity is shown."""
    likelihood = Likelihood(1, 12000.0, None, 17312.0, 100, ())
    assert likelihood.perplexity == math.inf
    table = printed(likelihood, capsys)
    assert "> 1.8e308" in table
    assert "inf" not in table


def test_bands_of_nothing_have_no_share(capsys):
    """Where there is one token to predict with, it costs nothing, and no band has a share of that."""
    band = BandLikelihood((0.0, 1.0), 0.0, 0.0)
    last = printed(Likelihood(1, 0.0, 0.0, 0.0, 100, (band,)), capsys).splitlines()[-1]
    assert last.split() == ["0-100", "%", "0.0000", "±", "0.0000", "-"]

"""``stackwise evaluate`` on real runs."""

import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from stackwise_core import UnavailableError, UsageError, load_rack
from stackwise_core.cli import main
from stackwise_core.cli.likelihood_tables import print_likelihoods
from stackwise_core.engine.evaluation.evaluate import BandLikelihood, Likelihood
from stackwise_core.engine.events.events import PhaseDone
from stackwise_core.engine.runs.directory import RunDirectory
from stackwise_core.interfaces.routing import BandRoute
from tests.tiny import TEXT, run_tiny

pytestmark = pytest.mark.slow

RUNS = {
    "blockwise": {"evaluation": {"draws": 2, "bands": 2}},
    "banded": {"trainer_mode": {"use": "banded", "cycles": 1}, "training.weighting": "nelbo"},
    "clm": {"objective": "clm"},
    "time": {"training.time": "input", "precision": {"active": "bf16"}},
    "per_stack": {"trainer_mode": {"use": "banded", "cycles": 1, "shared": "per_stack"}, "rack.tie_embeddings": False},
}


KNOWN = sorted(set(TEXT.read_text().split()))


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


@pytest.mark.parametrize("name", ["blockwise", "banded", "clm"])
def test_a_text_shorter_than_a_sequence(runs, tmp_path, name):
    """It is one padded row: all its bytes are scored, and padding isn't."""
    text = tmp_path / "short.txt"
    text.write_text("In the end.")
    result = evaluate(runs[name].directory, "--corpus", text, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured["sequences"] == 1
    assert [each["tokens"] for each in measured["likelihoods"]] == [11 - (name == "clm")] * len(measured["likelihoods"])
    assert "nan" not in result.stdout.lower()


def test_a_data_set_to_measure_on(runs, tmp_path):
    """Of a directory with splits the one for validation is measured on, or the one that is named; it is told."""
    for split, size in (("train", 900), ("validation", 50), ("test", 70)):
        (tmp_path / f"{split}.txt").write_text("0" * size)
    directory = runs["blockwise"].directory
    for corpus, split, size in ((tmp_path, "validation", 50), (f"{tmp_path}#test", "test", 70)):
        measured = json.loads(evaluate(directory, "--corpus", corpus, "--json").stdout)
        assert measured["likelihoods"][-1]["tokens"] == size
        assert f"split {split} is measured on; left out: split t" in measured["notes"][0]
    assert "note: " in evaluate(directory, "--corpus", tmp_path).stdout


def test_the_built_in_corpus(runs):
    """It is called as data.corpus calls it."""
    result = evaluate(runs["blockwise"].directory, "--corpus", "python-docs", "--sequences", 2, "--draws", 1)
    assert (result.exit_code, "on python-docs: 2 sequences" in result.output) == (0, True)


@pytest.fixture
def on_a_text(tmp_path):
    """A finished run on a text that may be changed, and the tokens that were made of it."""
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes())
    changes = {
        "data": {"corpus": str(text), "seq_len": 32, "tokens_directory": str(tmp_path / "tokens")},
        "rack": {"stacks": 1, "blocks_per_stack": 1, "d_model": 32, "n_heads": 2},
        "training.epochs_per_stack": 1,
    }
    return run_tiny(tmp_path, changes), text, tmp_path / "tokens"


HARM = {
    "changed": lambda text: text.write_text("0123456789" * 500),
    "longer": lambda text: text.write_text(text.read_text() + "more"),
    "gone": lambda text: text.unlink(),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_text_that_was_changed_after_the_run(on_a_text, harm):
    """The run's validation split is what it was: from the tokens that were kept, and that is told; or refused."""
    ran, text, tokens = on_a_text
    HARM[harm](text)
    result = evaluate(ran.directory, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    expected = ran.result.likelihoods[-1]
    assert measured["likelihoods"][-1]["nats_per_token"] == expected.nats_per_token
    assert measured["likelihoods"][-1]["bits_per_byte"] == expected.bits_per_byte
    (note,) = measured["notes"]
    assert load_rack(ran.directory).evaluate()[-1].nats_per_token == expected.nats_per_token
    assert "can't be read any more" in note if harm == "gone" else "has changed since the run" in note
    shutil.rmtree(tokens)
    refused = evaluate(ran.directory)
    assert refused.exit_code == 2
    said = "nothing is there" if harm == "gone" else "has changed since the run, and so its validation split is another"
    assert said in refused.output
    assert "--corpus TEXT (from Python: corpus) measures on another text." in refused.output
    with pytest.raises(UsageError, match=said):
        load_rack(ran.directory).evaluate()
    assert evaluate(ran.directory, "--corpus", TEXT).exit_code == 0


def test_a_package_that_is_missing(on_a_text, monkeypatch):
    """Kept tokens need no reader of their text; without them the package is asked for, with exit code 3."""
    ran, _, tokens = on_a_text

    def unavailable(files):
        raise UnavailableError("reading it needs a package")

    monkeypatch.setattr("stackwise_text.finding.check_packages", unavailable)
    measured = json.loads(evaluate(ran.directory, "--json").stdout)
    assert measured["likelihoods"][-1]["nats_per_token"] == ran.result.likelihoods[-1].nats_per_token
    shutil.rmtree(tokens)
    result = evaluate(ran.directory)
    assert (result.exit_code, "needs a package" in result.output) == (3, True)


def test_a_run_on_a_data_set(tmp_path):
    """Its own validation split is what the run measured, and what evaluate measures after it."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt").write_bytes(TEXT.read_bytes())
    (tmp_path / "set" / "dev.txt").write_text("In the beginning there was another text than this one. " * 9)
    data = {"corpus": str(tmp_path / "set"), "seq_len": 32, "tokens_directory": str(tmp_path / "tokens")}
    ran = run_tiny(tmp_path, {"data": data, "training.steps_per_stack": 1})
    measured = json.loads(evaluate(ran.directory, "--json").stdout)
    assert measured["likelihoods"][-1]["nats_per_token"] == ran.result.likelihoods[-1].nats_per_token
    assert measured["likelihoods"][-1]["tokens"] == 55 * 9
    assert measured["notes"] == []
    named = json.loads(evaluate(ran.directory, "--corpus", tmp_path / "set", "--json").stdout)
    assert named["likelihoods"] == measured["likelihoods"]


def test_a_text_that_was_put_back(on_a_text):
    """What counts is the content: a text that was written again as it was is the run's own, without a word."""
    ran, text, tokens = on_a_text
    text.unlink()
    shutil.rmtree(tokens)
    text.write_bytes(TEXT.read_bytes())
    measured = json.loads(evaluate(ran.directory, "--json").stdout)
    assert measured["likelihoods"][-1]["nats_per_token"] == ran.result.likelihoods[-1].nats_per_token
    assert measured["notes"] == []


def test_kept_tokens_that_are_damaged(on_a_text):
    """They aren't measured on."""
    ran, text, tokens = on_a_text
    HARM["changed"](text)
    (victim,) = tokens.glob("*/validation.tokens")
    victim.write_bytes(bytes(victim.stat().st_size))
    result = evaluate(ran.directory)
    assert (result.exit_code, "its validation split is another one" in result.output) == (2, True)


def test_a_validation_text_that_was_changed(tmp_path):
    """A text that data.validation names is compared like the corpus."""
    held = tmp_path / "held.txt"
    held.write_text("In the beginning there was another text than this one. " * 9)
    data = {
        "corpus": str(TEXT),
        "validation": str(held),
        "seq_len": 32,
        "tokens_directory": str(tmp_path / "tokens"),
    }
    ran = run_tiny(tmp_path, {"data": data, "training.steps_per_stack": 1})
    held.write_text("0123456789" * 50)
    measured = json.loads(evaluate(ran.directory, "--json").stdout)
    assert measured["likelihoods"][-1]["nats_per_token"] == ran.result.likelihoods[-1].nats_per_token
    assert "has changed since the run" in measured["notes"][0]


def test_plugins_of_another_version(on_a_text, monkeypatch):
    """A plugin that the rack is computed with and that isn't of the run's version is named, with both versions."""
    ran, _, _ = on_a_text
    before = RunDirectory(ran.directory)
    environment = before.read_json("environment.json")
    environment["plugins"]["precision.active"]["version"] = "0.0.9"
    environment["plugins"]["trainer_mode"]["version"] = "0.0.9"
    before.write_json("environment.json", environment)
    now = version("stackwise-precision")
    expected = [f"stackwise-precision 0.0.9 -> {now} since the run: numbers may differ."]
    assert json.loads(evaluate(ran.directory, "--json").stdout)["notes"] == expected
    (ran.directory / "environment.json").write_text("{}")
    (note,) = json.loads(evaluate(ran.directory, "--json").stdout)["notes"]
    assert "environment.json can't be read" in note


def test_masks_depend_on_the_seed(runs):
    """Another seed has other masks, and the same again the same."""
    first, again, other = (evaluate(runs["blockwise"].directory, "--seed", seed).output for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["blockwse"], 2, 'neither in runs nor here. Did you mean "blockwise"?'),
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

        ran.engine.listener = listener

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


@pytest.mark.parametrize("held_out", [True, False])
def test_a_text_that_is_gone_or_never_was_there(tmp_path, held_out):
    """The message says what is missing, and that another text can be measured on; with one it is."""
    text = shutil.copy(TEXT, tmp_path / "text.txt")
    short = {"training.steps_per_stack": 1, "evaluation": {"sequences": 2, "draws": 1}, "data.corpus": str(text)}
    if not held_out:
        short |= {"data.validation_fraction": 0.0}
    directory = run_tiny(tmp_path, short).directory
    if held_out:
        (tmp_path / "text.txt").unlink()
        shutil.rmtree(tmp_path / "tokens")
    result = evaluate(directory)
    assert (result.exit_code, result.stdout) == (2, "")
    missing = f"{text}: nothing is there" if held_out else f"{directory} has no validation"
    assert result.stderr.startswith(missing)
    assert result.stderr.endswith(" --corpus TEXT (from Python: corpus) measures on another text.\n")
    assert evaluate(directory, "--corpus", TEXT).exit_code == 0


def test_text_that_the_tokenizer_does_not_know_is_said(tmp_path):
    """A bound on a text of which a part is neither masked nor scored names that part."""
    library = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["?", *KNOWN])}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "t.json"))
    quick = {"training.steps_per_stack": 2, "rack.stacks": 1, "evaluation.draws": 1, "evaluation.sequences": 2}
    ran = run_tiny(tmp_path, {"data.tokenizer": str(tmp_path / "t.json"), **quick})
    (tmp_path / "other.txt").write_text("and the waters xx " * 60)
    result = evaluate(ran.directory, "--corpus", tmp_path / "other.txt", "--draws", "1")
    assert result.exit_code == 0, result.output
    assert "note: 11.1 % of the text is unknown to the tokenizer" in result.output
    assert "note: 22.2 % of the text has no token" in result.output
    (tmp_path / "strange.txt").write_text("собака " * 60)
    result = evaluate(ran.directory, "--corpus", tmp_path / "strange.txt")
    assert result.exit_code == 2
    assert "92.3 % of the text is unknown to " in result.output

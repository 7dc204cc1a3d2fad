"""The documentation says what is: links resolve, configurations load, examples run, commands exist.

A comment before a code block says what it is: ``file: NAME`` is a file that the reader saves, next to the other files
of its page; ``error: NAME`` a configuration that is wrong on purpose, whose whole report stands in the page.
"""

import importlib
import inspect
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
import tomli
import torch
from attrs import evolve, frozen
from click.testing import CliRunner

from stackwise_core.cli import COMMANDS, main
from stackwise_core.config.errors import ConfigError
from stackwise_core.config.load import load
from stackwise_core.hookspecs import INTERFACES
from stackwise_core.registry import Registry
from stackwise_core.registry.official import OFFICIAL
from stackwise_core.testing.adapter import AdapterContract
from stackwise_core.testing.cache_backend import CacheBackendContract
from stackwise_core.testing.checkpoint_format import CheckpointFormatContract
from stackwise_core.testing.command import CommandContract
from stackwise_core.testing.corpus import CorpusContract
from stackwise_core.testing.mask_schedule import MaskScheduleContract
from stackwise_core.testing.objective import ObjectiveContract, logits_of, targets_of
from stackwise_core.testing.optimizer import OptimizerContract
from stackwise_core.testing.precision import PrecisionContract
from stackwise_core.testing.tracker import TrackerContract
from stackwise_core.testing.trainer_mode import TrainerModeContract
from tests.command_line import CONFIG

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENESIS = ROOT / "tests" / "golden" / "genesis.txt"
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=NAMES)
DISTRIBUTIONS = [folder.name for folder in (ROOT / "plugins").iterdir()]
OURS = [each.name for each in entry_points(group="stackwise") if each.dist and each.dist.name in DISTRIBUTIONS]
EXAMPLES = {
    "mask_schedule": "spans",
    "precision": "rounded",
    "cache_backend": "squeezed",
    "trainer_mode": "pairs",
    "adapter": "gains",
    "optimizer": "lion",
    "objective": "smoothed",
    "tracker": "table",
    "command": "size",
    "checkpoint_format": "onefile",
    "corpus": "rows",
}
"""The local plugin of each hook's page."""
MORE = ["int8_rows"]
"""Others that those pages have."""


@frozen
class Block:
    """A fenced code block."""

    page: Path
    language: str
    text: str
    kind: str
    """``file``, ``error`` or nothing."""
    name: str


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    pattern = r"(?:^<!-- (file|error): (\S+) -->\n)?^```(\w+)\n(.*?)^```$"
    for kind, name, language, text in re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield Block(page, language, text, kind, name)


def every_block(language: str) -> pytest.MarkDecorator:
    """Parametrizes a test by all blocks of a language."""
    found = [block for page in PAGES for block in blocks(page, language)]
    ids = [f"{block.page.stem}-{place}-{block.name}" for place, block in enumerate(found)]
    return pytest.mark.parametrize("block", found, ids=ids)


def save(page: Path, folder: Path) -> None:
    """Save the files of a page, as its reader would."""
    for block in blocks(page, "toml", "python"):
        if block.name:
            file = folder / block.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """The reader's environment sets nothing."""
    for variable in [name for name in os.environ if name.startswith("STACKWISE_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def forget_modules():
    """Local plugins become modules; another test may have files of the same names."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in {"power", "shortcut", *EXAMPLES.values(), *MORE}:
            del sys.modules[name]


@EVERY_PAGE
def test_links_resolve(page):
    """Every relative link names a file that is there, and a heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_on_the_map():
    """A page that docs/index.md doesn't link to is found by nobody."""
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index.read_text())}
    pages = {page for page in PAGES if (ROOT / "docs") in page.parents and page != index}
    assert {page for page in pages if "benchmarks" not in page.parts and page.name != "log.md"} <= linked


@EVERY_PAGE
def test_files_that_are_named_exist(page):
    """A path into the repository leads somewhere, and a test that is named is there."""
    for path, test in re.findall(r"`((?:tests|plugins|stackwise_core)/[\w./-]+)(?:::(\w+))?`", prose(page)):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


@EVERY_PAGE
def test_every_block_is_seen(page):
    """No block of TOML or Python is written in a way that the tests below pass over."""
    found = len(list(blocks(page, "toml", "python")))
    assert found == len(re.findall(r"^\s*```(?:toml|python)", page.read_text(), re.MULTILINE))


@pytest.mark.slow
@every_block("toml")
def test_configurations_load(block, tmp_path, monkeypatch, forget_modules):
    """Every TOML in the docs is right, or wrong in just the way that its page shows."""
    monkeypatch.chdir(tmp_path)
    save(block.page, tmp_path)
    if block.name.endswith("pyproject.toml"):
        assert tomli.loads(block.text)["project"]["entry-points"]["stackwise"]
        return
    name = block.name or "block.toml"
    Path(name).write_text(block.text)
    select = {"environ": {"STACKWISE_PLUGIN_AUTOLOAD": "0"}, "plugins": OURS}
    if block.kind != "error":
        load(name, **select, check_source=False)  # the reader has the run that init_from names
        return
    with pytest.raises(ConfigError) as error:
        load(name, **select)
    assert str(error.value) in block.page.read_text()


@every_block("python")
def test_python_compiles(block):
    """Every Python block is Python."""
    compile(block.text, block.name or "block", "exec")


def test_the_package_of_the_guide_is_the_one_that_is_tested():
    """docs/plugins.md shows tests/third_party/stackwise-sine to the letter, whose tests install and train it."""
    shown = {block.name: block.text for block in blocks(ROOT / "docs" / "plugins.md", "toml", "python")}
    package = ROOT / "tests" / "third_party"
    files = ["pyproject.toml", *(f"stackwise_sine/{name}.py" for name in ("hooks", "options", "sine"))]
    for name in (f"stackwise-sine/{file}" for file in files):
        assert shown[name] == (package / name).read_text(), name


@pytest.mark.slow
def test_the_tests_of_the_guide_pass(tmp_path):
    """The conformance tests that docs/plugins.md writes for its package pass."""
    save(ROOT / "docs" / "plugins.md", tmp_path)
    package = tmp_path / "stackwise-sine"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests"],
        cwd=package,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* passed", done.stdout)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder with the files of every hook's page, and a registry with their plugins."""
    folder = tmp_path_factory.mktemp("examples")
    for hook in INTERFACES:
        save(ROOT / "docs" / "hooks" / f"{hook}.md", folder)
    sys.path.insert(0, str(folder))
    registry = Registry.discover(files=[folder / f"{name}.py" for name in (*EXAMPLES.values(), *MORE)], environ={})
    yield folder, registry
    sys.path.remove(str(folder))
    for name in (*EXAMPLES.values(), *MORE):
        sys.modules.pop(name, None)


def build(examples, hook: str, name: str | None = None, **options):
    _, registry = examples
    declared = registry.resolve(hook, name or EXAMPLES[hook])
    return registry.build(declared, registry.options_class(declared)(**options), device="cpu")


class TestSpans(MaskScheduleContract):
    @pytest.fixture
    def schedule(self, examples):
        return build(examples, "mask_schedule")


class TestRounded(PrecisionContract):
    largest_error = 0.02

    @pytest.fixture
    def precision(self, examples):
        return build(examples, "precision")


class TestInt8Rows(PrecisionContract):
    largest_error = 0.03

    @pytest.fixture
    def precision(self, examples):
        return build(examples, "precision", "int8_rows")


class TestSqueezed(CacheBackendContract):
    @pytest.fixture
    def backend(self, examples):
        return build(examples, "cache_backend")


class TestPairs(TrainerModeContract):
    @pytest.fixture
    def mode(self, examples):
        return build(examples, "trainer_mode")


class TestLion(OptimizerContract):
    @pytest.fixture
    def optimizer(self, examples):
        return build(examples, "optimizer")


class TestSmoothed(ObjectiveContract):
    @pytest.fixture
    def objective(self, examples):
        return build(examples, "objective")

    @pytest.mark.slow
    def test_it_is_that_of_torch(self, objective):
        """Without the z-loss, over the tokens that there may be."""
        objective = type(objective)(evolve(objective.options, z=0.0))
        logits = logits_of(7)
        possible = torch.nn.functional.cross_entropy(
            logits[:, :-1], targets_of(7), reduction="none", label_smoothing=objective.options.share
        )
        torch.testing.assert_close(objective.losses(logits, targets_of(7)), possible)


class TestTable(TrackerContract):
    @pytest.fixture
    def tracker(self, examples):
        return build(examples, "tracker")


class TestSize(CommandContract):
    @pytest.fixture
    def command(self, examples):
        return build(examples, "command")


class TestOneFile(CheckpointFormatContract):
    @pytest.fixture
    def format(self, examples):
        return build(examples, "checkpoint_format")


def write_database(path: Path, texts: list[str]) -> None:
    """The database that the page's example reads."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS pages (number INTEGER PRIMARY KEY, body TEXT)")
        database.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?)", enumerate(texts))


class TestRows(CorpusContract):
    @pytest.fixture
    def make(self, examples, tmp_path):
        options = {"path": str(tmp_path / "texts.db"), "query": "SELECT body FROM pages ORDER BY number"}
        write_database(tmp_path / "texts.db", ["one", "", "two"])
        return lambda: build(examples, "corpus", "sqlite", **options)

    @pytest.fixture
    def change(self, tmp_path):
        return lambda: write_database(tmp_path / "texts.db", ["ore"])


class TestGains(AdapterContract):
    @pytest.fixture
    def adapter(self, examples):
        return build(examples, "adapter")


def train(file: Path, *changes: str):
    """Train a small rack under a configuration, and changes of it; the plan and what came of it."""
    from stackwise_core.engine.loop.engine import Engine
    from stackwise_core.engine.phases.setup import set_up
    from stackwise_core.engine.plan.plan import make_plan

    small = ("stacks=3", "blocks_per_stack=1", "d_model=32", "n_heads=2")
    overrides = [*(f"rack.{value}" for value in small), "data.seq_len=32", "training.steps_per_stack=2"]
    overrides += ["evaluation.sequences=4", *changes]
    if file.stem != EXAMPLES["corpus"]:
        overrides += [f"data.corpus={GENESIS}"]
    config, registry = load(file, overrides=overrides, environ={})
    setup = set_up(config, registry)
    plan = make_plan(setup)
    return plan, Engine(setup, plan, registry, lambda event: None).run()


@pytest.mark.slow
@pytest.mark.parametrize("hook", sorted(set(INTERFACES) - {"adapter", "command", "trainer_mode", "checkpoint_format"}))
def test_examples_train(hook, examples, tmp_path, monkeypatch):
    """The example of each hook's page trains a small rack under the configuration that stands below it."""
    folder, _ = examples
    write_database(folder / "texts.db", GENESIS.read_text().splitlines())
    monkeypatch.chdir(tmp_path)
    _, result = train(folder / f"{EXAMPLES[hook]}.toml")
    assert [phase.steps for phase in result.phases] == [2, 2, 2]
    assert len(result.likelihoods) == 3


def test_the_command_of_the_page_runs(examples, tmp_path, monkeypatch):
    """The command of its page is listed, counts the bytes of a run, and is named at the end of one."""
    folder, _ = examples
    monkeypatch.chdir(tmp_path)
    plugin = ["-p", str(folder / "size.py")]
    assert "  size  " in CliRunner().invoke(main, [*plugin, "--help"]).stdout
    Path("small.toml").write_text(CONFIG)
    ended = CliRunner().invoke(main, [*plugin, "run", "small.toml", "--set", "training.steps_per_stack=1"])
    assert ended.exit_code == 0, ended.output
    assert re.search(r"^  see what it takes +stackwise -p \S+/size\.py size runs/small$", ended.output, re.MULTILINE)
    found = json.loads(CliRunner().invoke(main, [*plugin, "size", "small", "--json"]).stdout)
    assert found["metrics.jsonl"] == Path("runs/small/metrics.jsonl").stat().st_size
    assert sum(found.values()) == sum(file.stat().st_size for file in Path("runs").rglob("*") if file.is_file())
    table = CliRunner().invoke(main, [*plugin, "size", "small"]).stdout.splitlines()
    assert table[0].split() == ["part", "size"]
    assert [line.split()[0] for line in table[1:]] == list(found)


@pytest.mark.slow
def test_an_adapter_trains_over_the_quantised_precision_of_the_page(examples, tmp_path, monkeypatch):
    """DoRA, which reads the decoded weights, stands on layers made from the core's base class."""
    folder, _ = examples
    monkeypatch.chdir(tmp_path)
    _, result = train(folder / "int8_rows.toml")
    assert [phase.name for phase in result.phases][:2] == ["stack 0", "stack 0, adapter"]


@pytest.mark.slow
def test_the_format_of_the_page_is_exported_to_and_started_from(examples, tmp_path, monkeypatch):
    """A run becomes its file by the page's command; a rack under its TOML goes on from there, with the same bound."""
    folder, _ = examples
    monkeypatch.chdir(tmp_path)
    first = train(folder / "lion.toml", "trainer_mode.use=end_to_end")[1]
    plugin, target = folder / "onefile.py", folder / "first-onefile"
    export = ["export", str(first.directory), "--to", "onefile", str(target), "-p", str(plugin)]
    done = CliRunner().invoke(main, export)
    assert done.exit_code == 0, done.output
    assert "first-onefile: one file of 3 blocks, " in done.output
    still = ("training.block_lr=0.0", "training.embedding_lr=0.0")
    again = train(folder / "onefile.toml", *still)[1]
    assert again.likelihoods == first.likelihoods


def test_the_mode_of_the_page_trains_its_phases(examples, tmp_path, monkeypatch):
    """The page's first mode trains stacks alone and then in pairs, on draws that follow one another."""
    folder, _ = examples
    monkeypatch.chdir(tmp_path)
    plan, result = train(folder / "pairs.toml")
    assert [phase.name for phase in result.phases] == [
        "stack 0",
        "stack 1",
        "stacks 0 and 1",
        "stack 2",
        "stacks 1 and 2",
    ]
    assert [phase.steps for phase in result.phases] == [2, 1, 1, 1, 1]
    assert [planned.phase.begins for planned in plan.phases] == [0, 0, 1, 0, 1]
    # What was trained again changed below the shallower exits.
    assert [likelihood.depth for likelihood in result.likelihoods] == [3]


def test_the_routes_of_the_page_are_taken(examples, tmp_path, monkeypatch, forget_modules):
    """The page's second mode serves light masks with two of three stacks, and heavy ones with all."""
    folder, _ = examples
    monkeypatch.chdir(tmp_path)
    plan, result = train(folder / "shortcut.toml")
    assert [(route.path, route.band) for route in plan.routes] == [((0, 1), (0.0, 0.5)), ((0, 1, 2), (0.5, 1.0))]
    (whole,) = result.likelihoods
    assert [band.band for band in whole.bands] == [(0.0, 0.5), (0.5, 1.0)]
    assert sum(band.nats_per_token for band in whole.bands) == pytest.approx(whole.nats_per_token)


@pytest.mark.parametrize("hook", INTERFACES)
def test_every_hook_has_a_page_with_all_of_its_contract(hook):
    """Each method of a hook's interface is named on the hook's page."""
    page = (ROOT / "docs" / "hooks" / f"{hook}.md").read_text()
    module, _, name = INTERFACES[hook].partition(":")
    interface = getattr(importlib.import_module(module), name)
    assert f"{module}.{name}" in page
    for method in vars(interface):
        if not method.startswith("_") and (callable(vars(interface)[method]) or inspect.isdatadescriptor(method)):
            assert re.search(rf"\b{method}\b", page), method


def commands_in(page: Path) -> Iterator[list[str]]:
    """Each ``stackwise ...`` that is code in a page, as words."""
    text = page.read_text()
    for line in re.findall(r"`stackwise ([^`]+)`", text) + re.findall(r"^\$ stackwise (.+)$", text, re.MULTILINE):
        yield re.split(r"\s+", line.partition("|")[0].strip())


@pytest.mark.slow
@EVERY_PAGE
def test_commands_exist(page, examples):
    """Every command and every option that the docs type is there; a hook page's own plugin may have it."""
    folder, _ = examples
    for words in commands_in(page):
        command, context = main, click.Context(main)
        if words[0] == "-p":
            context = main.make_context("stackwise", ["-p", str(folder / words[1]), "plugins"])
        rest = iter(words)
        for word in rest:
            if word.startswith("-"):
                options = {option: each for each in (*command.params, *main.params) for option in each.opts}
                assert word in {*options, "--help", "-h"}, words
                if word in options and not options[word].is_flag:
                    next(rest)
            elif isinstance(command, click.Group):
                _, found, _ = command.resolve_command(context, [word])
                command, context = found, click.Context(found)


def test_every_command_is_documented():
    """README's table has each command."""
    readme = (ROOT / "README.md").read_text()
    for command in (*COMMANDS, *OFFICIAL["command"]):
        assert re.search(rf"^\| `stackwise {command}\b", readme, re.MULTILINE), command


def test_every_dependency_has_its_line():
    """docs/dependencies.md has one line for each package that a pyproject.toml of ours asks for, and no other."""
    asked = set()
    for file in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]:
        project = tomli.loads(file.read_text())
        asked.update(project["project"].get("dependencies", []), project["build-system"]["requires"])
        for extra in project["project"].get("optional-dependencies", {}).values():
            asked.update(extra)
    packages = {re.split(r"[<>=!~;\[ ]", requirement)[0] for requirement in asked} - {"stackwise-core", *DISTRIBUTIONS}
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = re.findall(r"^\| ([a-z][\w-]*) \| \S", page, re.MULTILINE)
    assert sorted(row for row in rows if row != "package") == sorted(packages)

"""``stackwise plugins`` and ``stackwise plugins show``."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stackwise_core.cli import main
from stackwise_core.registry.official import OFFICIAL

HEAVY = ("torch", "numpy", "transformers", "peft", "bitsandbytes", "pydantic")


def stackwise(*arguments):
    return CliRunner().invoke(main, arguments)


def rows(result):
    """The lines of the plain listing, by the name in them."""
    lines = result.stdout.splitlines()
    starts = [lines[0].index(heading) for heading in lines[0].split()]
    cells = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines[1:]]
    return {row[1]: row for row in cells}


def test_the_listing_is_aligned_text_in_a_pipe():
    """One line an implementation: hook, name, package, devices, state, summary."""
    result = stackwise("plugins")
    assert result.exit_code == 0
    assert rows(result)["linear"] == [
        "mask_schedule",
        "linear",
        "stackwise-masking 0.1.0",
        "cpu,cuda",
        "ready",
        "Fraction grows evenly with progress",
    ]


def test_aliases_are_listed_behind_their_name(install, hook_source, implementation_source):
    """In the listing, in its JSON, and by show, which finds an implementation by its alias."""
    modules = {"other_hooks": hook_source(aliases=("wave", "sinus")), "somebody": implementation_source}
    install("other", modules, {"other": "other_hooks"})
    assert rows(stackwise("plugins"))["sine (wave, sinus)"][2:] == ["other 1.0", "cpu,cuda", "ready", "Of somebody"]
    listing = json.loads(stackwise("plugins", "--json").stdout)
    aliases = {each["name"]: each["aliases"] for each in listing["implementations"]}
    assert (aliases["sine"], aliases["linear"]) == (["wave", "sinus"], [])
    lines = stackwise("plugins", "show", "wave").stdout.splitlines()
    assert lines[0] == "sine: Of somebody"
    assert [line.split(maxsplit=1) for line in lines[1:3]] == [["hook", "mask_schedule"], ["aliases", "wave, sinus"]]
    (shown,) = json.loads(stackwise("plugins", "show", "sinus", "--json").stdout)
    assert (shown["name"], shown["aliases"]) == ("sine", ["wave", "sinus"])
    assert "aliases" not in stackwise("plugins", "show", "linear").stdout


def test_broken_and_blocked_plugins_are_listed_with_the_reason(install):
    """What is not used is there too, and why."""
    install("stackwise-bad", {"bad_hooks": "1/0"}, {"bad": "bad_hooks"}, version="0.3")
    result = stackwise("plugins", "-p", "no:cache")
    listed = rows(result)
    assert listed["bad"][:5] == ["-", "bad", "stackwise-bad 0.3", "-", "broken"]
    assert listed["bad"][5].startswith("failed at import: ZeroDivisionError: division by zero. Raised at ")
    assert listed["cache"][4:] == ["blocked", "blocked by -p no:cache. Leave that out to load it."]
    assert "disk" not in listed
    assert result.exit_code == 0


def test_states_that_are_not_ready(install, hook_source):
    """Missing packages, other APIs and collisions show in the state."""
    install("one", {"one_hooks": hook_source("linear")}, {"one": "one_hooks"})
    install("two", {"two_hooks": hook_source("two", packages=("not_there",))}, {"two": "two_hooks"})
    install("three", {"three_hooks": hook_source("three", api=3, devices=())}, {"three": "three_hooks"})
    listed = rows(stackwise("plugins"))
    assert (listed["linear"][4], listed["two"][4]) == ("ambiguous", "needs not_there")
    assert listed["three"][3:5] == ["-", "other API (3)"]


def test_the_listing_as_json(install):
    """Implementations and plugins, with the problem of those that have one."""
    install("stackwise-bad", {"bad_hooks": "1/0"}, {"bad": "bad_hooks"})
    listing = json.loads(stackwise("plugins", "--json").stdout)
    disk = next(each for each in listing["implementations"] if each["name"] == "disk")
    assert (disk["hook"], disk["distribution"], disk["state"]) == ("cache_backend", "stackwise-cache", "ready")
    plugins = {each["name"]: each for each in listing["plugins"]}
    assert plugins["bad"]["problem"]["message"] == "ZeroDivisionError: division by zero"
    assert plugins["masking"]["problem"] is None


@pytest.mark.parametrize("width", [80, 120])
def test_the_listing_on_a_terminal_fits_and_loses_nothing(install, hook_source, monkeypatch, width):
    """No line is wider than the terminal, and no name or state is cut."""
    install("stackwise-bad", {"bad_hooks": "1/0"}, {"bad": "bad_hooks"})
    modules = {"other_hooks": hook_source(packages=("nonesuch",), aliases=("another_wave",))}
    install("other", modules, {"other": "other_hooks"})
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    result = stackwise("plugins")
    assert "HOOK" not in result.stdout
    assert "…" not in result.stdout
    lines = result.stdout.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, lines)) <= width
    for word in (
        "mask_schedule",
        "exponential",
        "stackwise-precision",
        "0.1.0",
        "ready",
        "broken",
        "ZeroDivisionError",
        "(another_wave)",
    ):
        assert word in result.stdout


def test_show_prints_the_options():
    """Keys with type, default and help, above them where the implementation is from."""
    result = stackwise("plugins", "show", "linear")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "linear: Fraction grows evenly with progress"
    assert "stackwise-masking 0.1.0" in result.stdout
    line = next(line for line in result.stdout.splitlines() if "min_fraction" in line)
    assert line.split() == ["min_fraction", "number", "0.15", "Mask", "fraction", "at", "progress", "0."]


@pytest.mark.parametrize("arguments", [("show", "disk", "--json"), ("--json", "show", "stackwise-cache:disk")])
def test_show_as_json(arguments):
    """The same as JSON, wherever the option stands."""
    (shown,) = json.loads(stackwise("plugins", *arguments).stdout)
    assert (shown["hook"], shown["name"], shown["state"]) == ("cache_backend", "disk", "ready")
    options = {option["key"]: option for option in shown["options"]}
    assert options["shard_entries"] == {
        "key": "shard_entries",
        "type": "integer",
        "default": "256",
        "help": "Activations a shard file; fewer if they take more than 64 MiB.",
    }
    assert set(options) == {"dtype", "capacity", "keep", "keep_time_steps", "directory", "shard_entries"}


def test_show_gives_every_hook_that_has_the_name(install, hook_source, implementation_source):
    """One name at two hooks is shown twice."""
    install("other", {"other_hooks": hook_source("bf16"), "somebody": implementation_source}, {"other": "other_hooks"})
    shown = json.loads(stackwise("plugins", "show", "bf16", "--json").stdout)
    assert [each["hook"] for each in shown] == ["mask_schedule", "precision"]


@pytest.mark.parametrize(
    ("name", "exit_code", "message"),
    [
        ("liner", 2, 'Did you mean "linear"?'),
        ("tape", 3, "pip install stackwise-tape"),
        ("bad", 3, 'the plugin "bad" of stackwise-bad 1.0 failed at import: ZeroDivisionError'),
    ],
)
def test_show_of_what_is_not_there(install, monkeypatch, name, exit_code, message):
    """Unknown, not installed and broken names have each their reason."""
    monkeypatch.setitem(OFFICIAL["cache_backend"], "tape", "stackwise-tape")
    install("stackwise-bad", {"bad_hooks": "1/0"}, {"bad": "bad_hooks"})
    result = stackwise("plugins", "show", name)
    assert result.exit_code == exit_code
    assert message in result.stderr


def test_a_local_file_before_or_after_show(tmp_path, install, hook_source, implementation_source):
    """-p belongs to the listing and to show."""
    path = tmp_path / "shown_sine.py"
    path.write_text(hook_source(module="shown_sine") + implementation_source)
    for arguments in (["-p", str(path), "show", "sine"], ["show", "sine", "-p", str(path)]):
        assert "shown_sine.py" in stackwise("plugins", *arguments).stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["plugins", "show", "linear"]])
def test_nothing_heavy_is_imported(arguments):
    """Help, listing and options come without torch and its like."""
    code = (
        "import sys\nfrom stackwise_core.cli import main\n"
        f"try: main({arguments!r})\n"
        f"finally: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert "linear" in done.stdout or "Usage" in done.stdout


@pytest.mark.slow
def test_an_installed_third_party_package_is_listed_and_built(tmp_path):
    """A mask schedule from outside the repository, installed by pip, is as good as ours."""
    source = tmp_path / "source"
    shutil.copytree(Path(__file__).parents[1] / "third_party" / "stackwise-sine", source)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    environ = os.environ | {"PYTHONPATH": str(site)}
    python = [sys.executable, "-c"]
    listed = subprocess.run(
        [*python, "from stackwise_core.cli import main; main(['plugins', '--json'])"],
        env=environ,
        capture_output=True,
        check=True,
    )
    sine = next(each for each in json.loads(listed.stdout)["implementations"] if each["name"] == "sine")
    assert (sine["distribution"], sine["version"], sine["state"]) == ("stackwise-sine", "1.0", "ready")

    build = (
        "import torch; from stackwise_core.registry import Registry; registry = Registry.discover(); "
        "declared = registry.resolve('mask_schedule', 'sine'); "
        "sine = registry.build(declared, registry.options_class(declared)(), device='cpu'); "
        "print(sine.fraction(torch.tensor([0.0, 1.0])).tolist())"
    )
    built = subprocess.run([*python, build], env=environ, capture_output=True, check=True, text=True)
    assert json.loads(built.stdout) == pytest.approx([0.15, 0.9])

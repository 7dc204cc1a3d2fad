"""Commands of plugins on the command line: listed, used, missing, broken, of one name, from a file."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from stackwise_core.cli import COMMANDS, main
from stackwise_core.registry import Registry
from stackwise_core.testing.fresh import heavy_imports

COMMAND = """
import click
from stackwise_core.interfaces.command import Command

class Hello(Command):
    def make(self):
        return hello

@click.command()
@click.option("--to", default="you", help="Who.")
def hello(to):
    "Say hello."
    click.echo(f"{said} {to}")

said = "hello"
"""
HOOKS = """
from stackwise_core.hookspecs import Implementation, hookimpl

@hookimpl
def command():
    return [Implementation({name!r}, "Say hello.", "{module}:Hello")]
"""


@pytest.fixture
def installed(install):
    """Install a distribution with a command; its module's source may be changed."""

    def installed(distribution="stackwise-hello", name="hello", old="", new=""):
        module = distribution.replace("-", "_")
        source = COMMAND.replace(old, new) if old else COMMAND
        hooks = HOOKS.format(name=name, module=module)
        return install(distribution, {module: source, f"{module}_hooks": hooks}, {name: f"{module}_hooks"})

    return installed


def stackwise(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_it_is_listed_and_used(installed):
    """With its summary in the help, its own help, its options, and in the listing of plugins."""
    installed()
    assert "\n  hello     Say hello.\n" in stackwise("--help").stdout
    assert stackwise("hello", "--to", "all").stdout == "hello all\n"
    assert stackwise("hello", "--help").stdout.startswith("Usage: main hello [OPTIONS]\n\n  Say hello.\n")
    assert re.search("^command +hello +stackwise-hello 1.0 .* ready +Say hello", stackwise("plugins").stdout, re.M)
    shown = json.loads(stackwise("plugins", "show", "hello", "--json").stdout)
    assert [(each["hook"], each["provisional"], each["options"]) for each in shown] == [("command", True, [])]
    assert stackwise("hllo").stderr.endswith("Error: No such command 'hllo'. Did you mean 'hello'?\n")


def test_help_imports_no_command(installed):
    """Nor anything heavy; the command is broken, and nobody minds."""
    installed(old="import click", new="raise SystemExit('imported')")
    said = stackwise("--help")
    assert (said.exit_code, said.stderr) == (0, "")
    assert "  hello" in said.stdout
    code = "from stackwise_core.cli import main; main(['--help'], standalone_mode=False)"
    modules = ("torch", "numpy", "stackwise_sampling.command", "stackwise_report.command", "stackwise_core.cli.run")
    assert set(heavy_imports(code, modules)) <= {"stackwise_core.cli.run"}


def test_core_commands_look_for_no_plugin(monkeypatch):
    """A core command works whatever is installed, and doesn't wait for it."""
    monkeypatch.setattr(Registry, "discover", None)
    assert stackwise("runs").exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("import click", "import nothing_of_this_name", "stage: factory): stackwise_hello:Hello: ModuleNotFoundError"),
        ("return hello", "return [][0]", "stage: make): IndexError: list index out of range"),
        ("return hello", "raise SystemExit(7)", "stage: make): SystemExit: 7"),
        ("return hello", "return print", "stage: make): make() returned builtin_function_or_method; expected a click"),
        ("(Command)", "", "stackwise_hello:Hello is no subclass of stackwise_core.interfaces.command.Command"),
    ],
)
def test_a_broken_one_is_an_error_when_it_is_used(installed, old, new, said):
    """Exit code 3, with the plugin and the stage; others work."""
    installed(old=old, new=new)
    result = stackwise("hello")
    assert (result.exit_code, result.stdout) == (3, "")
    assert said in result.stderr
    assert 'plugin "hello" of stackwise-hello 1.0' in result.stderr
    assert stackwise("sample", "--help").exit_code == 0


def test_a_defect_of_a_command_is_its_plugins(install):
    """An exception while it runs names the distribution."""
    source = COMMAND.replace('said = "hello"', "") + HOOKS.format(name="hello", module="hello_at_once")
    install("stackwise-hello", {"hello_at_once": source}, {"hello": "hello_at_once"})
    result = stackwise("hello")
    assert result.exit_code == 1
    assert result.stderr.startswith("this is a defect in the plugin stackwise-hello: NameError")


def test_a_plugin_that_is_broken_or_blocked_is_named(install, monkeypatch):
    """A command that it may have is refused with the reason, in place of being unknown."""
    install("stackwise-hello", {"hello_hooks": "raise RuntimeError('no licence')"}, {"hello": "hello_hooks"})
    result = stackwise("hello")
    assert result.exit_code == 3
    assert 'the plugin "hello" of stackwise-hello 1.0 failed at import: RuntimeError: no licence' in result.stderr
    monkeypatch.setenv("STACKWISE_PLUGIN_AUTOLOAD", "0")
    result = stackwise("sample", "--help")
    assert result.exit_code == 3
    assert "is blocked by STACKWISE_PLUGIN_AUTOLOAD=0. -p sampling loads it." in result.stderr
    assert stackwise("-p", "sampling", "sample", "--help").exit_code == 0


@pytest.mark.parametrize(("name", "package"), [("sample", "stackwise-sampling"), ("report", "stackwise-report")])
def test_commands_that_were_the_core_s_name_their_package(monkeypatch, name, package):
    """Exit code 3, and what to install."""
    found = Registry.discover(environ={})
    others = Registry([plugin for plugin in found.plugins if plugin.distribution != package])
    monkeypatch.setattr(Registry, "discover", lambda **_: others)
    result = stackwise(name, "runs/first")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        f'command "{name}" needs the package {package}, which is not installed: pip install {package}\n'
    )
    assert f"\n  {name} " not in stackwise("--help").stdout


@pytest.mark.parametrize("name", ["run", "plugins"])
def test_no_plugin_shadows_the_core(installed, name):
    """The core's command stays, and the listing says which plugin wanted its name."""
    installed(name=name)
    assert stackwise(name, "--help").stdout == CliRunner().invoke(main, [name, "--help"]).stdout
    assert "Say hello" not in stackwise("--help").stdout
    last = stackwise("plugins").stdout.splitlines()[-1]
    assert "stackwise-hello 1.0" in last
    assert f'failed at declaration: command() returned "{name}", which is a command of the core.' in last


def test_two_of_one_name_are_told_apart(installed):
    """Each has its distribution before it in the help; the name alone is an error when it is used."""
    installed()
    installed("stackwise-hi", old='"hello"\n', new='"hi"\n')
    listed = stackwise("--help").stdout
    assert "stackwise-hello:hello" in listed
    assert "stackwise-hi:hello" in listed
    result = stackwise("hello")
    assert result.exit_code == 2
    assert result.stderr == (
        'command "hello" is in stackwise-hello 1.0 and stackwise-hi 1.0. '
        "Write stackwise stackwise-hello:hello or stackwise stackwise-hi:hello.\n"
    )
    assert stackwise("stackwise-hi:hello").stdout == "hi you\n"
    assert stackwise("-p", "no:stackwise-hi", "hello").stdout == "hello you\n"


@pytest.fixture
def local(tmp_path, monkeypatch) -> Path:
    """A local plugin with a command."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "greeting.py"
    file.write_text(COMMAND + HOOKS.format(name="greet", module="greeting"))
    yield file
    sys.modules.pop("greeting", None)


def test_a_local_file_s_command(local):
    """Named before the command it is listed and used; without that it is unknown."""
    assert stackwise("-p", "greeting.py", "greet").stdout == "hello you\n"
    assert "\n  greet     Say hello.\n" in stackwise("-p", "greeting.py", "--help").stdout
    assert stackwise("greet").exit_code == 2
    local.write_text("raise RuntimeError('no licence')")
    sys.modules.pop("greeting", None)
    broken = stackwise("-p", "greeting.py", "greet")
    assert broken.exit_code == 3
    assert "failed at import: RuntimeError: no licence" in broken.stderr
    missing = stackwise("-p", "nowhere.py", "greet")
    assert (missing.exit_code, missing.stderr) == (2, f"plugin file {local.parent / 'nowhere.py'} is not there\n")


def test_plugins_before_a_command_of_the_core_are_heard(local):
    """As those behind it are."""
    for arguments in (("-p", "greeting.py", "plugins"), ("plugins", "-p", "greeting.py")):
        assert "greeting.py" in stackwise(*arguments).stdout
    assert "blocked by -p no:peft" in stackwise("-p", "no:peft", "plugins").stdout


def test_completion_imports_no_command(installed):
    """A shell completes names of plugins' commands, broken ones too."""
    installed(old="import click", new="raise SystemExit('imported')")
    completion = ShellComplete(main, {}, "stackwise", "_STACKWISE_COMPLETE")
    assert [item.value for item in completion.get_completions([], "he")] == ["hello"]


def test_what_is_public_is_light():
    """The helpers for commands load no torch."""
    assert heavy_imports("import stackwise_core.cli.public") == []


def test_a_command_runs_in_a_process_of_its_own(local):
    """As a shell starts it."""
    code = "from stackwise_core.cli import main; main(prog_name='stackwise')"
    command = [sys.executable, "-c", code, "-p", "greeting.py", "greet", "--to", "all"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello all\n", "")


def test_core_commands_are_all_there():
    """Each name has its module."""
    context = click.Context(main)
    assert all(isinstance(main.get_command(context, name), click.Command) for name in COMMANDS)

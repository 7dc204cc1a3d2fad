"""The frame of the command line: lazy commands, and one message and exit code for every exception."""

import errno
import subprocess
import sys
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

import stackwise_core
from stackwise_core.__main__ import main as console_script
from stackwise_core.cli import COMMANDS, main
from stackwise_core.errors import StackwiseError, UnavailableError, UsageError

STACKWISE = [sys.executable, "-c", "from stackwise_core.cli import main; main(prog_name='stackwise')"]


@pytest.fixture
def fail(monkeypatch):
    """Run ``stackwise fail ...`` with a command that does as the test says."""

    def fail(action, *arguments, before=()):
        monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=action))
        return CliRunner().invoke(main, [*before, "fail", *arguments])

    return fail


def raiser(error):
    def action():
        raise error

    return action


def test_help_lists_every_command_with_a_line():
    """Each lazy command is there with its own help."""
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    lines = {line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line.startswith("  ")}
    for command in COMMANDS:
        assert len(lines[command]) > 2


def test_version_is_the_core_version():
    """--version prints name and version."""
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"stackwise {stackwise_core.__version__}\n"


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (StackwiseError("it broke"), 1, "it broke"),
        (UsageError("no [such] thing"), 2, "no [such] thing"),
        (UnavailableError("not here"), 3, "not here"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "No space left on device: runs/x"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "Permission denied: runs"),
        (TimeoutError(), 1, "TimeoutError"),
        (
            KeyError("a\nb"),
            1,
            "this is a defect in Stackwise: KeyError: 'a\\nb'. --debug shows the traceback.",
        ),
        (
            RuntimeError("two\nlines."),
            1,
            "this is a defect in Stackwise: RuntimeError: two lines. --debug shows the traceback.",
        ),
    ],
)
def test_an_exception_is_one_message_and_an_exit_code(fail, error, exit_code, message):
    """Nothing on stdout, the message alone on stderr, no traceback."""
    result = fail(raiser(error))
    assert (result.exit_code, result.stdout, result.stderr) == (exit_code, "", message + "\n")


def test_an_interrupt_is_exit_130(fail):
    """Ctrl-C ends with a short line."""
    result = fail(raiser(KeyboardInterrupt()))
    assert (result.exit_code, result.stderr.strip()) == (130, "interrupted")


@pytest.mark.parametrize(("before", "after"), [(["--debug"], []), ([], ["--debug"])])
def test_debug_shows_the_traceback_with_its_cause(fail, before, after):
    """Before or after the command, and the plugin's own exception is part of it."""

    def action():
        try:
            raise ZeroDivisionError("the plugin's own")
        except ZeroDivisionError as error:
            raise UnavailableError("not here") from error

    result = fail(action, *after, before=before)
    assert result.exit_code == 3
    assert "ZeroDivisionError: the plugin's own" in result.stderr
    assert "in action" in result.stderr
    assert result.stderr.splitlines()[-1] == "not here"


def test_a_defect_in_a_plugin_is_said_to_be_the_plugins(fail, install):
    """An exception that passes through a plugin's module names its distribution."""
    install("stackwise-bad", {"bad_schedule": "def shape(): return [][0]"}, {"bad": "bad_schedule"})

    def action():
        import bad_schedule

        bad_schedule.shape()

    result = fail(action)
    assert result.exit_code == 1
    assert result.stderr.startswith("this is a defect in the plugin stackwise-bad: IndexError: list index")


def test_a_defect_in_a_local_plugin_names_the_file(fail, install, tmp_path):
    """So does one in a local file."""
    from stackwise_core.registry import Registry

    path = tmp_path / "local_bad.py"
    path.write_text("def shape(): return [][0]\n")
    Registry.discover(files=[path], environ={})

    def action():
        sys.modules["local_bad"].shape()

    # It has no hook, but it is the code that raised.
    assert "defect in the plugin local_bad.py: IndexError" in fail(action).stderr


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [(["plugns"], "plugins"), (["plugins", "shwo", "x"], "show"), (["plugins", "--jsn"], "--json")],
)
def test_a_misspelt_command_has_a_nearest_one(arguments, nearest):
    """click's usage errors are exit code 2."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert nearest in result.stderr.partition("Did you mean")[2]


def test_an_exit_code_of_a_command_is_kept(fail):
    """ctx.exit(n) and SystemExit go through."""
    assert fail(lambda: click.get_current_context().exit(5)).exit_code == 5
    assert fail(raiser(SystemExit(4))).exit_code == 4
    assert fail(lambda: None).exit_code == 0


def test_a_closed_pipe_is_no_traceback():
    """``stackwise plugins --json | head -0`` ends quietly."""
    with subprocess.Popen([*STACKWISE, "plugins", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_an_interrupt_while_the_command_line_is_imported(monkeypatch, capsys):
    """Its word, and no traceback."""

    class Slow(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "stackwise_core.cli", Slow("stackwise_core.cli"))
    with pytest.raises(SystemExit) as ended:
        console_script()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"

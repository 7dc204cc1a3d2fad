"""OpenMP's threads sleep at barriers after a short while, unless somebody said otherwise."""

import os
import subprocess
import sys

import pytest

from stackwise_core.system.openmp import SPINS, WAITING

SHOWN = f"import os; print(*(os.environ.get(name) for name in {WAITING!r}))"


def waits(code: str, **environment: str) -> list[str]:
    """Return the variables of a new process after some code."""
    clean = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-c", f"{code}; {SHOWN}"]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("code", ["import stackwise_core as sw", "import stackwise_core.__main__"])
def test_threads_wait_passively(code):
    """From a script as from the command line, before torch is there to read it."""
    assert waits(f"{code}; import sys; assert 'torch' not in sys.modules") == ["None", str(SPINS), "0", "None"]


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_says_stands(name):
    """Each variable decides alone; none is set beside it, which could win over it."""
    assert waits("import stackwise_core", **{name: "1"}) == ["1" if each == name else "None" for each in WAITING]


def test_nothing_is_said_once_torch_is_loaded():
    """It would have no effect here, and be passed on to other processes."""
    code = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import stackwise_core"
    assert waits(code) == ["None"] * 4

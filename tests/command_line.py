"""The command line as tests use it: a small configuration, and a process that heeds Ctrl-C."""

import signal
import subprocess
import sys

from tests.tiny import TEXT

CONFIG = f"""
[run]
name = "small"
[data]
corpus = "{TEXT}"
seq_len = 32
tokens_directory = "tokens"
[rack]
stacks = 2
blocks_per_stack = 1
d_model = 32
n_heads = 2
[training]
epochs_per_stack = 2
batch_size = 16
masks_per_sample = 1
[cache_backend]
use = "disk"
"""
"""A configuration of two stacks, as a user has one in ``small.toml``."""


def interruptible(arguments: list[str], stderr: int) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, which runs beside the test and heeds Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "stackwise_core.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )

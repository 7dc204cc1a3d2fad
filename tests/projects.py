"""A project folder as a user has one: text, tokenizer.json, a plugin file, a configuration, and runs in ``runs``."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import stackwise_core as sw
from stackwise_core.config.source_vocabulary import byte_characters
from stackwise_core.engine.events.events import Event, PhaseResumed, StepDone
from tests.tiny import TEXT

SCHEDULE = """
from attrs import frozen
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_core.interfaces.mask_schedule import MaskSchedule

@frozen
class Options:
    pass

class Square(MaskSchedule):
    def fraction(self, progress):
        return progress ** 2

@hookimpl
def mask_schedule():
    return [Implementation("square", "p squared", "project_square:Square", "project_square:Options")]
"""
PRECISION = """
from stackwise_core.hookspecs import Implementation, hookimpl
from stackwise_precision.floats import Fp32

class Own(Fp32):
    pass

@hookimpl
def precision():
    return [Implementation("own32", "fp32", "project_own:Own", "stackwise_precision.options:Fp32Options")]
"""
CONFIG = """
[run]
name = "small"
plugins = ["project_square.py", "project_own.py"]
[data]
corpus = "text.txt"
tokenizer = "tok.json"
seq_len = 32
tokens_directory = "tokens"
[rack]
stacks = 1
blocks_per_stack = 1
d_model = 32
n_heads = 2
[training]
steps_per_stack = 4
batch_size = 4
[checkpoint]
steps = 1
[evaluation]
draws = 1
sequences = 4
[mask_schedule]
use = "square"
[precision]
active = "own32"
"""


def project(folder: Path) -> Path:
    """Write a project into a folder."""
    folder.mkdir(parents=True)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": byte_characters(), "merges": []},
    }
    (folder / "tok.json").write_text(json.dumps(content))
    (folder / "text.txt").write_text(TEXT.read_text()[:4000])
    (folder / "project_square.py").write_text(SCHEDULE)
    (folder / "project_own.py").write_text(PRECISION)
    (folder / "small.toml").write_text(CONFIG)
    return folder


def forget_plugins() -> None:
    """Forget imported plugin files, as another process has them not."""
    for name in [name for name in sys.modules if name.startswith("project_")]:
        del sys.modules[name]


def interrupted(folder: Path, **overrides: object) -> Path:
    """Begin the project's run and break it off after its second step, with that folder as working directory."""

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise KeyboardInterrupt

    forget_plugins()
    os.chdir(folder)
    with suppress(KeyboardInterrupt):
        sw.run(sw.load_config("small.toml", overrides=overrides), listener=stop)
    forget_plugins()
    return folder / "runs" / "small"


def gone_on_from(events: list[Event]) -> list[int]:
    """The steps after which phases went on."""
    return [event.step for event in events if isinstance(event, PhaseResumed)]

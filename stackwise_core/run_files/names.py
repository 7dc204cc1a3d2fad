"""Names of all files and folders in a run's directory. ``RunDirectory`` has the layout.

The content of the JSON files is in ``plan_file``, ``progress_file`` and ``environment_file``.
"""

CONFIG = "config.toml"
PLAN = "plan.json"
ENVIRONMENT = "environment.json"
"""The device and the software that the run began with; of plugins, those that it has now."""
PROGRESS = "progress.json"
"""Measurements of each phase that is done, written with its weights."""
FINISHED = "finished.json"
"""Measurements of all phases, written when the last one's weights are on disk."""
MANIFEST = "manifest.json"
"""Size and SHA-256 of each file that counts."""
METRICS = "metrics.jsonl"
TOKENIZER = "tokenizer.json"
"""The copy of the file that ``data.tokenizer`` names."""
PLUGINS = "plugins"
"""The folder of the copies of local plugin files. They are read by people, and run when ``-p`` names them."""
STACKS = "stacks"
"""The folder of full-precision masters."""
ADAPTERS = "adapters"
"""The folder of adapters: a folder for a stack, and in it one for each of its adapters."""
TRUNK = "trunk"
"""The folder of frozen stacks at a precision that quantises."""
RACKS = "racks"
"""The folder of whole racks as they were after a phase."""
RESUME = "resume"
"""The folder of checkpoints within a phase."""
OFFLOAD = "offload"
"""The folder of training state that is changing, while a phase is streamed to disk; in no manifest."""
MOMENTS = "moments"
"""The folder of optimizer state that is kept from phase to phase."""
CACHE = "cache"
"""The folder of the boundaries' stores."""


def embedding_file(stack: int | None) -> str:
    """Return the name of the embedding's file: a stack's own, or None for the one that all share."""
    return "embedding.safetensors" if stack is None else f"{STACKS}/{stack:03d}.embedding.safetensors"


def head_file(stack: int | None) -> str:
    """Return the name of an untied head's file: a stack's own, or None for the one that all share."""
    return "head.safetensors" if stack is None else f"{STACKS}/{stack:03d}.head.safetensors"


def stack_file(index: int) -> str:
    """Return the name of the file of a stack's masters."""
    return f"{STACKS}/{index:03d}.safetensors"


def adapters_folder(index: int) -> str:
    """Return the name of the folder of a stack's adapters, with a slash at its end."""
    return f"{ADAPTERS}/{index:03d}/"


def prepared_file(index: int) -> str:
    """Return the name of the file of a frozen stack at the trunk's precision."""
    return f"{TRUNK}/{index:03d}.safetensors"


def checkpoint_entry(name: str, entry: str) -> str:
    """Return the name of a file of a checkpoint's state that was streamed, such as ``weights/003``."""
    return f"{RESUME}/{name}/{entry.replace('/', '-')}.safetensors"


def moments_file(stack: int) -> str:
    """Return the name of the file of a stack's moments."""
    return f"{MOMENTS}/{stack:03d}.safetensors"


def ends_moments_file(stack: int | None) -> str:
    """Return the name of the file of the moments of embedding and head: a stack's own, or None for those of all."""
    return f"{MOMENTS}/ends.safetensors" if stack is None else f"{MOMENTS}/{stack:03d}.ends.safetensors"


def rack_file(phases: int) -> str:
    """Return the name of the file of the whole rack as it was after so many phases."""
    return f"{RACKS}/{phases:03d}.safetensors"

"""Hints at the key or value that was probably meant by an unknown one."""

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from stackwise_core.config.choices import key_type
from stackwise_core.config.layers import ENVIRONMENT_PREFIX, EnvironmentLayer, KeyPath, Layer
from stackwise_core.config.model import Config
from stackwise_core.registry.blocking import AUTOLOAD, DISABLE
from stackwise_core.registry.nearest import nearest
from stackwise_core.words import dotted

OF_REGISTRY = (DISABLE, AUTOLOAD)
"""Variables that aren't of the configuration."""

SYNONYMS = {
    "learning_rate": "block_lr",
    "lr": "block_lr",
    "max_steps": "steps_per_stack",
    "num_epochs": "epochs_per_stack",
}
"""Names of other trainers for keys of ours."""

MOVED = {
    "training.trunk_residency": "training.residency does that now, and streams what trains as well",
    "training.optimizer": '[optimizer] chooses it now: use = "..."',
    "run.tensorboard": '[tracker] board = "tensorboard" does that now',
    "training.objective": '[objective] chooses it now: use = "..."',
    "training.mlm_random": "it is an option of the objective mlm now: [objective] random",
    "training.mlm_keep": "it is an option of the objective mlm now: [objective] keep",
    "training.betas": "it is an option of the optimizer now: [optimizer] betas",
    "training.eps": "it is an option of the optimizer now: [optimizer] eps",
}
"""Keys of earlier versions, and where they are now."""
SEVERAL_TEXTS = (
    'several files are one text as a directory or a glob, such as "text/**/*.md"; several texts are tables, '
    "[data.sources.NAME] with a corpus each"
)
SEVERAL_VALIDATION_TEXTS = 'several files are one text as a directory or a glob, such as "held-out/**/*.md"'


def meant(path: KeyPath, known: Sequence[str], layer: Layer | None) -> str:
    """Return a help text for an unknown key.

    Args:
        path: the key's path.
        known: the keys that its table has.
        layer: where it was set; of an environment variable, the help names another.
    """
    key = str(path[-1])
    if dotted(path) in MOVED:
        return MOVED[dotted(path)]
    if isinstance(layer, EnvironmentLayer):
        siblings = [(*path[:-1], name) for name in known] if len(path) > 1 else []
        spellings = [dotted(each).replace(".", "__") for each in [*_core_keys(), *siblings]]
        near = nearest(dotted(path).replace(".", "__"), spellings)
        return (
            f"did you mean {ENVIRONMENT_PREFIX}{near.upper()}?"
            if near
            else "a double underscore stands for the dot: STACKWISE_TABLE__KEY"
        )
    if SYNONYMS.get(key) in known:
        return f"did you mean {SYNONYMS[key]}?"
    longer = [name for name in known if name.startswith(f"{key}_")]
    if len(longer) == 1:
        return f"did you mean {longer[0]}?"
    tables = [dotted(each[:-1]) for each in _core_keys() if each[-1] == key and each[:-1] and each != path]
    if tables:
        return f"{key} belongs in [{tables[0]}]"
    if near := nearest(key, known):
        return f"did you mean {near}?"
    return f"known here: {', '.join(known)}" if known else "it has no options"


def instead(path: KeyPath, value: Any) -> str:
    """Return a help text for a value of the wrong kind that another key, or another way of writing it, takes."""
    if not isinstance(value, list | tuple | dict):
        return ""
    if path in (("data", "corpus"), ("data", "sources", *path[2:3], "corpus")):
        return SEVERAL_TEXTS
    return SEVERAL_VALIDATION_TEXTS if path == ("data", "validation") else ""


def setting_meant(variable: str) -> str | None:
    """Return the variable that was probably meant by one without a double underscore, if it looks like a setting.

    Args:
        variable: without the prefix of ours.
    """
    settings = [dotted(each).replace(".", "__") for each in _core_keys()]
    name = variable.lower()
    same = [each for each in settings if each.replace("_", "") == name.replace("_", "")]
    if same or any(f"{name}_".startswith(f"{each.partition('__')[0]}_") for each in settings):
        near = same[0] if same else nearest(name, settings)
    else:
        near = nearest(name, (each.removeprefix(ENVIRONMENT_PREFIX) for each in OF_REGISTRY))
    return f"{ENVIRONMENT_PREFIX}{near.upper()}" if near else None


def _core_keys(table: type = Config, path: KeyPath = ()) -> Iterator[KeyPath]:
    for attribute in attrs.fields(table):
        here = (*path, attribute.name)
        if attribute.metadata.get("hook"):
            yield here if key_type(attribute) or attribute.metadata["alone"] else (*here, "use")
        elif attribute.type is not None and attrs.has(attribute.type):
            yield from _core_keys(attribute.type, here)
        else:
            yield here

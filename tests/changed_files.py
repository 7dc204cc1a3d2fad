"""Files of a run that somebody changes: a flipped bit, a lie, a manifest that is made to agree."""

import json
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from stackwise_core.run_files.manifest import Manifest


def flip(path: Path) -> None:
    """Flip one bit near a file's end."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 8
    path.write_bytes(content)


def seal(directory: Path, name: str) -> None:
    """Have the manifest agree with a file that was changed."""
    manifest, content = json.loads((directory / "manifest.json").read_text()), (directory / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert not Manifest(directory).problem(name)


NASTY = [None, "x", -1, 1e308, [], {}, True, 10**400, "\x1b[2J\u202e", [[1]], {"a": [1]}, 2**62]


def lies(document: str, seed: str) -> Iterator[str]:
    """Yield a JSON document again and again, each time with one of its values replaced by a nasty one."""
    rng, every = random.Random(seed), list(_places(json.loads(document)))[1:]
    for nasty in 3 * NASTY:
        value, path = json.loads(document), rng.choice(every)
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = nasty
        yield json.dumps(value)


def _places(value, path=()):
    yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(each, (*path, key))

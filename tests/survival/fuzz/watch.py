"""The watch over a reader: files it may not touch, memory it may not take, time it may not use."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field

ALLOWANCE = 256 << 20
"""Bytes of address space that a case may take beyond what is there before it; its files have some kilobytes."""
LONGEST = 60
"""Seconds after which a case counts as hung."""


class Broken(AssertionError):
    """A reader did what it must never do."""


FORBIDDEN = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"}
PATHS_THAT_CHANGE = {
    "os.chmod": slice(1),
    "os.link": slice(2),
    "os.mkdir": slice(1),
    "os.remove": slice(1),
    "os.rename": slice(2),
    "os.rmdir": slice(1),
    "os.symlink": slice(1, 2),
    "os.truncate": slice(1),
    "shutil.rmtree": slice(1),
}
"""Audit events that change the disk, and which of their arguments are what they change."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@define
class _Watch:
    inside: str | None = None
    """The directory that may be changed; None while nothing is watched."""
    secret: str = ""
    """A directory that must not even be read."""
    seen: list[str] = field(factory=list)


_watch = _Watch()
_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch.inside is None:
        return
    if event in FORBIDDEN:
        _watch.seen.append(f"{event}{arguments}"[:300])
    elif event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike):
            _look(path, changes=bool(flags & WRITING))
    elif event in PATHS_THAT_CHANGE:
        for path in arguments[PATHS_THAT_CHANGE[event]]:
            # A name beside a descriptor is checked where the descriptor came from.
            relative = isinstance(arguments[-1], int) and arguments[-1] >= 0 and not os.path.isabs(path)
            if isinstance(path, str | bytes | os.PathLike) and not relative:
                _look(path, changes=True)


def _look(path: Any, *, changes: bool) -> None:
    real = os.path.realpath(os.fsdecode(path))
    outside = not f"{real}/".startswith(f"{_watch.inside}/")
    if (changes and outside and "__pycache__" not in real and not real.startswith(("/dev/null", "/proc/"))) or (
        f"{real}/".startswith(f"{_watch.secret}/")
    ):
        _watch.seen.append(f"{'changed' if changes else 'read'} {os.fsdecode(path)!r}")


@contextmanager
def watched(inside: Path, secret: Path, allowance: int = ALLOWANCE) -> Iterator[None]:
    """Watch that nothing outside of ``inside`` changes, ``secret`` isn't read, memory is bounded, and it ends in time.

    Raises:
        Broken: something of it happened.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)  # for good: there is no way to take one out
        _hooked = True

    def hung(*_: object) -> None:
        raise Broken(f"not done after {LONGEST} seconds")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGALRM, hung)
    folder, tempfile.tempdir = tempfile.tempdir, str(inside)
    _watch.inside, _watch.secret, _watch.seen = os.path.realpath(inside), os.path.realpath(secret), []
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + allowance, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        _watch.inside = None
        tempfile.tempdir = folder
        signal.signal(signal.SIGALRM, before)
    if _watch.seen:
        raise Broken("; ".join(_watch.seen))

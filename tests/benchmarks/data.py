"""How fast text becomes tokens, what the second start takes, and how much memory a large corpus needs.

    .venv/bin/python tests/benchmarks/data.py [--copies N] [--folder DIR]

The text is the standard library's own Python sources, about 31 MB in 1,800 files, written N times (32: 1 GB). Each copy
of a file begins with a line of its own, so that no two documents are equal. Each measurement is a process of its own
that prepares a corpus as a run does; its time is from before `prepare` to after it, its memory the peak of the whole
process (VmHWM, so that it needs Linux). The row `nothing` is of a process that only imports. The byte-pair tokenizer of
32,000 tokens is trained on a part of the text. DIR (a temporary one by default) needs some 8 GB for 32 copies.

Writes the tables in docs/benchmarks/data.md. Takes about ten minutes on two cores.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "data.md"

PREPARE = """
import json, os, sys, threading, time
from stackwise_core.config.model import Choice, DataConfig
from stackwise_core.engine.draws.sequences import tokenise
from stackwise_core.engine.text.sources import find_sources
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.registry import Registry
from stackwise_text.options import FilesOptions

corpus, tokenizer, tokens = sys.argv[1:]
loaded = load_tokenizer(tokenizer, mask_token=None)
started, size, cpu = time.perf_counter(), 0, time.process_time()
if corpus:
    text = Choice("files", FilesOptions(corpus))
    data = DataConfig(corpus=text, tokenizer=tokenizer, tokens_directory=tokens)
    prepared = tokenise(find_sources(data, Registry.discover()), data, loaded)
    size = prepared.train.bytes + prepared.validation.bytes
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:"))
own = {thread.native_id for thread in threading.enumerate()}
ticks = os.sysconf("SC_CLK_TCK")
library = [  # seconds that threads have taken which aren't Python's
    sum(map(int, open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()[11:13])) / ticks
    for task in os.listdir("/proc/self/task")
    if int(task) not in own
]
print(json.dumps({"seconds": seconds, "peak": peak, "bytes": size, "cpu": cpu, "library": library}))
"""


def sources() -> list[str]:
    """The texts of the standard library's modules that are UTF-8."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(folder.rglob("*.py")):
        if "site-packages" not in path.parts:
            try:
                texts.append(path.read_bytes().decode("utf-8"))
            except UnicodeDecodeError:
                continue
    return texts


def copies(texts: Sequence[str], count: int) -> Iterator[str]:
    """All texts so many times, none twice the same."""
    for copy in range(count):
        for number, text in enumerate(texts):
            yield f"# {copy} {number}\n{text}"


def write_corpora(folder: Path, texts: Sequence[str], count: int) -> dict[str, Path]:
    """The same documents in every format."""
    import datasets
    import pyarrow
    import zstandard
    from pyarrow import parquet

    paths = {
        "a folder of .txt": folder / "files",
        "one .txt": folder / "all.txt",
        ".jsonl": folder / "all.jsonl",
        ".jsonl.gz": folder / "all.jsonl.gz",
        ".jsonl.zst": folder / "all.jsonl.zst",
        ".parquet": folder / "all.parquet",
        "saved by datasets": folder / "saved",
    }
    documents = list(paths.values())
    for copy in range(count):
        (documents[0] / f"{copy:03}").mkdir(parents=True)
    schema = pyarrow.schema({"text": pyarrow.string()})
    with (
        paths["one .txt"].open("w", newline="") as text_file,
        paths[".jsonl"].open("w", newline="") as lines,
        gzip.open(paths[".jsonl.gz"], "wt", compresslevel=1, newline="") as zipped,
        zstandard.open(paths[".jsonl.zst"], "wt", newline="") as packed,
        parquet.ParquetWriter(paths[".parquet"], schema) as table,
    ):
        waiting = []
        for number, text in enumerate(copies(texts, count)):
            copy, place = divmod(number, len(texts))
            (documents[0] / f"{copy:03}" / f"{place:05}.txt").write_text(text, newline="")
            text_file.write(text)
            line = json.dumps({"text": text}) + "\n"
            for out in (lines, zipped, packed):
                out.write(line)
            waiting.append(text)
            if place == len(texts) - 1:  # a row group a copy
                table.write_table(pyarrow.table({"text": waiting}, schema=schema))
                waiting = []
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_generator(as_rows, gen_kwargs={"path": str(paths[".jsonl"])}, cache_dir=folder / "hf")
    saved.save_to_disk(paths["saved by datasets"])
    shutil.rmtree(folder / "hf")
    return paths


def as_rows(path: str) -> Iterator[dict[str, str]]:
    with open(path) as lines:
        yield from map(json.loads, lines)


def train_tokenizer(path: Path, texts: Iterable[str]) -> None:
    """A byte-level byte-pair encoding of 32,000 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=32_000, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.save(str(path))


def measure(corpus: Path | str, tokenizer: Path | str, tokens: Path, threads: int = 2) -> dict[str, Any]:
    """Seconds, peak bytes, bytes of text and CPU seconds of one process that prepares a corpus."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PREPARE, str(corpus), str(tokenizer), str(tokens)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def megabytes(result: dict[str, Any]) -> str:
    return f"{result['peak'] / 1e6:.0f} MB"


def rate(result: dict[str, Any]) -> str:
    return f"{result['bytes'] / result['seconds'] / 1e6:.3g} MB/s"


def memory_table(paths: dict[str, Path], tokens: Path) -> list[str]:
    """The large corpus as bytes in every format: the first start, and those that follow."""
    nothing = measure("", "bytes", tokens)
    rows = [
        "| corpus | first start | rate | second | third | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| nothing | | | | | {megabytes(nothing)} |",
    ]
    for name, path in paths.items():
        first, second, third = (measure(path, "bytes", tokens) for _ in range(3))
        peak = max((first, second, third), key=lambda result: result["peak"])
        ratios = " | ".join(f"{100 * again['seconds'] / first['seconds']:.0f} %" for again in (second, third))
        rows.append(f"| {name} | {first['seconds']:.1f} s | {rate(first)} | {ratios} | {megabytes(peak)} |")
        print(rows[-1], flush=True)
        shutil.rmtree(tokens)
    return rows


def speed_table(path: Path, tokenizer: Path, tokens: Path) -> list[str]:
    """One copy of the text by both tokenizers with one thread and with two, in turn."""
    rows = [
        "| tokenizer | 1 thread | 2 threads | ratio | CPU time in each of the library's 2 | in Python | second start |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, spec in (("bytes", "bytes"), ("byte pairs", tokenizer)):
        results = {}
        for threads in (1, 2):
            results[threads] = measure(path, spec, tokens, threads)
            again = measure(path, spec, tokens, threads)
            shutil.rmtree(tokens)
        two = results[2]
        ratio = results[1]["seconds"] / two["seconds"]
        shares = ", ".join(f"{100 * part / two['cpu']:.0f} %" for part in two["library"]) or "none"
        python = f"{100 * (1 - sum(two['library']) / two['cpu']):.0f} %"
        second = f"{100 * again['seconds'] / two['seconds']:.1f} %"
        rates = f"{rate(results[1])} | {rate(two)}"
        rows.append(f"| {name} | {rates} | {ratio:.2f} | {shares} | {python} | {second} |")
        print(rows[-1], flush=True)
    return rows


def write_page(tables: dict[str, list[str]]) -> None:
    """Put the tables between their marks."""
    page = PAGE.read_text()
    for name, rows in tables.items():
        before, after = page.split(f"<!-- {name}: begin -->")[0], page.split(f"<!-- {name}: end -->")[1]
        page = "\n".join([f"{before}<!-- {name}: begin -->", *rows, f"<!-- {name}: end -->"]) + after
    PAGE.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=32)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, texts = Path(name), sources()
        train_tokenizer(folder / "tokenizer.json", texts[::3])
        paths = write_corpora(folder, texts, arguments.copies)
        tables = {
            "speed": speed_table(paths["a folder of .txt"] / "000", folder / "tokenizer.json", folder / "tokens"),
            "memory": memory_table(paths, folder / "tokens"),
        }
    write_page(tables)


if __name__ == "__main__":
    main()

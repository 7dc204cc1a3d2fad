"""Prepared corpora: found again, stable, whole or made anew, and safe from other processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers
from xxhash import xxh3_128

from stackwise_core.engine.draws import sequences
from stackwise_core.engine.draws.sequences import INDICES
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.errors import StackwiseError, UsageError
from tests.texts import files
from tests.texts import prepared as prepare

TEXTS = [f"Document {number} says: " + " ".join(f"word{number * 7 + i}" for i in range(20)) for number in range(12)]


def everything(corpus):
    """All that a split says, as plain lists."""
    result = []
    for split in (corpus.train, corpus.validation):
        rows = split.rows(np.arange(len(split)))
        result.append((len(split), split.tokens, split.bytes, rows.tokens.tolist(), rows.segments.tolist()))
    return result


def test_python_docs_end_to_end(data, tmp_path):
    """The built-in corpus decodes to its own text, all of whose bytes are in one split or the other."""
    from pydoc_data.topics import topics

    tokenizer = load_tokenizer("bytes", mask_token=None)
    corpus = prepare(evolve(data, seq_len=256), tokenizer)
    size = sum(len(text.encode()) for text in topics.values())
    assert corpus.documents == len(topics)
    assert corpus.train.bytes + corpus.validation.bytes == size
    assert corpus.validation.bytes == pytest.approx(0.1 * size, rel=0.25)
    every_text = "\0".join(topics[name] for name in sorted(topics)).encode()
    rows = corpus.train.rows(np.arange(len(corpus.train)))
    for tokens, segments in zip(rows.tokens, rows.segments, strict=True):
        for number in range(1, segments.max() + 1):
            assert bytes(tokens[segments == number].tolist()) in every_text


def test_rows_in_any_order(prepared):
    """Rows are read by id in the order asked for, repeats and none at all included."""
    split = prepared(TEXTS).train
    rows = split.rows(np.arange(len(split)))
    some = split.rows(np.array([5, 0, 5]))
    assert some.tokens.tolist() == rows.tokens[[5, 0, 5]].tolist()
    assert some.segments.tolist() == rows.segments[[5, 0, 5]].tolist()
    assert split.rows(np.array([], int)).tokens.shape == (0, 8)
    with pytest.raises(IndexError):
        split.rows(np.array([len(split)]))


def test_second_preparation_finds_the_first(prepared):
    """The same text under other names is found, not tokenised again, and has the same rows."""
    first, second = [], []
    corpus = prepared(TEXTS, progress=lambda done, share: first.append(done))
    written = {file.name: file.stat().st_mtime_ns for file in corpus.directory.iterdir()}
    again = prepared(
        ["", *TEXTS], progress=lambda done, share: second.append(done)
    )  # an empty file shifts all the names
    assert first == [sum(len(text.encode()) for text in TEXTS)]
    assert second == []
    assert again.directory == corpus.directory
    assert {file.name: file.stat().st_mtime_ns for file in again.directory.iterdir()} == written
    assert everything(again) == everything(corpus)
    assert again.documents == corpus.documents == len(TEXTS)


def test_two_preparations_have_the_same_rows(prepared, tmp_path):
    """Made twice from nothing, the files are equal to the byte."""
    one = prepared(TEXTS)
    other = prepared(TEXTS, tokens_directory=str(tmp_path / "elsewhere"))
    assert one.directory != other.directory
    assert one.fingerprint == other.fingerprint
    assert len(list(one.directory.iterdir())) == 9
    for file in one.directory.iterdir():
        assert file.read_bytes() == (other.directory / file.name).read_bytes()


def test_progress_counts_bytes(prepared, monkeypatch):
    """Progress is called as the text is tokenised, with the bytes so far."""
    monkeypatch.setattr("stackwise_core.engine.text.token_stream.BATCH", 300)
    seen = []
    prepared(["é" * 200, *TEXTS], progress=lambda done, share: seen.append(done))
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[-1] == 400 + sum(map(len, TEXTS))


def test_fingerprint_follows_what_decides_rows(prepared, plain_bpe):
    """Text, its division into documents, tokenizer, seq_len and fraction each give another directory."""
    corpora = [
        prepared(TEXTS),
        prepared(["".join(TEXTS)]),
        prepared([*TEXTS[:-1], TEXTS[-1] + "!"]),
        prepared(TEXTS, plain_bpe),
        prepared(TEXTS, seq_len=16),
        prepared(TEXTS, validation_fraction=0.2),
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == len(corpora)
    assert all(corpus.directory.name == corpus.fingerprint for corpus in corpora)


@pytest.mark.parametrize("name", ["x.txt.gz", "x.jsonl.zst", "x.parquet"])
def test_a_file_of_no_bytes(prepared, data, tmp_path, name):
    """An empty text changes nothing; of other formats a file of no bytes is an error, even if the rest is tokenised."""
    first = prepared(TEXTS)
    tokenizer = load_tokenizer("bytes", mask_token=None)
    data = evolve(data, corpus=files(tmp_path / "corpus"))
    (tmp_path / "corpus" / "x.txt").touch()
    assert prepare(data, tokenizer).directory == first.directory
    (tmp_path / "corpus" / name).touch()
    with pytest.raises(UsageError, match=rf"{name}:.* expected a whole "):
        prepare(data, tokenizer)


def test_no_validation_when_none_is_asked_for(prepared):
    """With fraction 0 the validation split is there and empty."""
    corpus = prepared(TEXTS, validation_fraction=0.0)
    assert (len(corpus.validation), corpus.validation.tokens, corpus.validation.bytes) == (0, 0, 0)
    assert corpus.validation.rows(np.array([], int)).tokens.shape == (0, 8)
    assert corpus.train.tokens == sum(map(len, TEXTS))


def test_tokens_of_an_earlier_version_are_made_anew(prepared, caplog):
    """Where it isn't known what of a text has no token, that is counted again, and nothing is called damaged."""
    first = prepared(TEXTS)
    path = first.directory / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["coverage"], manifest["xxh3_128"]
    manifest["xxh3_128"] = xxh3_128(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))
    again = prepared(TEXTS)
    assert (again.directory, again.train.coverage) == (first.directory, first.train.coverage)
    assert "coverage" in json.loads(path.read_text())
    assert not caplog.records


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, os.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["train.tokens", "train.segments", "validation.rows", "manifest.json"])
def test_damage_is_seen_and_mended(prepared, caplog, damage, name):
    """A file that is changed, cut short or gone is noticed, told, and everything is made anew."""
    corpus = prepared(TEXTS)
    whole = everything(corpus)
    before = {file.name: file.read_bytes() for file in corpus.directory.iterdir()}
    damage(corpus.directory / name)
    with caplog.at_level(logging.WARNING):
        again = prepared(TEXTS)
    assert everything(again) == whole
    assert {file.name: file.read_bytes() for file in again.directory.iterdir()} == before
    assert [file.name for file in again.directory.parent.iterdir()] == [again.directory.name]
    assert f"{again.directory} is damaged" in caplog.text
    assert name in caplog.text or name == "manifest.json"


@pytest.mark.parametrize("content", ["[]", "{}", '{"xxh3_128": 1, "files": 3}', "null"])
def test_manifest_of_another_shape_is_damage(prepared, content):
    """A manifest that is other JSON is damage like any other."""
    corpus = prepared(TEXTS)
    (corpus.directory / "manifest.json").write_text(content)
    assert everything(prepared(TEXTS)) == everything(corpus)


def test_manifest_vouches_for_its_own_counts(prepared):
    """A count changed in the manifest, valid JSON though it is, isn't believed."""
    corpus = prepared(TEXTS)
    manifest = json.loads((corpus.directory / "manifest.json").read_text())
    manifest["train"]["bytes"] += 1
    (corpus.directory / "manifest.json").write_text(json.dumps(manifest))
    assert prepared(TEXTS).train.bytes == corpus.train.bytes


def test_another_process_is_faster(prepared):
    """When the directory appears while ours is being written, theirs is used and ours goes."""
    others = []

    def meanwhile(done, share):
        if not others:
            others.append(None)
            others[0] = prepared(TEXTS)

    corpus = prepared(TEXTS, progress=meanwhile)
    assert everything(corpus) == everything(others[0])
    assert [file.name for file in corpus.directory.parent.iterdir()] == [corpus.directory.name]


def test_another_process_leaves_damage(prepared, data):
    """When what appears meanwhile is damaged, ours takes its place."""
    others = []

    def meanwhile(done, share):
        if not others:
            others.append(None)
            others[0] = everything(prepared(TEXTS))
            (damaged,) = Path(data.tokens_directory).glob("[!.]*/train.tokens")
            flip_a_bit(damaged)

    corpus = prepared(TEXTS, progress=meanwhile)
    assert everything(corpus) == others[0]
    assert [file.name for file in corpus.directory.parent.iterdir()] == [corpus.directory.name]


PREPARE = """
import sys, time
from stackwise_core.config.model import DataConfig
from tests.texts import files, prepared as prepare
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer

def progress(done, share):
    print("tokenising", flush=True)
    if sys.argv[3] == "wait":
        sys.stdin.readline()

data = DataConfig(corpus=files(sys.argv[1]), tokens_directory=sys.argv[2], seq_len=8)
corpus = prepare(data, load_tokenizer("bytes", mask_token=None), progress)
print(corpus.fingerprint, corpus.train.tokens, len(corpus.validation), flush=True)
"""


def start(folder, directory, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(folder), str(directory), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_at_the_same_time(prepared, tmp_path):
    """Two processes in the middle of the same preparation both end with the same corpus, and one directory is left."""
    expected = prepared(TEXTS)
    directory = tmp_path / "shared"
    processes = [start(tmp_path / "corpus", directory, "wait") for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "tokenising\n"
    assert len(list(directory.iterdir())) == 2
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    line = f"{expected.fingerprint} {expected.train.tokens} {len(expected.validation)}\n"
    for process in processes:
        assert process.communicate(timeout=60)[0] == line
        assert process.returncode == 0
    assert [file.name for file in directory.iterdir() if file.name != INDICES] == [expected.fingerprint]


@pytest.mark.slow
def test_killed_in_the_middle(prepared, data, tmp_path):
    """What a killed process leaves is never taken for a corpus, and is deleted when it is a day old."""
    tokens = Path(data.tokens_directory)
    corpus = prepared(TEXTS, seq_len=16)  # writes the files
    process = start(tmp_path / "corpus", tokens, "wait")
    assert process.stdout.readline() == "tokenising\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (left,) = tokens.glob(".unfinished-*")
    assert {file.name for file in left.iterdir()} == {"ids", "units"}
    finished = prepared(TEXTS)
    assert left.exists()  # for all that we know its process is alive
    yesterday = time.time() - 25 * 60 * 60
    for path in (*left.iterdir(), left):
        os.utime(path, (yesterday, yesterday))
    another = prepared(TEXTS, seq_len=12)
    assert set(tokens.iterdir()) == {corpus.directory, finished.directory, another.directory}


def test_unfinished_work_of_others_stays(prepared, data):
    """A directory in which a file was written to lately is left alone, however old it is itself."""
    working = Path(data.tokens_directory) / ".unfinished-x"
    working.mkdir(parents=True)
    (working / "ids").write_bytes(b"1")
    os.utime(working, (0, 0))
    prepared(TEXTS)
    assert (working / "ids").exists()


def test_failure_leaves_nothing_behind(prepared, data):
    """When the caller breaks off, the unfinished directory goes."""

    def interrupt(done, share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(TEXTS, progress=interrupt)
    assert list(Path(data.tokens_directory).iterdir()) == []


def complaint(run, *arguments, error=UsageError, **options):
    with pytest.raises(error) as caught:
        run(*arguments, **options)
    return str(caught.value)


def test_too_little_text(prepared, tmp_path, data):
    """A corpus that can't fill a training row, or leaves nothing for validation, says what there is and is needed."""
    assert complaint(prepared, ["abcde"]) == (
        f"{tmp_path}/corpus: too little text: of its 5 tokens 0 for training, which needs data.seq_len = 8 at least, "
        "with data.validation_fraction = 0.1 (equal passages stay together). Expected some 24 tokens or more; add text "
        "or take a smaller data.seq_len"
    )
    assert "of its 7 tokens 7 for training" in complaint(prepared, ["abcdefg"], validation_fraction=0.0)
    assert "of its 800 tokens 0 for training" in complaint(prepared, ["x" * 800])
    assert list(Path(data.tokens_directory).iterdir()) == []
    assert len(prepared(["abcdefgh"], validation_fraction=0.0).train) == 1


def test_no_validation_left(prepared, masked_bpe, monkeypatch):
    """Validation that would hold special tokens only is refused, since some was asked for."""
    monkeypatch.setattr(
        "stackwise_core.engine.text.packing.xxh3_128_digest", lambda ids: ids[:16].ljust(16)
    )  # the lowest first
    message = complaint(prepared, ["[MASK]" * 8, "statement " * 20], masked_bpe, validation_fraction=0.01)
    assert "tokens none for validation, with data.validation_fraction = 0.01" in message


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("size", range(24, 200, 7))
def test_three_rows_of_text_are_enough(prepared, size, fraction):
    """What the message asks for is in fact enough, for any fraction."""
    text = "".join(chr(33 + (i * i // 5) % 90) for i in range(size))
    corpus = prepared([text], validation_fraction=fraction)
    assert corpus.train.tokens >= 8
    assert corpus.validation.tokens > 0


def overwrite(file, before):
    """With as many bytes, and the time stamp set back."""
    file.write_bytes(file.read_bytes().swapcase())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [overwrite, lambda file, _: os.truncate(file, 5), lambda file, _: file.unlink()])
@pytest.mark.parametrize("age", [0, 3600])
def test_text_that_changes_meanwhile(prepared, tmp_path, data, change, age):
    """Text that isn't what was hashed a moment ago is never filed under that hash, however old its time stamp."""

    def meanwhile(done, share):
        for file in (tmp_path / "corpus").iterdir():
            os.utime(file, (time.time() - age,) * 2)
        file = tmp_path / "corpus" / "0003.txt"
        change(file, file.stat())

    message = complaint(prepared, TEXTS, error=StackwiseError, progress=meanwhile)
    assert message == (
        f"{tmp_path}/corpus/0003.txt: the file changed while it was being read; run again when it is finished"
    )
    assert list(Path(data.tokens_directory).iterdir()) == []


def test_directory_that_cannot_be_written(prepared, tmp_path):
    """A tokens_directory below a file is one message with the system's reason."""
    (tmp_path / "file").write_text("")
    message = complaint(prepared, TEXTS, tokens_directory=str(tmp_path / "file" / "tokens"))
    where = f"data.tokens_directory = {tmp_path}/file/tokens"
    assert message == f"{where}: {tmp_path}/file is a file, expected a directory. Name another."


def test_full_disk(prepared, data, monkeypatch):
    """A disk that fills up is one message, and what was written goes."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sequences, "_seal", full)
    assert complaint(prepared, TEXTS, error=StackwiseError).endswith("(data.tokens_directory): No space left on device")
    assert list(Path(data.tokens_directory).iterdir()) == []


def test_everything_is_synced_before_it_is_renamed(prepared, monkeypatch):
    """Files, the manifest and their directory are synced in this order before the rename, the parent after it."""
    events = []
    sync, rename = sequences.sync, Path.rename

    def noting_sync(path):
        events.append(path.name if path.is_file() else "parent" if path.name == "tokens" else "directory")
        sync(path)

    def noting_rename(path, target):
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(sequences, "sync", noting_sync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    prepared(TEXTS)
    files = [f"{split}.{kind}" for split in ("train", "validation") for kind in ("alone", "rows", "segments", "tokens")]
    assert events == [*files, "manifest.json", "directory", "rename", "parent"]


def test_no_torch_and_no_tokenizers_for_bytes():
    """Preparing bytes imports neither torch nor the tokenizers library."""
    code = (
        "import sys, stackwise_core.engine.draws.sequences, stackwise_core.engine.tokenizer.tokenizer as t\n"
        "t.load_tokenizer('bytes', mask_token=None)\n"
        "assert not {'torch', 'tokenizers'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "собака " * 60,
            "92.3 % of the text is unknown to .*t.json .data.tokenizer., and of its 60 tokens 0 for training",
        ),
        (" \n" * 60, "there is not one character in it that the tokenizer has a token for"),
    ],
)
def test_text_that_the_tokenizer_has_no_token_for(data, tmp_path, text, message):
    """It isn't too little text: another tokenizer is what it needs."""
    library = Library(models.WordLevel({"?": 0, "the": 1}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "t.json"))
    (tmp_path / "text.txt").write_text(text)
    changed = evolve(data, corpus=files(tmp_path / "text.txt"), tokenizer=str(tmp_path / "t.json"))
    with pytest.raises(UsageError, match=message):
        prepare(changed, load_tokenizer(changed.tokenizer, mask_token=None))

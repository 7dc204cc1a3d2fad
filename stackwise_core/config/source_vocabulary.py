"""Check that another tokenizer gives a checkpoint's tokens the same ids."""

from functools import cache
from pathlib import Path

from stackwise_core.config.tokenizer_json import Vocabulary, read_vocabulary
from stackwise_core.words import shown

BYTES = "bytes"
MASK_ID, PAD_ID = 256, 257
"""Ids of the built-in tokenizer's special tokens, after the 256 bytes."""
BYTE_SPECIALS = {"[MASK]": MASK_ID, "[PAD]": PAD_ID}


@cache
def byte_characters() -> dict[str, int]:
    """Return the byte of each character in a byte-level tokenizer.json.

    A byte that prints in Latin-1 is itself; the others have the characters from U+0100 on (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def vocabulary_of(tokenizer: str) -> Vocabulary:
    """Return the vocabulary of a tokenizer, as ``data.tokenizer`` names it.

    Raises:
        UsageError: the file can't be read, or isn't one.
    """
    if tokenizer == BYTES:
        return Vocabulary(byte_characters() | BYTE_SPECIALS, {id_: token for token, id_ in BYTE_SPECIALS.items()})
    return read_vocabulary(Path(tokenizer))


def other_vocabulary(tokenizer: str, theirs: str) -> str | None:
    """Why a tokenizer can't serve an embedding that was made for another one's ids; None where it can.

    It may have more tokens, with ids beyond theirs.

    Args:
        tokenizer: as ``data.tokenizer`` has it.
        theirs: the one that the embedding was made for, by its name as well.

    Raises:
        UsageError: one of them can't be read.
    """
    wanted, ours = vocabulary_of(theirs).ids, vocabulary_of(tokenizer).ids
    if ours == wanted:
        return None
    problem = f"expected the source's own tokenizer, {theirs}, found {shown(tokenizer, None)}, which"
    for token, id_ in wanted.items():
        if token not in ours:
            return f"{problem} hasn't its token {shown(token)}"
        if ours[token] != id_:
            return f"{problem} gives its token {shown(token)} the id {ours[token]}, not {id_}"
    taken = sorted(id_ for token, id_ in ours.items() if token not in wanted and id_ <= max(wanted.values()))
    return f"{problem} has a token of its own with the id {taken[0]}" if taken else None

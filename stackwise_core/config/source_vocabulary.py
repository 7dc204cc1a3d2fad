"""Which ids the tokens of a tokenizer.json have, and whether another tokenizer gives them the same."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from stackwise_core.config.words import shown
from stackwise_core.errors import UsageError

BYTES = "bytes"
MASK_ID, PAD_ID = 256, 257
"""What the built-in tokenizer has after the bytes."""
BYTE_SPECIALS = {"[MASK]": MASK_ID, "[PAD]": PAD_ID}


@cache
def byte_characters() -> dict[str, int]:
    """Bytes by the characters that stand for them in a byte-level tokenizer.json.

    A byte that prints in Latin-1 stands for itself; the others get the characters from U+0100 on (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def read_vocabulary(path: Path) -> dict[str, int]:
    """Ids by token of a tokenizer.json, those of added tokens too.

    Raises:
        UsageError: it can't be read, or isn't one.
    """
    try:
        return _vocabulary(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{path}: expected a tokenizer.json as the tokenizers library writes it") from None


def _vocabulary(content: Any) -> dict[str, int]:
    tokens = content["model"]["vocab"]
    # A Unigram model has pairs of a token and its score.
    ids = tokens.items() if isinstance(tokens, dict) else ((pair[0], place) for place, pair in enumerate(tokens))
    found = dict(ids) | {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    if not all(isinstance(token, str) and type(id_) is int and 0 <= id_ < 1 << 31 for token, id_ in found.items()):
        raise ValueError("no ids")
    return found


def other_vocabulary(tokenizer: str, theirs: Path) -> str | None:
    """Why a tokenizer can't serve an embedding that was made for another one's ids; None where it can.

    It may have more tokens, with ids beyond theirs.

    Args:
        tokenizer: as ``data.tokenizer`` has it.
        theirs: the tokenizer.json that the embedding was made for.

    Raises:
        UsageError: one of them can't be read.
    """
    wanted = read_vocabulary(theirs)
    ours = byte_characters() | BYTE_SPECIALS if tokenizer == BYTES else read_vocabulary(Path(tokenizer))
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

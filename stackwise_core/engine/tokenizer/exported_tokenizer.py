"""A run's tokenizer as a tokenizer.json for other programs: the same ids for the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stackwise_core.config.source_vocabulary import BYTES, byte_characters
from stackwise_core.config.tokenizer_content import deterministic
from stackwise_core.config.tokenizer_json import MASK, MASK_TOKENS, PAD, PAD_TOKENS, Vocabulary, read_vocabulary
from stackwise_core.engine.tokenizer.tokenizer import Tokenizer
from stackwise_core.errors import UsageError
from stackwise_core.interfaces.checkpoint_format import ExportedTokenizer


def exported_tokenizer(named: str, tokenizer: Tokenizer) -> ExportedTokenizer:
    """Return a tokenizer with tokens for its mask and its padding.

    Args:
        named: as ``data.tokenizer`` has it.
        tokenizer: what that is.

    Raises:
        UsageError: its mask or padding token can't have the id that the rack was trained with.
    """
    if named == BYTES:
        content, known = _byte_level(), Vocabulary(byte_characters(), {})
    else:
        content, known = json.loads(Path(named).read_text(encoding="utf-8")), read_vocabulary(Path(named))
        content = deterministic(content).content  # as the rack was trained
    tokens = {id_: token for token, id_ in known.ids.items()}
    roles = {tokenizer.mask_id: MASK_TOKENS, tokenizer.pad_id: PAD_TOKENS}
    if not roles.keys() <= tokens.keys():
        # The library numbers added tokens without gaps: rows that stand for nothing get tokens up to the last.
        for id_ in range(known.size, max(roles) + 1):
            names = (*roles.get(id_, ()), f"<unused {id_}>")
            tokens[id_] = next(name for name in names if name not in tokens.values())
            content["added_tokens"] = [*(content.get("added_tokens") or ()), _special(id_, tokens[id_])]
    _check(named, content, {tokens.get(id_, f"<unused {id_}>"): id_ for id_ in roles})
    others = sorted(tokenizer.special_ids - roles.keys() - known.special.keys())
    special_ids = {MASK: tokenizer.mask_id, PAD: tokenizer.pad_id}
    special_ids |= {f"token {tokens[id_]}" if id_ in tokens else f"row {id_}": id_ for id_ in others}
    named_ids = {id_: tokens[id_] for id_ in special_ids.values() if id_ in tokens}
    return ExportedTokenizer(content=content, special_ids=special_ids, tokens=named_ids)


def _byte_level() -> dict[str, Any]:
    """Return the built-in tokenizer: each byte of UTF-8 is a token, and its id the byte."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": byte_characters(), "merges": []},
    }


def _special(id_: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": content, **flags, "special": True}


def _check(named: str, content: dict[str, Any], expected: dict[str, int]) -> None:
    """Check the ids of added tokens. The library numbers them itself, without gaps, whatever the file says."""
    from tokenizers import Tokenizer as Library

    library = Library.from_str(json.dumps(content))
    for token, id_ in expected.items():
        if (given := library.token_to_id(token)) != id_:
            raise UsageError(
                f"{named}: the rack's {token} has the id {id_}, and a tokenizer.json would give it "
                f"{'another' if given is None else given}, since its ids have gaps: it can't be exported"
            )

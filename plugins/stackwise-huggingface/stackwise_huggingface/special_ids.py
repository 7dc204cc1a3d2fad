"""Special ids of a Hugging Face checkpoint: its mask, its padding and others, wherever its files say so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from stackwise_core.config.tokenizer_json import MASK, PAD, Vocabulary
from stackwise_core.words import found, shown

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION = "generation_config.json"
_DIGITS = 20
"""More than an id has; thousands would be no number to Python."""
_MORE = ("extra_special_tokens", "additional_special_tokens")


@frozen
class _Said:
    """One place that says which id the mask or the padding has."""

    id: int
    place: str
    words: str
    """The key and its value, as the file has them."""


@define
class _Statements:
    """Statements of all files, and problems with them."""

    vocabulary: Vocabulary
    said: dict[str, list[_Said]] = field(factory=lambda: {MASK: [], PAD: []})
    unknown: dict[str, list[_Said]] = field(factory=lambda: {MASK: [], PAD: []})
    """Tokens by name that no file gives an id."""
    others: dict[str, int] = field(factory=dict)
    added: dict[str, _Said] = field(factory=dict)
    """Ids of added tokens outside tokenizer.json."""
    problems: list[str] = field(factory=list)


def read_special_ids(
    directory: Path,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    rows: int,
    defaults: Mapping[str, int],
) -> tuple[dict[str, int], list[str]]:
    """Return ids by name as ``data.special_ids`` has them, and everything that is wrong.

    Token names are those of tokenizer_config.json and special_tokens_map.json, ids those of config.json and
    generation_config.json. Of the latter only mask and padding count: where generation begins and ends may be a token
    of ordinary text.

    Args:
        config: what config.json says.
        rows: how many the embedding has.
        defaults: ids that config.json has where nobody set them, by name: they give way to anything else.
    """
    statements = _Statements(vocabulary)
    tokenizer_config, names = (_content(directory / name, statements) for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS))
    _read_added(directory, tokenizer_config, statements)
    for path, content in ((directory / TOKENIZER_CONFIG, tokenizer_config), (directory / SPECIAL_TOKENS, names)):
        _read_names(path, content, statements)
    _read_ids(directory / "config.json", config, statements, rows, defaults)
    _read_ids(directory / GENERATION, _content(directory / GENERATION, statements), statements, rows, {})
    special = dict(statements.others)
    for name in (MASK, PAD):
        id_ = _agreed(name, statements, directory, rows)
        if id_ is not None:
            special[name] = id_
    if MASK not in special and statements.unknown[MASK]:
        said = statements.unknown[MASK][0]
        statements.problems.append(
            f"{said.place}: {said.words}, and no file gives that token an id; set mask_token_id in config.json"
        )
    if special.get(PAD) == special.get(MASK):
        special.pop(PAD, None)  # it gets an id of its own
    return special, statements.problems


def _content(path: Path, statements: _Statements) -> dict[str, Any]:
    """Return the content of a file that may be missing."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        statements.problems.append(f"{path} can't be read: {error!s:.200}")
        return {}
    if not isinstance(content, dict):
        statements.problems.append(f"{path}: expected a JSON object, found {found(content)}")
        return {}
    return content


def _read_added(directory: Path, tokenizer_config: Mapping[str, Any], statements: _Statements) -> None:
    """Collect ids of added tokens from beside tokenizer.json; they may not differ from its own."""
    decoder = tokenizer_config.get("added_tokens_decoder")
    pairs = [(_name(token), id_) for id_, token in decoder.items()] if isinstance(decoder, dict) else []
    listed = [(directory / TOKENIZER_CONFIG, "added_tokens_decoder", pairs)]
    listed.append((directory / ADDED_TOKENS, "", list(_content(directory / ADDED_TOKENS, statements).items())))
    for path, key, tokens in listed:
        for token, id_ in tokens:
            number = int(id_) if isinstance(id_, str) and id_.isdecimal() and len(id_) < _DIGITS else id_
            if token is None or type(number) is not int or not 0 <= number < 1 << 31:
                statements.problems.append(f"{path}: expected ids and tokens{key and ' in '}{key}, found {shown(id_)}")
                continue
            theirs = statements.vocabulary.ids.get(token)
            known = statements.added.get(token)
            where = f"{path}: {key and key + ' '}gives {shown(token)} the id {number}"
            if theirs not in (None, number):
                statements.problems.append(f"{where}, and {directory / 'tokenizer.json'} {theirs}")
            elif known is not None and known.id != number:
                statements.problems.append(f"{where}, and {known.place} {known.id}")
            else:
                statements.added[token] = _Said(number, str(path), "")


def _read_names(path: Path, content: Mapping[str, Any], statements: _Statements) -> None:
    """Collect the tokens that a file gives a role, such as ``mask_token``."""
    named = [(key, _name(value)) for key, value in content.items() if key.endswith("_token")]
    for key in _MORE:
        more = content.get(key)
        listed = more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
        named += [("", _name(value)) for value in listed]
    for key, token in named:
        if token is None:  # null, or a switch such as add_bos_token
            continue
        id_, role = _id(token, statements), key.removesuffix("_token")
        ordinary = statements.vocabulary.ids.get(token)
        if role in (MASK, PAD):
            words = f"{key} is {shown(token)}"
            kind = statements.unknown if id_ is None else statements.said
            kind[role].append(_Said(-1 if id_ is None else id_, str(path), words))
        elif ordinary is not None and ordinary not in statements.vocabulary.special:
            # Any other never comes of a text.
            statements.others[role if role.isidentifier() and role.isascii() else f"token {token}"] = ordinary


def _name(value: object) -> str | None:
    """Return a token that is given as text, or as the table of an added token."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _id(token: str, statements: _Statements) -> int | None:
    known = statements.vocabulary.ids.get(token)
    if known is None and token in statements.added:
        return statements.added[token].id
    return known


def _read_ids(
    path: Path, content: Mapping[str, Any], statements: _Statements, rows: int, defaults: Mapping[str, int]
) -> None:
    """Collect the ids that a file gives the mask and the padding."""
    tokens = {id_: token for token, id_ in statements.vocabulary.ids.items()}
    for name in (MASK, PAD):
        key = f"{name}_token_id"
        id_ = content.get(key)
        if id_ is None or (type(id_) is int and id_ < 0):
            continue
        if type(id_) is not int:
            statements.problems.append(f"{path}: expected {key} to be an integer, found {found(id_)}")
        elif id_ == defaults.get(name) and (
            id_ >= rows or statements.said[name] or (name == PAD and content.get(f"{MASK}_token_id") == id_)
        ):
            continue
        elif name == PAD and id_ in tokens and id_ not in statements.vocabulary.special and not statements.said[PAD]:
            continue  # a token of ordinary text, which would go unscored; what pads is never seen
        else:
            statements.said[name].append(_Said(id_, str(path), f"{key} is {id_}"))


def _agreed(name: str, statements: _Statements, directory: Path, rows: int) -> int | None:
    """Return the id that all places give the mask or the padding; None where none does."""
    if not statements.said[name]:
        return None
    first, *others = statements.said[name]
    for other in others:
        if other.id != first.id:
            ids = " and ".join(_explained(said) for said in (first, other))
            statements.problems.append(f"{directory}: {name} has two ids: {ids}. Correct one of the two")
            return None
    if first.id >= rows:
        statements.problems.append(f"{_explained(first)}, and the embedding has {rows} rows")
    unknown = statements.unknown[name]
    if unknown and first.id in statements.vocabulary.ids.values():
        statements.problems.append(
            f"{directory}: {name} is two tokens: {unknown[0].place}: {unknown[0].words}, which tokenizer.json hasn't, "
            f"and {_explained(first)}. Correct one of the two"
        )
    return first.id


def _explained(said: _Said) -> str:
    return f"{said.place}: {said.words}" + ("" if said.words.endswith(str(said.id)) else f", which is {said.id}")

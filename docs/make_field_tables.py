"""Writes the tables of records in the docs from the records' own docstrings: ``python docs/make_field_tables.py``.

A page marks the place of a table with ``<!-- fields: package.module:Class -->`` and ``<!-- /fields -->``, or with
``keys`` in place of ``fields``, where the record is a file's content in JSON.
"""

import ast
import importlib.util
import re
from pathlib import Path
from types import NoneType
from typing import get_args

import attrs

from stackwise_core.run_files.records import is_inline, key_of
from stackwise_core.words import noun

DOCS = Path(__file__).parent
PAGES = [DOCS / "run-directory.md", *sorted((DOCS / "hooks").glob("*.md"))]
MARK = re.compile(r"(<!-- (fields|keys): ([\w.]+):(\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def fields(module: str, name: str) -> list[tuple[str, str, str]]:
    """List the fields of a class as name, default and docstring, read from its source.

    Raises:
        LookupError: a public field has no docstring.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    rows = []
    for node, after in zip(found.body, [*found.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign):
            continue
        assert isinstance(node.target, ast.Name)
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            raise LookupError(f"{module}:{name}.{node.target.id} has no docstring")
        meaning = " ".join(str(after.value.value).split()).replace("``", "`").rstrip(".")
        rows.append((node.target.id, _default(node.value), _plain_references(meaning) + _choices(node.annotation)))
    return rows


def keys(module: str, name: str) -> list[tuple[str, str, str]]:
    """List the keys of a record in JSON as key, type and docstring."""
    record = getattr(importlib.import_module(module), name)
    attrs.resolve_types(record)
    rows = []
    for attribute, (_, _, meaning) in zip(attrs.fields(record), fields(module, name), strict=True):
        key, kind = f"`{key_of(attribute)}`", noun(attribute.type)
        if is_inline(attribute):
            key, kind = f"those of `{attribute.type.__name__}`", ""
        kind += " or null" if NoneType in get_args(attribute.type) else ""
        rows.append((key, kind if attribute.default is attrs.NOTHING else f"{kind}, may be missing", meaning))
    return rows


def _default(value: ast.expr | None) -> str:
    """Describe the default of a field."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        value = next((each.value for each in value.keywords if each.arg == "default"), None)
    if value is None:
        return "required"
    text = ast.unparse(value)
    return {"()": "none", "frozenset()": "none", "''": "empty"}.get(text, f"`{text}`".replace("'", '"'))


def _choices(annotation: ast.expr) -> str:
    """Describe the words that a field may be, if it is one of some."""
    words = [
        ast.unparse(word).replace("'", '"')
        for node in ast.walk(annotation)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"
        for word in (node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice])
    ]
    return f". One of {', '.join(f'`{word}`' for word in words)}" if words else ""


def _plain_references(text: str) -> str:
    """Turn Sphinx roles into code."""
    return re.sub(r":\w+:`[~.]*([\w.]+)`", r"`\1`", text)


def filled(page: str) -> str:
    """Return a page's text with its tables as they are to be."""

    def table(match: re.Match[str]) -> str:
        head, kind, module, name, tail = match.groups()
        if kind == "keys":
            rows = "".join(f"| {key} | {type_} | {meaning} |\n" for key, type_, meaning in keys(module, name))
            return f"{head}| key | type | meaning |\n| --- | --- | --- |\n{rows}{tail}"
        rows = "".join(f"| `{field}` | {meaning} | {default} |\n" for field, default, meaning in fields(module, name))
        return f"{head}| field | meaning | default |\n| --- | --- | --- |\n{rows}{tail}"

    return MARK.sub(table, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text()))

"""Texts with gaps as people write them: ``The [MASK:20] sat on the mat``."""

from __future__ import annotations

import re

from stackwise_core.errors import UsageError
from stackwise_sampling.gapped_text import LONGEST_GAP, Part

_GAP = re.compile(r"(\\*)(\[MASK\b((?::(\d{1,7}))?\])?)")
"""Backslashes, and a gap; only its beginning where it isn't one."""


def parts_of(template: str, origin: str = "--infill") -> tuple[Part, ...]:
    r"""Split a template into text and gaps. ``[MASK]`` is a gap of one token, ``[MASK:20]`` of twenty.

    A backslash before ``[MASK`` makes it text; two backslashes there are one, and so on.

    Args:
        origin: where the template comes from, for messages.

    Raises:
        UsageError: there is no gap, or one that isn't written so.
    """
    parts: list[Part] = []
    given, end = "", 0
    for found in _GAP.finditer(template):
        slashes, gap, whole, number = found.groups()
        given += template[end : found.start()] + slashes[: len(slashes) // 2]
        end = found.end()
        if len(slashes) % 2:
            given += gap
            continue
        tokens = int(number or 1)
        if whole is None or not 0 < tokens <= LONGEST_GAP:
            at = found.start(2)
            line, column = template.count("\n", 0, at) + 1, at - template.rfind("\n", 0, at)
            raise UsageError(
                f"{origin}:{line}:{column}: expected [MASK] or [MASK:20], of 1 to {LONGEST_GAP} tokens, found "
                f"{template[at : at + 20].splitlines()[0]!r}. A backslash before it makes it text."
            )
        parts += [given, tokens]
        given = ""
    if not parts:
        capitals = " Gaps are written in capitals." if "[mask" in template.lower() and "[MASK" not in template else ""
        raise UsageError(
            f'{origin}: expected a text with gaps, such as "The [MASK:20] sat on the mat"; found none.{capitals}'
        )
    return (*parts, given + template[end:])

"""Bytes to text: UTF-8 and nothing else, with a fault's place in its file."""

from stackwise_core.errors import UsageError
from stackwise_text.compression import DamagedError, opened
from stackwise_text.files import CorpusFile

BOM = "\ufeff"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\n"
"""Beginning of what a clone without Git LFS has in place of a large file."""
LOOKED_AT = 8192
"""Bytes of a file's beginning from which it is guessed what it is."""


def decoded(raw: bytes, file: CorpusFile, *, line: int = 1, offset: int = 0) -> str:
    """Decode bytes of a file, without a byte order mark at the beginning.

    Args:
        line: the line of the file in which they begin.
        offset: where in the file they do, decompressed.

    Raises:
        UsageError: they aren't UTF-8, or what they begin with is no text.
    """
    try:
        text = raw.decode("utf-8")
        fault = raw.find(0, 0, max(0, LOOKED_AT - offset))  # UTF-8, too, but as git and grep do: no text begins so
    except UnicodeDecodeError as error:
        fault = error.start
    if fault >= 0:
        raise UsageError(
            f"{file.path}:{line + raw.count(10, 0, fault)}: expected UTF-8, found byte 0x{raw[fault]:02x} at "
            f"offset {offset + fault} of the {'decompressed ' if file.compression else ''}file; {_advice(file)}"
        )
    if not offset and text.startswith(LFS_POINTER):
        raise UsageError(f"{file.path}: expected text, found a pointer of Git LFS to it; git lfs pull fetches the file")
    return text if offset else text.removeprefix(BOM)


def whole_characters(raw: bytes) -> int:
    """Return the number of bytes up to the last whole character. A character cut short waits for more bytes."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte >= 0xC0:  # the first byte of 2, 3 or 4
            return len(raw) - back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else len(raw)
        if byte < 0x80:
            break
    return len(raw)


def _advice(file: CorpusFile) -> str:
    """Return the advice for a file that isn't UTF-8."""
    with opened(file) as stream:
        try:
            start = stream.read(LOOKED_AT)
        except DamagedError:
            start = b""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "UTF-16"
    elif 0 in start:
        return "it looks like a binary file: convert it to text, or leave it out of data.corpus"
    else:
        encoding = "ISO-8859-1"
    return f"if it is {encoding}, convert it with: iconv -f {encoding} -t UTF-8"

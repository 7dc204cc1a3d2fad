"""Numbers in files, mapped into memory."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stackwise_core.system.lacking_calls import MAP


def map_array(path: Path, dtype: "np.dtype[Any] | str") -> NDArray[Any]:
    """Return a file's numbers, read when they are used; an empty file, which can't be mapped, is an empty array."""
    if not path.stat().st_size:
        return np.zeros(0, dtype)
    with MAP.where_there_is(path):
        return np.memmap(path, dtype, mode="r").view(np.ndarray)
    return np.frombuffer(path.read_bytes(), dtype)

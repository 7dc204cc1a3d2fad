"""Rule for which tokens an objective predicts: it decides samples, losses, measurements and refusals alike."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def predictable(segments: NDArray[np.integer[Any]], *, causal: bool) -> NDArray[np.bool_]:
    """Return which tokens of some rows there are to predict, [n, seq_len].

    Where tokens are masked that is each token of a document; with a ``causal`` objective each that comes right after
    another one of its document.

    Args:
        segments: int [n, seq_len], 0 at padding and special tokens, else one number for each document of a row.
    """
    of_a_document = segments > 0
    if not causal:
        return of_a_document
    follows = np.zeros(segments.shape, dtype=bool)
    follows[:, 1:] = of_a_document[:, 1:] & (segments[:, 1:] == segments[:, :-1])
    return follows

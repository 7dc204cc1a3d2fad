"""A small joint distribution whose every conditional is known: what likelihood bounds are tested against."""

import itertools
import math

import numpy as np


class Joint:
    """A random positive table p(x) over sequences of ``length`` tokens out of ``vocabulary``."""

    def __init__(self, length: int = 5, vocabulary: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        table = rng.gamma(0.5, size=(vocabulary,) * length) + 1e-3
        self.table = table / table.sum()
        self.length, self.vocabulary = length, vocabulary

    def sequences(self):
        return itertools.product(range(self.vocabulary), repeat=self.length)

    def subsets(self):
        """Every nonempty set of positions, as a sorted tuple."""
        for size in range(1, self.length + 1):
            yield from itertools.combinations(range(self.length), size)

    def cross_entropies(self, x, masked) -> np.ndarray:
        """-log p(x_i | x outside of masked) for each i in masked, float64."""
        seen = tuple(slice(None) if i in masked else x[i] for i in range(self.length))
        conditional = self.table[seen]
        conditional = conditional / conditional.sum()
        out = []
        for place, i in enumerate(masked):
            marginal = conditional.sum(axis=tuple(a for a in range(conditional.ndim) if a != place))
            out.append(-math.log(marginal[x[i]]))
        return np.array(out)

    def exact_nelbo(self, x) -> float:
        """Sum over nonempty M of (|M|-1)! (L-|M|)! / L! * sum of CE over M, in nats."""
        length = self.length
        return sum(
            math.factorial(len(masked) - 1)
            * math.factorial(length - len(masked))
            / math.factorial(length)
            * self.cross_entropies(x, masked).sum()
            for masked in self.subsets()
        )

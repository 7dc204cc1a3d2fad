"""Four courses of the mask fraction from min to max; each is its shape g with g(0) = 0 and g(1) = 1."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from stackwise_core.interfaces.mask_schedule import MaskSchedule


class Constant(MaskSchedule):
    """Constant schedule, f(p) = fraction."""

    def fraction(self, progress: Tensor) -> Tensor:
        # Adding 0 * p keeps the result on autograd's graph, with the slope 0 that it has.
        return self.options.fraction + 0.0 * progress


class Shaped(MaskSchedule):
    """Schedule between two fractions, f(p) = min + g(p) (max - min)."""

    @abstractmethod
    def shape(self, progress: Tensor) -> Tensor:
        """Compute g, monotone from g(0) = 0 to g(1) = 1."""

    def fraction(self, progress: Tensor) -> Tensor:
        low, high = self.options.min_fraction, self.options.max_fraction
        return low + self.shape(progress) * (high - low)


class Linear(Shaped):
    """Linear schedule, g(p) = p.

    From 0 to 1 this is the schedule of MDLM (arXiv 2406.07524) and LLaDA, with loss weight 1/t.
    """

    def shape(self, progress: Tensor) -> Tensor:
        return progress


class Exponential(Shaped):
    """Exponential schedule, g(p) = (e^p - 1)/(e - 1)."""

    def shape(self, progress: Tensor) -> Tensor:
        grown = torch.expm1(progress) / math.expm1(1.0)
        # Rounding can leave it just above 1, which is no fraction; the slope stays as it is.
        return grown + (grown.clamp(max=1.0) - grown).detach()


class Cosine(Shaped):
    """Cosine schedule, g(p) = (1 - cos pi p)/2."""

    def shape(self, progress: Tensor) -> Tensor:
        return (1.0 - torch.cos(math.pi * progress)) / 2.0

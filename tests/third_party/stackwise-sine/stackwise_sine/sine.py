"""f(p) = min + sin(pi p/2) (max - min)."""

import math

import torch

from stackwise_core.interfaces.mask_schedule import MaskSchedule


class Sine(MaskSchedule):
    def fraction(self, progress):
        low, high = self.options.min_fraction, self.options.max_fraction
        return low + torch.sin(progress * (math.pi / 2)) * (high - low)

"""Masked diffusion (MDLM, arXiv 2406.07524)."""

from stackwise_core.interfaces.objective import Objective


class MaskDiffusion(Objective):
    """Predicts masked tokens from what is left, by cross entropy under the phase's weighting."""

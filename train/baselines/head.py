"""CLIP fine-tuning: "the last linear head being the only component subject to tuning" (Sect. 5.3).

CLIP ends in two linear heads, one a tower; both are tuned, with the logit scale.
"""

from __future__ import annotations

import copy

from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.baselines.matcher import Matcher


class HeadTuning(Matcher):
    """CLIP whose projections and logistic are learned; before its first step it scores as CLIP.

    The towers are frozen and their outputs are the states, so a step costs two small matrix
    products.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip)
        # Copies: the CLIP that was read stays as it is.
        self.visual_projection = copy.deepcopy(self.visual_projection).requires_grad_()
        self.text_projection = copy.deepcopy(self.text_projection).requires_grad_()
        self.match.log_a.requires_grad_()
        self.match.b.requires_grad_()

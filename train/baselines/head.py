"""CLIP fine-tuning: "the last linear head being the only component subject to tuning" (Sect. 5.3).

CLIP has one linear head per tower. Both are trained, together with the logit scale.
"""

from __future__ import annotations

import copy

from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.baselines.matcher import Matcher


class HeadTuning(Matcher):
    """CLIP whose projections, logit scale and offset are trained; at step 0 it scores as CLIP.

    The towers are frozen and their outputs are the states, so a step costs two small matrix
    products.

    Args:
        clip: pretrained CLIP, which stays unchanged.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip)
        # Trained as copies, so that the CLIP that was read stays unchanged.
        self.visual_projection = copy.deepcopy(self.visual_projection).requires_grad_()
        self.text_projection = copy.deepcopy(self.text_projection).requires_grad_()
        self.match.log_a.requires_grad_()
        self.match.b.requires_grad_()

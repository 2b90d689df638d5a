"""Few-shot examples of shapes: held-out twins with their right and wrong captions."""

from __future__ import annotations

import numpy as np
import torch

from dsd_trt.train.fewshot import Examples
from dsd_trt.train.model import Checkpoint, encode_texts
from dsd_trt.train.shapes.twins import TwinLatents, sample_twins


def twin_examples(checkpoint: Checkpoint, data: TwinLatents) -> Examples:
    """Matching and non-matching pairs of some twins, in equal number.

    Of each picture: its own caption twice (as often as wrong ones), its twin's, which is wrong in
    one aspect, and that of the picture after next, which is wrong altogether.
    """
    rng = np.random.default_rng(data.seed)
    captions = [text for i in range(len(data)) for text in sample_twins(data.seed, i).captions(rng)]
    encoded = [encode_texts(checkpoint, captions[i : i + 64]) for i in range(0, len(captions), 64)]
    states, masks = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    pictures = torch.arange(len(captions))
    twin, stranger = pictures ^ 1, (pictures + 2) % len(captions)
    return Examples(
        latents=torch.from_numpy(data.latents.astype(np.float32)).flatten(0, 1),
        text_states=states,
        token_masks=masks,
        images=pictures.repeat(4),
        texts=torch.cat([pictures, pictures, twin, stranger]),
        labels=torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat_interleave(len(captions)),
    )

"""CLIP (Radford et al. 2021) in transformers' format: weights, tokenizer, pixel normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dsd_trt.errors import ModelError
from dsd_trt.train.baselines.folder import require_clip
from dsd_trt.train.diffusion.clip_tokenizer import read_tokenizer, require_embedding
from dsd_trt.train.diffusion.declared import require_ends, require_eos
from dsd_trt.train.diffusion.families import LEGACY_EOS
from dsd_trt.train.diffusion.fields import require_assumed
from dsd_trt.train.diffusion.kinds import is_number
from dsd_trt.train.diffusion.weight_files import find_weights, read_json
from dsd_trt.train.diffusion.weight_names import is_computed
from dsd_trt.train.diffusion.weights import (
    check_types,
    fill_module,
    read_headers,
    read_tensors,
)

# Required values of preprocessor_config.json: pixels are divided by 255 and normalised.
_ASSUMED = {"do_normalize": (True,), "do_rescale": (True,), "rescale_factor": (1 / 255,)}


@dataclass(frozen=True)
class Clip:
    """A CLIP in FP32.

    Attributes:
        model: model with both towers, both projections and the logit scale.
        tokenizer: tokenizer of the text tower.
        mean: mean of each colour channel in the training images, in [0, 1].
        std: standard deviation of each colour channel in the training images, in (0, 1].
    """

    model: CLIPModel
    tokenizer: CLIPTokenizer
    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)

    @property
    def resolution(self) -> int:
        """Side of the vision tower's input images, in pixels."""
        return int(self.model.config.vision_config.image_size)

    def normalise(self, pixels: Tensor) -> Tensor:
        """The tower's input, FP32 (images, 3, H, W), from pixels, uint8 (images, H, W, 3)."""
        mean, std = (torch.tensor(value, device=pixels.device) for value in (self.mean, self.std))
        return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)

    def tokenize(self, texts: Sequence[str], reserved: int = 0) -> Tensor:
        """Tokenize texts as BOS, words, EOS and padding to the text tower's length.

        Args:
            texts: texts to tokenize; a long one loses its last words, but keeps its EOS.
            reserved: number of positions left free for learned vectors.

        Returns:
            Token ids, int64 (texts, length - reserved).
        """
        length = int(self.model.config.text_config.max_position_embeddings) - reserved
        ids: Tensor = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        ).input_ids
        return ids

    def ends(self, ids: Tensor) -> Tensor:
        """Position of each text's first EOS, at which the text tower is pooled, (texts,)."""
        eos = self.model.config.text_config.eos_token_id
        return ids.argmax(dim=1) if eos == LEGACY_EOS else (ids == eos).int().argmax(dim=1)

    def trim(self, ids: Tensor) -> Tensor:
        """Cut the padding that all texts share, which no text state depends on.

        The tower is causal, so positions before the padding do not change. A caption fills about
        12 of 77 positions, so this saves most of the computation.
        """
        return ids[:, : int(self.ends(ids).max()) + 1]


def load_clip(folder: str | Path) -> Clip:
    """Read a CLIP in transformers' format, frozen and in evaluation mode.

    Args:
        folder: folder of config.json, the weights as safetensors and the tokenizer's files.
            Pixels are normalised by its preprocessor_config.json, if there is one, else as for
            OpenAI's CLIP.

    Raises:
        ModelError: the folder does not exist or holds another kind of model, a file is missing or
            unreadable, or weights or tokens do not fit the configuration.
    """
    folder = Path(folder)
    require_clip(folder)
    config = read_json(folder / "config.json")
    tokenizer = read_tokenizer(folder)
    try:
        with init_empty_weights(include_buffers=False):
            model = CLIPModel(CLIPConfig.from_dict(config))
        require_ends(tokenizer)
        require_eos(model.config.text_config.eos_token_id, tokenizer.eos_token_id)
        mean, std = _normalisation(folder)
    except Exception as error:  # a damaged configuration may raise anything in transformers
        raise ModelError(f"cannot read the CLIP in {folder}: {error}") from error
    require_embedding(tokenizer, model.config.text_config.vocab_size, str(folder))
    headers = read_headers(find_weights(folder, "model"))
    headers = {name: tensor for name, tensor in headers.items() if not is_computed(name)}
    check_types(headers, str(folder), "CLIP")
    fill_module(model, dict(read_tensors(headers)), torch.float32, str(folder), "CLIP")
    return Clip(model.eval().requires_grad_(False), tokenizer, mean, std)


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    told = read_json(path) if path.is_file() else {}
    require_assumed(told, _ASSUMED)
    mean, std = told.get("image_mean", OPENAI_CLIP_MEAN), told.get("image_std", OPENAI_CLIP_STD)
    # Values above 1 would be those of pixels in [0, 255].
    for name, value, fits in (
        ("image_mean", mean, lambda it: is_number(it) and 0 <= it <= 1),
        ("image_std", std, lambda it: is_number(it) and 0 < it <= 1),
    ):
        if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(fits, value)):
            raise ValueError(
                f"{path.name}: {name} is {value!r}, expected are three numbers between 0 and 1"
            )
    return tuple(map(float, mean)), tuple(map(float, std))

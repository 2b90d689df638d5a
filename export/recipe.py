"""The recipe of an export: settings, checkpoint and adapter, and what the steps ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dsd_trt.bundle.contract import Precision
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import InputError
from dsd_trt.export.adapter_input import FedScoringUNet
from dsd_trt.export.describe import describe
from dsd_trt.export.gates import split_gates
from dsd_trt.export.modules import UpcastImageEncoder
from dsd_trt.export.settings import ExportSettings, require_consistent
from dsd_trt.train.build import build_relations, build_scoring_unet, build_token_heads
from dsd_trt.train.diffusion.checkpoint import Checkpoint, encode_texts, read_checkpoint
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.adapter_file import AdapterFile
from dsd_trt.train.scoring.matrix import MatrixScorer
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

_LARGE = 100_000_000  # parameters of a U-Net; the demonstration's has 4 M, Stable Diffusion's 860 M


@dataclass(frozen=True)
class Recipe:
    """Ingredients of an export, with the answers its steps need; `Recipe.read` makes one.

    Attributes:
        settings: export settings, as the user gave them.
        checkpoint: weights and configuration of the diffusion model.
        adapter: few-shot adapter; None is the zero-shot score.
    """

    settings: ExportSettings
    checkpoint: Checkpoint
    adapter: Adapter | None

    @classmethod
    def read(cls, settings: ExportSettings) -> Self:
        """Read the checkpoint's configuration and the adapter; weights are read on demand.

        Raises:
            InputError: settings contradict each other or the adapter, see `require_consistent`.
            ModelError: checkpoint or adapter cannot be read.
        """
        folder = settings.adapter
        require_consistent(settings, None if folder is None else AdapterFile.read(folder))
        adapter = None if folder is None else Adapter.load(folder)
        checkpoint = read_checkpoint(settings.model)
        side = checkpoint.latent_shape[1]
        if settings.query_pool > side:
            raise InputError(
                f"--query-pool is {settings.query_pool}: at most {side} for this model"
            )
        return cls(settings, checkpoint, adapter)

    def build_scoring(self, unet: UNet2DConditionModel) -> ScoringUNet:
        """Build the scoring U-Net, with unfolded prompts.

        Args:
            unet: the checkpoint's U-Net; changed in place if the adapter changes its weights.

        Raises:
            ValueError: layers or levels do not exist.
            ModelError: the adapter belongs to another checkpoint or score.
        """
        settings = self.settings
        return build_scoring_unet(
            self.checkpoint,
            self.adapter,
            score_layers=settings.score_layers,
            levels=settings.levels,
            noise_seed=settings.noise_seed,
            score=settings.score,
            unet=unet,
        )

    def build_matrix(self, scoring: ScoringUNet, unconditional: Tensor) -> MatrixScorer:
        """Build the matrix scorer around a scoring U-Net.

        Args:
            scoring: scoring U-Net with unfolded prompts, from `build_scoring`.
            unconditional: states of the unconditional text, (1, rows, D).
        """
        heads = build_token_heads(scoring, self.adapter)
        relations = build_relations(scoring, self.adapter)
        return MatrixScorer(scoring, unconditional, self.settings.query_pool, heads, relations)

    @cached_property
    def outline(self) -> ScoringUNet:
        """The scoring U-Net without weights: layers, heads, levels, noise and prompts.

        Raises:
            InputError: layers or levels do not exist.
            ModelError: under the conditions of `build_scoring`.
        """
        try:
            return self.build_scoring(self.checkpoint.empty_unet())
        except ValueError as error:
            raise InputError(str(error)) from error

    @cached_property
    def manifest(self) -> Manifest:
        """The bundle's manifest without file hashes, self-check and parity figures.

        Raises:
            InputError, ModelError: under the conditions of `outline`.
        """
        return describe(self.settings, self.checkpoint, self.adapter, self.outline)

    @property
    def quick(self) -> bool:
        """Whether to verify on few pairs or none; by default if a U-Net pass takes seconds."""
        if self.settings.verify is not None:
            return self.settings.verify != "full"
        return self.large

    @cached_property
    def large(self) -> bool:
        """Whether a pass of the U-Net takes seconds on a CPU."""
        return sum(weight.numel() for weight in self.outline.unet.parameters()) > _LARGE

    @property
    def measures_bfloat16(self) -> bool:
        """Whether to measure what BF16 does; by default if a U-Net pass takes milliseconds."""
        return not self.large if self.settings.bf16 is None else self.settings.bf16

    def module(self, name: str, precision: Precision | None = None) -> nn.Module:
        """Read the module a graph is traced from; dropping it frees its memory.

        Precision is chosen only here. Weights become FP16. The modules compute logits, softmax,
        LogSumExp and noise in FP32 in either precision.

        Args:
            name: name of the graph: "image_encoder", "text_encoder", "pair_scorer" or
                "matrix_scorer".
            precision: precision of the module, "fp32" or "fp16"; None is the export's.
        """
        checkpoint, manifest = self.checkpoint, self.manifest
        half = (precision or self.settings.precision) == "fp16"
        dtype = torch.float16 if half else torch.float32
        if name == "image_encoder":
            if half and checkpoint.vae_overflows:
                return UpcastImageEncoder(checkpoint.read_image_encoder().vae)
            return checkpoint.read_image_encoder(dtype)
        if name == "text_encoder":
            return checkpoint.read_text_encoder(dtype)
        unconditional = None
        if name == "matrix_scorer":
            unconditional = encode_texts(checkpoint, [""])[0].to(dtype)
            checkpoint.forget()
        scoring = self.build_scoring(checkpoint.read_unet(dtype))
        split_gates(scoring)
        if manifest.adapter is not None:
            return FedScoringUNet(scoring, manifest.adapter.tensors)
        scorer: ScoringUNet | MatrixScorer = scoring
        if unconditional is not None:
            scorer = self.build_matrix(scoring, unconditional)
        scorer.fold_static_prompts()
        if half and scoring.prompts is not None:
            scoring.prompts.half()
        return scorer

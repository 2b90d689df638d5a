"""Contenders in PyTorch: the reference, and the loops of published research code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dsd_trt.batching import DEFAULT_MB, batch_sizes
from dsd_trt.export.benchmark.work import Contender, Floats, Work
from dsd_trt.image.preprocess import preprocess
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import encode_texts, read_checkpoint
from dsd_trt.train.run.libraries import hush_libraries
from dsd_trt.train.scoring.adapter import Adapter

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]  # latent, level, text_states, token_mask; row = pass


class PyTorch:
    """The scoring model in PyTorch, eager or compiled, in FP32 or BF16.

    Args:
        work: bundle, checkpoint and pairs to score.
        batched: whether a batch has as many passes as our runtime's; else it has one.
        bf16: whether matrix products are in BF16, by autocast.
        compiled: whether `torch.compile` compiles the scoring U-Net.
    """

    def __init__(
        self, work: Work, *, batched: bool = True, bf16: bool = False, compiled: bool = False
    ) -> None:
        hush_libraries()
        self.work, self._bf16 = work, bf16
        self.checkpoint = read_checkpoint(work.model)
        manifest = work.bundle.manifest
        self.batch: int = batch_sizes(manifest, DEFAULT_MB).passes if batched else 1
        method, folder = manifest.method, work.adapter
        self._build = partial(
            build_scoring_unet,
            self.checkpoint,
            Adapter.load(folder) if folder else None,
            levels=method.noise_levels.fractions,
            noise_seed=method.noise_levels.seed,
            pooling=method.pooling,
            lam=method.lam,
        )
        self.scoring = self._build(score_layers=method.score_layers, score=method.score)
        self._compiled: Callable[..., tuple[Tensor, ...]] | None = None
        self._compile = compiled
        self._latent: Tensor | None = None
        self._texts: tuple[Tensor, Tensor] | None = None

    def contender(self) -> Contender:
        """Our runtime's work in PyTorch: encoders run once, the U-Net stops at the last layer."""
        passes = self.work.pictures * self.work.texts * len(self.work.levels)
        macs = float(passes * self.work.macs("pair_scorer"))
        request = partial(self._request, self._scores_of)
        return Contender(self.encode, self.score, passes, macs, self._precision, request)

    def naive(self) -> Contender:
        """The research loop, which shares nothing between pairs.

        Each pair encodes its image and its text again. Each level runs the whole U-Net on a
        guidance batch of two, the text and the unconditional text, and discards the latter.
        """
        whole = self._build(score_layers="all")
        whole.denoising = True  # runs the U-Net to its end
        probe = self.work.probe

        def one(pixels: NDArray[np.uint8], text: str) -> float:
            z = self.checkpoint.image_encoder(torch.from_numpy(pixels[None]))
            states, mask = encode_texts(self.checkpoint, ["", text])
            total = 0.0
            for level in self.work.levels.tolist():
                at = torch.tensor([level, level])
                total += float(whole(z.expand(2, -1, -1, -1), at, states, mask)[0][1])
            return total / len(self.work.levels)

        def pair(i: int, j: int) -> float:
            return one(probe.pixels[i], probe.texts[j])

        @torch.no_grad()
        def request(image: bytes, text: str) -> float:
            return one(self._decoded(image), text)

        pairs = self.work.pictures * self.work.texts
        macs = self._macs(lambda: pair(0, 0)) * pairs
        passes = 2 * pairs * len(self.work.levels)
        whole_pair = partial(self._all, pair)
        return Contender(None, whole_pair, passes, macs, self._precision, request)

    def diffusion_classifier(self) -> Contender:
        """Score by the denoising error, as diffusion classifiers do: the whole U-Net per pass."""
        unet = self.checkpoint.unet

        def errors(latent: Tensor, level: Tensor, states: Tensor, mask: Tensor) -> Tensor:
            z_t = self.scoring.add_noise(latent, level)
            predicted = unet(z_t, self.scoring.timesteps[level], states).sample
            return -self.scoring.denoising_error(predicted, latent, level)

        self.encode()
        passes = self.work.pictures * self.work.texts * len(self.work.levels)
        macs = self._macs(lambda: errors(*next(self._pairs(1)))) * passes
        request = partial(self._request, errors)
        score = partial(self._score, errors)
        return Contender(self.encode, score, passes, macs, self._precision, request)

    def encode(self) -> None:
        """Encode every image and every text once."""
        probe = self.work.probe
        with torch.no_grad(), self._autocast():
            parts = torch.from_numpy(probe.pixels).split(max(self.batch // 4, 1))
            self._latent = torch.cat([self.checkpoint.image_encoder(part) for part in parts])
            self._texts = encode_texts(self.checkpoint, list(probe.texts))

    def score(self) -> Floats:
        """The bundle's score of all pairs, (images, texts)."""
        return self._score(self._scores_of)

    def _scores_of(self, *pairs: Tensor) -> Tensor:
        """Scores of some passes, by the model as it is or compiled."""
        if self._compile and self._compiled is None:
            self._compiled = self._export()
        run = self.scoring if self._compiled is None else self._compiled
        return run(*pairs)[0]

    def _request(self, score: Callable[..., Tensor], image: bytes, text: str) -> float:
        """Decode an image, encode it and a text, and score them: the mean over all levels."""
        with torch.no_grad(), self._autocast():
            latent = self.checkpoint.image_encoder(torch.from_numpy(self._decoded(image)[None]))
            states, mask = encode_texts(self.checkpoint, [text])
            scores = []
            for level in torch.from_numpy(self.work.levels).split(self.batch):
                one = torch.zeros(len(level), dtype=torch.long)
                scores.append(score(latent[one], level, states[one], mask[one]).float())
            return float(torch.cat(scores).mean())

    def _decoded(self, image: bytes) -> NDArray[np.uint8]:
        spec = self.work.bundle.manifest.preprocessing
        return preprocess(image, spec.resolution, spec.resize)

    def _export(self) -> Callable[..., tuple[Tensor, ...]]:
        """Compile the exported program, because `torch.compile` cannot trace the generator."""
        pairs = next(self._pairs(2))
        with torch.no_grad(), self._autocast():
            program = torch.export.export(
                self.scoring, pairs, dynamic_shapes=tuple({0: torch.export.Dim.AUTO} for _ in pairs)
            )
        compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(program.module())
        return compiled

    def _score(self, score: Callable[..., Tensor]) -> Floats:
        with torch.no_grad(), self._autocast():
            flat = torch.cat([score(*pairs).float() for pairs in self._pairs(self.batch)])
        shape = (self.work.pictures, self.work.texts, len(self.work.levels))
        by_level: Floats = flat.view(shape).mean(dim=2).numpy()  # (images, texts)
        return by_level

    @torch.no_grad()
    def _all(self, pair: Callable[[int, int], float]) -> Floats:
        shape = (self.work.pictures, self.work.texts)
        return np.array([pair(i, j) for i, j in np.ndindex(shape)]).reshape(shape)

    def _pairs(self, batch: int) -> Iterator[Pairs]:
        """Inputs of all passes (image, text, level), `batch` rows at a time."""
        assert self._latent is not None
        assert self._texts is not None
        sizes = (self.work.pictures, self.work.texts, len(self.work.levels))
        image, text, level = (torch.from_numpy(at.ravel()) for at in np.indices(sizes))
        for x, y, at in zip(image.split(batch), text.split(batch), level.split(batch), strict=True):
            yield self._latent[x], at, self._texts[0][y], self._texts[1][y]

    def _macs(self, run: Callable[[], object]) -> float:
        # The counter misses fused attention, so attention runs unfused here.
        plain, counting = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
        with torch.no_grad(), plain, counting as counter:
            run()
        return counter.get_total_flops() / 2

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if self._bf16 else nullcontext()

    @property
    def _precision(self) -> str:
        return "bf16" if self._bf16 else "fp32"

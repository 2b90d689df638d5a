"""Twins: two scenes that differ in one aspect, each with a caption that is false of the other.

They provide hard negatives for the ranking loss and for tests: given a text, the right image of
two; given an image, the right text of two. Whatever the scenes leave open is drawn independently.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from dsd_trt.errors import InputError
from dsd_trt.files.whole import whole
from dsd_trt.train.shapes.caption import caption
from dsd_trt.train.shapes.render import Drawing, draw
from dsd_trt.train.shapes.scene import EDITS, Scene, edit_scene, sample_scene
from dsd_trt.train.shapes.vae import build_vae

_EDIT_SHARES = (0.18, 0.18, 0.32, 0.1, 0.05, 0.07, 0.1)  # in the order of EDITS
_CHUNK = 500
MAX_THINGS = 3


@dataclass(frozen=True)
class Twins:
    """A scene and an edited version of it.

    Attributes:
        first: scene before the edit.
        second: scene after the edit.
        edit: kind of the edit, one of `EDITS`.
    """

    first: Scene
    second: Scene
    edit: str

    @property
    def scenes(self) -> tuple[Scene, Scene]:
        """Both scenes, in order."""
        return self.first, self.second

    def captions(self, rng: np.random.Generator) -> tuple[str, str]:
        """A caption of each scene; in half of the cases both have the same sentence form."""
        seeds = rng.integers(2**32, size=2)
        if rng.random() < 0.5:
            seeds[1] = seeds[0]
        name_relation = self.edit == "predicate"
        first, second = (
            caption(scene, np.random.default_rng(seed), name_relation=name_relation)
            for scene, seed in zip(self.scenes, seeds, strict=True)
        )
        return first, second


def sample_twins(seed: int, index: int) -> Twins:
    """The twins of a seed and an index; `edit` is the one applied, not the one drawn first.

    Args:
        seed: random seed of a set of twins.
        index: index of the twins in the set, from 0.
    """
    rng = np.random.default_rng([seed, index])
    edit = str(rng.choice(EDITS, p=_EDIT_SHARES))
    while True:
        first = sample_scene(rng)
        second = edit_scene(first, edit, rng)
        if edit == "predicate" and first.relation == second.relation:
            continue
        if edit == "side" and first.side == second.side:
            continue
        sizes = [[thing.size for thing in scene.things] for scene in (first, second)]
        alone = len(first.things) == 1
        if (edit in ("object", "swap") and alone) or (edit == "size" and sizes[0] == sizes[1]):
            edit = "subject"  # what `edit_scene` does instead of an edit that does not apply
        return Twins(first, second, edit)


def draw_twins(seed: int, index: int) -> tuple[Drawing, Drawing]:
    """Drawings of `sample_twins(seed, index)`, independent in what the scenes leave open."""
    twins = sample_twins(seed, index)
    rng = np.random.default_rng([seed, index, 1])
    return draw(twins.first, rng), draw(twins.second, rng)


@dataclass(frozen=True)
class TwinLatents:
    """A set of encoded twins.

    Attributes:
        seed: random seed of the set; twin i is `sample_twins(seed, i)`.
        latents: clean latents z, FP16 (twins, 2, 16, 8, 8).
        masks: share of each latent cell that a thing covers, FP16 (twins, 2, MAX_THINGS, 8, 8).
    """

    seed: int
    latents: NDArray[np.float16]
    masks: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.latents)


def encode_twins(
    vae: AutoencoderKL, count: int, seed: int, folder: Path, workers: int = 2
) -> TwinLatents:
    """Draw and encode a set of twins, or resume an interrupted call in the same folder.

    Args:
        vae: trained autoencoder that encodes the images.
        count: number of twins in the set.
        seed: random seed of the set.
        folder: folder of the encoded chunks, which are reused.
        workers: number of processes that draw and encode.

    Raises:
        InputError: a chunk in the folder cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    missing = [chunk for chunk in chunks if not _chunk_file(folder, seed, chunk).exists()]
    state = {name: value.numpy() for name, value in vae.state_dict().items()}
    scale = float(vae.config["scaling_factor"])
    if missing:
        with ProcessPoolExecutor(workers) as pool:
            jobs = [
                pool.submit(_encode_chunk, state, scale, seed, chunk, folder) for chunk in missing
            ]
            for job in jobs:
                job.result()
    latents, masks = [], []
    for chunk in chunks:
        path = _chunk_file(folder, seed, chunk)
        try:
            with np.load(path) as arrays:
                latents.append(arrays["latents"])
                masks.append(arrays["masks"])
        except Exception as error:  # numpy's, zipfile's and zlib's have no base in common
            raise InputError(f"cannot read {path}: {error}. Delete it to draw it again") from None
    return TwinLatents(seed, np.concatenate(latents), np.concatenate(masks))


def _chunk_file(folder: Path, seed: int, chunk: range) -> Path:
    return folder / f"twins-{seed}-{chunk.start:06d}-{chunk.stop:06d}.npz"


@torch.no_grad()
def _encode_chunk(
    state: dict[str, NDArray[np.float32]],
    scale: float,
    seed: int,
    chunk: range,
    folder: Path,
) -> None:
    torch.set_num_threads(1)
    vae = build_vae().eval()
    vae.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    pixels, masks = [], []
    for index in chunk:
        for drawing in draw_twins(seed, index):
            pixels.append(drawing.pixels)
            covered = np.zeros((MAX_THINGS, *drawing.masks.shape[1:]), np.float32)
            covered[: len(drawing.masks)] = drawing.masks
            masks.append(covered)
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = torch.cat([vae.encode(part).latent_dist.mean * scale for part in images.split(50)])
    cells = F.avg_pool2d(torch.from_numpy(np.stack(masks)), 8)
    path = _chunk_file(folder, seed, chunk)
    with whole(path) as file:
        np.savez(
            file,
            latents=latents.unflatten(0, (len(chunk), 2)).half().numpy(),
            masks=cells.unflatten(0, (len(chunk), 2)).half().numpy(),
        )

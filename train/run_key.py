"""Keys of runs: everything that saved results depend on, so that no other run reuses them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsd_trt.errors import ImageError, InputError
from dsd_trt.files.regular import read_regular
from dsd_trt.files.schema import read_json
from dsd_trt.files.whole import write_whole
from dsd_trt.image.stored import StoredImage
from dsd_trt.limits import IMAGE_BYTES
from dsd_trt.train.question import Question
from dsd_trt.train.run.plan import difference
from dsd_trt.train.scoring.adapter_file import adapter_hash

if TYPE_CHECKING:
    from dsd_trt import Scorer
    from dsd_trt.image.preprocess import ImageSource
    from dsd_trt.train.diffusion.checkpoint import Checkpoint

RUN_NAME = "run.json"


def claim(folder: Path, key: Mapping[str, Any], kept: Iterable[str]) -> None:
    """Claim a folder for a run, which resumes there only if its key is unchanged.

    Args:
        folder: folder of the run; created if missing.
        key: everything that the run's results depend on, as JSON takes it.
        kept: names of the files and folders that the run would resume from. A folder without a
            file is of a run that failed before its first result, and blocks no other.

    Raises:
        InputError: the folder holds results of another run; the message says what differs.
    """
    kept = tuple(kept)
    refuse_another(folder, key, kept)
    folder.mkdir(parents=True, exist_ok=True)
    if not any(_holds_something(folder / name) for name in kept):
        write_whole(folder / RUN_NAME, json.dumps(key, indent=2) + "\n")


def refuse_another(
    folder: Path, key: Mapping[str, Any], kept: Iterable[str], *, partial: bool = False
) -> None:
    """Refuse a folder that holds results of another run; nothing is written.

    Args:
        folder: folder of the run, which need not exist.
        key: everything that the run's results depend on, as JSON takes it.
        kept: names of the files and folders that the run would resume from.
        partial: whether `key` is a part alone, which is known before a model is read.

    Raises:
        InputError: the folder holds results of another run; the message says what differs.
    """
    path, wanted = folder / RUN_NAME, json.loads(json.dumps(key))
    advice = "Name another folder with --out, or remove that one first"
    found = [name for name in kept if _holds_something(folder / name)]
    if not found:
        return
    if not path.exists():
        raise InputError(
            f"{folder} holds {found[0]} of a run whose settings are unknown (no {RUN_NAME}). "
            f"{advice}"
        )
    try:
        before = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. {advice}") from None
    if partial and isinstance(before, dict):
        before = {name: value for name, value in before.items() if name in wanted}
    if before != wanted:
        raise InputError(f"{folder} holds another run{difference(before, wanted)}. {advice}")


def _holds_something(path: Path) -> bool:
    """Whether a path is a file, or a folder with one at any depth."""
    return path.is_file() or any(it.is_file() for it in path.rglob("*"))


def bundle_identity(scorer: Scorer) -> dict[str, Any]:
    """Everything a bundle's scores depend on besides images and texts."""
    return {
        "bundle": scorer.manifest.digest,
        "engine": f"{scorer.backend}: {scorer.engine}",
        "mode": scorer.mode,
        "dsd_trt": version("dsd-trt"),
    }


def model_key(model: str, adapter: Path | None, mode: str) -> dict[str, Any]:
    """Everything a PyTorch model's scores depend on besides images and texts.

    Args:
        model: base model: "shapes", a folder, a file or a repository, see `find_model`.
        adapter: folder of a few-shot adapter; None for none.
        mode: mode of scoring, "pair", "matrix" or "auto".
    """
    from dsd_trt.train.diffusion.checkpoint import read_checkpoint
    from dsd_trt.train.run.device import best_device

    return {
        "model": model_identity(read_checkpoint(model)),
        "adapter": adapter and adapter_identity(adapter),
        "engine": f"PyTorch {version('torch')} on {best_device()}",
        "mode": mode,
        "dsd_trt": version("dsd-trt"),
    }


def adapter_identity(folder: Path) -> dict[str, str]:
    """sha256 of an adapter's weights and of its configuration."""
    return {
        "weights": adapter_hash(folder),
        "configuration": hashlib.sha256((folder / "adapter.json").read_bytes()).hexdigest(),
    }


def model_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Hashes of a diffusion model's weights, configuration and tokenizer."""
    configuration = {
        "unet": checkpoint.unet_config,
        "vae": checkpoint.vae_config,
        "text": checkpoint.text_configs,
        "prediction": checkpoint.prediction,
        "alphas_cumprod": checkpoint.alphas_cumprod.tolist(),
        "tokenizer": checkpoint.tokenizer.backend_tokenizer.to_str(),
    }
    text = json.dumps(configuration, sort_keys=True, default=str)
    return {
        "weights": dict(checkpoint.weight_hashes),
        "configuration": hashlib.sha256(text.encode()).hexdigest(),
    }


def question_hash(question: Question) -> str:
    """sha256 of a question: kind, source, texts, content of images, index of the right one."""
    digest, images = hashlib.sha256(), dict[int, bytes]()
    texts = [text for _, text in question.candidates]
    plain = [question.kind, question.source, question.right, texts]
    digest.update(json.dumps(plain).encode())
    for image, _ in question.candidates:
        if id(image) not in images:
            images[id(image)] = _content_hash(image)
        digest.update(images[id(image)])
    return digest.hexdigest()


def questions_hash(questions: Iterable[Question]) -> str:
    """sha256 over all questions' hashes, in their order."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(question_hash(question).encode())
    return digest.hexdigest()


def _content_hash(image: ImageSource) -> bytes:
    """sha256 of an image's file or pixels; all unreadable files have the same one."""
    if isinstance(image, (str, os.PathLike)):
        try:
            content = read_regular(image, IMAGE_BYTES)
        except (OSError, ValueError):
            content = b""
    elif isinstance(image, StoredImage):
        try:
            content = image.content()
        except ImageError:
            content = b""
    elif isinstance(image, bytes):
        content = image
    else:
        pixels = np.asarray(image)
        content = f"{pixels.shape} {pixels.dtype} ".encode() + pixels.tobytes()
    return hashlib.sha256(content).digest()

"""The bundle's MODEL_CARD.md: a summary of the bundle, then the checkpoint's own card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsd_trt.bundle.bfloat16 import bfloat16_rows
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.probability import card_rows
from dsd_trt.errors import counted
from dsd_trt.export.parity import ParityReport
from dsd_trt.train.scoring.adapter_file import CONFIG_NAME, adapter_hash

CARD_NAME = "MODEL_CARD.md"


def write_card(
    path: Path,
    manifest: Manifest,
    parity: ParityReport,
    model: Path,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the bundle's model card.

    Args:
        path: file to write, usually the bundle's `MODEL_CARD.md`.
        manifest: manifest of the bundle.
        parity: parity figures of the export.
        model: folder of the checkpoint; its MODEL_CARD.md or README.md follows the summary.
        training: what the bundle's adapter records of its training; None without an adapter.
    """
    front, body = "", ""
    for name in (CARD_NAME, "README.md"):
        if (model / name).is_file():
            front, body = _split_front_matter((model / name).read_text(encoding="utf-8"))
            break
    if body and (difference := _difference(manifest, model / "adapter")):
        body = f"> {difference}\n\n{body.lstrip()}"
    summary = _summary(manifest, parity, training or {})
    path.write_text(f"{front}{summary}\n{body}".rstrip() + "\n", encoding="utf-8")


def _difference(manifest: Manifest, own: Path) -> str:
    """How the bundle's adapter differs from the one that the model's card describes; "" if not."""
    if not (own / CONFIG_NAME).is_file():
        return ""
    has = manifest.provenance.adapter_hash
    if has == adapter_hash(own):
        return ""
    return (
        "The base model's card follows. What it says of a few-shot adapter, its settings, its "
        "figures and its match probability, holds for the adapter that comes with the model. This "
        f"bundle has {'another one' if has else 'none'}."
    )


def _summary(manifest: Manifest, parity: ParityReport, training: Mapping[str, Any]) -> str:
    method, provenance = manifest.method, manifest.provenance
    layers = ", ".join(map(str, method.score_layers))
    levels = ", ".join(f"{s:g}" for s in method.noise_levels.fractions)
    pooling = f"LogSumExp, lambda {method.lam:g}" if method.pooling == "lse" else method.pooling
    adapter = "with a few-shot adapter" if provenance.adapter_hash else "zero-shot, no adapter"
    revision = f" at {provenance.revision}" if provenance.revision else ""
    lines = [
        f"# Image-text matching scorer made from {provenance.base_model}",
        "",
        "A bundle for dsd-trt: scores how well a text describes an image by the cross-attention "
        "of a diffusion model. `bundle.json` holds all of this in full.",
        "",
        "| | |",
        "|---|---|",
        f"| base model | {provenance.base_model}{revision}, {adapter} |",
        *_trained_on(training),
        f"| precision | {manifest.precision} |",
        f"| image resolution | {manifest.preprocessing.resolution} |",
        f"| scored layers | {len(method.score_layers)}: {layers} |",
        f"| pooling | {pooling} |",
        f"| head weights | {method.head_weights.mode} |",
        f"| noise levels | {levels} (seed {method.noise_levels.seed}) |",
        f"| counted tokens | {method.token_mask} |",
        card_rows(manifest).rstrip(),
        bfloat16_rows(manifest).rstrip(),
        "",
    ]
    if not parity.runs:
        return "\n".join([*lines, "Its export was not compared with PyTorch.", ""])
    lines += [
        f"Parity over {counted(parity.pairs, 'pair')}, against {parity.reference}:",
        "",
        "| graphs on | max score difference | Spearman | top-1 agreement |",
        "|---|---|---|---|",
    ]
    for run in parity.runs:
        score = run.score
        lines.append(
            f"| {run.engine} | {score.max_difference:.2g} | {score.spearman:.6f} "
            f"| {score.top1:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _trained_on(training: Mapping[str, Any]) -> list[str]:
    """The row that says what the adapter learned from, if it is recorded."""
    data, count = training.get("data"), training.get("learned_from")
    if not isinstance(data, str) or not isinstance(count, int):
        return []
    name = data.replace("\\", "/").rpartition("/")[2]  # without the folders of its owner
    return [f"| adapter trained on | {counted(count, 'question')} of {name} |"]


def _split_front_matter(card: str) -> tuple[str, str]:
    """Split off the YAML front matter, which has to stay at the beginning of the card."""
    if card.startswith("---\n") and (end := card.find("\n---\n")) > 0:
        return card[: end + 5], card[end + 5 :]
    return "", card

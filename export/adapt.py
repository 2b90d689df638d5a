"""Replace the adapter of a bundle whose pair scorer takes it as an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dsd_trt.bundle.adapter_input import read_adapter_input, require_fed
from dsd_trt.bundle.bfloat16 import with_bfloat16_rows
from dsd_trt.bundle.folder import Bundle, file_entry, require_inside, write_manifest
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.method import HeadWeights
from dsd_trt.bundle.probability import with_card_rows
from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.engine.tensorrt.plan import PLAN_NAME, SIDECAR_NAME, plans
from dsd_trt.errors import ModelError
from dsd_trt.export.adapter_input import tensors_of, write_adapter_input
from dsd_trt.export.calibration import calibrated, without_shifted
from dsd_trt.export.folder import check_replaceable, staged
from dsd_trt.export.model_card import CARD_NAME
from dsd_trt.export.proof import require_scores
from dsd_trt.export.self_check import write_adapted
from dsd_trt.files.disk import clone_or_copy, require_room
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.adapter_file import adapter_hash


def replace_adapter(
    bundle: Bundle,
    folder: Path,
    out: Path,
    *,
    force: bool = False,
    copied: Callable[[int], None] = lambda size: None,
) -> Bundle:
    """Write a bundle with another adapter; graphs, weights and plans are copied (`clone_or_copy`).

    The new bundle is read back and must score before it replaces the contents of `out`. Until
    then `out` is unchanged.

    Args:
        bundle: a verified bundle that was exported with `--adapter-input`.
        folder: folder of the new adapter.
        out: folder of the new bundle; with `force` it may be the old bundle's.
        force: whether a folder that is not empty is replaced.
        copied: callback `(size)`, called once with the disk space the copies took, in bytes.

    Returns:
        The new bundle, in `out`.

    Raises:
        InputError: the bundle's adapter is folded into its graphs, or `out` cannot be used or
            written to.
        ModelError: the adapter does not fit the graphs, or its scores are not finite.
        BundleError: the new bundle cannot be read back.
        EngineError: no engine is installed, or the installed one refuses the bundle.
    """
    check_replaceable(out, force)
    input_ = require_fed(bundle)
    adapter, manifest = Adapter.load(folder), bundle.manifest
    layers = manifest.method.score_layers
    heads = [len(weights) for weights in manifest.method.head_weights.values]
    _require_fit(adapter, manifest, layers, heads)
    head_weights = tuple(tuple(each.tolist()) for each in adapter.weights_of(layers, heads))
    parity = dict(manifest.parity)
    parity.setdefault("adapter_hash", manifest.provenance.adapter_hash)
    described = replace(
        manifest,
        method=replace(
            manifest.method,
            head_weights=HeadWeights(adapter.head_mode, head_weights),
            denoising_weight=adapter.denoising_weight,
            trained_for=adapter.mode,
        ),
        preprocessing=replace(manifest.preprocessing, resize=adapter.resize),
        provenance=replace(manifest.provenance, adapter_hash=adapter_hash(folder)),
        parity=parity,
        bfloat16=None,  # it was the previous adapter's; measured again where it is asked for
    )
    described = without_shifted(calibrated(described, adapter))
    check = [manifest.self_check.file] if manifest.self_check else []
    changed = [name for name in (input_.file, *check, CARD_NAME) if name in manifest.files]
    kept = [name for name in manifest.files if name not in changed]
    for plan in plans(bundle.folder):
        place = plan.folder.relative_to(bundle.folder)
        of_plan = [(place / name).as_posix() for name in (PLAN_NAME, SIDECAR_NAME)]
        for name in of_plan:
            require_inside(bundle.folder, name, Snapshot.around(bundle.folder))
        kept += of_plan
    require_room(
        out,
        map(bundle.path, kept),
        "the adapted bundle",
        "Give a folder on another disk: --out BUNDLE",
    )
    taken = 0
    # Files that the manifest does not name were never verified, so they are not copied.
    with staged(out) as (fresh, _):
        for name in kept:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            taken += clone_or_copy(bundle.path(name), fresh / name)
        write_adapter_input(fresh / input_.file, adapter, layers, heads)
        if check:
            fed = read_adapter_input(fresh / input_.file)
            write_adapted(fresh / check[0], bundle, fed)
        if CARD_NAME in changed:
            card = bundle.path(CARD_NAME).read_text(encoding="utf-8")
            card = _note(with_bfloat16_rows(with_card_rows(card, described), described))
            (fresh / CARD_NAME).write_text(card, encoding="utf-8")
        files = {**manifest.files, **{name: file_entry(fresh / name) for name in changed}}
        adapted = write_manifest(fresh, replace(described, files=files))
        require_scores(fresh, "Train the adapter again")
    copied(taken)
    return replace(adapted, folder=out)


def _require_fit(
    adapter: Adapter, manifest: Manifest, layers: Sequence[int], heads: Sequence[int]
) -> None:
    """Refuse an adapter that needs other graphs.

    Raises:
        ModelError: the checkpoint, score, tensor shapes, head mode, levels or mode differ.
    """
    adapter.require_base(manifest.provenance.weight_hashes)
    assert manifest.adapter is not None
    tensors = {name: tuple(it.shape) for name, it in tensors_of(adapter, layers, heads).items()}
    dynamic = [mode == "dynamic" for mode in (adapter.head_mode, manifest.method.head_weights.mode)]
    scores = (adapter.score, manifest.method.score)
    same_levels = adapter.levels in ((), manifest.method.noise_levels.fractions)
    for fits, complaint in (
        (not adapter.merged, "changes weights of the U-Net itself, which are no input"),
        (
            scores[0] == scores[1],
            f'was trained for the score "{scores[0]}", and they compute "{scores[1]}"',
        ),
        (tensors == dict(manifest.adapter.tensors), "has tensors of other sizes than the input's"),
        (
            dynamic[0] == dynamic[1],
            "and the previous adapter differ, for only one weighs heads dynamically",
        ),
        (same_levels, "was trained at other noise levels"),
        (adapter.mode != "matrix", "was trained for matrix mode, and the graphs score pairs"),
    ):
        if not fits:
            raise ModelError(
                f"the graphs cannot take this adapter: it {complaint}. Export again: dsd-trt "
                "export --adapter ADAPTER --adapter-input"
            )


def _note(card: str) -> str:
    """Add a note to the card: its parity figures belong to the previous adapter."""
    note = "The adapter was replaced after the export; the parity figures are of the one before it."
    return card if note in card else f"{card}\n{note}\n"

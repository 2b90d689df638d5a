"""What a bundle's description tells of a command's options, before anything long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dsd_trt.bundle.folder import read_manifest
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.bundle.method import Mode
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.mode import wanted_mode
from dsd_trt.scoring_arguments import level_indices


def require_bundle(
    bundle: str | None, mode: Mode | Literal["auto"], levels: Sequence[float] | None
) -> tuple[Manifest, Mode]:
    """Refuse a bundle that is none, or lacks a mode or a level; its other files are not read.

    Args:
        bundle: path of a folder or a repository on the Hugging Face Hub; None is the
            demonstration's.
        mode: mode to score in.
        levels: noise levels to average over; None is all of the bundle's.

    Returns:
        Its manifest, and the mode that it will be scored in.

    Raises:
        BundleError: there is no such bundle, or its `bundle.json` cannot be read.
        InputError: it lacks the mode, or one of the levels.
    """
    manifest = read_manifest(bundle_folder(bundle))
    level_indices(manifest, levels)
    return manifest, wanted_mode(manifest, mode)

"""Fetching from the Hugging Face Hub: what was asked for, and nothing else of a repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from dsd_trt.errors import ModelError


def fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Fetch files of a repository, unless they are in the hub's cache already.

    `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` mean what they mean everywhere.

    Args:
        repository: ORG/NAME.
        revision: branch, tag or commit; None is the main branch.
        patterns: of the files' paths.

    Returns:
        The snapshot's folder, which is named by its commit.

    Raises:
        ModelError: it is not in the cache and the hub cannot be reached, or does not hand it out.
    """
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        if hasattr(error, "snapshot_path"):  # IncompleteSnapshotError, of newer releases
            raise ModelError(
                f"{repository} is in the Hugging Face Hub's cache, but not whole: {error}"
            ) from error
        raise ModelError(
            f"no folder {repository!r}, and no model of that name from the Hugging Face Hub: it is "
            "not in the cache (HF_HOME), and the hub cannot be reached or HF_HUB_OFFLINE is set"
        ) from error
    except Exception as error:  # of the libraries it uses, which have no base in common
        raise ModelError(
            f"no folder {repository!r}, and the Hugging Face Hub does not hand it out: {error}"
        ) from error

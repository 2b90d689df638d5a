"""Download of selected files from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from dsd_trt.errors import ModelError


def fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download files of a repository, unless they are in the hub's cache.

    The environment variables `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` apply.

    Args:
        repository: name of the repository, ORG/NAME.
        revision: branch, tag or commit; None is the main branch.
        patterns: glob patterns of the files' paths.

    Returns:
        Folder of the snapshot, named by its commit.

    Raises:
        ModelError: the files are not in the cache, and the hub cannot be reached or refuses them.
    """
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        if hasattr(error, "snapshot_path"):  # IncompleteSnapshotError, in newer releases
            raise ModelError(
                f"{repository} is in the Hugging Face Hub's cache, but incomplete: {error}"
            ) from error
        raise ModelError(
            f"no folder {repository!r}, and no model of that name from the Hugging Face Hub: it is "
            "not in the cache (HF_HOME), and the hub cannot be reached or HF_HUB_OFFLINE is set"
        ) from error
    except Exception as error:  # errors of several libraries without a common base
        raise ModelError(
            f"no folder {repository!r}, and the Hugging Face Hub refuses it: {error}"
        ) from error

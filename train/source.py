"""Where a model comes from: the package itself, a folder, or the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from dsd_trt.errors import ModelError

EMBEDDED = "shapes"
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# What is read, and no more: repositories hold every weight several times over.
_FILES = (
    *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/*"),
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    *(
        f"{part}/diffusion_pytorch_model{shard}"
        for part in ("unet", "vae")
        for shard in (".safetensors", "-0*.safetensors", ".safetensors.index.json")
    ),
    "text_encoder/model.safetensors",
)


@dataclass(frozen=True)
class ModelSource:
    """A model in diffusers' format, on this machine.

    Attributes:
        name: how a bundle names it; says nothing of this machine's folders.
        folder: where it lies.
        revision: the commit it is, of a model from the hub.
    """

    name: str
    folder: Path
    revision: str | None = None


def find_model(model: str | Path) -> ModelSource:
    """Find a model; one from the hub is fetched unless it is in the hub's cache already.

    `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` mean what they mean everywhere.

    Args:
        model: "shapes" for the embedded model; a folder in diffusers' format; or
            "ORG/NAME[@REVISION]", a repository on the Hugging Face Hub.

    Raises:
        ModelError: there is none, or the hub cannot be reached.
    """
    if str(model) == EMBEDDED:
        return ModelSource(EMBEDDED, embedded_model_folder())
    if Path(model).is_dir():
        return ModelSource(Path(model).resolve().name, Path(model))
    if found := _HUB_ID.fullmatch(str(model)):
        return _from_hub(found["repo"], found["revision"])
    raise ModelError(
        f"no model {str(model)!r}: give a folder in diffusers' format, a repository on the "
        f'Hugging Face Hub (ORG/NAME or ORG/NAME@REVISION), or "{EMBEDDED}"'
    )


def embedded_model_folder() -> Path:
    """Where the embedded model lies in the installed package."""
    return Path(str(files("dsd_trt") / "data" / "shapes-model"))


def _from_hub(repo: str, revision: str | None) -> ModelSource:
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_FILES)))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"no folder {repo!r}, and no model of that name from the Hugging Face Hub: it is not "
            "in the cache (HF_HOME), and the hub cannot be reached or HF_HUB_OFFLINE is set"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"no folder {repo!r}, and the Hugging Face Hub does not hand it out: {error}"
        ) from error
    return ModelSource(repo, folder, folder.name)  # a snapshot's folder is named by its commit

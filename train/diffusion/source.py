"""Sources of models: the package itself, a folder, a single file, or the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dsd_trt.bundle.hub import Repository
from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.folder import WEIGHT_NAMES, ModelFolder
from dsd_trt.train.diffusion.hub import fetch
from dsd_trt.train.diffusion.single_file import SingleFile
from dsd_trt.train.diffusion.weights import has_weights, weight_patterns

EMBEDDED = "shapes"
_FILE = re.compile(r"(?P<path>.+\.safetensors)(@(?P<family>[^@/]+))?")
# The files that are read; repositories hold every weight in several formats.
_SMALL = (
    *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/*", "tokenizer_2/*"),
    *(f"{part}/config.json" for part in WEIGHT_NAMES),
)


@dataclass(frozen=True)
class ModelSource:
    """The local files of a model.

    Attributes:
        name: name of the model in a bundle, without local folders.
        parts: folder or single file that the parts are read from.
        revision: commit of a model from the hub; None for any other.
    """

    name: str
    parts: ModelFolder | SingleFile
    revision: str | None = None


def find_model(model: str | Path) -> ModelSource:
    """Find a model, downloading it from the hub if it is not in the hub's cache.

    Args:
        model: "shapes" for the demonstration; a folder in diffusers' format; a single file,
            "FILE.safetensors[@FAMILY]"; or a repository on the Hugging Face Hub,
            "ORG/NAME[@REVISION]".

    Raises:
        ModelError: the model does not exist, or the hub cannot be reached.
    """
    if str(model) == EMBEDDED:
        return ModelSource(EMBEDDED, ModelFolder(embedded_model_folder()))
    if Path(model).is_dir():
        return ModelSource(Path(model).resolve().name, ModelFolder(Path(model)))
    if (found := _FILE.fullmatch(str(model))) and Path(found["path"]).is_file():
        path = Path(found["path"])
        return ModelSource(path.stem, SingleFile(path, found["family"]))
    if named := Repository.named(str(model)):
        return _from_hub(named.name, named.revision)
    raise ModelError(
        f"no model {str(model)!r}: give a folder in diffusers' format, a .safetensors file "
        "(FILE or FILE@FAMILY), a repository on the Hugging Face Hub "
        f'(ORG/NAME@REVISION, or ORG/NAME where no folder ORG is here), or "{EMBEDDED}"'
    )


def embedded_model_folder() -> Path:
    """Folder of the demonstration in the installed package."""
    return Path(str(files("dsd_trt") / "data" / "shapes-model"))


def _from_hub(repository: str, revision: str | None) -> ModelSource:
    parts = ModelFolder(fetch(repository, revision, (*_SMALL, *_weights(WEIGHT_NAMES, ""))))
    # Parts that are published in FP16 alone.
    lacking = {
        part: name
        for part, name in WEIGHT_NAMES.items()
        if parts.has(part) and not has_weights(parts.path / part, name)
    }
    if lacking:
        # The same commit: the branch may have moved on since the first download.
        commit = parts.path.name
        parts = ModelFolder(fetch(repository, commit, (*_SMALL, *_weights(lacking, ".fp16"))))
    return ModelSource(repository, parts, parts.path.name)


def _weights(names: Mapping[str, str], variant: str) -> list[str]:
    """Patterns of a variant's weight files, single or sharded."""
    return [
        f"{part}/{pattern}"
        for part, name in names.items()
        for pattern in weight_patterns(name, variant)
    ]

"""Sources of models: a place with its parts, which are read on demand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsd_trt.train.diffusion.folder import ModelFolder
from dsd_trt.train.diffusion.place import find_place
from dsd_trt.train.diffusion.single_file import SingleFile


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
        model: name of the model, see `find_place`.

    Raises:
        ModelError: the model does not exist, the hub cannot be reached, or a single file is not
            of a known family.
    """
    place = find_place(model)
    folder = place.path.is_dir()
    parts = ModelFolder(place.path) if folder else SingleFile(place.path, place.family)
    return ModelSource(place.name, parts, place.revision)

"""What a reproduction measures: methods, data sets and sizes; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dsd_trt.files.folders import require_writable
from dsd_trt.train.baselines.folder import require_clip
from dsd_trt.train.data.catalogue import FEW_SHOT, open_dataset, require_files
from dsd_trt.train.diffusion.place import find_place, require_model
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.question import Question
from dsd_trt.train.run_key import adapter_identity, refuse_another
from dsd_trt.train.scoring.adapter_file import AdapterFile

REAL = ("comvg", "refcocog", "vqav2")
SHAPES = ("shapes-comvg", "shapes-refcocog", "shapes-vqa")
LIBRARIES = ("dsd-trt", "torch", "diffusers", "transformers")
"""Libraries whose versions a report states."""

ABLATION = "ablation"
"""Subfolder of the ablations; the others are named for the data sets."""


@dataclass(frozen=True)
class Study:
    """The methods, data sets and sizes of a reproduction.

    Attributes:
        model: base model: "shapes", a folder, a file or a repository, see `find_model`.
        clip: folder of a CLIP for the baselines; None leaves the baselines out.
        root: folder with one subfolder per data set; None measures on drawn shapes instead.
        questions: test questions per data set; None means no limit.
        examples: few-shot questions per data set; None means no limit beside `fraction`.
        settings: hyperparameters of few-shot training.
        fraction: share of the training set used for few-shot training, in [0, 1].
        seed: random seed of splits, training, bootstrap and ablations.
    """

    model: str
    clip: Path | None
    root: Path | None
    questions: int | None
    examples: int | None
    settings: FewShotSettings
    fraction: float = FEW_SHOT
    seed: int = 0

    @property
    def data(self) -> tuple[str, ...]:
        """Names of the data sets: the paper's, or those of shapes without `root`."""
        return SHAPES if self.root is None else REAL

    @property
    def kept(self) -> tuple[str, ...]:
        """Subfolders of the output folder whose results are reused."""
        return (*self.data, ABLATION)

    def open(self, data: str, part: str) -> Iterator[Question]:
        """Questions of a data set, see `open_dataset`.

        Args:
            data: name of the data set.
            part: part of the data set, "train" or "test".
        """
        limit = self.questions if part == "test" else self.examples
        root = Path() if self.root is None else self.root / data
        return open_dataset(data, root, part, self.seed, limit, self.fraction)

    @property
    def own_adapter(self) -> Path | None:
        """Folder of the model's own adapter, a method of its own; None if it has none."""
        return find_place(self.model).own_adapter

    def key(self) -> dict[str, Any]:
        """What the results depend on, as far as it is known before a model is read."""
        own = self.own_adapter
        return {
            **({} if own is None else {"own adapter": adapter_identity(own)}),
            "data": list(self.data),
            "settings": asdict(self.settings),
            "questions": self.questions,
            "examples": self.examples,
            "fraction": self.fraction,
            "seed": self.seed,
            "versions": {name: version(name) for name in LIBRARIES},
        }

    def require(self, out: Path) -> None:
        """Refuse what the arguments and their files tell, before PyTorch is imported.

        Args:
            out: output folder of the reproduction.

        Raises:
            InputError: `out` cannot be written to or holds another reproduction, or a file of a
                data set is missing.
            ModelError: there is no such model or CLIP, or the model's own adapter cannot be read.
        """
        require_writable(out)
        require_model(find_place(self.model))
        if self.own_adapter is not None:
            AdapterFile.read(self.own_adapter)
        refuse_another(out, self.key(), self.kept, partial=True)
        if self.clip is not None:
            require_clip(self.clip)
        if self.root is not None:
            for data in self.data:
                require_files(data, self.root / data)

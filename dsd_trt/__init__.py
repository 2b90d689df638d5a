"""Stable Diffusion as an image-text matching scorer: the lean runtime.

```python
from dsd_trt import Scorer

scorer = Scorer.load()
matrix = scorer.score(["photo.jpg"], ["a red circle", "a blue square"])
```

Public names are imported on first use, so that `import dsd_trt` is fast.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsd_trt import telemetry

telemetry.turn_off()

# A clone without symbolic links, as on Windows or from some archives, has text files in the place
# of its three other folders, which lie beside this one.
_FOLDER = Path(__file__).parent
if not (_FOLDER / "train").is_dir() and (_FOLDER.parent / "train" / "commands").is_dir():
    __path__.append(str(_FOLDER.parent))

if TYPE_CHECKING:
    from dsd_trt.bundle.folder import Bundle, read_bundle, write_bundle
    from dsd_trt.bundle.manifest import Manifest
    from dsd_trt.engine import Engine, EngineDescription
    from dsd_trt.errors import (
        BundleError,
        DsdError,
        EngineError,
        ImageError,
        InputError,
        MissingExtraError,
    )
    from dsd_trt.explanation import Contrast, Explanation
    from dsd_trt.failure import Failure
    from dsd_trt.image.preprocess import ImageSource
    from dsd_trt.index.index import Index, IndexedImage
    from dsd_trt.index.writer import IndexUpdate, update_index
    from dsd_trt.ranking import RankedImage, RankedText
    from dsd_trt.results import PairScores, Progress, ScoreMatrix
    from dsd_trt.scorer import Scorer
    from dsd_trt.words import Word

__all__ = [
    "Bundle",
    "BundleError",
    "Contrast",
    "DsdError",
    "Engine",
    "EngineDescription",
    "EngineError",
    "Explanation",
    "Failure",
    "ImageError",
    "ImageSource",
    "Index",
    "IndexUpdate",
    "IndexedImage",
    "InputError",
    "Manifest",
    "MissingExtraError",
    "PairScores",
    "Progress",
    "RankedImage",
    "RankedText",
    "ScoreMatrix",
    "Scorer",
    "Word",
    "read_bundle",
    "update_index",
    "write_bundle",
]

_HOMES = {
    "bundle.folder": ("Bundle", "Manifest", "read_bundle", "write_bundle"),
    "engine": ("Engine", "EngineDescription"),
    "errors": (
        "BundleError",
        "DsdError",
        "EngineError",
        "ImageError",
        "InputError",
        "MissingExtraError",
    ),
    "explanation": ("Contrast", "Explanation"),
    "failure": ("Failure",),
    "image.preprocess": ("ImageSource",),
    "index.index": ("Index", "IndexedImage"),
    "index.writer": ("IndexUpdate", "update_index"),
    "ranking": ("RankedImage", "RankedText"),
    "results": ("PairScores", "Progress", "ScoreMatrix"),
    "scorer": ("Scorer",),
    "words": ("Word",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dsd_trt.{home}"), name)
    raise AttributeError(f"module 'dsd_trt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

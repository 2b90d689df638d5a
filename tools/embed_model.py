"""Embed a finished run of `dsd-trt pretrain shapes` into the package, with its model card.

python tools/embed_model.py RUN

Writes dsd_trt/data/shapes-model, dsd_trt/data/shapes-bundle, docs/shapes-losses.png and
docs/shapes-samples.png. The card has two sets of figures. Those on scenes of the generator come
from the run. Those on scenes of the other renderer (tests/support/other_renderer.py) are measured
here, with the bundle.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsd_trt import Scorer
from dsd_trt.errors import DsdError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.files.folders import whole_folder
from dsd_trt.train.diffusion.place import EMBEDDED, embedded_model_folder, find_place
from dsd_trt.train.shapes.card import model_card

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from held_out import figures, grade, write_questions

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "dsd_trt" / "data" / "shapes-bundle"
PICTURES = ("losses.png", "samples.png")
ADAPTER = "model/adapter/adapter.json"
NEEDED = ("model/model_index.json", ADAPTER, "plan.json", *PICTURES)
QUESTIONS, SEED = 1440, 0  # number of image choices; text choices are half as many


def other_renderer(model: Path, adapter: Path | None) -> dict[str, float]:
    """Accuracy in percent on scenes of the other renderer, with or without the adapter."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle, _ = export_bundle(ExportSettings(str(model), adapter), folder / "bundle")
        pairs, questions = write_questions(folder, QUESTIONS, SEED)
        scored = Scorer(bundle).score_pairs(pairs)
        return figures(grade(scored.scores, questions))


def read_training(run: Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        ValueError: the folder is not that of a finished run; the message says what it lacks.
    """
    if lacking := [name for name in NEEDED if not (run / name).is_file()]:
        raise ValueError(
            f"{run} is no finished run of dsd-trt pretrain shapes: it has no {lacking[0]}"
        )
    training = json.loads((run / ADAPTER).read_text(encoding="utf-8"))["training"]
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    if "held_out" not in training:
        raise ValueError(f"{run / ADAPTER} has no figures of held-out scenes")
    return {**training, "plan": plan}


def embed(run: Path, training: Mapping[str, Any]) -> str:
    """Replace the demonstration and bundle by a run's, and return the model card."""
    model = run / "model"
    tables = {
        **training["held_out"],
        "zero-shot, other renderer": other_renderer(model, None),
        "few-shot, other renderer": other_renderer(model, model / "adapter"),
    }
    card = model_card(training, tables)
    with whole_folder(embedded_model_folder()) as fresh:  # all of it, or the previous one stays
        shutil.copytree(model, fresh, dirs_exist_ok=True)
        (fresh / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    export_bundle(ExportSettings(EMBEDDED, find_place(EMBEDDED).own_adapter), BUNDLE, force=True)
    for name in PICTURES:
        shutil.copyfile(run / name, ROOT / "docs" / f"shapes-{name}")
    return card


def main() -> None:
    """Embed the run given on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the finished run")
    run = parser.parse_args().run
    try:
        print(embed(run, read_training(run)))
    except (DsdError, OSError, ValueError, KeyError) as error:
        sys.exit(f"{error!r}" if isinstance(error, KeyError) else str(error))


if __name__ == "__main__":
    main()

"""Embed a finished run of `dsd-trt pretrain shapes` into the package, with its model card.

python tools/embed_model.py RUN

Writes dsd_trt/data/shapes-model, dsd_trt/data/shapes-bundle, docs/shapes-losses.png and
docs/shapes-samples.png. The card has two sets of figures. Those on scenes of the generator come
from the run. Those on scenes of the other renderer (tests/support/other_renderer.py) are measured
here, with the bundle.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from dsd_trt import Scorer
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings, default_adapter
from dsd_trt.train.diffusion.source import EMBEDDED, embedded_model_folder
from dsd_trt.train.shapes.card import model_card

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from held_out import figures, grade, write_questions

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "dsd_trt" / "data" / "shapes-bundle"
QUESTIONS, SEED = 1440, 0  # number of image choices; text choices are half as many


def other_renderer(adapter: Path | None) -> dict[str, float]:
    """Accuracy in percent on scenes of the other renderer, with or without the adapter."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle, _ = export_bundle(ExportSettings(EMBEDDED, adapter), folder / "bundle")
        pairs, questions = write_questions(folder, QUESTIONS, SEED)
        scored = Scorer(bundle).score_pairs(pairs)
        return figures(grade(scored.scores, questions))


def main() -> None:
    """Embed the run given on the command line."""
    run, model = Path(sys.argv[1]), embedded_model_folder()
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(run / "model", model)
    adapter = default_adapter(EMBEDDED)
    assert adapter is not None
    training = json.loads((adapter / "adapter.json").read_text(encoding="utf-8"))["training"]
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    tables = {
        **training["held_out"],
        "zero-shot, other renderer": other_renderer(None),
        "few-shot, other renderer": other_renderer(adapter),
    }
    card = model_card({**training, "plan": plan}, tables)
    (model / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    export_bundle(ExportSettings(EMBEDDED, adapter), BUNDLE, force=True)
    for name in ("losses.png", "samples.png"):
        shutil.copyfile(run / name, ROOT / "docs" / f"shapes-{name}")
    print(card)


if __name__ == "__main__":
    main()

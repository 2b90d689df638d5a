"""Embed a finished run of `dsd-trt pretrain shapes` into the package, with its model card.

python tools/embed_model.py RUN
python tools/embed_model.py --imitated ADAPTER
python tools/embed_model.py --maps

RUN is embedded with its adapter, for which token heads and lists are made as by `dsd-trt imitate
--data shapes-edits --measure-on shapes-refcocog`. --imitated gives the embedded adapter the token
heads and lists of ADAPTER, which that command made of it with options of your own, such as a
greater --limit. Pair mode stays as it is to the bit. --maps gives the embedded bundle the graph of
its attention maps, if it has none, and leaves all other files as they are.

Writes dsd_trt/data/shapes-model, dsd_trt/data/shapes-bundle, and of a run docs/shapes-losses.png
and docs/shapes-samples.png. The card has two sets of figures. Those on scenes of the generator come
from the run. Those on scenes of the other renderer (tests/support/other_renderer.py) are measured
here, with the bundle.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsd_trt import Scorer
from dsd_trt.bundle.folder import read_bundle
from dsd_trt.errors import DsdError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.maps import add_maps
from dsd_trt.export.settings import ExportSettings
from dsd_trt.files.folders import whole_folder
from dsd_trt.train.diffusion.place import EMBEDDED, embedded_model_folder, find_place
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.shapes.card import model_card, with_imitation

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from held_out import figures, grade, write_questions

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "dsd_trt" / "data" / "shapes-bundle"
PICTURES = ("losses.png", "samples.png")
CARD = "MODEL_CARD.md"
ADAPTER = "model/adapter/adapter.json"
NEEDED = ("model/model_index.json", ADAPTER, "plan.json", *PICTURES)
QUESTIONS, SEED = 1440, 0  # number of image choices; text choices are half as many
IMITATE = ("imitate", "--data", "shapes-edits", "--measure-on", "shapes-refcocog")
PAIR_MODE = (
    *("prompt_config", "prompt_state", "head_mode", "head_weights", "score", "denoising_weight"),
    *("a", "b", "levels", "base", "resize", "mode", "merged"),
)
"""Attributes of an adapter that pair mode's scores and probabilities depend on."""


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


def with_token_heads(own: Path, imitated: Path) -> Adapter:
    """The adapter of a model with the token heads and lists of an imitated copy.

    Args:
        own: folder of the model's adapter; prompts in FP16, as a run writes them.
        imitated: folder of what `dsd-trt imitate` made of it.

    Raises:
        ValueError: the imitated adapter has none, or another pair mode than the model's.
        ModelError: one of them cannot be read.
    """
    before, after = Adapter.load(own), Adapter.load(imitated)
    if after.lists is None:
        raise ValueError(
            f"{imitated} has no lists: make an adapter that has, with "
            f"dsd-trt {' '.join(IMITATE)} --out ADAPTER"
        )
    if different := [name for name in PAIR_MODE if plain(before, name) != plain(after, name)]:
        raise ValueError(
            f"{imitated} was not made from {own}: its {different[0]} differs. Imitate that adapter"
        )
    halves = {name: value.half() for name, value in after.prompt_state.items()}
    record = {**before.training, "imitation": after.training["imitation"]}
    return replace(after, prompt_state=halves, training=record)


def plain(adapter: Adapter, name: str) -> object:
    """An attribute of an adapter, with numbers in the place of tensors."""
    value = getattr(adapter, name)
    if isinstance(value, Mapping):
        return {key: getattr(it, "tolist", lambda it=it: it)() for key, it in value.items()}
    return [it.tolist() for it in value] if name == "head_weights" else value


def embed(run: Path, training: Mapping[str, Any]) -> str:
    """Replace the demonstration and bundle by a run's, and return the model card."""
    model = run / "model"
    own = model / "adapter"
    tables = {
        **training["held_out"],
        "zero-shot, other renderer": other_renderer(model, None),
        "few-shot, other renderer": other_renderer(model, own),
    }
    with tempfile.TemporaryDirectory() as scratch:
        command = [*IMITATE, "--model", str(model), "--out", scratch]
        subprocess.run([sys.executable, "-m", "dsd_trt", *command], check=True)
        adapter = with_token_heads(own, Path(scratch))
    card = replace_embedded(model, adapter, model_card(training, tables))
    for name in PICTURES:
        shutil.copyfile(run / name, ROOT / "docs" / f"shapes-{name}")
    return card


def embed_imitated(imitated: Path) -> str:
    """Give the embedded adapter token heads and lists, and return the model card."""
    model = embedded_model_folder()
    adapter = with_token_heads(model / "adapter", imitated)
    return replace_embedded(model, adapter, (model / CARD).read_text(encoding="utf-8"))


def replace_embedded(model: Path, adapter: Adapter, card: str) -> str:
    """Replace the demonstration by a model, an adapter and a card, and its bundle by theirs.

    Returns:
        The card, with the settings of the adapter's imitation.
    """
    card = with_imitation(card, adapter.training["imitation"])
    with whole_folder(embedded_model_folder()) as fresh:  # all of it, or the previous one stays
        adapters = shutil.ignore_patterns("adapter")
        shutil.copytree(model, fresh, ignore=adapters, dirs_exist_ok=True)
        adapter.save(fresh / "adapter")
        (fresh / CARD).write_text(card, encoding="utf-8")
    own = find_place(EMBEDDED).own_adapter
    export_bundle(ExportSettings(EMBEDDED, own, matrix=True, maps=True), BUNDLE, force=True)
    return card


def main() -> None:
    """Embed what is given on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of the run")
    given.add_argument("--imitated", type=Path, metavar="ADAPTER", help="folder of the adapter")
    given.add_argument("--maps", action="store_true", help="add the graph of the attention maps")
    arguments = parser.parse_args()
    try:
        if arguments.maps:
            print(add_maps(read_bundle(BUNDLE)).path("maps.onnx"))
        elif arguments.imitated is not None:
            print(embed_imitated(arguments.imitated))
        else:
            print(embed(arguments.run, read_training(arguments.run)))
    except (DsdError, OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
        sys.exit(f"{error!r}" if isinstance(error, KeyError) else str(error))


if __name__ == "__main__":
    main()

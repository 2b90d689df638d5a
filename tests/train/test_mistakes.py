"""Mistakes in arguments and files are refused before the training stack is imported.

It takes seconds to import, and what it would be used for cannot be done.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import without_training
from advice import foreign_options
from bundles import make_bundle
from checkpoints import LAYERS, write_adapter, write_checkpoint
from PIL import Image
from safetensors.torch import save_file
from test_baselines import write_clip

from dsd_trt.commands.main import SUBCOMMANDS
from dsd_trt.train.scoring.adapter import Adapter

DATA = {
    "good.csv": "image,text,label\na.png,a dog,1\na.png,a cat,0\nb.png,a cow,1\nb.png,a hen,0\n",
    "header.csv": "image,text,label\n",
    "empty.csv": "",
    "no-text.csv": "image,label\na.png,1\n",
    "zeros.csv": "image,text,label\na.png,a dog,0\nb.png,a cow,0\n",
    "maybe.csv": "image,text,label\na.png,a dog,maybe\na.png,a cat,never\n",
    "gone.csv": "image,text,label\nnone.png,a dog,1\nnone.png,a cat,0\n",
    "one-text.csv": "image,text\na.png,a dog\nb.png,the dog\n",
    "both.csv": "image,text,label,negatives\na.png,a dog,1,a cat\n",
    "twice.csv": "image,text,text,label\na.png,a dog,a cat,1\n",
    "list.json": "[]",
    "swapped.csv": "text,image,label\na.png,a dog,1\na.png,a cat,0\n",
}
# (option and value, what the message says), of every command that takes a data set.
DATA_MISTAKES = [
    ("--data unheard-of", "no data set 'unheard-of'"),
    ("--data none.csv", "cannot read the table 'none.csv'"),
    ("--data header.csv", "header.csv has no rows"),
    ("--data empty.csv", "empty.csv is empty"),
    ("--data no-text.csv", "no column 'text' among 'image', 'label'"),
    ("--data zeros.csv", "no row of zeros.csv that can be used has the label 1"),
    ("--data maybe.csv", "label must be 0 or 1, no or yes, false or true, got 'maybe'"),
    ("--data gone.csv", "no image file 'none.png'"),
    ("--data one-text.csv", "no text that could be a negative"),
    ("--data both.csv", "has both 'label' and 'negatives'"),
    ("--data twice.csv", "the column 'text' is there twice"),
    ("--data list.json", "is a JSON list"),
    ("--data a.png", "it is an image"),
    ("--data good.csv --text-column caption", "no column 'caption'"),
    ("--data good.csv --label-column ok", "no column 'ok'"),
    ("--data good.csv --id-column key", "no column 'key'"),
    ("--data shapes-comvg --text-column caption", "shapes-comvg is no table"),
    ("--data comvg", "no file 'compositional_visual_genome.csv'"),
    ("--data comvg --text-column caption", "comvg is no table"),
    ("--data refcocog", "no file 'refs(google).p'"),
    ("--data vqav2", "no file 'v2_mscoco_train2014_annotations.json'"),
    ("--data winoground", "no file 'examples.jsonl'"),
    ("--data good.csv --root nowhere", "Directory 'nowhere' does not exist"),
    ("--data good.csv --seed=-1", "-1 is not in the range"),
    ("", "Missing option '--data'"),
]
OF_DATA = {
    "train": "train --model model --from none --out new",
    "imitate": "imitate --model model --adapter none --out new",
    "eval": "eval bundle",
    "eval of a model": "eval model --adapter none",
    "baseline": "baseline clip --method zero-shot",
    "ablate": "ablate --model model --adapter none --out new",
}
MODEL_MISTAKES = [
    ("nowhere", "no model 'nowhere'"),
    ("bundle", "bundle is a bundle"),
    ("adapter", "adapter is an adapter"),
    ("nothing", "is not a Stable Diffusion checkpoint"),
    ("weights.ckpt", "is a pickle"),
    ("lora.safetensors", "is a LoRA"),
    ("other.safetensors@sd99", "there is no family 'sd99'"),
]
OF_MODEL = {
    "train": "train --data good.csv --out new --model",
    "imitate": "imitate --data good.csv --out new --model",
    "eval": "eval --data good.csv",
    "ablate": "ablate --data good.csv --out new --model",
    "reproduce": "reproduce --out new --model",
    "export": "export --out new --model",
}
ADAPTER_MISTAKES = [
    ("nowhere", "no adapter folder 'nowhere'"),
    ("nothing", "no adapter in nothing"),
    ("finished", "training in finished has not finished"),
    ("around", "there is one in around/adapter"),
    ("torn", "is missing, or not the file"),
    ("foreign", "trained on another model: text_encoder/model.safetensors differs"),
    ("shallow", f"another model: it has {LAYERS - 1} layers, and model has {LAYERS}"),
]
OF_ADAPTER = {
    "train": "train --data good.csv --model model --out new --from",
    "imitate": "imitate --data good.csv --model model --out new --adapter",
    "eval": "eval model --data good.csv --adapter",
    "ablate": "ablate --data good.csv --model model --out new --adapter",
    "export": "export --model model --out new --adapter",
}
OF_OUT = {
    "train": "train --data good.csv --model model --from none --out",
    "imitate": "imitate --data good.csv --model model --adapter none --out",
    "eval": "eval bundle --data good.csv --out",
    "baseline": "baseline clip --method zero-shot --data good.csv --out",
    "ablate": "ablate --data good.csv --model model --out",
    "reproduce": "reproduce --model model --out",
    "export": "export --model model --adapter none --out",
    "adapt": "adapt bundle adapter --out",
    "pretrain shapes": "pretrain shapes --out",
    "pretrain tiny-clip": "pretrain tiny-clip --out",
    "make-random": "make-random --family sd15 --out",
}
OTHERS = [
    # Another run in the folder of the output.
    ("train --data good.csv --model model --from none --out finished", "other settings: data was"),
    ("eval bundle --data good.csv --out answered", "holds another run: data was"),
    ("eval bundle --data good.csv --seed 3 --out answered", "holds another run"),
    ("eval model --adapter none --data good.csv --out answered", "holds another run"),
    ("eval bundle --data good.csv --out unknown", "whose settings are unknown"),
    ("reproduce --model model --out reproduced", "holds another run"),
    ("pretrain shapes --out pretrained", "other settings"),
    ("pretrain tiny-clip --out tiny", "other settings"),
    ("export --model model --adapter none --out bundle", "is not empty"),
    ("adapt bundle adapter --out bundle", "is not empty"),
    ("make-random --family sd15 --out bundle", "is not an empty folder"),
    # Options that contradict each other, or the files.
    ("train --data good.csv --out new --levels 2", "between 0 and 1"),
    ("train --data good.csv --out new --levels 0.2,x", "not a list such as"),
    ("train --data good.csv --out new --levels 0.2,0.2", "distinct"),
    ("train --data good.csv --out new --mode both --head-weights dynamic", "not dynamic"),
    ("train --data good.csv --out new --rank 0", "neither a number above 0"),
    ("train --data good.csv --out new --steps 0", "not in the range"),
    ("train --data good.csv --out new --fraction 0", "not in the range"),
    ("train --data good.csv --out new --validation 1", "not in the range"),
    ("train --data good.csv --out new --learning-rate nan", "no finite number"),
    ("train --data good.csv --model model --from adapter --rank 9 --out new", "--rank 9"),
    ("train --data good.csv --model model --from adapter --hidden 9 --out new", "--hidden 9"),
    ("train --data good.csv --model model --from dynamic --mode matrix --out new", "not dynamic"),
    ("train --data good.csv", "Missing option '--out'"),
    ("imitate --data good.csv --model model --adapter none --out new", "takes at least 60"),
    ("imitate --data shapes-vqa --limit 59 --out new", "takes at least 60"),
    ("imitate --data good.csv --out set", "set is not empty"),
    (
        "imitate --data shapes-vqa --measure-on shapes-vqa --limit 200 --out new",
        "besides what is learned from: 0 texts",
    ),
    ("eval nowhere --data good.csv", "no model 'nowhere'"),
    ("eval bundle --data good.csv --adapter adapter", "contains its adapter: omit --adapter"),
    ("eval bundle --data good.csv --engine nobody", "'nobody' is not one of"),
    ("eval model --data good.csv --engine onnxruntime", "a model runs in PyTorch"),
    ("eval model --data good.csv --device 1", "a model runs in PyTorch"),
    ("eval model --data good.csv --adapter dynamic --mode matrix", "score with --mode pair"),
    ("eval model --data good.csv --require-signature file.txt", "only bundles are signed"),
    ("eval bundle --data good.csv --threshold 2", "not in the range"),
    ("eval bundle --data good.csv -o nowhere/figures.json", "cannot write"),
    ("eval bundle --data good.csv -o good.csv", "is read as an input"),
    ("eval bundle --data good.csv --fraction 1", "no test questions"),
    ("baseline nowhere --method zero-shot --data good.csv", "no CLIP folder 'nowhere'"),
    ("baseline nothing --method zero-shot --data good.csv", "it has no config.json"),
    ("baseline nowhere --method fine-tuning --data shapes-vqa", "no CLIP folder 'nowhere'"),
    ("baseline model/unet --method zero-shot --data good.csv", "is no CLIP"),
    ("baseline clip --data good.csv", "Missing option '--method'"),
    ("baseline clip --method fine-tuning --data good.csv", "give --fraction"),
    ("baseline clip --method zero-shot --data good.csv --fraction 1", "no test questions"),
    ("baseline clip --method fine-tuning --data good.csv --fraction 0", "nothing to learn from"),
    ("ablate --data good.csv --model model --limit 0 --out new", "not in the range"),
    ("reproduce --model model --levels 2 --out new", "between 0 and 1"),
    ("reproduce --model model --levels 0.2,0.2 --out new", "distinct"),
    ("reproduce --model model --root nothing --out new", "no file 'compositional_visual_genome"),
    ("reproduce --model model --root nowhere --out new", "does not exist"),
    ("reproduce --model model --clip nothing --out new", "it has no config.json"),
    ("reproduce --model model --clip nowhere --out new", "does not exist"),
    ("reproduce --model model --examples 1 --out new", "not in the range"),
    ("export --model model --adapter adapter --levels 2 --out new", "between 0 and 1"),
    ("export --model model --adapter none --score-layers foo --out new", "'foo'"),
    ("export --model model --adapter none --score-layers 6 --out new", "indices from 0 to 5"),
    ("export --model model --adapter none --adapter-input --out new", "name one with --adapter"),
    ("export --model model --adapter none --query-pool 2 --out new", "add --matrix"),
    ("export --model model --adapter dynamic --matrix --out new", "export with --no-matrix"),
    ("export --model model --precision fp8 --out new", "'fp8' is not one of"),
    ("adapt nowhere adapter --out new", "no folder 'nowhere'"),
    ("adapt nothing adapter --out new", "bundle.json"),
    ("adapt bundle nothing --out new", "no adapter in nothing"),
    ("adapt bundle nowhere --out new", "does not exist"),
    ("adapt bundle adapter --out new", "--adapter-input"),
    ("ranges nowhere", "no folder 'nowhere'"),
    ("ranges nothing", "bundle.json"),
    ("ranges damaged", "damaged"),
    ("ranges bundle --scenes 0", "not in the range"),
    ("ranges bundle --require-signature file.txt", ""),
    ("pretrain shapes", "Missing option '--out'"),
    ("pretrain shapes --threads 0 --out new", "not in the range"),
    ("pretrain tiny-clip --workers 7 --out new", "cannot be divided"),
    ("pretrain nothing --out new", "No such command 'nothing'"),
    ("import-released file.txt --out new", "file.txt"),
    ("import-released nowhere --out new", "nowhere"),
    ("bench --bundle nowhere", "no folder 'nowhere'"),
    ("bench --bundle bundle --model nowhere", "no model 'nowhere'"),
    ("bench --bundle bundle --model model --adapter nothing", "no adapter in nothing"),
    ("bench --bundle bundle --model model --adapter foreign", "trained on another model"),
    ("bench --bundle bundle --contenders nobody", "no contender 'nobody'"),
    ("bench --bundle bundle -o nowhere/figures.json", "mkdir -p nowhere"),
    (
        "bench --bundle bundle -o figures.csv",
        "JSON or a page: give -o figures.json or figures.html",
    ),
    (
        "eval bundle --data good.csv -o figures.csv",
        "JSON or a page: give -o figures.json or figures.html",
    ),
    ("ablate --model model --data good.csv --out set", "set has other files, such as 'good.csv'"),
    ("train --data good.csv --model model --out set", "set has other files, such as 'good.csv'"),
    ("pretrain shapes --out set --smoke", "set has other files, such as 'good.csv'"),
    ("pretrain tiny-clip --out set --smoke", "set has other files, such as 'good.csv'"),
    ("train --data set --model model --out new", "is set/good.csv meant?"),
    ("train --data swapped.csv --model model --out new", "Are the columns swapped?"),
    (
        "export --model model --adapter none --score denoising --maps --out new",
        "leave out --maps",
    ),
    ("explain a.png -o new.png", "give a TEXT to explain"),
    ("explain 'a dog' -o new.png", "'a dog' is no file, so it is taken for a text"),
    ("explain a.png 'a dog'", "Missing option '-o' / '--output'"),
    ("explain a.png 'a dog' -o new.gif", "FILE.png, FILE.html or FILE.json"),
]


def _mistakes() -> dict[str, str]:
    """Command lines with a mistake each, and a part of the message."""
    found = {
        f"{start} {options}".strip(): said
        for start in OF_DATA.values()
        for options, said in DATA_MISTAKES
    }
    for starts, mistakes in ((OF_MODEL, MODEL_MISTAKES), (OF_ADAPTER, ADAPTER_MISTAKES)):
        found |= {f"{s} {value}": said for s in starts.values() for value, said in mistakes}
    del found["eval --data good.csv bundle"]  # which is none
    for start in OF_OUT.values():
        found |= {f"{start} file.txt": "file.txt", f"{start} file.txt/new": "file.txt/new"}
    return found | dict(OTHERS)


MISTAKES = _mistakes()


@dataclass(frozen=True)
class Refusal:
    """What a command did about a mistake."""

    code: int
    output: str
    error: str | None
    left: list[str]


def _prepare(place: Path) -> None:
    """The folder in which the mistakes are made."""
    for name, text in DATA.items():
        (place / name).write_text(text, "utf-8")
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / name)
    (place / "file.txt").write_text("a file\n")
    (place / "nothing").mkdir()
    (place / "set").mkdir()
    (place / "set/good.csv").write_text(DATA["good.csv"])
    (place / "weights.ckpt").write_bytes(b"\x80")
    write_checkpoint(place / "model")
    write_adapter(place / "adapter", place / "model")
    write_checkpoint(place / "elsewhere", seed=1)
    write_adapter(place / "foreign", place / "elsewhere")
    whole = Adapter.load(place / "adapter")
    last = re.compile(rf"(key|query)\.{LAYERS - 1}\.")
    replace(
        whole,
        base={},  # as if its weights were too large to be hashed
        prompt_state={name: it for name, it in whole.prompt_state.items() if not last.match(name)},
        head_weights=whole.head_weights[:-1],
    ).save(place / "shallow")
    write_adapter(place / "dynamic", place / "model", head_mode="dynamic")
    write_clip(place / "clip")
    make_bundle(place / "bundle")
    _prepare_damaged(place)
    _prepare_runs(place)


def _prepare_damaged(place: Path) -> None:
    """Adapters, a bundle and single files that cannot be used."""
    shutil.copytree(place / "adapter", place / "around" / "adapter")
    shutil.copytree(place / "adapter", place / "torn")
    (place / "torn" / "adapter.safetensors").write_bytes(b"other weights")
    shutil.copytree(place / "bundle", place / "damaged")
    (place / "damaged" / "tokenizer.json").write_text("{}")
    one = torch.zeros(1)
    save_file({"lora_unet_down.alpha": one}, place / "lora.safetensors")
    save_file({"model.diffusion_model.out.2.bias": one}, place / "other.safetensors")


def _prepare_runs(place: Path) -> None:
    """Folders that other runs have begun."""
    for folder, name, content, state in (
        ("finished", "plan.json", {"data": "other.csv"}, "training.ckpt"),
        ("answered", "run.json", {"data": "other.csv"}, "answers.jsonl"),
        ("reproduced", "run.json", {"seed": 5}, "shapes-comvg/DSD-few-shot/answers.jsonl"),
        ("pretrained", "plan.json", {"seed": 5}, "vae.ckpt"),
        ("tiny", "plan.json", {"seed": 5}, "tiny-clip.ckpt"),
    ):
        path = place / folder / state
        path.parent.mkdir(parents=True)
        path.write_text("")
        (place / folder / name).write_text(json.dumps(content))
    (place / "unknown").mkdir()
    (place / "unknown" / "answers.jsonl").write_text("")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Refusal]:
    """What each command did, all in one process."""
    place = tmp_path_factory.mktemp("mistakes")
    _prepare(place)
    list_of = tmp_path_factory.mktemp("list") / "commands.json"
    list_of.write_text(json.dumps([shlex.split(line) for line in MISTAKES]))
    done = subprocess.run(
        [sys.executable, without_training.__file__, list_of],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {line: Refusal(**json.loads(it)) for line, it in zip(MISTAKES, lines, strict=True)}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_refused_before_pytorch_is_imported(
    line: str, refusals: dict[str, Refusal]
) -> None:
    done = refusals[line]
    assert done.error is None
    assert done.code in (2, 4)
    assert MISTAKES[line] in done.output
    assert done.left == []
    error = done.output.rpartition("Error: ")[2]
    assert foreign_options(error, line.split()[0]) == []


def test_every_command_of_training_and_export_is_looked_at() -> None:
    named = {line.split()[0] for line in MISTAKES}
    assert named >= {name for name, it in SUBCOMMANDS.items() if it.extra} - {"triton"}

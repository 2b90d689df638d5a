"""Files that others send, damaged and forged from a seed: our own errors, and nothing else.

Hashes are made to fit, as whoever forges a file would. What opens all the same is compared with
what its manifest declares.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from backends import open_engine
from bundles import TABLE, make_bundle
from mutations import mutate_bytes, mutate_json, mutate_lines
from PIL import Image
from safetensors.torch import load, save
from torture import Figures, scaled

from dsd_trt import (
    Bundle,
    DsdError,
    EngineError,
    ImageError,
    Index,
    Manifest,
    Scorer,
    read_bundle,
    update_index,
)
from dsd_trt.bundle.contract import graph_contract
from dsd_trt.commands.inputs import read_pairs, read_texts
from dsd_trt.engine.tensorrt.plan import PLAN_NAME, Profile, Sidecar, plans, read_plan, write_plan
from dsd_trt.index.webdataset import tar_images
from dsd_trt.results import Failure
from dsd_trt.tokenizer import Tokenizer
from dsd_trt.train.data.refcocog import read_refs
from dsd_trt.train.data.table import read_table
from dsd_trt.train.diffusion.weight_files import find_weights
from dsd_trt.train.diffusion.weights import read_headers
from dsd_trt.train.evaluation.answers import ask
from dsd_trt.train.left_out import ignore
from dsd_trt.train.question import Question, Report
from dsd_trt.train.run.loss_log import LossLog
from dsd_trt.train.run.plan import require_plan
from dsd_trt.train.run.state import require_like, restore_optimizer, resumed
from dsd_trt.train.run.state import save_state as write_state
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.choices import PromptConfig
from dsd_trt.train.scoring.prompts import AttentionPrompts

Mutate = Callable[[bytes, random.Random], bytes]
TEXTS = ["a red circle", "dog"]
SOON = 5.0  # seconds a file


@dataclass(frozen=True)
class Kind:
    """A folder that is sent, which file of it is mutated, how it is opened.

    Attributes:
        file: the one that is mutated.
        mutate: how.
        open: opens the folder, and complains by AssertionError where what it got is not what was
            declared.
        forge: makes the hashes in other files fit.
        fast: mutations in the fast suite.
    """

    file: str
    mutate: Mutate
    open: Callable[[Path], object]
    forge: Callable[[Path], None] = lambda folder: None
    fast: int = 40


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of file, whole."""
    root = tmp_path_factory.mktemp("originals")
    bundle = make_bundle(root / "bundle", matrix=True)
    photos = root / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (40 * number, 90, 7)).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"")
    images = sorted(photos.iterdir())
    update_index(root / "index", images, bundle.folder, "onnxruntime", shard_size=2)
    shutil.copytree(bundle.folder, root / "planned")
    sidecar = Sidecar.of(
        memoryview(b"plan"), bundle.manifest, "pair_scorer", "tensorrt", "10.9", ("8.6",),
        (Profile(1, 2, 4),),
    )  # fmt: skip
    write_plan(root / "planned", memoryview(b"plan"), sidecar)
    _write_adapter(root / "adapter")
    _write_run(root / "run")
    _write_tables(root / "tables", images[0])
    return root


def _write_adapter(folder: Path) -> None:
    torch.manual_seed(0)
    config = PromptConfig(rank=2, hidden=4, latent_channels=1)
    Adapter(
        prompt_config=config,
        prompt_state=AttentionPrompts([4], 6, config).state_dict(),
        head_mode="learned",
        head_weights=[torch.ones(2), torch.ones(3)],
        score="attention",
        denoising_weight=0.5,
        a=2.0,
        b=-1.0,
        levels=(0.2, 0.8),
        base={"unet.safetensors": "0" * 64},
        training={"steps": 3},
        merged={"mid.up": torch.ones(4, 1), "mid.down": torch.ones(1, 5)},
    ).save(folder)


def _write_run(folder: Path) -> None:
    folder.mkdir()
    model, optimizer = _model()
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}
    write_state(folder / "state.ckpt", state)
    (folder / "plan.json").write_text(json.dumps(PLAN))
    list(ask(QUESTIONS, score_questions, folder / "answers.jsonl"))
    rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(3)]
    (folder / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tensors = {"a.weight": torch.ones(2, 3), "b.weight": torch.ones(3).half()}
    (folder / "unet-00001-of-00001.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    index = {"metadata": {"total_size": 30}, "weight_map": dict.fromkeys(tensors)}
    index["weight_map"] = dict.fromkeys(tensors, "unet-00001-of-00001.safetensors")
    (folder / "unet.safetensors.index.json").write_text(json.dumps(index))


def _write_tables(folder: Path, image: Path) -> None:
    folder.mkdir()
    shutil.copy(image, folder / "a.png")
    rows = [("a.png", text, label) for text, label in (("x y", 1), ('"q", z', 0), ("ü\n2", 0))]
    lines = [json.dumps({"image": i, "text": t, "label": n}) for i, t, n in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    quoted = [f'a.png,"{text.replace(chr(34), chr(34) * 2)}",{label}' for _, text, label in rows]
    (folder / "pairs.csv").write_text("image,text,label\n" + "\n".join(quoted), "utf-8")
    (folder / "negatives.jsonl").write_text(
        json.dumps({"image": "a.png", "text": "x", "negatives": ["y", "z"]})
    )
    (folder / "texts.txt").write_text("a red circle\n\nü\n", "utf-8")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for source, name in ((image, "a.png"), (folder / "texts.txt", "a.txt"), (image, "b.png")):
            member = tarfile.TarInfo(name)  # knows no time and no owner: the same bytes each run
            member.size = source.stat().st_size
            archive.addfile(member, BytesIO(source.read_bytes()))
    import pickle

    refs = [{"image_id": 1, "split": "val", "sentences": [{"sent": "a dog"}, {"sent": " "}]}]
    (folder / "refs.p").write_bytes(pickle.dumps(refs, 2))


QUESTIONS = [Question("text", (("x.png", "y"),) * 3, 0, str(number)) for number in range(4)]


def score_questions(questions: Sequence[Question], left_out: Report = ignore) -> list[list[float]]:
    """One question has no scores, and is asked again."""
    rows = []
    for question in questions:
        rows.append([2.0, 1.0, 0.0] if question.source != "2" else [float("nan")] * 3)
        if question.source == "2":
            left_out(question, [Failure("x.png", "cut")])
    return rows


def open_tar(path: Path) -> None:
    """What a damaged one lacks is told beside the images that it still has."""
    for name, content in tar_images(path):
        if isinstance(content, ImageError):
            raise ImageError(f"{path.name}/{name}: {content}")


PLAN = {"seed": 1, "steps": [1, 2], "levels": {"a": 0.5}}


def _model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters())


# Opening, and what has to hold where that succeeds.


def open_bundle(folder: Path) -> None:
    manifest = read_bundle(folder).manifest
    contract = graph_contract(
        manifest.precision,
        manifest.preprocessing.resolution,
        manifest.latent_shape,
        manifest.text_width,
        manifest.tokenizer.max_length,
        manifest.has_denoising_error,
        manifest.has_pooled_text,
        matrix=manifest.matrix is not None,
    )
    for name, graph in manifest.graphs.items():
        for got, wanted in (
            *zip(graph.inputs, contract[name].inputs, strict=True),
            *zip(graph.outputs, contract[name].outputs, strict=True),
        ):
            assert (got.name, got.dtype, got.of_batch(1)) == (
                wanted.name, wanted.dtype, wanted.of_batch(1),
            )  # fmt: skip
    assert Manifest.from_json(manifest.to_json()) == manifest


def open_tokenizer(folder: Path) -> None:
    manifest = Manifest.from_json((folder / "bundle.json").read_text())
    path = folder / "tokenizer.json"
    tokens = Tokenizer(path, manifest.tokenizer, "words_eos")([*TEXTS, "!", "zebra", "<eos>"])
    assert tokens.input_ids.dtype == np.int32
    assert tokens.input_ids.min() >= 0
    rows = manifest.tokenizer.vocabulary or len(TABLE)
    assert tokens.input_ids.max() < rows or manifest.tokenizer.vocabulary is None


def open_scorer(folder: Path) -> None:
    scores = Scorer.load(folder, "onnxruntime").score([np.zeros((8, 8, 3), np.uint8)], TEXTS)
    assert scores.scores.shape == (1, 2)


def open_index(folder: Path) -> None:
    index = Index.open(folder)
    spec = index.manifest.image_encoder.latent
    names = set()
    for image in index:
        names.add(image.name)
        try:
            latent = image.latent()
        except DsdError:
            continue
        assert latent.shape == spec.shape[1:]
        assert latent.dtype == np.dtype(spec.dtype)
    assert len(names) == len(index)
    table = parquet.read_table(folder / "images.parquet")
    assert {field.type for field in table.schema} == {pyarrow.string(), pyarrow.int64()}


def open_adapter(folder: Path) -> None:
    adapter = Adapter.load(folder)
    declared = json.loads((folder / "adapter.json").read_text())
    stored = load((folder / "adapter.safetensors").read_bytes())
    assert (adapter.prompt_config is None) == (declared["prompts"] is None)
    assert all(weights.dim() == 1 for weights in adapter.head_weights)
    for name, tensor in adapter.merged.items():
        assert tensor.dtype == torch.float32
        assert tensor.shape == stored[f"merged.{name}"].shape
    for name in {name.rpartition(".")[0] for name in adapter.merged}:
        adapter.merged[f"{name}.up"] @ adapter.merged[f"{name}.down"]


def open_plan(folder: Path) -> None:
    for plan in plans(folder):
        assert read_plan(plan) == (plan.folder / PLAN_NAME).read_bytes()
        assert plan.sidecar.profiles[-1].max >= 1


def open_state(folder: Path) -> None:
    model, optimizer = _model()
    with resumed(folder / "state.ckpt") as state:
        assert state is not None
        require_like(state["model"], model.state_dict())
        model.load_state_dict(state["model"])
        restore_optimizer(optimizer, state["optimizer"])
        int(state["step"])
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def open_answers(folder: Path) -> None:
    for answer in ask(QUESTIONS, score_questions, folder / "answers.jsonl"):
        assert answer.rank is None or 1 <= answer.rank <= answer.candidates


def open_weights(folder: Path) -> None:
    files = find_weights(folder, "unet")
    found = read_headers(files)
    stored = {name: tensor for file in files for name, tensor in load(file.read_bytes()).items()}
    assert {name: it.shape for name, it in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in stored.items()
    }


# Making hashes fit.


def _entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def forge_bundle(folder: Path) -> None:
    plain = json.loads((folder / "bundle.json").read_text())
    plain["files"] = {name: _entry(folder / name) for name in plain["files"]}
    (folder / "bundle.json").write_text(json.dumps(plain))


def forge_index(folder: Path) -> None:
    plain = json.loads((folder / "index.json").read_text())
    plain["table"] = _entry(folder / "images.parquet")
    for name, shard in plain["shards"].items():
        shard.update(_entry(folder / name))
    (folder / "index.json").write_text(json.dumps(plain))


def forge_adapter(folder: Path) -> None:
    plain = json.loads((folder / "adapter.json").read_text())
    plain["weights"] = _entry(folder / "adapter.safetensors")["sha256"]
    (folder / "adapter.json").write_text(json.dumps(plain))


def mutate_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A file whose header was changed, its length made to fit, or whose bytes were."""
    if draw.random() < 0.3:
        return mutate_bytes(content, draw)
    end = 8 + int.from_bytes(content[:8], "little")
    header = mutate_json(content[8:end], draw)
    return len(header).to_bytes(8, "little") + header + content[end:]


def mutate_parquet(content: bytes, draw: random.Random) -> bytes:
    """A table with other rows, columns or types; or damaged bytes."""
    what = draw.randrange(8)
    if what < 3:
        return mutate_bytes(content, draw)
    columns = parquet.read_table(BytesIO(content)).to_pydict()
    name = draw.choice(list(columns))
    values = columns[name]
    place = draw.randrange(len(values))
    if what == 3:
        columns[name] = [draw.choice([values[place], None, 1, 2**40, -1, "x"])] * len(values)
    elif what == 4:
        del columns[name]
    elif what == 5:
        columns = {key: [*column, column[place]] for key, column in columns.items()}
    elif what == 6:
        values[place] = draw.choice([None, "latents-00009.safetensors", 7, -1, "../x"])
    else:
        columns = {key: [] for key in columns}
    buffer = BytesIO()
    kinds = {column: pyarrow.string() for column in columns}
    kinds |= {column: pyarrow.int64() for column in ("size", "mtime_ns", "row")}
    try:
        table = pyarrow.table(
            {key: pyarrow.array(column, kinds[key]) for key, column in columns.items()}
        )
    except (pyarrow.ArrowException, TypeError):  # another type than the column has
        table = pyarrow.table({key: list(map(str, column)) for key, column in columns.items()})
    parquet.write_table(table, buffer)
    return buffer.getvalue()


SHARD, STATE = "latents-00001.safetensors", "state.ckpt"
SHARD_INDEX = "unet.safetensors.index.json"
KINDS = {
    "bundle.json": ("bundle", Kind("bundle.json", mutate_json, open_bundle, fast=60)),
    "tokenizer.json": ("bundle", Kind("tokenizer.json", mutate_json, open_tokenizer)),
    "graph": (
        "bundle",
        Kind("pair_scorer.onnx", mutate_bytes, open_scorer, forge_bundle, fast=12),
    ),
    "index.json": ("index", Kind("index.json", mutate_json, open_index, fast=60)),
    "images.parquet": ("index", Kind("images.parquet", mutate_parquet, open_index, forge_index)),
    "shard": ("index", Kind(SHARD, mutate_safetensors, open_index, forge_index)),
    "engine.json": ("planned", Kind("engines/*/engine.json", mutate_json, open_plan)),
    "adapter.json": ("adapter", Kind("adapter.json", mutate_json, open_adapter)),
    "adapter.safetensors": (
        "adapter",
        Kind("adapter.safetensors", mutate_safetensors, open_adapter, forge_adapter),
    ),
    "plan.json": (
        "run",
        Kind("plan.json", mutate_json, lambda it: require_plan(it / "plan.json", PLAN, [STATE])),
    ),
    "training.ckpt": ("run", Kind(STATE, mutate_bytes, open_state)),
    "answers.jsonl": ("run", Kind("answers.jsonl", mutate_lines, open_answers)),
    "losses.jsonl": (
        "run",
        Kind("losses.jsonl", mutate_lines, lambda it: LossLog(it / "losses.jsonl")),
    ),
    "weights": ("run", Kind("unet-00001-of-00001.safetensors", mutate_safetensors, open_weights)),
    "shards of weights": ("run", Kind(SHARD_INDEX, mutate_json, open_weights)),
    "pairs.jsonl": (
        "tables",
        Kind("pairs.jsonl", mutate_lines, lambda it: read_pairs(it / "pairs.jsonl")),
    ),
    "pairs.csv": (
        "tables",
        Kind("pairs.csv", mutate_bytes, lambda it: read_pairs(it / "pairs.csv")),
    ),
    "labels.csv": (
        "tables",
        Kind("pairs.csv", mutate_bytes, lambda it: read_table(it / "pairs.csv", 0)),
    ),
    "negatives.jsonl": (
        "tables",
        Kind("negatives.jsonl", mutate_lines, lambda it: read_table(it / "negatives.jsonl", 0)),
    ),
    "texts.txt": (
        "tables",
        Kind("texts.txt", mutate_bytes, lambda it: read_texts(str(it / "texts.txt"))),
    ),
    "shard.tar": (
        "tables",
        Kind("shard.tar", mutate_bytes, lambda it: open_tar(it / "shard.tar")),
    ),
    "refs.p": ("tables", Kind("refs.p", mutate_bytes, lambda it: read_refs(it / "refs.p"))),
}


@dataclass(frozen=True)
class Outcome:
    """How one mutated file ended: "opened", "refused" or "broke", and what is wrong about it."""

    ended: str
    fault: str = ""


def attack(kind: Kind, original: Path, folder: Path, seeds: range) -> Iterator[Outcome]:
    """Mutate and open, once for every seed that changes something."""
    shutil.copytree(original, folder)
    (path,) = folder.glob(kind.file)
    kept = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for seed in seeds:
        draw = random.Random(seed)
        changed = kind.mutate(kept[path], draw)
        if changed == kept[path]:
            continue
        path.write_bytes(changed)
        kind.forge(folder)
        try:
            kind.open(folder)
            yield Outcome("opened")
        except DsdError as error:
            told = str(error)
            named = str(folder) in told or path.name in told
            fine = named and "\n" not in told and len(told) < 2000
            yield Outcome("refused", "" if fine else f"seed {seed}: says {told[:500]!r}")
        except Exception as error:
            yield Outcome("broke", f"seed {seed}: {type(error).__name__}: {error}")
        for file, content in kept.items():
            file.write_bytes(content)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_damaged_or_forged_raises_our_own_errors(
    originals: Path, tmp_path: Path, name: str
) -> None:
    of, kind = KINDS[name]
    kind.open(originals / of)
    outcomes = list(attack(kind, originals / of, tmp_path / "x", range(kind.fast)))
    assert [it.fault for it in outcomes if it.fault] == []
    assert Outcome("refused") in outcomes


@pytest.mark.torture
@pytest.mark.parametrize("name", KINDS)
def test_thousands_more(originals: Path, tmp_path: Path, name: str, figures: Figures) -> None:
    figures.look_for(f"mutated {of_what(name)}", "foreign exceptions", "wrong", "hung")
    of, kind = KINDS[name]
    count = scaled(300 if name == "graph" else 1200)
    began = time.monotonic()
    for outcome in attack(kind, originals / of, tmp_path / "x", range(1000, 1000 + count)):
        figures.ended(outcome.ended)
        if outcome.fault:
            kind_of_fault = "foreign exceptions" if outcome.ended == "broke" else "wrong"
            figures.fault(kind_of_fault, f"{name}, {outcome.fault}")
        if (seconds := time.monotonic() - began) > SOON:
            figures.fault("hung", f"{name}: {seconds:.1f} s")
        began = time.monotonic()


def of_what(name: str) -> str:
    """A row of the report: what is sent."""
    rows = {"bundle": "bundles", "planned": "bundles", "index": "indexes", "adapter": "adapters"}
    return rows.get(KINDS[name][0], "tables and files of runs")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_an_engine_says_of_a_graph_is_one_line(
    bundle: Bundle, tmp_path: Path, engine: str
) -> None:
    """ONNX Runtime 1.32 says where in its sources it failed, on lines of their own."""
    graph = bundle.manifest.graphs["pair_scorer"]
    model = onnx.load(bundle.path(graph.file))
    del model.opset_import[:]
    model.graph.node[0].op_type = "Nothing"
    onnx.save(model, tmp_path / graph.file)
    with pytest.raises(EngineError, match=f"{engine} refuses .*{graph.file}") as raised:
        open_engine(tmp_path / graph.file, graph, engine)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000

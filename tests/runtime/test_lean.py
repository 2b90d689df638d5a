"""The runtime is lean: it scores where the training stack is missing, and never asks for it.

Each test runs a fresh interpreter and reads what it had loaded when it ended.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dsd_trt import Bundle
from dsd_trt.commands.main import SUBCOMMANDS
from dsd_trt.installation import install_command

ROOT = Path(__file__).parents[2]
# What the modules of each folder may import of the package.
MAY_IMPORT = {
    "dsd_trt": {"dsd_trt"},
    "train": {"dsd_trt", "train"},
    "export": {"dsd_trt", "train", "engines", "export"},
    "engines": {"dsd_trt", "engines"},
}
TRAINING = frozenset({"torch", "diffusers", "transformers", "onnx"})
SERVING = frozenset({"tritonclient"})
ENGINES = frozenset({"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"})
# What takes its time to import, and what a page of help can do without.
SLOW = TRAINING | ENGINES | {"numpy", "PIL", "tokenizers", "pyarrow", "safetensors"}
INDEX = frozenset({"pyarrow", "safetensors"})

# A None in sys.modules is a module that is not installed: `import` raises ModuleNotFoundError,
# `find_spec` finds nothing.
WITNESS = """
import json, pathlib, runpy, sys
script, absent, report, *arguments = sys.argv[1:]
sys.modules.update(dict.fromkeys(json.loads(absent)))
sys.argv = [script, *arguments]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    loaded = sorted({name.partition(".")[0] for name, module in sys.modules.items() if module})
    pathlib.Path(report).write_text(json.dumps(loaded))
"""

SCORE = """
import json, sys
from dsd_trt import Scorer
image, engine = sys.argv[1:]
matrix = Scorer.load(engine=engine).score([image], ["a red circle", "a blue square"])
print(json.dumps(matrix.scores.tolist()))
"""


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_each_other_in_one_direction(folder: str) -> None:
    """As CONTRIBUTING.md says, lazy imports included."""
    imported = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = (name.split(".") for name in names if name.split(".")[0] == "dsd_trt")
            imported |= {it[1] if it[1:2] and it[1] in MAY_IMPORT else "dsd_trt" for it in parts}
    assert imported == MAY_IMPORT[folder]


@dataclass(frozen=True)
class Run:
    """A finished interpreter: what it printed and the packages it had loaded."""

    exit_code: int
    stdout: str
    stderr: str
    loaded: frozenset[str]


def _run(folder: Path, script: Path, *arguments: str, absent: frozenset[str] = frozenset()) -> Run:
    report = folder / "loaded.json"
    done = subprocess.run(
        [sys.executable, "-c", WITNESS, script, json.dumps(sorted(absent)), report, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    loaded = frozenset(json.loads(report.read_text()))
    return Run(done.returncode, done.stdout, done.stderr, loaded)


@pytest.fixture
def command_line() -> Path:
    """The installed `dsd-trt`."""
    return Path(sysconfig.get_path("scripts")) / "dsd-trt"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = Image.new("RGB", (64, 64), "gray")
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill="red")
    path = tmp_path / "circle.png"
    image.save(path)
    return path


@pytest.fixture
def score_script(tmp_path: Path) -> Path:
    path = tmp_path / "score.py"
    path.write_text(SCORE)
    return path


@pytest.mark.parametrize(
    ("engine", "other"), [("onnxruntime", "openvino"), ("openvino", "onnxruntime")]
)
def test_scores_with_one_engine_where_the_training_stack_cannot_be_imported(
    engine: str, other: str, picture: Path, score_script: Path, tmp_path: Path
) -> None:
    lean = _run(tmp_path, score_script, str(picture), engine, absent=TRAINING | {other})
    assert lean.exit_code == 0, lean.stderr
    assert engine in lean.loaded
    assert other not in lean.loaded
    scores = np.array(json.loads(lean.stdout))
    assert scores.shape == (1, 2)
    assert np.isfinite(scores).all()

    # Where it can be, nothing is asked of it and nothing changes.
    full = _run(tmp_path, score_script, str(picture), engine)
    assert full.exit_code == 0, full.stderr
    assert not full.loaded & (TRAINING | INDEX)
    np.testing.assert_allclose(np.array(json.loads(full.stdout)), scores, atol=1e-6)


def test_what_may_be_broken_is_examined_in_other_processes(
    command_line: Path, tmp_path: Path
) -> None:
    run = _run(tmp_path, command_line, "doctor", "--json")
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["engine"] is not None
    assert not run.loaded & SLOW


def test_without_an_engine_names_the_extra(
    picture: Path, command_line: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a red circle\n")
    run = _run(tmp_path, command_line, "score", str(picture), str(texts), absent=TRAINING | ENGINES)
    assert run.exit_code == 4
    assert install_command("cpu") in run.stderr
    assert "Traceback" not in run.stderr


def test_the_command_scores_where_the_training_stack_cannot_be_imported(
    picture: Path, command_line: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a red circle\na blue square\n")
    run = _run(
        tmp_path, command_line, "score", str(picture), str(texts), "-f", "jsonl", absent=TRAINING
    )
    assert run.exit_code == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert {row["text"] for row in rows} == {"a red circle", "a blue square"}


def test_an_index_names_its_extra(
    picture: Path, command_line: Path, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("a red circle\n")
    index, score = ("index", str(picture), "out"), ("score", "out", "texts.txt")
    for command, indexed in ((index, False), (score, True)):
        arguments = (*command, "--bundle", str(bundle.folder))
        for package in sorted(INDEX):
            # Without torch among the modules, a process that loaded OpenVINO ends at once.
            run = _run(tmp_path, command_line, *arguments, absent=TRAINING | {package})
            assert run.exit_code == 4
            assert install_command("index") in run.stderr
            assert (tmp_path / "out").exists() == indexed
        run = _run(tmp_path, command_line, *arguments, absent=TRAINING)
        assert run.exit_code == 0, run.stderr
        assert not run.loaded & TRAINING


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "command",
    [
        ("score", "--pairs", "TABLE"),
        ("filter", "TABLE", "--keep-best", "30%", "-o", "kept"),
        ("calibrate", "shapes", "--data", "TABLE", "-o", "calibrated"),
        ("eval", "shapes", "--data", "TABLE"),
        ("train", "--data", "TABLE", "--out", "adapter"),
    ],
    ids=lambda command: command[0],
)
def test_a_wrong_column_is_told_before_anything_slow_is_imported(
    command: tuple[str, ...], form: str, command_line: Path, tmp_path: Path
) -> None:
    """Of rows of JSON too, which have their columns one by one."""
    table = tmp_path / f"t.{form}"
    table.write_text(
        "image,text,label\n1.png,a dog,1\n"
        if form == "csv"
        else '{"image": "1.png", "text": "a dog", "label": 1}\n'
    )
    named = [table.name if it == "TABLE" else it for it in command]
    run = _run(tmp_path, command_line, *named, "--text-column", "caption")
    assert run.exit_code == 2, run.stderr
    assert "no column 'caption' among 'image', 'text', 'label'" in run.stderr
    assert "--text-column NAME" in run.stderr
    assert not run.loaded & (SLOW | {"rich"})


HEAVY = {
    "export": ["--out", "scorer"],
    "adapt": [".", ".", "--out", "scorer"],
    "triton": [".", "repository"],
    "bench": [],
    "ranges": ["."],
    "pretrain": ["shapes", "--out", "model"],
    "imitate": ["--data", "shapes-refcocog", "--out", "adapter"],
    "train": ["--data", "shapes-vqa", "--out", "adapter"],
    "eval": ["shapes", "--data", "shapes-vqa"],
    "ablate": ["--data", "shapes-vqa", "--out", "ablation"],
    "baseline": ["clip", "--method", "zero-shot", "--data", "shapes-vqa"],
    "reproduce": ["--out", "reproduction"],
    "import-released": ["pytorch_model.bin", "--out", "adapter"],
    "make-random": ["--family", "sd15", "--tiny", "--out", "model"],
}


def test_every_command_but_score_is_heavy() -> None:
    assert {name for name, it in SUBCOMMANDS.items() if it.extra} == HEAVY.keys()


@pytest.mark.parametrize("command", HEAVY)
def test_a_heavy_command_names_its_extra(command: str, command_line: Path, tmp_path: Path) -> None:
    arguments = HEAVY[command]
    run = _run(tmp_path, command_line, command, *arguments, absent=TRAINING | SERVING)
    assert run.exit_code == 4
    assert "pip install" in run.stderr
    assert f"[{SUBCOMMANDS[command].extra}]" in run.stderr
    assert "'dsd_trt" not in run.stderr  # a module of ours that is missing is no extra's doing
    assert "Traceback" not in run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"loaded.json"}


@pytest.mark.parametrize(
    "command",
    [[], ["score"], ["explain"], ["index"], ["doctor"], *([name] for name in HEAVY)],
    ids=" ".join,
)
def test_help_loads_nothing_slow(command: list[str], command_line: Path, tmp_path: Path) -> None:
    run = _run(tmp_path, command_line, *command, "--help", absent=TRAINING)
    assert run.exit_code == 0, run.stderr
    assert "Usage" in run.stdout
    assert not run.loaded & SLOW


def test_the_package_runs_as_a_module() -> None:
    """What `accelerate launch -m dsd_trt train` starts in every process."""
    done = subprocess.run(
        [sys.executable, "-m", "dsd_trt", "score", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "IMAGES" in done.stdout


def test_importing_the_package_loads_no_engine(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import dsd_trt; dsd_trt.Scorer; dsd_trt.DsdError")
    run = _run(tmp_path, script)
    assert run.exit_code == 0, run.stderr
    assert "dsd_trt" in run.loaded
    assert not run.loaded & (TRAINING | ENGINES)
    assert "email" not in run.loaded  # importlib.metadata brings it, for a version nobody asked for


def test_an_image_is_decoded_without_all_of_pillow(tmp_path: Path) -> None:
    """And what is left out registers no ending of a format that is read."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    code = """
import sys
from PIL import Image
from dsd_trt.image.preprocess import image_suffixes, load_image
load_image(sys.argv[1])
suffixes = image_suffixes()
assert "PIL.PdfParser" not in sys.modules
formats = {Image.EXTENSION[suffix] for suffix in suffixes}
assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"} <= formats, formats
everything = Image.registered_extensions()  # imports all that Pillow has
assert "PIL.PdfParser" in sys.modules
assert suffixes == {suffix for suffix, form in everything.items() if form in formats}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "image.png"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

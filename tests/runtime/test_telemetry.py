"""Nothing leaves the machine, and nothing is written for it, that nobody asked for.

Commands run in a network of their own (see `own_network`), as on a user's machine: with an empty
home folder, and without the variables of CI, where libraries report less.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from bundles import make_bundle
from fake_hub import FakeHub, files_of, serve
from own_network import Ended, Running, own_network, run
from torture import Figures, not_in_a_slice, scaled

from dsd_trt.commands.main import cli
from dsd_trt.telemetry import VARIABLES

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import make_commands

__all__ = ["own_network"]

pytest_plugins = ("cpp",)

ROOT = Path(__file__).parents[2]
STAR, TEXTS = ROOT / "examples" / "images" / "lone-star.png", ROOT / "examples" / "texts.txt"
PAIRS, LABELLED = ROOT / "examples" / "pairs.csv", ROOT / "examples" / "labelled.csv"
EMBEDDED = ROOT / "dsd_trt" / "data" / "shapes-bundle"
ADAPTER = ROOT / "dsd_trt" / "data" / "shapes-model" / "adapter"
# What is remembered for the next run, and by whom.
REMEMBERED = (".cache/dsd-trt/", ".cache/matplotlib/", ".config/matplotlib/")

LEAVES = """
import os, socket
try:
    socket.getaddrinfo("some.example.org", 443)
except OSError:
    pass
for family, address in (socket.AF_INET, "198.51.100.7"), (socket.AF_INET6, "2001:db8::7"):
    with socket.socket(family) as outward:
        try:
            outward.connect((address, 443))
        except OSError:
            pass
own = socket.create_server(("127.0.0.1", 0))
socket.create_connection(own.getsockname()).sendall(b"to itself")
open(os.path.expanduser("~/traces"), "w").close()
"""

SCORE = """
import sys, time
from dsd_trt import Scorer
engine, image, seconds = sys.argv[1:]
with_it = Scorer.load(engine=engine)
until = time.monotonic() + float(seconds)
while True:
    with_it.score([image], ["a red circle", "a blue square"])
    if time.monotonic() > until:
        break
"""

# Commands, one after the other, in a process that stays until its libraries would have reported.
COMMANDS = """
import json, sys, time
from dsd_trt.commands.main import main
until = time.monotonic() + 30
for arguments in json.loads(sys.argv[1]):
    print(arguments)
    try:
        main(arguments)
    except SystemExit as ended:
        # Where there is no GPU, that is said.
        if ended.code and (arguments[0], ended.code) != ("gpu-check", 4):
            raise
time.sleep(max(0, until - time.monotonic()))
"""
LISTENED = "commands and libraries, each for half a minute in a network of its own"
MODEL = ["--data", "shapes-comvg", "--limit", "4"]
ROADS = {
    "export": [
        ["export", "--adapter-input", "--verify", "quick", "--out", "bundle"],
        ["train", *MODEL, "--steps", "1", "--out", "adapter"],
        ["adapt", "bundle", str(ADAPTER), "--out", "adapted"],
        ["eval", "adapted", *MODEL],
        ["imitate", "--data", "shapes-refcocog", "--limit", "60", "--out", "estimating"],
        ["ranges", "adapted", "--scenes", "1"],
        ["build", "bundle", "--engine", "tensorrt-rtx", "--graphs", "image_encoder"],
    ],
    "measure": [
        ["eval", "shapes", *MODEL, "--out", "results"],
        ["ablate", *MODEL, "--out", "ablation"],
        ["baseline", str(ROOT / "benchmarks" / "tiny-clip"), "--method", "zero-shot", *MODEL],
        ["make-random", "--family", "sd15", "--tiny", "--out", "random"],
        ["bench", "--images", "1", "--texts", "1", "--rounds", "1", "--contenders", "onnxruntime"],
    ],
    "small": [
        ["sign", "bundle", "--key", "secret.key"],
        ["import-released", "pytorch_model.bin", "--out", "released"],
        ["gpu-check", "bundle"],
    ],
    "pretrain": [["pretrain", "shapes", "--smoke", "--out", "shapes"]],
    "reproduce": [
        ["pretrain", "tiny-clip", "--smoke", "--out", "tiny-clip"],
        [
            *("reproduce", "--clip", "tiny-clip/model", "--out", "reproduction"),
            *("--steps", "1", "--examples", "2", "--questions", "1"),
        ],
    ],
    "index": [
        ["index", str(STAR), "index"],
        ["score", "index", str(TEXTS)],
        ["explain", "index", "a star", "-o", "star.png"],
    ],
    "tables": [
        ["filter", str(PAIRS), "--keep-best", "50%", "-o", "kept.csv"],
        ["calibrate", "shapes", "--data", str(LABELLED), "-o", "calibrated"],
        ["inspect", "calibrated", "--verify"],
        ["doctor", "--bundle", "calibrated"],
    ],
    "openvino": [["score", str(STAR), str(TEXTS), "--engine", "openvino"]],
    "onnxruntime": [["score", str(STAR), str(TEXTS), "--engine", "onnxruntime"]],
}

IN_SERVING = {"triton"}  # tests/serving/test_telemetry.py


# The C++ library, loaded by a program that knows nothing of ours.
OPEN_IN_CPP = """
import ctypes, sys, time
library, bundle, seconds = sys.argv[1:]
scorer = ctypes.c_void_p()
failed = ctypes.CDLL(library).dsd_open(bundle.encode(), None, ctypes.byref(scorer), None)
time.sleep(float(seconds))
sys.exit(failed)
"""


def python(program: str, *arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-c", program, *arguments]


def command(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "dsd_trt", *arguments]


def leaves_nothing(ended: Ended, code: int = 0) -> bool:
    assert ended.code == code, ended.output
    assert not ended.asked
    assert not [it for it in ended.files if not it.startswith(REMEMBERED)]
    return True


def count_bytes(ended: Ended, figures: Figures) -> None:
    """One more command that was listened to; what it sent or wrote is a fault."""
    figures.ended()
    assert ended.code == 0, ended.output
    for name in ended.asked:
        figures.fault("bytes sent", name)
    for name in ended.files:
        if not name.startswith(REMEMBERED):
            figures.fault("left behind", name)


def wrote_identifier(ended: Ended) -> bool:
    assert ended.code == 0, ended.output
    return any(it.endswith("onnxruntime/deviceid") for it in ended.files)


@pytest.fixture(scope="module")
def reporting_onnxruntime(own_network: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where the library itself reports nothing, as before 1.32."""
    if not wrote_identifier(run(python("import onnxruntime"), tmp_path_factory.mktemp("o") / "x")):
        pytest.skip(f"onnxruntime {metadata.version('onnxruntime')} reports nothing here")


@pytest.fixture(scope="module")
def reporting_openvino(own_network: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where the library itself reports nothing."""
    ended = run(python("import openvino"), tmp_path_factory.mktemp("o") / "x")
    if not ended.asked:
        pytest.skip(f"openvino {metadata.version('openvino')} reports nothing here")


def test_sees_what_leaves_a_machine(own_network: None, tmp_path: Path) -> None:
    ended = run(python(LEAVES), tmp_path / "x")
    assert ended.code == 0, ended.output
    assert ended.asked[:2] == ("some.example.org", "198.51.100.7")
    assert set(ended.asked[2:]) <= {"2001:db8::7"}  # where the kernel has IPv6
    assert ended.files == ("traces",)


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize(("value", "kept"), [(None, "1"), ("", "1"), ("0", "0"), ("yes", "yes")])
def test_the_users_value_stays(name: str, value: str | None, kept: str) -> None:
    environment = {it: text for it, text in os.environ.items() if it != name}
    if value is not None:
        environment[name] = value
    program = f"import dsd_trt, os; print(os.environ[{name!r}])"
    done = subprocess.run(python(program), env=environment, capture_output=True, text=True)
    assert done.stdout == f"{kept}\n", done.stderr


@pytest.mark.parametrize(
    "script", [*ROOT.glob("tools/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")]
)
def test_scripts_import_the_package_before_what_reports(script: Path) -> None:
    """As modules of the package do by being in it."""
    imports = []
    for node in ast.parse(script.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            imports += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.module or "").partition(".")[0])
    watched = ("dsd_trt", "onnxruntime", "openvino", "nncf", "huggingface_hub")
    assert [it for it in imports if it in watched][:1] in ([], ["dsd_trt"])


def test_every_command_is_listened_to() -> None:
    listened = [" ".join(arguments) for road in ROADS.values() for arguments in road]
    for path, _ in make_commands.commands(cli, "dsd-trt"):
        name = path.removeprefix("dsd-trt ")
        assert name in IN_SERVING or any(f"{it} ".startswith(f"{name} ") for it in listened), name


def test_a_library_leaves_nothing(own_network: None, engine: str, tmp_path: Path) -> None:
    ended = run(python(SCORE, engine, STAR, "1"), tmp_path / "x")
    assert leaves_nothing(ended)


def test_a_command_leaves_nothing(own_network: None, engine: str, tmp_path: Path) -> None:
    ended = run(command("score", STAR, TEXTS, "--engine", engine), tmp_path / "x")
    assert leaves_nothing(ended)


def test_onnxruntime_reports_for_those_who_let_it(
    reporting_onnxruntime: None, tmp_path: Path
) -> None:
    """And a test that sees nothing sees something where there is something."""
    score = command("score", STAR, TEXTS, "--engine", "onnxruntime")
    assert wrote_identifier(run(score, tmp_path / "x", {"ORT_DISABLE_TELEMETRY": "0"}))


def test_openvino_reports_for_those_who_let_it(reporting_openvino: None, tmp_path: Path) -> None:
    program = (
        "import pathlib\n"
        "consent = pathlib.Path.home() / 'intel' / 'openvino_telemetry'\n"
        "consent.parent.mkdir()\n"
        "consent.write_text('{}')\n"
        "import dsd_trt, openvino\n"
    )
    assert run(python(program.format(1)), tmp_path / "1").asked
    assert not run(python(program.format(0)), tmp_path / "0").asked


def test_the_hub_is_asked_for_nothing_but_the_bundle(tmp_path: Path) -> None:
    files = files_of(make_bundle(tmp_path / "bundle").folder)
    asked = {}
    for value in ("", "0"):
        with serve(FakeHub("org/name", {"0f" * 20: files}, {"main": "0f" * 20})) as hub:
            environment = {
                **{it: text for it, text in os.environ.items() if not it.startswith("HF_")},
                **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / f"hf{value}")},
                "HF_HUB_DISABLE_TELEMETRY": value,
            }
            program = "from dsd_trt import Scorer; Scorer.load('org/name')"
            done = subprocess.run(python(program), env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        asked[value] = {path for _, path in hub.asked if not path.startswith("/org/name/resolve/")}
    assert not asked[""]
    if importlib.util.find_spec("huggingface_hub.utils._detect_agent"):  # since its 2
        assert asked["0"] == {"/api/agent-harnesses"}


def test_the_cpp_library_leaves_nothing(own_network: None, cpp_build: Path, tmp_path: Path) -> None:
    score = [cpp_build / "dsd-score", EMBEDDED, STAR, TEXTS]
    assert leaves_nothing(run(score, tmp_path / "unset"))
    assert leaves_nothing(run(score, tmp_path / "empty", {"ORT_DISABLE_TELEMETRY": ""}))


def test_the_cpp_library_reports_for_those_who_let_it(
    reporting_onnxruntime: None, cpp_build: Path, tmp_path: Path
) -> None:
    score = [cpp_build / "dsd-score", EMBEDDED, STAR, TEXTS]
    assert wrote_identifier(run(score, tmp_path / "x", {"ORT_DISABLE_TELEMETRY": "0"}))


@pytest.mark.torture
def test_the_cpp_library_leaves_nothing_for_long(
    own_network: None, cpp_build: Path, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for(LISTENED, "bytes sent", "left behind")
    program = python(OPEN_IN_CPP, cpp_build / "libdsd.so", EMBEDDED, str(scaled(30)))
    count_bytes(run(program, tmp_path / "x"), figures)


@pytest.mark.slow
def test_sees_onnxruntime_report(reporting_onnxruntime: None, tmp_path: Path) -> None:
    score = python(SCORE, "onnxruntime", STAR, "30")
    ended = run(score, tmp_path / "x", {"ORT_DISABLE_TELEMETRY": "0"})
    assert ended.asked == ("mobile.events.data.microsoft.com",)


@pytest.mark.torture
def test_a_library_leaves_nothing_for_long(
    own_network: None, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for(LISTENED, "bytes sent", "left behind")
    running = [
        Running(python(SCORE, engine, STAR, str(scaled(30))), tmp_path / engine)
        for engine in ("onnxruntime", "openvino")
    ]
    for it in running:
        count_bytes(it.end(), figures)


@pytest.mark.torture
@not_in_a_slice
@pytest.mark.parametrize("road", ROADS)
def test_commands_leave_nothing_for_long(
    own_network: None, road: str, tmp_path: Path, figures: Figures
) -> None:
    if road == "small":
        _write_small_inputs(tmp_path / "x")
    figures.look_for(LISTENED, "bytes sent", "left behind")
    count_bytes(run(python(COMMANDS, json.dumps(ROADS[road])), tmp_path / "x"), figures)
    figures.ended(count=len(ROADS[road]) - 1)


def _write_small_inputs(folder: Path) -> None:
    """A bundle, a key, and a checkpoint as the released research code writes it."""
    import minisign  # of the extra "test"

    make_bundle(folder / "bundle")
    (folder / "secret.key").write_bytes(bytes(minisign.KeyPair.generate().secret_key))
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_q_lora"
    matrices = {f"{layer}.down.weight": torch.ones(4, 8), f"{layer}.up.weight": torch.ones(8, 4)}
    torch.save(matrices, folder / "pytorch_model.bin")

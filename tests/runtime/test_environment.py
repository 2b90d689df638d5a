"""DSD_TRT_* variables: what they set, what wins, and what is said about wrong ones."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import click
import make_commands
import numpy as np
import pytest
from in_process import Run
from PIL import Image

from dsd_trt import Bundle, InputError, Scorer
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.commands.environment import (
    PREFIX,
    SETTINGS,
    Setting,
    other_variables,
    without_settings,
)
from dsd_trt.commands.main import cli, main
from dsd_trt.engine import ON_GPU

ROOT = Path(__file__).parents[2]

# Options without a variable: what is asked for, what decides a result, and where it goes.
DECIDING = {
    "inputs": "pairs data measure_on root images images_at texts clip key image_column text_column "
    "label_column id_column text_field labelled by scenes more_texts against",
    "outputs": "output out as_json dropped copy_to plot force resume dry_run shard_size report "
    "keep prune_missing trace",
    "the question": "levels layer head level mode top_k prune error check_prune tokens "
    "min_probability keep_best target_precision target_recall thresholds prior limit examples "
    "questions fraction seed contenders rounds requests measured smoke method",
    "the model": "model adapter family tiny precision score_layers token_mask resize score matrix "
    "query_pool adapter_input cuda_form maps bf16 verify no_lists graphs capabilities "
    "max_batch_size",
    "training": "loss negatives learning_rate steps validation allow_worse head_mode hard paper "
    "update_rank conditional copies rank hidden validate_every patience accumulate "
    "mixed_precision recompute refit",
    "safety": "self_check no_self_check",
}


@pytest.fixture
def run(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Run]:
    """A function that runs a command in a folder with an image and texts, in an environment."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save("a.png")
    Path("texts.txt").write_text("a red circle\na blue dog\n")
    Path("labelled.csv").write_text("image,text,label\na.png,a dog,1\na.png,a red circle,0\n")

    def command(*arguments: str, **variables: str) -> Run:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(PREFIX + name, value)
            with pytest.raises(SystemExit) as ended:
                main(list(arguments))
        captured = capsys.readouterr()
        return Run(int(ended.value.code or 0), captured.out, captured.err)

    return command


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command asks `Scorer.load` for; nothing is loaded."""
    asked: dict[str, Any] = {}

    def load(
        bundle: Any, engine: str, memory_budget_mb: Any = None, mode: str = "auto", **more: Any
    ) -> Scorer:
        asked.update(bundle=bundle, engine=engine, memory_budget_mb=memory_budget_mb, **more)
        raise InputError("asked")

    monkeypatch.setattr("dsd_trt.scorer.Scorer.load", load)
    # Nor is a bundle looked for.
    monkeypatch.setattr("dsd_trt.commands.bundle_checks.require_bundle", lambda *_, **__: None)
    return asked


def options() -> list[tuple[str, click.Option]]:
    """Every option of every command."""
    return [
        (path, it)
        for path, command in make_commands.commands(cli, "dsd-trt")
        for it in command.params
        if isinstance(it, click.Option)
    ]


# The table


def test_every_option_has_a_variable_or_decides_something() -> None:
    deciding = set(" ".join(DECIDING.values()).split())
    undecided = {
        (path, str(it.name))
        for path, it in options()
        if not isinstance(it, Setting)
        and it.name not in deciding
        # Their own engines, formats and batches decide what is written.
        and (path, it.name)
        not in {
            ("dsd-trt build", "engine"),
            ("dsd-trt gpu-check", "engine"),
            ("dsd-trt triton", "engine"),
            ("dsd-trt filter", "form"),
        }
    }
    assert undecided == set()
    assert deciding <= {str(it.name) for _, it in options()}


def test_every_setting_is_read_by_some_option_and_named_in_its_help() -> None:
    used = {str(it.envvar) for _, it in options() if isinstance(it, Setting)}
    assert used == {PREFIX + name for name in SETTINGS}
    for path, it in options():
        if isinstance(it, Setting):
            record = it.get_help_record(click.Context(click.Command(path)))
            assert record is not None
            assert f"env var: {it.envvar}" in record[1]


def test_an_option_has_the_same_variable_in_every_command() -> None:
    by_option: dict[str, set[str]] = {}
    for _, it in options():
        if isinstance(it, Setting):
            by_option.setdefault(str(it.envvar), set()).add(max(it.opts, key=len))
    assert all(len(it) == 1 for it in by_option.values())


def test_the_guide_has_the_table_of_the_code() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert make_commands.with_variables(page) == page
    listed = set(re.findall(r"^\| `(DSD_TRT_\w+)` \|", page, re.MULTILINE))
    assert listed == {PREFIX + name for name in SETTINGS} | set(other_variables())


def test_every_variable_that_the_code_names_is_in_the_table() -> None:
    known = {PREFIX + name for name in SETTINGS} | set(other_variables())
    named = set()
    for pattern in ("*.py", "*.cpp", "*.hpp", "*.md", "Makefile"):
        for folder in ("dsd_trt", "train", "export", "engines", "tools", "docs"):
            for path in (ROOT / folder).rglob(pattern):
                named |= set(re.findall(r"(?<!_)DSD_TRT_[A-Z_]+[A-Z]\b", path.read_text("utf-8")))
    assert named - {"DSD_TRT_MAX_IMAGE"} <= known
    assert "DSD_TRT_MAX_IMAGE_BYTES" in named


# Wrong values

WRONG = {
    "ENGINE": ("fast", "score"),
    "DEVICE": ("first", "score"),
    "THREADS": ("0", "score"),
    "MEMORY_BUDGET": ("nan", "score"),
    "CACHE_COMPILED": ("maybe", "score"),
    "TUNE": ("maybe", "score"),
    "FORMAT": ("xml", "score"),
    "QUIET": ("loud", "score"),
    "VERBOSE": ("3", "score"),
    "REQUIRE_SIGNATURE": ("nowhere.pub", "score"),
    "BUNDLE": ("nowhere", "score"),
    "REPORT_FORMAT": ("xml", "calibrate"),
    "TEXT_CACHE": ("-1", "eval"),
    "BATCH": ("8,1", "build"),
    "WORKSPACE": ("0", "build"),
    "TIMING_CACHE": (".", "build"),
    "WORKERS": ("none", "pretrain"),
}
ARGUMENTS = {
    "score": ("score", "a.png", "texts.txt"),
    "calibrate": ("calibrate", "shapes", "--data", "labelled.csv", "--dry-run"),
    "eval": ("eval", "shapes", "--data", "labelled.csv"),
    "build": ("build", "nowhere"),
    "pretrain": ("pretrain", "tiny-clip", "--out", "out", "--smoke"),
}


def test_wrong_values_are_tried_for_every_setting() -> None:
    assert WRONG.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_names_the_variable_and_not_the_option(
    name: str, run: Callable[..., Run]
) -> None:
    value, command = WRONG[name]
    ended = run(*ARGUMENTS[command], **{name: value})
    assert ended.code == 2
    assert ended.out == ""
    assert PREFIX + name in ended.err
    assert value in ended.err
    option = next(max(it.opts, key=len) for _, it in options() if it.envvar == PREFIX + name)
    assert f"'{option}'" not in ended.err


def test_a_wrong_value_of_the_command_line_names_the_option(run: Callable[..., Run]) -> None:
    ended = run("score", "a.png", "texts.txt", "--engine", "fast", ENGINE="openvino")
    assert ended.code == 2
    assert "Invalid value for '--engine': 'fast'" in ended.err.replace("\n", " ")
    assert "DSD_TRT" not in ended.err


def test_an_error_ends_with_the_settings_in_use(run: Callable[..., Run]) -> None:
    ended = run("score", "a.png", "texts.txt", BUNDLE="nowhere", ENGINE="onnxruntime", WORKERS="3")
    assert ended.code == 2
    *_, last = ended.err.splitlines()
    assert last.startswith("From the environment: ")
    assert set(last.removeprefix("From the environment: ").split(", ")) == {
        "DSD_TRT_BUNDLE=nowhere",
        "DSD_TRT_ENGINE=onnxruntime",
    }
    plain = run("score", "a.png", "texts.txt", "--bundle", "nowhere", QUIET="1")
    assert "environment" not in plain.err


def test_a_variable_that_nobody_reads_is_warned_of(run: Callable[..., Run], bundle: Bundle) -> None:
    arguments = ("score", "a.png", "texts.txt", "--bundle", str(bundle.folder), "-q")
    ended = run(*arguments, ENGIN="openvino", NONSENSE="1")
    assert ended.code == 0
    first, second = ended.err.splitlines()
    assert first.startswith("warning: no variable DSD_TRT_ENGIN is known")
    assert "is DSD_TRT_ENGINE meant?" in first
    assert "DSD_TRT_NONSENSE" in second
    quiet = run(*arguments, MAX_IMAGES="100", MAX_COMPILED_BYTES="1000000")
    assert quiet.err == ""


# What wins


def test_the_environment_sets_defaults(run: Callable[..., Run], loaded: dict[str, Any]) -> None:
    Path("key.pub").write_text("a key")
    run(
        *("score", "a.png", "texts.txt"),
        BUNDLE="a-bundle",
        ENGINE="onnxruntime",
        THREADS="3",
        MEMORY_BUDGET="77.5",
        TUNE="1",
        REQUIRE_SIGNATURE="key.pub",
    )
    assert loaded["bundle"] == "a-bundle"
    assert loaded["engine"] == "onnxruntime"
    assert loaded["threads"] == 3
    assert loaded["memory_budget_mb"] == 77.5
    assert loaded["tune"] is True
    assert loaded["require_signature"] == Path("key.pub")
    run("eval", str(EMBEDDED), "--data", "labelled.csv", TEXT_CACHE="5", THREADS="2")
    assert (loaded["text_cache_mb"], loaded["threads"]) == (5, 2)
    run(*ARGUMENTS["calibrate"], THREADS="4", MEMORY_BUDGET="9")
    assert (loaded["threads"], loaded["memory_budget_mb"]) == (4, 9)


def test_the_command_line_wins_and_empty_is_unset(
    run: Callable[..., Run], loaded: dict[str, Any]
) -> None:
    given = ("--bundle", "mine", "--engine", "openvino", "--threads", "1", "--memory-budget", "5")
    run(
        *("score", "a.png", "texts.txt", *given),
        BUNDLE="other",
        ENGINE="onnxruntime",
        THREADS="3",
        MEMORY_BUDGET="77",
    )
    assert (loaded["bundle"], loaded["engine"]) == ("mine", "openvino")
    assert (loaded["threads"], loaded["memory_budget_mb"]) == (1, 5)
    run("score", "a.png", "texts.txt", BUNDLE="", ENGINE="", THREADS="", TUNE="", QUIET="")
    assert (loaded["bundle"], loaded["engine"]) == (None, "auto")
    assert (loaded["threads"], loaded["tune"]) == (None, False)


def test_a_bundle_of_the_environment_scores(run: Callable[..., Run], bundle: Bundle) -> None:
    named = run("score", "a.png", "texts.txt", "-f", "csv", "--bundle", str(bundle.folder))
    ended = run("score", "a.png", "texts.txt", "-f", "csv", BUNDLE=str(bundle.folder))
    assert ended.out == named.out != ""


def test_a_format_of_the_environment_yields_to_the_suffix(
    run: Callable[..., Run], bundle: Bundle
) -> None:
    arguments = ("score", "a.png", "texts.txt", "--bundle", str(bundle.folder))
    assert len(json.loads(run(*arguments, FORMAT="json").out)) == 2
    run(*arguments, "-o", "scores.csv", FORMAT="json")
    assert Path("scores.csv").read_text().startswith("image,text,score")
    assert run(*arguments, "-f", "csv", FORMAT="json").out.startswith("image,text,score")
    refused = run(*arguments, FORMAT="parquet")
    assert refused.code == 2
    assert "DSD_TRT_FORMAT=parquet" in refused.err


@pytest.mark.parametrize(("engine", "dropped"), [("openvino", "device"), (ON_GPU[0], "threads")])
def test_values_for_other_engines_are_not_looked_at(
    engine: str,
    dropped: str,
    run: Callable[..., Run],
    loaded: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whether the engine works here is not the question.
    monkeypatch.setattr("dsd_trt.engine.choice.require_possible", lambda *_: None)
    run("score", "a.png", "texts.txt", "--engine", engine, DEVICE="1", THREADS="2")
    assert loaded["device"] == (0 if dropped == "device" else 1)
    assert loaded["threads"] == (None if dropped == "threads" else 2)
    run("score", "a.png", "texts.txt", DEVICE="1", THREADS="2")  # auto decides
    assert (loaded["device"], loaded["threads"]) == (1, 2)
    run("score", "a.png", "texts.txt", "--engine", engine, "--device", "1", "--threads", "2")
    assert (loaded["device"], loaded["threads"]) == (1, 2)


def test_a_device_of_the_command_line_is_refused_on_a_processor(run: Callable[..., Run]) -> None:
    arguments = ("score", "a.png", "texts.txt", "--engine", "onnxruntime")
    assert run(*arguments, DEVICE="1").code == 0
    refused = run(*arguments, "--device", "1")
    assert refused.code == 2
    assert "computes on the processor" in refused.err


def test_eval_of_a_model_looks_at_threads_alone(run: Callable[..., Run]) -> None:
    Path("empty.csv").write_text("image,text,label\n")
    arguments = ("eval", "shapes", "--data", "empty.csv")
    variables = {"ENGINE": "openvino", "DEVICE": "1", "THREADS": "2", "MEMORY_BUDGET": "9"}
    plain, ended = run(*arguments), run(*arguments, "-v", **variables)
    assert "empty.csv" in plain.err
    told = "From the environment: DSD_TRT_THREADS=2\n"
    assert ended.err.endswith(f"{plain.err}{told}")  # as the error's end
    assert told in ended.err.removesuffix(told)  # as -v says at once
    assert "DSD_TRT_ENGINE" not in ended.err
    del variables["THREADS"]
    assert run(*arguments, **variables).err == plain.err
    of_bundle = run("eval", str(EMBEDDED), *arguments[2:], **variables | {"DEVICE": ""})
    assert "DSD_TRT_ENGINE=openvino" in of_bundle.err
    refused = run(*arguments, "--memory-budget", "2")
    assert refused.code == 2
    assert "runs in PyTorch: omit --engine" in refused.err


def test_quiet_and_verbose(run: Callable[..., Run], bundle: Bundle) -> None:
    arguments = ("score", "a.png", "texts.txt", "--bundle", str(bundle.folder))
    assert run(*arguments, QUIET="1").err == ""
    assert run(*arguments, QUIET="0").err != ""
    verbose = run(*arguments, VERBOSE="true", THREADS="1")
    assert "batches of up to" in verbose.err
    assert "From the environment: DSD_TRT_THREADS=1" in verbose.err
    assert run(*arguments, "-q", VERBOSE="1").err == ""
    assert "batches of up to" in run(*arguments, "-v", QUIET="1").err
    refused = run(*arguments, QUIET="1", VERBOSE="1")
    assert refused.code == 2
    assert "DSD_TRT_QUIET and DSD_TRT_VERBOSE are both set" in refused.err


# Elsewhere


def test_a_scorer_in_python_reads_no_setting(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(PREFIX + name, "nonsense")
    scorer = Scorer.load(bundle.folder, "onnxruntime")
    assert np.isfinite(scorer.score([np.zeros((8, 8, 3), np.uint8)], ["a dog"]).scores).all()


def test_processes_to_measure_get_no_settings() -> None:
    environment = {"PATH": "p", "DSD_TRT_CACHE": "c", "DSD_TRT_ENGINE": "e", "DSD_TRT_QUIET": "1"}
    assert without_settings(environment) == {"PATH": "p", "DSD_TRT_CACHE": "c"}

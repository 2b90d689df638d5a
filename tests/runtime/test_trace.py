"""Traces: Chrome's format, spans within spans, sums, bounds, and what they show of a run."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from bundles import RESOLUTION, make_bundle
from in_process import Run
from PIL import Image

from dsd_trt import Bundle, DsdError, Scorer
from dsd_trt.image import decoding
from dsd_trt.image.decoding import decoded_in_order
from dsd_trt.pipeline import Pipeline
from dsd_trt.spans import Recording, recorded, span
from dsd_trt.trace import to_json, traced

pytest_plugins = ("in_process",)

WAITING: Final = "waiting for a picture"


def events_of(content: str) -> list[dict[str, Any]]:
    """The complete events of a trace, each with its thread's name, checked against the format.

    See "Trace Event Format", Google, 2016: the JSON object format, metadata and complete events.
    """
    trace = json.loads(content, parse_constant=lambda it: pytest.fail(f"{it} is no JSON"))
    assert trace.keys() == {"traceEvents", "displayTimeUnit", "otherData"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    names: dict[tuple[int, int], str] = {}
    complete = []
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is int
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            if event["name"] == "thread_name":
                place = event["pid"], event["tid"]
                assert place not in names
                names[place] = event["args"]["name"]
            continue
        assert event["ph"] == "X"
        assert isinstance(event["cat"], str)
        assert all(type(event[it]) is int and event[it] >= 0 for it in ("ts", "dur", "tid"))
        complete.append(event | {"thread": names[event["pid"], event["tid"]]})
    assert len(set(names.values())) == len(names)  # a lane for each name
    require_nested(complete)
    return complete


def require_nested(events: list[dict[str, Any]]) -> None:
    """Spans of a thread lie within each other, or one after the other."""
    around: dict[int, list[int]] = {}  # ends of the spans that are open, by thread
    for event in sorted(events, key=lambda it: (it["ts"], -it["dur"])):
        ends = around.setdefault(event["tid"], [])
        while ends and ends[-1] <= event["ts"]:
            ends.pop()
        assert not ends or event["ts"] + event["dur"] <= ends[-1]
        ends.append(event["ts"] + event["dur"])


def test_the_check_of_nesting_finds_spans_that_overlap() -> None:
    crossing = [{"tid": 1, "ts": 0, "dur": 5}, {"tid": 1, "ts": 3, "dur": 5}]
    with pytest.raises(AssertionError):
        require_nested(crossing)
    require_nested([crossing[0], crossing[1] | {"tid": 2}])


# Recordings


def test_times_and_sums_are_those_of_the_clock() -> None:
    now = itertools.count(5_000_000_400, 1_000_700)  # each look takes 1000.7 microseconds
    recording = Recording(clock=lambda: next(now))
    with recording.span("write", "table", {"rows": 2}):  # 1, to 6
        with recording.span("open", "open", {}):  # 2 to 3
            pass
        with recording.span("open", "again", {}):  # 4 to 5
            pass
    with recording.span("decode", "decode", {"image": "\udce9" + "x" * 1000}):  # 7 to 8
        pass
    content = to_json(recording)
    assert content.isascii()  # a file's name may be no UTF-8
    events = events_of(content)
    assert [(it["name"], it["cat"], it["ts"], it["dur"]) for it in events] == [
        ("table", "write", 1000, 5004),  # 1000.7 to 6004.2
        ("open", "open", 2001, 1001),
        ("again", "open", 4002, 1001),
        ("decode", "decode", 7004, 1001),
    ]
    assert events[0]["args"] == {"rows": 2}
    assert len(events[3]["args"]["image"]) < 210
    # Of time within another span, the outer one has all.
    assert recording.totals == pytest.approx({"write": 5 * 0.0010007, "decode": 0.0010007})


def test_sums_of_a_thread_are_its_time() -> None:
    """A clock that spans alone move: then they are all of the time."""
    now = 0

    def work(nanoseconds: int) -> None:
        nonlocal now
        now += nanoseconds

    recording = Recording(clock=lambda: now)
    for number in range(1, 50):
        with recording.span("decode", "decode", {}):
            work(number)
            with recording.span("open", "open", {}):
                work(2 * number)
        with recording.span("write", "write", {}):
            work(number)
    assert sum(recording.totals.values()) == pytest.approx(recording.seconds)
    assert recording.totals["decode"] == pytest.approx(3 * recording.totals["write"])


def test_a_trace_is_bounded_and_says_what_it_lacks() -> None:
    recording = Recording(most=3)
    for number in range(10):
        with recording.span("decode", "decode", {"number": number}):
            pass
    content = to_json(recording)
    assert [it["args"]["number"] for it in events_of(content)] == [0, 1, 2]
    other = json.loads(content)["otherData"]
    assert other["spans left out"] == 7
    kept = sum(it.end - it.begin for it in recording.spans) / 1e9
    assert recording.totals["decode"] > kept  # all ten


def test_without_a_recording_nothing_is_made() -> None:
    assert span("decode", image="a.png") is span("write")

    def begin_another() -> None:
        with span("write"):  # a thread has a context of its own
            pass

    with recorded() as recording:
        with span("decode"):
            pass
        other = threading.Thread(target=begin_another)
        other.start()
        other.join()
    with span("write"):
        pass
    assert [it.category for it in recording.spans] == ["decode"]


def test_a_span_that_fails_is_recorded() -> None:
    with recorded() as recording, pytest.raises(ValueError, match="damaged"), span("decode"):
        raise ValueError("damaged")
    assert [it.name for it in recording.spans] == ["decode"]


def test_pools_that_follow_each_other_share_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decoding_threads", lambda: 2)
    both = threading.Barrier(2, timeout=60)

    def decode(number: int) -> int:
        with span("decode", number=number):
            both.wait()
            return number

    with recorded() as recording:
        for _ in range(5):
            assert [it for it, _ in decoded_in_order(decode, range(6), 4)] == list(range(6))
    events = events_of(to_json(recording))
    threads = Counter(it["thread"] for it in events if it["name"] == "decode")
    assert threads == {"decode_0": 15, "decode_1": 15}
    assert len(recording.lanes) <= 3


# What a trace shows


def pictures(count: int) -> list[Any]:
    return [np.full((RESOLUTION, RESOLUTION, 3), i, np.uint8) for i in range(count)]


def test_a_trace_shows_decoding_while_the_engine_works(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's first run and the decoding of the next batch wait for each other."""
    monkeypatch.setattr(decoding, "decoding_threads", lambda: 2)
    scorer = Scorer.load(bundle.folder, "onnxruntime", memory_budget_mb=0.2)
    batch = scorer._pipeline.batch.images
    encoder: Any = scorer._pipeline.engine("image_encoder")
    working, slow, run = threading.Event(), threading.Event(), encoder._run

    def encode(feeds: Any) -> Any:
        working.set()
        assert slow.wait(60)
        return run(feeds)

    def decode(picture: Any, *_: object) -> Any:
        if picture[0, 0, 0] >= batch:
            slow.set()
            assert working.wait(60)
        return picture

    monkeypatch.setattr(encoder, "_run", encode)
    monkeypatch.setattr("dsd_trt.jobs.preprocess", decode)
    with recorded() as recording:
        scorer.score(pictures(batch + 2), ["a dog", "a red circle"])
    events = events_of(to_json(recording))
    encoded = next(it for it in events if it["name"] == "image encoder")
    assert (encoded["thread"], encoded["args"]) == ("main", {"images": batch})
    overlapping = [
        it["args"]["image"]
        for it in events
        if it["name"] == "decode"
        and it["ts"] <= encoded["ts"] + encoded["dur"]
        and encoded["ts"] <= it["ts"] + it["dur"]
    ]
    assert f"image {batch}" in overlapping
    assert {it["thread"] for it in events if it["name"] == "decode"} <= {"decode_0", "decode_1"}
    by_thread = Counter[str]()
    for it in recording.spans:
        by_thread[str(it.lane)] += it.end - it.begin
    assert max(by_thread.values()) <= recording.seconds * 1e9


def test_a_trace_shows_a_picture_that_is_waited_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, begin = threading.Event(), span

    def noticed(category: Any, *rest: Any) -> Any:
        waiting.set()
        return begin(category, *rest)

    def decode(picture: Any, *_: object) -> Any:
        assert waiting.wait(60)
        return picture

    monkeypatch.setattr(decoding, "span", noticed)
    monkeypatch.setattr("dsd_trt.jobs.preprocess", decode)
    with recorded() as recording:
        Scorer.load(bundle.folder, "onnxruntime").score(pictures(1), ["a dog"])
    assert [it.lane for it in recording.spans if it.category == WAITING] == [0]
    assert recording.totals[WAITING] > 0


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_every_pass_and_encoding_is_in_the_trace(mode: Any, engine: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", matrix=True)
    texts = [f"a red circle {'blue ' * i}dog" for i in range(5)]
    with traced(tmp_path / "trace.json"), Scorer.load(bundle.folder, engine, mode=mode) as scorer:
        scorer.score(pictures(7), texts)
    events = events_of((tmp_path / "trace.json").read_text("utf-8"))
    done = Counter[str]()
    for it in events:
        done[it["name"]] += it["args"].get("passes", 0) + it["args"].get("images", 0)
        if it["name"] in ("text encoder", "matrix"):
            done[it["name"]] += it["args"]["texts"]
    assert done["image encoder"] == 7
    assert done["text encoder"] == 5
    assert sum(it["name"] == "decode" for it in events) == 7
    if mode == "pair":
        assert done["pair"] == 7 * 5 * 3
    else:
        assert done["matrix"] > 0
        assert {"walk", "match"} <= done.keys()
    assert {it["args"]["graph"] for it in events if it["name"] == "open"} == {
        *("image_encoder", "text_encoder", f"{mode}_scorer")
    }


# Files


def test_a_trace_is_written_after_an_error_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "trace.json"
    for error in (ValueError("damaged"), KeyboardInterrupt()):
        with pytest.raises(type(error)), traced(file), span("decode"):
            raise error
        assert [it["name"] for it in events_of(file.read_text("utf-8"))] == ["decode"]
        file.unlink()
    nowhere = tmp_path / "none" / "trace.json"
    with pytest.raises(ValueError, match="damaged"), traced(nowhere):
        raise ValueError("damaged")
    assert "there is no trace: cannot write" in caplog.text
    with pytest.raises(DsdError, match="cannot write"), traced(nowhere):
        pass


# Commands


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, one of them damaged, texts and pairs."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(images / f"{number}.png")
    (images / "damaged.png").write_bytes(b"no image")
    (tmp_path / "texts.txt").write_text("a dog\na red circle\n")
    rows = "".join(f"images/{number}.png,a dog {number}\n" for number in range(6))
    (tmp_path / "pairs.csv").write_text(f"image,text\n{rows}")
    return tmp_path


COMMANDS = {
    "score": ["score", "images", "texts.txt", "-f", "csv", "-o", "out.csv"],
    "pairs": ["score", "--pairs", "pairs.csv", "-f", "json", "-o", "out.json"],
    "filter": ["filter", "pairs.csv", "--keep-best", "50%", "-o", "out.csv"],
    "index": ["index", "images", "out.index"],
}
CATEGORIES = {"open", "decode", "image encoder", "write"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_its_trace_and_the_same_results(
    folder: Path, dsd_trt: Callable[..., Run], name: str
) -> None:
    output = COMMANDS[name][-1]
    code = 3 if "images" in COMMANDS[name] else 0  # one is damaged
    assert dsd_trt(*COMMANDS[name]).code == code
    (folder / output).rename(folder / "before")
    run = dsd_trt(*COMMANDS[name], "--trace", "trace.json")
    assert run.code == code, run.err
    assert "waited for pictures" in run.err
    assert "trace: trace.json" in run.err
    before, after = folder / "before", folder / output
    if name != "index":
        assert after.read_bytes() == before.read_bytes()
    else:
        latents = "latents-00000.safetensors"
        assert (after / latents).read_bytes() == (before / latents).read_bytes()
    events = events_of((folder / "trace.json").read_text("utf-8"))
    encoders = {"text encoder", "U-Net pass"} if name != "index" else set()
    assert {it["cat"] for it in events} - {WAITING} == CATEGORIES | encoders
    decoded = [Path(it["args"]["image"]).name for it in events if it["cat"] == "decode"]
    assert len(decoded) == (7 if code else 6)
    assert "0.png" in decoded


def test_a_trace_has_a_file_of_its_own(folder: Path, dsd_trt: Callable[..., Run]) -> None:
    (folder / "texts.json").write_text("a dog\n")
    for trace, texts, output in (
        ("images/0.png", "texts.txt", "out.csv"),
        ("out.json", "texts.txt", "out.json"),
        ("images/../out.json", "texts.txt", "out.json"),
        ("texts.json", "texts.json", "out.csv"),
    ):
        run = dsd_trt("score", "images", texts, "-o", output, "--trace", trace)
        assert run.code == 2, trace
        assert "a trace is a JSON file of its own: give --trace" in run.err
    run = dsd_trt("score", "images", "texts.txt", "--trace", "none/trace.json")
    assert run.code == 2
    assert "cannot write 'none/trace.json'" in run.err
    assert "mkdir -p none" in run.err


def test_an_interrupted_command_writes_its_trace(
    folder: Path, dsd_trt: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "score", interrupt)
    run = dsd_trt("score", "images", "texts.txt", "--trace", "trace.json")
    assert run.code == 130
    events = events_of((folder / "trace.json").read_text("utf-8"))
    assert sum(it["name"] == "image encoder" for it in events) == 1
    assert not [it for it in threading.enumerate() if it.name.startswith("decode")]


def test_the_note_is_a_note(folder: Path, dsd_trt: Callable[..., Run]) -> None:
    run = dsd_trt("score", "images/0.png", "texts.txt", "--trace", "trace.json", "-q")
    assert (run.code, run.err) == (0, "")

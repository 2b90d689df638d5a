"""A pytest plugin: the C++ runtime, built with `make cpp` and called through its C header."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import bundles
import numpy as np
import pytest
from numpy.typing import NDArray

from dsd_trt.bundle.folder import Bundle

ROOT = Path(__file__).parents[2]
FETCHED = ROOT / ".venv-cpp" / "fetched"


class Error(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("message", ctypes.c_char * 512)]


class Options(ctypes.Structure):
    _fields_ = [
        ("threads", ctypes.c_int),
        ("memory_budget_mb", ctypes.c_double),
        ("no_self_check", ctypes.c_int),
        ("device", ctypes.c_char_p),
        ("mode", ctypes.c_int),
    ]


MODES = ("auto", "pair", "matrix")

Ranked: TypeAlias = list[tuple[int, float, float]]
"""Place, score and probability of the best of one search, best first."""


class Image(ctypes.Structure):
    _fields_ = [
        ("path", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_size_t) for name in ("size", "height", "width", "channels")),
    ]


class Found(ctypes.Structure):
    _fields_ = [
        ("index", ctypes.c_size_t),
        ("score", ctypes.c_float),
        ("probability", ctypes.c_float),
    ]


class Search(ctypes.Structure):
    _fields_ = [
        *((it, ctypes.c_size_t) for it in ("passes", "walks", "lists", "audits", "failed_audits")),
        ("warning", ctypes.c_char * 512),
    ]


class CppError(Exception):
    def __init__(self, error: Error) -> None:
        super().__init__(error.message.decode(errors="replace"))  # may be cut within a character
        self.status = error.status


class CppScorer:
    """Wrapper of the C header's functions for one bundle."""

    def __init__(
        self,
        library: ctypes.CDLL,
        bundle: Path,
        memory_budget_mb: float = 0,
        self_check: bool = True,
        device: str | None = None,
        mode: str = "auto",
    ) -> None:
        self._library, self._handle = library, ctypes.c_void_p()
        encoded = None if device is None else device.encode()
        self._call(
            library.dsd_open,
            str(bundle).encode(),
            ctypes.byref(Options(1, memory_budget_mb, not self_check, encoded, MODES.index(mode))),
            ctypes.byref(self._handle),
        )
        library.dsd_max_length.restype = library.dsd_resolution.restype = ctypes.c_size_t
        self.max_length: int = library.dsd_max_length(self._handle)
        self.resolution: int = library.dsd_resolution(self._handle)
        self.mode = MODES[library.dsd_mode_of(self._handle)]
        self.statuses: list[int] = []  # one per image of the last call of `score`
        self._ids = (ctypes.c_int32 * self.max_length)()
        self._mask = (ctypes.c_float * self.max_length)()

    def close(self) -> None:
        self._library.dsd_close(self._handle)

    def score(
        self,
        images: Sequence[Path | bytes | NDArray[np.uint8]],
        texts: Sequence[str | bytes],
        levels: Sequence[float] = (),
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
        """Scores, probabilities and each image's error ("" is none); also sets `statuses`."""
        scores = np.zeros((len(images), len(texts)), np.float32)
        probabilities = np.zeros_like(scores)
        errors = (Error * len(images))()
        self._call(
            self._library.dsd_score,
            *self._given(images, texts, levels),
            scores.ctypes.data_as(ctypes.c_void_p),
            probabilities.ctypes.data_as(ctypes.c_void_p),
            errors,
        )
        self.statuses = [error.status for error in errors]
        return scores, probabilities, [error.message.decode() for error in errors]

    def best_texts(
        self,
        images: Sequence[Path | bytes | NDArray[np.uint8]],
        texts: Sequence[str | bytes],
        top_k: int,
        error: float = 0,
        levels: Sequence[float] = (),
    ) -> tuple[list[Ranked], Search, list[str]]:
        """Best texts of each image, what the search took, and each image's error."""
        return self._best("dsd_best_texts", len(images), images, texts, top_k, error, levels)

    def best_images(
        self,
        images: Sequence[Path | bytes | NDArray[np.uint8]],
        texts: Sequence[str | bytes],
        top_k: int,
        error: float = 0,
        levels: Sequence[float] = (),
    ) -> tuple[list[Ranked], Search, list[str]]:
        """Best images of each text, likewise."""
        return self._best("dsd_best_images", len(texts), images, texts, top_k, error, levels)

    def _best(
        self,
        function: str,
        count: int,
        images: Sequence[Path | bytes | NDArray[np.uint8]],
        texts: Sequence[str | bytes],
        top_k: int,
        error: float,
        levels: Sequence[float],
    ) -> tuple[list[Ranked], Search, list[str]]:
        found, search = (Found * (count * top_k))(), Search()
        errors = (Error * len(images))()
        self._call(
            getattr(self._library, function),
            *self._given(images, texts, levels),
            ctypes.c_size_t(top_k),
            ctypes.c_double(error),
            found,
            ctypes.byref(search),
            errors,
        )
        entries = [(it.index, it.score, it.probability) for it in found]
        none = ctypes.c_size_t(-1).value
        rows = [entries[start : start + top_k] for start in range(0, len(entries), top_k)]
        ranked = [[it for it in row if it[0] != none] for row in rows]
        return ranked, search, [error.message.decode() for error in errors]

    def _given(
        self,
        images: Sequence[Path | bytes | NDArray[np.uint8]],
        texts: Sequence[str | bytes],
        levels: Sequence[float],
    ) -> tuple[Any, ...]:
        """The arguments that every call on images and texts begins with."""
        encoded = [text.encode() if isinstance(text, str) else text for text in texts]
        return (
            self._handle,
            (Image * len(images))(*map(to_image, images)),
            ctypes.c_size_t(len(images)),
            (ctypes.c_char_p * len(texts))(*encoded),
            ctypes.c_size_t(len(texts)),
            (ctypes.c_double * len(levels))(*levels),
            ctypes.c_size_t(len(levels)),
        )

    def has_probability(self, levels: Sequence[float] = ()) -> bool:
        """Whether scores over some levels have match probabilities; none is all levels."""
        given = (ctypes.c_double * len(levels))(*levels)
        count = ctypes.c_size_t(len(levels))
        return bool(self._library.dsd_has_probability(self._handle, given, count))

    def tokenize(self, text: str | bytes) -> tuple[list[int], list[float]]:
        """Token ids and mask of a text, padded to the tokenizer's length."""
        self.count_words(text)
        return self._ids[:], self._mask[:]

    def word_ids(self, text: str) -> list[int]:
        """Token ids of a text that is not truncated, without BOS and EOS."""
        return self._ids[1 : 1 + self.count_words(text)]

    def count_words(self, text: str | bytes) -> int:
        """Number of tokens of a text before truncation, without BOS and EOS."""
        words = ctypes.c_size_t()
        self._call(
            self._library.dsd_tokenize,
            self._handle,
            text.encode() if isinstance(text, str) else text,
            self._ids,
            self._mask,
            ctypes.byref(words),
        )
        return words.value

    def preprocess(self, image: Path | bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels = np.zeros((self.resolution, self.resolution, 3), np.uint8)
        self._call(
            self._library.dsd_preprocess,
            self._handle,
            ctypes.byref(to_image(image)),
            pixels.ctypes.data_as(ctypes.c_void_p),
        )
        return pixels

    def _call(self, function: Any, *arguments: Any) -> None:
        error = Error()
        if function(*arguments, ctypes.byref(error)):
            raise CppError(error)


def to_image(source: Path | bytes | NDArray[np.uint8]) -> Image:
    if isinstance(source, Path):
        return Image(path=str(source).encode())
    if isinstance(source, bytes):
        data = ctypes.cast(ctypes.c_char_p(source), ctypes.c_void_p)
        return Image(data=data, size=len(source))
    height, width, *rest = source.shape
    return Image(
        data=source.ctypes.data,
        size=source.nbytes,
        height=height,
        width=width,
        channels=rest[0] if rest else 1,
    )


def build(folder: str, *arguments: str, first: Sequence[Sequence[str]] = ()) -> Path:
    """Run `make cpp` once for all test processes; skip the test if a build tool is missing.

    Args:
        folder: build folder, relative to `engines/cpp`.
        arguments: further arguments of make, such as variables.
        first: commands to run before make.

    Returns:
        The build folder.
    """
    for tool in ("make", "cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if not FETCHED.exists():
        pytest.skip("ONNX Runtime's headers are not here: make fetches them, where there is npm")
    with (FETCHED.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (*first, ["make", "cpp", f"CPP_BUILD=engines/cpp/{folder}", *arguments]):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if "dsd needs what is not here" in done.stderr:
                pytest.skip(done.stderr)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "warning:" not in done.stdout + done.stderr
    return ROOT / "engines" / "cpp" / folder


def clip_bundle(
    folder: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    length: int = 77,
    make: Callable[..., Bundle] = bundles.make_bundle,
    **kind: Any,
) -> Bundle:
    """A stand-in bundle (see `bundles`) with a CLIP tokenizer of some maximum length."""
    random = np.random.default_rng(21)
    table = random.normal(size=(tokenizer.get_vocab_size(), 4)).astype(np.float32)
    specials = [tokenizer.token_to_id(f"<|{name}oftext|>") for name in ("start", "end")]
    for name, value in (
        *(("TABLE", table), ("LENGTH", length)),
        *(("BOS", specials[0]), ("EOS", specials[1])),
        ("_tokenizer", lambda: tokenizer),
    ):
        monkeypatch.setattr(bundles, name, value)
    return make(folder, **kind)


@pytest.fixture(scope="session")
def cpp_build() -> Path:
    return build("build")


@pytest.fixture(scope="session")
def cpp_library(cpp_build: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(cpp_build / "libdsd.so"))

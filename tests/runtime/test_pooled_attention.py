"""The compiled kernel against the formula in double precision, whatever the sizes."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from arm_kernel import ArmKernel, compile_kernel, needs_emulator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stub_libraries import cut_short, needs_compiler

from dsd_trt.engine import pooled_attention
from dsd_trt.engine.pooled_attention import (
    MOMENTS,
    Moments,
    PooledAttention,
    available,
    pool_attention,
    register_widths,
    tile_width,
)

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "dsd_trt/engine/pooled_attention.cpp"
COMPILER = shutil.which("g++")
WIDTHS = [*register_widths(), *filter(None, [tile_width()])]
ARM = "arm"  # emulated
pytestmark = pytest.mark.skipif(
    COMPILER is None or platform.machine() not in ("x86_64", "aarch64"),
    reason="no C++ compiler to install with, or one for another processor",
)


@dataclass(frozen=True)
class Form:
    """The kernel for some registers.

    Attributes:
        width: bits of the registers, as for `pool_attention`.
        pool: `pool_attention` of layers with a number of threads.
    """

    width: int
    pool: Callable[[Sequence[PooledAttention], int], None]


@pytest.fixture(scope="module", params=[*WIDTHS, pytest.param(ARM, marks=needs_emulator)])
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Form:
    if request.param != ARM:
        return Form(request.param, partial(pool_attention, width=request.param))
    folder = tmp_path_factory.mktemp(ARM)
    compile_kernel(folder / "kernel.so")
    return Form(128, ArmKernel(folder / "kernel.so", folder).pool)


def make(
    rng: np.random.Generator,
    heads: int = 2,
    texts: int = 3,
    tokens: int = 77,
    counted: int = 16,
    depth: int = 8,
    images: int = 2,
    image_tokens: int = 64,
    lam: float = 20.0,
    spread: float = 3.0,
    moments: bool = False,
) -> PooledAttention:
    """Arrays of normal numbers; so are their logits, with `spread` as their deviation."""

    def normal(scale: float, *shape: int) -> NDArray[Any]:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    return PooledAttention(
        normal(spread / np.sqrt(depth), heads, texts * tokens, depth),
        normal(1, heads, depth, images * image_tokens),
        np.full((heads, texts, counted, images), np.nan, np.float32),
        lam,
        Moments(
            normal(1 / image_tokens, image_tokens, MOMENTS),
            np.full((heads, texts, counted, images, MOMENTS), np.nan, np.float32),
        )
        if moments
        else None,
    )


def sharp_attention(layer: PooledAttention, width: int | None = None) -> NDArray[np.float64]:
    """lambda A in double precision, (heads, texts, counted, images, image_tokens)."""
    heads, texts, counted, images = layer.pooled.shape
    keys, queries = torch.from_numpy(layer.keys), torch.from_numpy(layer.queries)
    if width is not None and width == tile_width() and keys.shape[2] > 32:
        keys, queries = keys.bfloat16(), queries.bfloat16()
    logits = (keys.double() @ queries.double()).numpy()
    logits = logits.reshape(heads, texts, -1, images, layer.queries.shape[2] // images)
    attention = np.exp(logits - logits.max(axis=2, keepdims=True))
    attention /= attention.sum(axis=2, keepdims=True)
    return np.asarray(layer.lam * attention[:, :, :counted])


def by_formula(layer: PooledAttention, width: int | None = None) -> NDArray[np.float64]:
    return np.exp(sharp_attention(layer, width)).mean(axis=-1)


def assert_moments(layer: PooledAttention, rtol: float, width: int | None = None) -> None:
    """Those of a layer are its maps', each to as many digits as its mass has, however small."""
    assert layer.moments is not None
    basis, above = layer.moments.basis.astype(np.float64), np.expm1(sharp_attention(layer, width))
    error = np.abs(layer.moments.sums - above @ basis)
    assert (error <= rtol * (above @ np.abs(basis))).all()


def test_it_is_compiled_where_there_is_a_compiler() -> None:
    assert available()
    assert register_widths()[0] == (256 if platform.machine() == "x86_64" else 128)


@pytest.mark.parametrize(
    ("widest", "all_of_them"), [(0, []), (128, [128]), (256, [256]), (512, [256, 512])]
)
def test_narrow_registers_are_for_processors_that_have_no_others(
    widest: int, all_of_them: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = SimpleNamespace(dsd_registers=lambda: widest)
    monkeypatch.setattr(pooled_attention, "_kernel", lambda: kernel)
    assert register_widths() == all_of_them
    assert available() == bool(widest)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.fixed_dictionaries(
        {
            "heads": st.integers(1, 3),
            "texts": st.integers(1, 3),
            "tokens": st.integers(1, 80),
            "depth": st.integers(1, 100),
            "images": st.integers(1, 3),
            "image_tokens": st.integers(1, 100),
        }
    ),
    counted=st.integers(1, 80),
    lam=st.sampled_from([1e-3, 1.0, 20.0, 64.0]),
    threads=st.integers(1, 5),
    seed=st.integers(0, 99),
    moments=st.booleans(),
)
def test_it_is_the_formula(
    form: Form,
    sizes: dict[str, int],
    counted: int,
    lam: float,
    threads: int,
    seed: int,
    moments: bool,
) -> None:
    rng, counted = np.random.default_rng(seed), min(counted, sizes["tokens"])
    layer = make(rng, **sizes, counted=counted, lam=lam, moments=moments)
    form.pool([layer], threads)
    # What is wrong with attention, 1e-6 or so, is lambda times as much once it is sharpened.
    np.testing.assert_allclose(layer.pooled, by_formula(layer, form.width), rtol=4e-6 * (1 + lam))
    if moments:
        assert_moments(layer, 4e-6 * (1 + lam), form.width)


@pytest.mark.parametrize("image_tokens", [16, 100])
def test_moments_of_a_faint_map_keep_their_digits(form: Form, image_tokens: int) -> None:
    """A mass of 1e-7 is lost where it is the pooled value less one."""
    layer = make(np.random.default_rng(0), image_tokens=image_tokens, moments=True)
    layer.keys.reshape(2, 3, 77, 8)[:, :, :16] = 0  # of tokens that count; these have logits of 0
    layer.queries[:, 0] = 30
    layer.keys.reshape(2, 3, 77, 8)[:, :, 16:, 0] = 0.7
    form.pool([layer], 1)
    mass = np.expm1(sharp_attention(layer, form.width)).mean(axis=-1)
    assert mass.max() < 1e-5
    assert_moments(layer, 1e-4, form.width)


def test_logits_beyond_half_precision(form: Form) -> None:
    layer = make(np.random.default_rng(0), spread=3e4, depth=33)
    assert np.abs(layer.keys @ layer.queries).max() > 65504
    form.pool([layer], 2)
    # Numbers of 24 bits: those near 1e5 are off by 0.01, where attention is nearly always 0 or 1.
    np.testing.assert_allclose(layer.pooled, by_formula(layer, form.width), rtol=0.02)
    assert np.isfinite(layer.pooled).all()


def test_what_only_one_image_has_is_left_out_of_the_others(form: Form) -> None:
    """Rows that are zero for all but one image, as `attend_all` makes them."""
    layer = make(np.random.default_rng(0), images=3, depth=40)
    queries = layer.queries.reshape(2, 40, 3, 64)
    for image in range(3):
        queries[:, 37 + image, np.arange(3) != image] = 0
    form.pool([layer], 2)
    np.testing.assert_allclose(layer.pooled, by_formula(layer, form.width), rtol=1e-4)


CONFIGURE = """
#include <immintrin.h>
extern "C" __attribute__((target("amx-tile"))) void load(const void* it) { _tile_loadconfig(it); }
extern "C" __attribute__((target("amx-tile"))) void store(void* it) { _tile_storeconfig(it); }
"""


@pytest.mark.skipif(tile_width() is None, reason="this processor has no tiles")
def test_tiles_of_others_are_left_as_they_were(tmp_path: Path) -> None:
    """Libraries configure a thread's tiles once and may rely on it."""
    assert COMPILER is not None
    source, library = tmp_path / "configure.cpp", tmp_path / "configure.so"
    source.write_text(CONFIGURE, "utf-8")
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    tiles = ctypes.CDLL(str(library))
    theirs = np.zeros(64, np.uint8)
    theirs[0] = 1  # palette
    theirs[16:32:2] = 48  # bytes a row of each of 8 tiles
    theirs[48:56] = np.arange(1, 9)  # rows
    tiles.load(theirs.ctypes.data_as(ctypes.c_void_p))
    found = np.zeros(64, np.uint8)
    pool_attention([make(np.random.default_rng(0), depth=64)], 1, tile_width())
    tiles.store(found.ctypes.data_as(ctypes.c_void_p))
    assert found.tolist() == theirs.tolist()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_layers_of_all_sizes_at_once(form: Form, threads: int) -> None:
    rng = np.random.default_rng(0)
    layers = [
        make(rng, image_tokens=16),
        make(rng, heads=1, image_tokens=1024, depth=64, tokens=30, moments=True),
        make(rng, texts=1, image_tokens=5, counted=77),
        make(rng, texts=1, image_tokens=5, counted=77, moments=True),
    ]
    form.pool(layers, threads)
    for layer in layers:
        np.testing.assert_allclose(layer.pooled, by_formula(layer, form.width), rtol=4e-5)
        if layer.moments is not None:
            assert_moments(layer, 4e-5, form.width)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_stays_so(form: Form, wrong: float, moments: bool) -> None:
    layer = make(np.random.default_rng(0), depth=36, moments=moments)
    layer.keys[1, 77 + 40, 3] = wrong  # of the second text, a token that does not count
    form.pool([layer], 2)
    assert np.isnan(layer.pooled[1, 1]).all()
    assert np.isfinite(layer.pooled[:, [0, 2]]).all()
    assert np.isfinite(layer.pooled[0]).all()
    layer.queries[0, 2, 64 + 5] = wrong  # of the second image, one image token
    form.pool([layer], 2)
    assert np.isnan(layer.pooled[0, :, :, 1]).all()
    assert np.isfinite(layer.pooled[0, :, :, 0]).all()
    if layer.moments is not None:
        found, pooled = np.isnan(layer.moments.sums), np.isnan(layer.pooled)
        assert (found == pooled[..., None]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"keys": np.zeros((2, 231, 8))},
        {"keys": np.zeros((2, 8, 231), np.float32).transpose(0, 2, 1)},
        {"queries": np.zeros((2, 7, 128), np.float32)},
        {"queries": np.zeros((2, 8, 0), np.float32)},
        {"pooled": np.zeros((2, 3, 78, 2), np.float32)},
        {"lam": 65.0},
        {"lam": 0.0},
        {"moments": Moments(np.zeros((64, 3)), np.zeros((2, 3, 16, 2, 3), np.float32))},
        {"moments": Moments(np.zeros((64, 2), np.float32), np.zeros((2, 3, 16, 2, 2), np.float32))},
        {"moments": Moments(np.zeros((63, 3), np.float32), np.zeros((2, 3, 16, 2, 3), np.float32))},
        {"moments": Moments(np.zeros((64, 3), np.float32), np.zeros((2, 3, 17, 2, 3), np.float32))},
    ],
)
def test_arrays_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    layer = make(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"in place of|counted="):
        pool_attention([PooledAttention(**{**vars(layer), **wrong})], 1)


def test_registers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="no registers of 64 bits"):
        pool_attention([make(np.random.default_rng(0))], 1, 64)


SHAPES = [  # tokens, depth, image tokens: whole registers, and tails of all kinds
    *((77, 17, 64), (1, 1, 1), (9, 3, 17)),
    *((8, 40, 33), (77, 65, 17), (3, 34, 100)),
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
MISUSED = """
import ctypes, sys
import numpy as np
from dsd_trt.engine import pooled_attention
kernel = ctypes.CDLL(sys.argv[1])
pooled_attention._kernel = lambda: kernel
sys.path.insert(0, sys.argv[2])
from test_pooled_attention import SHAPES, make
rng = np.random.default_rng(0)
tiles = pooled_attention.tile_width()
for width in pooled_attention.register_widths() + ([tiles] if tiles else []):
    for tokens, depth, image_tokens in SHAPES:
        layer, located = (
            make(rng, tokens=tokens, counted=min(tokens, 5), depth=depth,
                 image_tokens=image_tokens, moments=moments)
            for moments in (False, True)
        )
        pooled_attention.pool_attention([layer, make(rng)], 2, width)
        pooled_attention.pool_attention([located, make(rng)], 2, width)
        assert np.isfinite(layer.pooled).all()
        assert np.isfinite(located.moments.sums).all()
print("done")
"""


@pytest.mark.slow
def test_it_stays_within_its_arrays(tmp_path: Path) -> None:
    """Under the address and undefined behaviour sanitizers."""
    assert COMPILER is not None
    library = tmp_path / "kernel.so"
    flags = ["-std=c++17", "-fPIC", "-shared", "-pthread", "-Wno-psabi", *SANITIZE]
    subprocess.run([COMPILER, *flags, SOURCE, "-o", library], check=True)
    libraries = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    done = subprocess.run(
        [sys.executable, "-c", MISUSED, library, Path(__file__).parent],
        env={
            **os.environ,
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),  # of this file's own imports
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


@pytest.mark.slow
@needs_emulator
def test_the_form_for_arm_stays_within_its_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same sanitizers, emulated."""
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # which looks at other processes
    compile_kernel(tmp_path / "kernel.so", *SANITIZE)
    rng = np.random.default_rng(0)
    layers = [
        make(
            rng,
            tokens=tokens,
            counted=min(tokens, 5),
            depth=depth,
            image_tokens=image_tokens,
            moments=moments,
        )
        for tokens, depth, image_tokens in SHAPES
        for moments in (False, True)
    ]
    ArmKernel(tmp_path / "kernel.so", tmp_path, *SANITIZE).pool(layers, 2)
    assert all(np.isfinite(layer.pooled).all() for layer in layers)


def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    assert COMPILER is not None
    flags = ["-std=c++17", "-O2", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
    subprocess.run([COMPILER, *flags, SOURCE], check=True)


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The kernel is looked for anew, and so it is once the test is over."""
    pooled_attention._kernel.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    pooled_attention._kernel.cache_clear()


def test_without_it_nothing_is_available(afresh: pytest.MonkeyPatch) -> None:
    afresh.setattr(pooled_attention, "EXTENSION_SUFFIXES", [])
    assert not available()
    assert register_widths() == []
    assert tile_width() is None


def test_what_cannot_be_loaded_is_said_and_done_without(
    afresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"_pooled_attention{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    afresh.setattr(pooled_attention, "__file__", str(tmp_path / "pooled_attention.py"))
    assert not available()
    assert "slower than it could be" in caplog.text


@needs_compiler
@pytest.mark.parametrize("source", ["", 'extern "C" long dsd_layer_bytes() { return 88; }'])
def test_a_kernel_of_another_version_is_not_called(
    source: str, afresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An editable installation whose source changed: the kernel would misread its layers."""
    assert COMPILER is not None
    kernel, stub = tmp_path / f"_pooled_attention{EXTENSION_SUFFIXES[0]}", tmp_path / "stub.cpp"
    stub.write_text(source, "utf-8")
    subprocess.run([COMPILER, "-shared", "-fPIC", stub, "-o", kernel], check=True)
    afresh.setattr(pooled_attention, "__file__", str(tmp_path / "pooled_attention.py"))
    assert not available()
    assert f"{kernel} is of another version; install the package again" in caplog.text


CUT_SHORT = """
import sys
from dsd_trt.engine import pooled_attention
pooled_attention.__file__ = sys.argv[1]
print(pooled_attention.available())
"""


@needs_compiler
def test_what_is_cut_short_is_said_and_done_without(tmp_path: Path) -> None:
    """Loading it ends a process with a bus error."""
    kernel = tmp_path / f"_pooled_attention{EXTENSION_SUFFIXES[0]}"
    cut_short(kernel)
    done = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, tmp_path / "pooled_attention.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert f"slower than it could be: {kernel} is cut short: it has 131072 bytes" in done.stderr

"""NVIDIA's driver, as the system tells its release."""

from __future__ import annotations

from pathlib import Path

import pytest

import dsd_trt.engine.driver as module
from dsd_trt.engine.driver import driver_release

# The forms of NVIDIA's two kernel modules.
SAID = {
    "580.65.06": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"
    "  (root@host)\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n",
    "535.183": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183  Sun May 12 19:39:15 UTC\n",
}


@pytest.mark.parametrize("release", SAID)
def test_the_release(release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(SAID[release])
    monkeypatch.setattr(module, "_RELEASE", tmp_path / "version")
    assert driver_release() == release


@pytest.mark.parametrize("said", [None, "", "no version\n"])
def test_no_release(said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if said is not None:
        (tmp_path / "version").write_text(said)
    monkeypatch.setattr(module, "_RELEASE", tmp_path / "version")
    assert driver_release() is None

"""What is written is read back and scores, or does not replace what works."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import take_weights_from
from fragile_bundles import make_fragile_bundle

from dsd_trt import Bundle, BundleError
from dsd_trt.errors import ModelError
from dsd_trt.export.proof import require_scores


def test_a_bundle_that_works_is_let_through(bundle: Bundle) -> None:
    require_scores(bundle.folder, "Mend it")


@pytest.mark.parametrize("texts", [("a blue dog",), ("a red dog", "blue")])
def test_one_whose_scores_are_not_finite_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: tuple[str, ...]
) -> None:
    make_fragile_bundle(tmp_path)
    monkeypatch.setattr("dsd_trt.export.proof._TEXTS", texts)
    with pytest.raises(ModelError, match=r"scores nothing: .* Mend it"):
        require_scores(tmp_path, "Mend it")


def test_nor_is_one_that_cannot_be_read(tmp_path: Path) -> None:
    make_fragile_bundle(tmp_path)
    take_weights_from(tmp_path, "more.data").write_bytes(b"")
    with pytest.raises(BundleError, match=r"more\.data"):
        require_scores(tmp_path, "Mend it")

"""The bundle's model card: whose adapter it tells of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundles import make_bundle
from checkpoints import write_adapter, write_checkpoint

from dsd_trt.export.model_card import write_card
from dsd_trt.export.parity import NOT_COMPARED
from dsd_trt.train.scoring.adapter_file import adapter_hash

TOLD = "What it says of a few-shot adapter"
TRAINING = {"data": "/home/somebody/mine.csv", "learned_from": 40}


@pytest.mark.parametrize(
    ("has", "said"), [("own", None), ("other", "has another one."), (None, "has none.")]
)
def test_figures_of_another_adapter_are_named(tmp_path: Path, has: str | None, said: str) -> None:
    model = write_checkpoint(tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: x\n---\n# The model\n\nRight in 99 %.\n")
    hashes = {
        "own": adapter_hash(write_adapter(model / "adapter", model)),
        "other": "0" * 64,
        None: None,
    }
    manifest = make_bundle(tmp_path / "bundle").manifest
    provenance = replace(manifest.provenance, adapter_hash=hashes[has])
    card = tmp_path / "card.md"
    write_card(card, replace(manifest, provenance=provenance), NOT_COMPARED, model, TRAINING)
    text = card.read_text("utf-8")
    assert text.startswith("---\nlicense: x\n---\n# Image-text matching scorer")
    assert text.endswith("# The model\n\nRight in 99 %.\n")
    assert (TOLD in text) == (said is not None)
    if said is not None:
        assert text.index(TOLD) < text.index(said) < text.index("# The model")
    assert "| adapter trained on | 40 questions of mine.csv |" in text

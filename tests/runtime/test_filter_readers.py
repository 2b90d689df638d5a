"""What `dsd-trt filter` writes as a WebDataset, read whole by the libraries that are installed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from bundles import RESOLUTION, closed_form
from in_process import Run
from PIL import Image

pytest_plugins = ("in_process",)

KEPT = 20
_READ = {
    "webdataset": """
import webdataset
samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
keys = [it["__key__"] for it in samples]
""",
    "datasets": """
from datasets import load_dataset
samples = list(load_dataset("webdataset", data_files=tars, split="train", cache_dir=place))
keys = [it["__key__"] for it in samples]
""",
    "ray": """
import ray
ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", num_cpus=2, log_to_driver=False)
samples = ray.data.read_webdataset(tars).take_all()
keys = [it["__key__"] for it in samples]
""",
    "megatron": """
import shutil
from pathlib import Path
from megatron.energon import (
    Cooker, DefaultTaskEncoder, Sample, WorkerConfig, basic_sample_keys, edataclass, get_loader,
    get_val_dataset, stateless,
)
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator
folder = Path(place)
for tar in tars:
    shutil.copy(tar, folder)
names = [Path(tar).name for tar in tars]
WebdatasetPreparator.prepare_dataset(
    folder, names, split_parts_ratio=[("train", 1.0)], workers=1
)
(folder / ".nv-meta/dataset.yaml").write_text(
    "__module__: megatron.energon\\n__class__: CrudeWebdataset\\n"
)
@edataclass
class Whole(Sample):
    fields: dict
@stateless
def cook(sample):
    fields = {name: it for name, it in sample.items() if not name.startswith("_")}
    return Whole(**basic_sample_keys(sample), fields=fields)
class Encoder(DefaultTaskEncoder):
    cookers = [Cooker(cook)]
    @stateless
    def encode_sample(self, sample):
        return sample
    def batch(self, samples):
        return samples
alone = WorkerConfig(rank=0, world_size=1, num_workers=0)
read = get_val_dataset(
    folder, split_part="train", worker_config=alone, batch_size=1, task_encoder=Encoder()
)
found = [it for batch in get_loader(read) for it in batch]
samples, keys = [it.fields for it in found], [it.__key__ for it in found]
""",
}
_REPORT = """
import json, sys
place, *tars = sys.argv[1:]
{read}
def number(it):
    return it if isinstance(it, dict) else json.loads(it)
print("READ", json.dumps([
    [key, sorted(name for name in it if not name.startswith("_")), it["txt"],
     number(it["score.json"])["score"]]
    for key, it in zip(keys, samples)
]))
"""


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, float]:
    """Tar files with keys that occur again, links, other suffixes and fields; scores by text."""
    generator = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    scores: dict[str, float] = {}
    for shard in range(4):
        with tarfile.open(tmp_path / f"in/{shard}.tar", "w") as tar:
            for at in range(6):
                noise = generator.integers(0, 256, (RESOLUTION, RESOLUTION, 3)).astype(np.uint8)
                text, buffer = f"dog {shard} red {at} é", io.BytesIO()
                Image.fromarray(noise).save(buffer, "PNG")
                scores[text] = closed_form(noise, text)
                fields = {
                    "PNG" if at % 2 else "png": buffer.getvalue(),
                    "txt": text.encode(),
                    "json": json.dumps({"w": at / 4 if at > 5 else 1}).encode(),
                } | ({"cls": b"1"} if at == 5 else {})
                for field, content in fields.items():
                    name = f"a.b/{at:03}.{field}"
                    if shard == 3 and field == "png":
                        link = tarfile.TarInfo(name)
                        link.type, link.linkname = tarfile.SYMTYPE, f"../images/{at}"
                        name = f"images/{at}"
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    if name.startswith("images"):
                        tar.addfile(link)
    return scores


@pytest.mark.parametrize("library", _READ)
def test_a_reader_reads_all_samples_with_all_fields(
    dsd_trt: Callable[..., Run], tmp_path: Path, shards: dict[str, float], library: str
) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    ended = dsd_trt("filter", "in", "--keep-best", str(KEPT), "-o", "kept/", "--shard-size", "6")
    assert ended.code == 0, ended.err
    tars = sorted(map(str, (tmp_path / "kept").iterdir()))
    (tmp_path / "place").mkdir()
    read = subprocess.run(
        [sys.executable, "-c", _REPORT.format(read=_READ[library]), str(tmp_path / "place"), *tars],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert read.returncode == 0, read.stderr
    (line,) = [it for it in read.stdout.splitlines() if it.startswith("READ ")]
    samples = json.loads(line.removeprefix("READ "))
    best = sorted(shards, key=lambda text: -shards[text])[:KEPT]
    assert len(samples) == KEPT
    assert len({key for key, *_ in samples}) == KEPT
    assert {text for _, _, text, _ in samples} == set(best)
    for _, fields, text, score in samples:
        assert fields == ["json", "png", "score.json", "txt"]
        assert score == pytest.approx(shards[text], abs=1e-6)

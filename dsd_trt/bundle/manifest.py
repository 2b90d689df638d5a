"""A bundle's description of itself: all of `bundle.json`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dsd_trt.bundle.contract import (
    Graph,
    Precision,
    check_contract,
    check_sizes,
    graph_contract,
)
from dsd_trt.bundle.fields import check_size, require
from dsd_trt.bundle.lists import Lists, check_lists
from dsd_trt.bundle.maps import Maps, check_maps
from dsd_trt.bundle.method import Method, Mode, check_method
from dsd_trt.errors import BundleError, counted
from dsd_trt.files.names import is_file_name
from dsd_trt.files.schema import SchemaError, from_plain, parse_json, to_plain

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"

Resize = Literal["bicubic-stretch", "bicubic-stretch-through-224"]
"""Resizing of images to squares: antialiased bicubic, without a crop that could lose content.

The variant through 224 pixels is the paper's fair protocol (section 5.1), limited to the detail
CLIP sees.
"""


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer's file and special token ids.

    Attributes:
        file: name of the file, in the `tokenizers` library's format.
        max_length: number of tokens of a padded text.
        bos_id: id of the token that begins a text.
        eos_id: id of the token that ends a text.
        pad_id: id of the token that pads a text.
        vocabulary: number of rows of the text encoder's embedding, the bound of every id; None in
            older bundles.
    """

    file: str
    max_length: int
    bos_id: int
    eos_id: int
    pad_id: int
    vocabulary: int | None = field(default=None, metadata={"optional": True})


@dataclass(frozen=True)
class Preprocessing:
    """Steps from an image to the graph's input.

    Attributes:
        resolution: side of the square that images are stretched to, in pixels.
        resize: resizing method, see `Resize`.
    """

    resolution: int
    resize: Resize


@dataclass(frozen=True)
class FittedOn:
    """The labelled pairs that `dsd-trt calibrate` fitted a calibration to.

    Attributes:
        table: name of their file.
        pairs: number of pairs with a score.
        positives: number of positive pairs among them.
        images: number of distinct images among them.
        prior: share of positives that the probabilities are for.
        mode: mode the pairs were scored in.
        levels: noise levels that the scores are averaged over.
        calibration_error: expected calibration error after the fit, cross-validated if there were
            enough pairs.
        date: day of the fit, as YYYY-MM-DD in UTC.
    """

    table: str
    pairs: int
    positives: int
    images: int
    prior: float
    mode: Mode
    levels: tuple[float, ...]
    calibration_error: float
    date: str


@dataclass(frozen=True)
class Calibration:
    """Match probability sigmoid(a s + b) of a score s, fitted to labelled pairs.

    Attributes:
        a: scale of the score.
        b: offset of the logit.
        fitted_on: pairs of the fit; None if it was fitted when the adapter was trained.
    """

    a: float
    b: float
    fitted_on: FittedOn | None = field(default=None, metadata={"optional": True})


NOT_FITTED = Calibration(1.0, 0.0)
"""What older bundles, and adapters, have in place of null."""


@dataclass(frozen=True)
class MatrixMode:
    """Properties of a bundle's matrix scorer.

    Attributes:
        calibration: calibration of its scores, which are not comparable with the pair scorer's;
            null where none was fitted.
        query_pool: side of the squares of image tokens whose queries are averaged at the finest
            layers; 1 means no averaging.
        lists: lists that its scores make of candidates of pair mode, as estimates of pair mode's
            score; None if none were measured.
    """

    calibration: Calibration | None
    query_pool: int
    lists: Lists | None = field(default=None, metadata={"optional": True})


@dataclass(frozen=True)
class Provenance:
    """Origin of the bundle.

    Attributes:
        base_model: identifier of the diffusion model.
        revision: revision of the diffusion model, if known.
        weight_hashes: sha256 of each weight file that was read.
        adapter_hash: sha256 of the few-shot adapter; null without one.
        library_versions: versions of all libraries used by the export.
    """

    base_model: str
    revision: str | None
    weight_hashes: Mapping[str, str]
    adapter_hash: str | None
    library_versions: Mapping[str, str]


@dataclass(frozen=True)
class AdapterInput:
    """An adapter that is an input of the pair scorer instead of folded in.

    Attributes:
        file: name of the file with the graph's `adapter` input: all tensors' numbers, FP32,
            little-endian.
        tensors: shapes of the tensors of `adapter.safetensors` by name, in the file's order.
    """

    file: str
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def numbers(self) -> int:
        """Length of the graph's `adapter` input."""
        return sum(math.prod(shape) for shape in self.tensors.values())


@dataclass(frozen=True)
class SelfCheckSpec:
    """Results of the graphs for a few inputs, see `dsd_trt.engine.self_check`.

    Attributes:
        file: name of a safetensors file with every input and output as GRAPH.TENSOR; an `adapter`
            input has its own file.
        tolerance: accepted deviation in the bundle's precision, relative to the largest number of
            an output.
    """

    file: str
    tolerance: float


@dataclass(frozen=True)
class Bfloat16:
    """What BF16 does to the scores of one mode, compared with FP32 (`dsd_trt.bfloat16`).

    Attributes:
        winner_changes: probability that another text of an image, or another image of a text, is
            best, in [0, 1/2]; see `dsd_trt.winner`.
        difference: largest absolute difference of a score.
        engine: engine, processor and precision that it was measured with.
    """

    winner_changes: float
    difference: float
    engine: str


@dataclass(frozen=True)
class FileEntry:
    """Content hash and length in bytes of one file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """The content of `bundle.json`.

    Attributes:
        graphs: graphs by name: "image_encoder", "text_encoder", "pair_scorer", and "matrix_scorer"
            if there is one.
        calibration: calibration of the pair scorer's score over all noise levels; null where none
            was fitted. Read it with `calibration_of`: older bundles have a = 1, b = 0 instead.
        matrix: properties of the matrix scorer; null without one.
        adapter: the adapter, if it is an input of the pair scorer.
        files: all other files of the bundle by relative path; filled in by the writer, see
            `write_bundle`.
        self_check: stored results of the graphs; None in older bundles.
        cuda_form: file of a graph's form for ONNX Runtime on CUDA, by the graph's name. It has the
            graph's inputs, outputs and weights, with operators fused that have kernels there. None
            unless the export was asked for it.
        maps: the graph of the maps that the score is pooled from; None unless the export was asked
            for it.
        bfloat16: what BF16 does to scores, by mode, as measured at export; None in older bundles,
            and where the exporting machine could not measure it.
        parity: figures of the export's parity report, free-form.
    """

    method: Method
    graphs: Mapping[str, Graph]
    precision: Precision
    tokenizer: TokenizerSpec
    preprocessing: Preprocessing
    calibration: Calibration | None
    provenance: Provenance
    matrix: MatrixMode | None = None
    adapter: AdapterInput | None = None
    self_check: SelfCheckSpec | None = field(default=None, metadata={"optional": True})
    cuda_form: Mapping[str, str] | None = field(default=None, metadata={"optional": True})
    maps: Maps | None = field(default=None, metadata={"optional": True})
    bfloat16: Mapping[str, Bfloat16] | None = field(default=None, metadata={"optional": True})
    parity: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Files that graphs may read weights from, in order: all files without another purpose."""
        serving = {graph.file for graph in self.graphs.values()} | {self.tokenizer.file}
        if self.adapter is not None:
            serving.add(self.adapter.file)
        if self.self_check is not None:
            serving.add(self.self_check.file)
        serving.update((self.cuda_form or {}).values())
        if self.maps is not None:
            serving.add(self.maps.file)
        return tuple(
            sorted(it for it in self.files if it not in serving and not it.endswith(".md"))
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of an image's latent, (C, h, w)."""
        channels, height, width = self.graphs["image_encoder"].outputs[0].shape[1:]
        return int(channels), int(height), int(width)

    @property
    def has_denoising_error(self) -> bool:
        """Whether the pair scorer computes its denoising error, which only some scores need."""
        return self.method.score != "attention"

    @property
    def has_pooled_text(self) -> bool:
        """Whether text states have one more row than tokens, for the text as a whole."""
        return self.graphs["text_encoder"].outputs[0].shape[1] == self.tokenizer.max_length + 1

    @property
    def text_width(self) -> int:
        """D, the width of a text state."""
        return int(self.graphs["text_encoder"].outputs[0].shape[2])

    @property
    def digest(self) -> str:
        """sha256 of the manifest's text, equal for bundles that are identical byte for byte."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def contract(self, precision: Precision) -> dict[str, Graph]:
        """The graphs that a bundle of this model and method has, by name.

        Args:
            precision: of the graphs; need not be the bundle's own.
        """
        return graph_contract(
            precision,
            self.preprocessing.resolution,
            self.latent_shape,
            self.text_width,
            self.tokenizer.max_length,
            self.has_denoising_error,
            self.has_pooled_text,
            self.adapter.numbers if self.adapter else 0,
            self.matrix is not None,
        )

    def calibration_of(self, mode: Mode) -> Calibration | None:
        """The a and b of a mode's match probability, sigmoid(a f + b); None if none were fitted."""
        found = self.calibration
        if mode == "matrix":
            found = self.matrix.calibration if self.matrix is not None else None
        return None if found == NOT_FITTED else found

    def graph_hash(self, graph: str) -> str:
        """Hash of everything a graph computes from: the sha256 of its file and of its weights.

        Both are in `bundle.json`, so no large file is read. The graphs of a verified bundle read
        weights from no other files.
        """
        files = (self.graphs[graph].file, *self.weight_files)
        hashes = "".join(self.files[name].sha256 for name in files)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def to_json(self) -> str:
        """Content of `bundle.json` as text."""
        plain = to_plain(self)
        return json.dumps({"schema_version": plain.pop("schema_version"), **plain}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check the text of `bundle.json`.

        Raises:
            BundleError: the text is not JSON or has another schema version; a field is missing,
                unknown or of the wrong type; or graphs break the contract. The message names the
                field.
        """
        try:
            plain = parse_json(text)
        except ValueError as error:
            raise BundleError(
                f"{MANIFEST_NAME} is not valid JSON: {error}; copy the bundle again"
            ) from None
        version = plain.get("schema_version") if isinstance(plain, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST_NAME} has schema_version {version!r}; this dsd-trt reads "
                f"{SCHEMA_VERSION}. Install the dsd-trt that wrote it, or export again: "
                "dsd-trt export --out BUNDLE"
            )
        try:
            manifest = from_plain(cls, plain)
        except SchemaError as error:
            raise BundleError(f"{MANIFEST_NAME}: {error}") from None
        check_manifest(manifest)
        return manifest


def check_manifest(manifest: Manifest) -> None:
    """Check constraints that types cannot express: matching lists, graphs against the contract.

    Raises:
        BundleError: a constraint is violated; the message names the field.
    """
    for name, entry in manifest.files.items():
        require(is_file_name(name), "files", f"names {name[:60]!r}, which is no file's name")
        require(entry.size >= 0, f"files.{name}.size", "is negative")
    check_method(manifest.method)
    check_size(manifest.preprocessing.resolution, "preprocessing.resolution")
    if manifest.matrix is not None:
        check_size(manifest.matrix.query_pool, "matrix.query_pool")
        if manifest.matrix.lists is not None:
            check_lists(manifest.matrix.lists, len(manifest.method.noise_levels.fractions))
    if manifest.adapter is not None:
        for name, shape in manifest.adapter.tensors.items():
            for size in shape:
                check_size(size, f"adapter.tensors.{name}")
    if (check := manifest.self_check) is not None:
        require(0 < check.tolerance < 1, "self_check.tolerance", "must lie between 0 and 1")
    for mode, measured in (manifest.bfloat16 or {}).items():
        known = mode == "pair" or (mode == "matrix" and manifest.matrix is not None)
        require(known, f"bfloat16.{mode}", "is no mode of the bundle")
        changes, where = measured.winner_changes, f"bfloat16.{mode}"
        require(0 <= changes <= 0.5, f"{where}.winner_changes", "must lie between 0 and 0.5")
        require(measured.difference >= 0, f"{where}.difference", "is negative")
    if manifest.maps is not None:
        check_maps(manifest.maps, manifest.method)
    for name in manifest.cuda_form or {}:
        require(name in manifest.graphs, f"cuda_form.{name}", "is no graph of the bundle")
    _check_ids(manifest.tokenizer)
    check_sizes(manifest.graphs)
    check_contract(manifest.graphs, manifest.contract(manifest.precision))


def _check_ids(spec: TokenizerSpec) -> None:
    check_size(spec.max_length, "tokenizer.max_length", 2)  # BOS and EOS
    if spec.vocabulary is not None:
        require(spec.vocabulary > 0, "tokenizer.vocabulary", "must be at least 1")
    for name in ("bos_id", "eos_id", "pad_id"):
        value = getattr(spec, name)
        require(0 <= value < 2**31, f"tokenizer.{name}", f"is {value}, which is no token's id")
        if spec.vocabulary is not None:
            require(
                value < spec.vocabulary,
                f"tokenizer.{name}",
                f"is {value}, and the text encoder's embedding has "
                + counted(spec.vocabulary, "row"),
            )

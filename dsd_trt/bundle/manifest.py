"""A bundle's description of itself: all of `bundle.json`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from dsd_trt.bundle.contract import Graph, Precision, TensorSpec, graph_contract
from dsd_trt.errors import BundleError, counted
from dsd_trt.files.schema import SchemaError, from_plain, parse_json, to_plain

SCHEMA_VERSION = 1
_LARGEST = 2**30  # bound of sizes, such that products of a few cannot overflow
MANIFEST_NAME = "bundle.json"

TokenMask = Literal["words_eos", "words", "all"]
ScoreKind = Literal["attention", "attention+denoising", "denoising", "released"]
Resize = Literal["bicubic-stretch", "bicubic-stretch-through-224"]
"""Resizing of images to squares: antialiased bicubic, without a crop that could lose content.

The variant through 224 pixels is the paper's fair protocol (section 5.1), limited to the detail
CLIP sees.
"""
Mode = Literal["pair", "matrix"]
"""Pair: one U-Net pass per pair and noise level, as in the paper. Matrix: one walk per image and
level (late interaction)."""
TrainedFor = Literal["pair", "matrix", "both"]
HeadMode = Literal["uniform", "calibrated", "learned", "dynamic"]


@dataclass(frozen=True)
class HeadWeights:
    """Weights w_{l,h} of the scored layers' heads, constants of the graph (Eq. 4 and 7).

    Attributes:
        mode: origin of the weights. "uniform"; "calibrated", by attribution on a few-shot set;
            "learned" there by gradient descent; or "dynamic": additionally weighted by attribution
            to the given pair.
        values: one tuple of weights per scored layer.
    """

    mode: HeadMode
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels whose constants are folded into the pair scorer.

    Attributes:
        fractions: s of each level, in (0, 1); the graph's `level` input is an index into these.
        timesteps: timestep t = round(s T) of each level.
        seed: seed of the fixed noise tensors.
    """

    fractions: tuple[float, ...]
    timesteps: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Method:
    """Definition of a score.

    Let f be the pair scorer's `score`, and d the unconditional denoising error minus the
    conditional one, each averaged over the noise levels. The score is f ("attention", as in the
    paper), d ("denoising"), or f + w d ("attention+denoising").

    "released" is also f + w d, with f computed from raw logits, as in the released research code.

    Attributes:
        score: "attention", "denoising", "attention+denoising" or "released", see above.
        denoising_weight: w, the weight of the denoising term d.
        score_layers: indices of the scored cross-attention layers, in order of execution.
        layer_names: module names of these layers in the U-Net.
        pooling: pooling over image tokens. "lse" is Eq. 3; "logits" pools a whole text instead of
            its tokens.
        lam: lambda of LogSumExp pooling, "lambda" in the file.
        head_weights: weights of the average over layers and heads (Eq. 4 and 7).
        noise_levels: noise levels the score is averaged over.
        token_mask: text tokens that count in the average (Eq. 4).
        has_prompts: whether attention prompts (Eq. 5) are folded in.
        trained_for: mode the adapter was trained for; null without an adapter.
    """

    score: ScoreKind
    denoising_weight: float
    score_layers: tuple[int, ...]
    layer_names: tuple[str, ...]
    pooling: Literal["lse", "max", "cosine", "logits"]
    lam: float = field(metadata={"json": "lambda"})
    head_weights: HeadWeights
    noise_levels: NoiseLevels
    token_mask: TokenMask
    has_prompts: bool
    trained_for: TrainedFor | None


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
    """

    calibration: Calibration | None
    query_pool: int


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
    method, levels = manifest.method, manifest.method.noise_levels
    for name, entry in manifest.files.items():
        require(is_file_name(name), "files", f"names {name[:60]!r}, which is no file's name")
        require(entry.size >= 0, f"files.{name}.size", "is negative")
    per_layer = len(method.score_layers)
    require(per_layer > 0, "method.score_layers", "is empty")
    require(
        len(method.layer_names) == per_layer, "method.layer_names", "needs one name a scored layer"
    )
    require(
        len(method.head_weights.values) == per_layer,
        "method.head_weights.values",
        "needs one list a scored layer",
    )
    require(
        all(layer >= 0 for layer in method.score_layers)
        and len(set(method.score_layers)) == per_layer,
        "method.score_layers",
        "must be distinct and at least 0",
    )
    require(
        all(method.head_weights.values),
        "method.head_weights.values",
        "has a layer without heads",
    )
    require(len(levels.fractions) > 0, "method.noise_levels.fractions", "is empty")
    require(
        all(0 < s < 1 for s in levels.fractions)
        and len(set(levels.fractions)) == len(levels.fractions),
        "method.noise_levels.fractions",
        "must be distinct and lie between 0 and 1",
    )
    require(
        len(levels.timesteps) == len(levels.fractions),
        "method.noise_levels.timesteps",
        "needs one timestep a level",
    )
    _check_size(manifest.preprocessing.resolution, "preprocessing.resolution")
    if manifest.matrix is not None:
        _check_size(manifest.matrix.query_pool, "matrix.query_pool")
    if manifest.adapter is not None:
        for name, shape in manifest.adapter.tensors.items():
            for size in shape:
                _check_size(size, f"adapter.tensors.{name}")
    if (check := manifest.self_check) is not None:
        require(0 < check.tolerance < 1, "self_check.tolerance", "must lie between 0 and 1")
    for name in manifest.cuda_form or {}:
        require(name in manifest.graphs, f"cuda_form.{name}", "is no graph of the bundle")
    _check_ids(manifest.tokenizer)
    _check_graphs(manifest)


def _check_size(size: int, where: str, least: int = 1) -> None:
    require(least <= size < _LARGEST, where, f"is {size}, not from {least} to {_LARGEST - 1}")


def _check_ids(spec: TokenizerSpec) -> None:
    _check_size(spec.max_length, "tokenizer.max_length", 2)  # BOS and EOS
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


def _check_graphs(manifest: Manifest) -> None:
    for name in ("image_encoder", "text_encoder", "pair_scorer"):
        require(name in manifest.graphs, f"graphs.{name}", "is missing")
    for name, graph in manifest.graphs.items():
        for side in ("inputs", "outputs"):
            for spec in getattr(graph, side):
                for size in spec.shape:
                    if isinstance(size, int):
                        _check_size(size, f"graphs.{name}.{side}")
    # A size the contract leaves open is read at its first use, then required everywhere.
    for name, rank in (("image_encoder", 4), ("text_encoder", 3)):
        outputs = manifest.graphs[name].outputs
        require(
            len(outputs) == 1
            and len(outputs[0].shape) == rank
            and all(isinstance(size, int) for size in outputs[0].shape[1:]),
            f"graphs.{name}.outputs",
            f"must be one tensor of rank {rank}, dynamic in its first dimension only",
        )
    contract = manifest.contract(manifest.precision)
    require(manifest.graphs.keys() == contract.keys(), "graphs", f"must be {', '.join(contract)}")
    for name, wanted in contract.items():
        graph = manifest.graphs[name]
        for side, got, want in (
            ("inputs", graph.inputs, wanted.inputs),
            ("outputs", graph.outputs, wanted.outputs),
        ):
            require(
                [_signature(spec) for spec in got] == [_signature(spec) for spec in want],
                f"graphs.{name}.{side}",
                f"must be {_render(want)}, got {_render(got)}",
            )


def _signature(spec: TensorSpec) -> tuple[object, ...]:
    """Properties that two tensors must share: all but the names of dynamic dimensions."""
    return spec.name, spec.dtype, tuple(d if isinstance(d, int) else None for d in spec.shape)


def _render(specs: tuple[TensorSpec, ...]) -> str:
    return "; ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)


def is_file_name(name: str) -> bool:
    """Whether file systems accept a name, or a path of names."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # a lone surrogate, from a JSON escape
        return False
    longest = max(map(len, encoded.split(b"/")))
    return bool(encoded) and b"\0" not in encoded and longest <= 255 and len(encoded) < 4096


def stays_inside(name: str) -> bool:
    """Whether a file's relative path stays inside the bundle, links aside."""
    pure = PurePosixPath(name)
    absolute = not pure.parts or pure.is_absolute()
    return not (absolute or ".." in pure.parts or "\\" in name or "\0" in name)


def require(holds: bool, where: str, complaint: str) -> None:
    """Refuse a manifest with an invalid field `where`.

    Raises:
        BundleError: the field is invalid; the message says why.
    """
    if not holds:
        # Names from untrusted bundles may have any length.
        raise BundleError(f"field {where[:160]!r} {complaint[:600]}")

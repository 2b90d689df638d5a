"""What a bundle says about itself: the whole of `bundle.json`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from dsd_trt.bundle.contract import Graph, Precision, TensorSpec, graph_contract
from dsd_trt.errors import BundleError
from dsd_trt.files.schema import SchemaError, from_plain, parse_json, to_plain

SCHEMA_VERSION = 1
_LARGEST = 2**30  # so that no size, and no product of a few, overflows where it is computed with
MANIFEST_NAME = "bundle.json"

TokenMask = Literal["words_eos", "words", "all"]
ScoreKind = Literal["attention", "attention+denoising", "denoising", "released"]
Resize = Literal["bicubic-stretch", "bicubic-stretch-through-224"]
"""How images become squares: antialiased bicubic, no crop, which can lose what a text names.

Through 224 pixels is the paper's fair protocol (section 5.1): no more detail is seen than CLIP
sees.
"""
Mode = Literal["pair", "matrix"]
"""One walk through the U-Net a pair, as the paper has it, or one an image (late interaction)."""
TrainedFor = Literal["pair", "matrix", "both"]
HeadMode = Literal["uniform", "calibrated", "learned", "dynamic"]


@dataclass(frozen=True)
class HeadWeights:
    """w_{l,h} of every scored layer's heads, folded into the graph as constants (Eq. 4 and 7).

    Attributes:
        mode: "uniform"; "calibrated", by attribution on a few-shot set; "learned" on it by
            gradient descent; or "dynamic", where the graph weighs heads by their attribution to
            the pair at hand as well.
        values: one tuple of weights a scored layer.
    """

    mode: HeadMode
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels whose constants are folded into the pair scorer.

    Attributes:
        fractions: s of each level, in (0, 1); the graph's `level` input is an index into these.
        timesteps: t = round(s T) of each level.
        seed: what the fixed noise tensors were drawn from.
    """

    fractions: tuple[float, ...]
    timesteps: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Method:
    """What a score is.

    With f the pair scorer's `score` and d the denoising error without text less the error with it,
    each averaged over the noise levels, the score is f ("attention", the paper's), d
    ("denoising"), or f + w d ("attention+denoising", and "released", which is what the research
    code that was released computes, its f being of raw logits).

    Attributes:
        score: which of them.
        denoising_weight: w.
        score_layers: which cross-attention layers count, in order of execution.
        layer_names: their module names in the U-Net, one a scored layer.
        pooling: over image tokens; "lse" is Eq. 3; "logits" is of a whole text, not of its tokens.
        lam: lambda of LogSumExp pooling ("lambda" in the file).
        head_weights: weights of the average over layers and heads (Eq. 4 and 7).
        noise_levels: the levels the score is averaged over.
        token_mask: which text tokens count in the average (Eq. 4).
        has_prompts: whether attention prompts (Eq. 5) are folded in.
        trained_for: the mode the adapter was trained for, null without one.
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
    """The tokenizer's file and the ids its padded sequences are made of.

    Attributes:
        file: in the `tokenizers` library's format.
        max_length: tokens of a padded text.
        bos_id: of the token that begins a text.
        eos_id: of the one that ends it.
        pad_id: of the one that fills it up.
        vocabulary: rows of the text encoder's embedding, which every id is below; None in bundles
            that do not say.
    """

    file: str
    max_length: int
    bos_id: int
    eos_id: int
    pad_id: int
    vocabulary: int | None = field(default=None, metadata={"optional": True})


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the graph sees its bytes.

    Attributes:
        resolution: side of the square the image is stretched to, in pixels.
        resize: how, see `Resize`.
    """

    resolution: int
    resize: Resize


@dataclass(frozen=True)
class Calibration:
    """Match probability sigmoid(a s + b) of a score s."""

    a: float
    b: float


@dataclass(frozen=True)
class MatrixMode:
    """What a bundle says of its matrix scorer.

    Attributes:
        calibration: of its score, which is another one than the pair scorer's.
        query_pool: side of the squares of image tokens whose queries are averaged at the finest
            layers; 1 is none.
    """

    calibration: Calibration
    query_pool: int


@dataclass(frozen=True)
class Provenance:
    """What the bundle was made from.

    Attributes:
        base_model: identifier of the diffusion model.
        revision: its revision, where it has one.
        weight_hashes: sha256 of each weight file read.
        adapter_hash: sha256 of the few-shot adapter, null without one.
        library_versions: of every library that took part in the export.
    """

    base_model: str
    revision: str | None
    weight_hashes: Mapping[str, str]
    adapter_hash: str | None
    library_versions: Mapping[str, str]


@dataclass(frozen=True)
class AdapterInput:
    """An adapter that is fed to the pair scorer, where it is not folded in.

    Attributes:
        file: the graph's `adapter` input: every tensor's numbers, FP32, little-endian.
        tensors: in this order; their shapes by name, those of `adapter.safetensors`.
    """

    file: str
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def numbers(self) -> int:
        """Length of the graph's input."""
        return sum(math.prod(shape) for shape in self.tensors.values())


@dataclass(frozen=True)
class SelfCheckSpec:
    """What the graphs compute on a few inputs, see `dsd_trt.engine.self_check`.

    Attributes:
        file: safetensors, with every input and output of every graph as GRAPH.TENSOR; an `adapter`
            that is fed has its own file.
        tolerance: of the bundle's precision, relative to the largest number of an output.
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
    """All of `bundle.json`.

    Attributes:
        graphs: by name: "image_encoder", "text_encoder", "pair_scorer", and "matrix_scorer" where
            there is one.
        matrix: of the matrix scorer, null without one.
        adapter: the adapter, where the pair scorer takes it as an input.
        files: every other file of the bundle by its path inside it; filled in by `write_bundle`.
        self_check: None in bundles that have none.
        parity: the figures of the export's parity report, free-form.
    """

    method: Method
    graphs: Mapping[str, Graph]
    precision: Precision
    tokenizer: TokenizerSpec
    preprocessing: Preprocessing
    calibration: Calibration
    provenance: Provenance
    matrix: MatrixMode | None = None
    adapter: AdapterInput | None = None
    self_check: SelfCheckSpec | None = field(default=None, metadata={"optional": True})
    parity: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Files that graphs may take weights from, in order: those that serve nothing else."""
        serving = {graph.file for graph in self.graphs.values()} | {self.tokenizer.file}
        if self.adapter is not None:
            serving.add(self.adapter.file)
        if self.self_check is not None:
            serving.add(self.self_check.file)
        return tuple(
            sorted(it for it in self.files if it not in serving and not it.endswith(".md"))
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of an image's latent."""
        channels, height, width = self.graphs["image_encoder"].outputs[0].shape[1:]
        return int(channels), int(height), int(width)

    @property
    def has_denoising_error(self) -> bool:
        """Whether the pair scorer computes it: where the score needs it."""
        return self.method.score != "attention"

    @property
    def has_pooled_text(self) -> bool:
        """Whether text states have a row more than there are tokens: the text as a whole."""
        return self.graphs["text_encoder"].outputs[0].shape[1] == self.tokenizer.max_length + 1

    @property
    def text_width(self) -> int:
        """D, the width of a text state."""
        return int(self.graphs["text_encoder"].outputs[0].shape[2])

    @property
    def digest(self) -> str:
        """sha256 of its text: equal for two bundles that are the same, byte for byte."""
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

    def calibration_of(self, mode: Mode) -> Calibration:
        """The a and b of a mode's match probability, sigmoid(a f + b)."""
        if mode == "matrix" and self.matrix is not None:
            return self.matrix.calibration
        return self.calibration

    def graph_hash(self, graph: str) -> str:
        """What a graph computes from: the sha256 of its file and of its weights, hashed.

        Both are in `bundle.json`, so nothing large is read. A graph of a verified bundle takes
        weights from no other files.
        """
        files = (self.graphs[graph].file, *self.weight_files)
        hashes = "".join(self.files[name].sha256 for name in files)
        return hashlib.sha256(hashes.encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `bundle.json`."""
        plain = to_plain(self)
        return json.dumps({"schema_version": plain.pop("schema_version"), **plain}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check the text of `bundle.json`.

        Raises:
            BundleError: not JSON, another schema version, a field missing, unknown or of the wrong
                type, or graphs that break the contract; the message names the field.
        """
        try:
            plain = parse_json(text)
        except ValueError as error:
            raise BundleError(f"{MANIFEST_NAME} is not valid JSON: {error}") from None
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
    """Check what types alone cannot say: lists that belong together, graphs against the contract.

    Raises:
        BundleError: names the field.
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
                f"is {value}, and the text encoder's embedding has {spec.vocabulary} rows",
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
    # Sizes the contract leaves open are read where they first appear, then demanded everywhere.
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
    """What must agree between two tensors: everything but the names of dynamic dimensions."""
    return spec.name, spec.dtype, tuple(d if isinstance(d, int) else None for d in spec.shape)


def _render(specs: tuple[TensorSpec, ...]) -> str:
    return "; ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)


def is_file_name(name: str) -> bool:
    """Whether a file system takes a name, or a path of names."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # a surrogate, as a JSON escape can leave it
        return False
    longest = max(map(len, encoded.split(b"/")))
    return bool(encoded) and b"\0" not in encoded and longest <= 255 and len(encoded) < 4096


def stays_inside(name: str) -> bool:
    """Whether the name of a bundle's file can lead nowhere else, links aside."""
    pure = PurePosixPath(name)
    absolute = not pure.parts or pure.is_absolute()
    return not (absolute or ".." in pure.parts or "\\" in name or "\0" in name)


def require(holds: bool, where: str, complaint: str) -> None:
    """Refuse a manifest whose field `where` is not as it must be.

    Raises:
        BundleError: names the field and says what is wrong with it.
    """
    if not holds:
        # Names in it may be as long as whoever sent it pleases.
        raise BundleError(f"field {where[:160]!r} {complaint[:600]}")

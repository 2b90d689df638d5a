"""Plans: graphs compiled by TensorRT, and whether one fits this machine.

A plan is a file for one library, in one version, on certain GPUs. It lies in the bundle, in
`engines/KEY/`, beside an `engine.json` that describes it. That description is read, and every byte
of the plan verified, before the library sees it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from dsd_trt.bundle.contract import Precision
from dsd_trt.bundle.manifest import Manifest
from dsd_trt.errors import EngineError, InputError, counted
from dsd_trt.files.folders import whole_folder
from dsd_trt.files.schema import SchemaError, from_plain, read_json, to_plain

FOLDER = "engines"
PLAN_NAME, SIDECAR_NAME = "engine.plan", "engine.json"
_OTHER_WRITER = 60.0  # seconds to wait for another process that writes the same plan

PlanLibrary = Literal["tensorrt", "tensorrt-rtx"]
PLAN_LIBRARIES: tuple[str, ...] = get_args(PlanLibrary)

Part = Literal["walk", "match"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Parts of the matrix scorer, each with a plan of its own: see `CutGraph.halves`."""


@dataclass(frozen=True)
class Profile:
    """Batch sizes a plan supports: the smallest, the optimal one, and the largest."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"


@dataclass(frozen=True)
class Sidecar:
    """The content of `engine.json`.

    Attributes:
        graph: name of the graph in the bundle.
        graph_hash: hash of graph and weights, see `Manifest.graph_hash`.
        precision: precision the graph is compiled in.
        library: name of the library that compiled it.
        version: version of the library; other versions cannot read the plan.
        compute_capabilities: compute capabilities of supported GPUs, such as "8.6".
        profiles: batch sizes the plan supports.
        size: length of the plan in bytes.
        sha256: hex digest of the plan.
        part: part of the matrix scorer; None for a plan of a whole graph.
        texts: numbers of texts the match takes; None for other plans.
        tokens: numbers of text tokens the match takes; None for other plans.
    """

    graph: str
    graph_hash: str
    precision: Precision
    library: PlanLibrary
    version: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    size: int
    sha256: str
    part: Part | None = field(default=None, metadata={"optional": True})
    texts: Profile | None = field(default=None, metadata={"optional": True})
    tokens: Profile | None = field(default=None, metadata={"optional": True})

    @classmethod
    def of(
        cls,
        content: memoryview,
        manifest: Manifest,
        graph: str,
        library: PlanLibrary,
        version: str,
        compute_capabilities: tuple[str, ...],
        profiles: tuple[Profile, ...],
        part: Part | None = None,
        texts: Profile | None = None,
        tokens: Profile | None = None,
    ) -> Sidecar:
        """Description of a plan just built from a bundle's graph."""
        return cls(
            graph,
            manifest.graph_hash(graph),
            manifest.precision,
            library,
            version,
            compute_capabilities,
            profiles,
            content.nbytes,
            hashlib.sha256(content).hexdigest(),
            part,
            texts,
            tokens,
        )

    @property
    def title(self) -> str:
        """Name of the graph, with its part, such as "matrix_scorer (walk)"."""
        return title_of(self.graph, self.part)

    @property
    def key(self) -> str:
        """Name of the plan's folder, unique among the plans of a bundle."""
        gpus = "-".join(
            "sm" + capability.replace(".", "") for capability in self.compute_capabilities
        )
        graph = self.graph if self.part is None else f"{self.graph}.{self.part}"
        parts = [graph, self.library, self.version, gpus, self.precision]
        parts.append("b" + "-".join(map(_dotted, self.profiles)))
        parts += [
            f"{letter}{_dotted(it)}" for letter, it in (("t", self.texts), ("l", self.tokens)) if it
        ]
        return "_".join((*parts, self.graph_hash[:12]))


@dataclass(frozen=True)
class Plan:
    """A plan on disk."""

    folder: Path
    sidecar: Sidecar

    @property
    def path(self) -> Path:
        """Path of the plan's file."""
        return self.folder / PLAN_NAME


def title_of(graph: str, part: Part | None) -> str:
    """Name of a graph, with its part if there is one."""
    return graph if part is None else f"{graph} ({part})"


def _dotted(profile: Profile) -> str:
    return f"{profile.min}.{profile.opt}.{profile.max}"


def write_plan(bundle: Path, content: memoryview, sidecar: Sidecar) -> Plan:
    """Write a plan into a bundle atomically; a plan of the same key is replaced.

    The new plan is read back first; until then the old one stays unchanged.

    Args:
        bundle: folder of a verified bundle, not in the Hugging Face cache.
        content: bytes of the plan.
        sidecar: description of the plan, with its size and hash.

    Raises:
        InputError: the bundle cannot be written to, or its disk is full.
        EngineError: the bytes read back differ from those written.
    """
    folder = bundle / FOLDER / sidecar.key
    try:
        with whole_folder(folder, wait=_OTHER_WRITER) as unfinished:
            (unfinished / PLAN_NAME).write_bytes(content)
            text = json.dumps(to_plain(sidecar), indent=2) + "\n"
            (unfinished / SIDECAR_NAME).write_text(text, encoding="utf-8")
            read_plan(Plan(unfinished, sidecar))
    except OSError as error:
        raise InputError(
            f"cannot write a plan of {len(content) / 1e9:.2f} GB to {bundle / FOLDER}: "
            f"{error.strerror}"
        ) from error
    return Plan(folder, sidecar)


def plans(bundle: Path) -> Iterator[Plan]:
    """Every plan of a bundle with a readable sidecar, by key."""
    for folder in plan_folders(bundle):
        yield open_plan(folder)


def plan_folders(bundle: Path) -> list[Path]:
    """Folders of all plans of a bundle, by key."""
    found = sorted((bundle / FOLDER).glob(f"*/{SIDECAR_NAME}"))
    return [it.parent for it in found if not it.parent.name.startswith(".")]  # unfinished plans


def open_plan(folder: Path) -> Plan:
    """A plan with its sidecar; the plan itself is not read.

    Raises:
        EngineError: the sidecar cannot be read.
    """
    path = folder / SIDECAR_NAME
    try:
        sidecar = from_plain(Sidecar, read_json(path))
        _check(sidecar)
    except (OSError, ValueError) as error:  # includes SchemaError
        raise EngineError(
            f"{path} cannot be read: {error}. Remove its folder and build again: "
            f"dsd-trt build {folder.parent.parent}"
        ) from None
    return Plan(folder, sidecar)


def _check(sidecar: Sidecar) -> None:
    """Check constraints that types cannot express.

    Raises:
        SchemaError: a field is invalid; the message names it.
    """
    if not sidecar.profiles:
        raise SchemaError("field 'profiles' is empty")
    named = {f"profiles[{number}]": it for number, it in enumerate(sidecar.profiles)}
    for name, optional in (("texts", sidecar.texts), ("tokens", sidecar.tokens)):
        if (optional is not None) != (sidecar.part == "match"):
            raise SchemaError(f"field {name!r} belongs to the part 'match', and to no other plan")
        named |= {} if optional is None else {name: optional}
    for name, it in named.items():
        if not 1 <= it.min <= it.opt <= it.max < 2**31:
            raise SchemaError(f"field {name!r} must have 1 <= min <= opt <= max")


def find_plan(
    bundle: Path,
    manifest: Manifest,
    graph: str,
    library: PlanLibrary,
    version: str,
    compute_capability: str,
    part: Part | None = None,
    profiles: tuple[Profile, ...] | None = None,
) -> Plan:
    """The plan of a graph that fits a library and a GPU, according to the sidecars.

    Args:
        bundle: path of the folder that holds `bundle.json` and the plans.
        manifest: manifest of the bundle.
        graph: name of the graph, such as "pair_scorer".
        library: library that is to run the plan.
        version: version of the library.
        compute_capability: compute capability of the GPU, such as "8.6".
        part: part of the matrix scorer; None for a plan of a whole graph.
        profiles: batch sizes that the plan has to have; None leaves them to it.

    Raises:
        EngineError: there is none. For a near match, the message names the mismatch: the library's
            version, the GPU, the bundle, or the batch sizes.
    """
    build = f"dsd-trt build {bundle} --engine {library}"
    found = [
        plan
        for plan in plans(bundle)
        if (plan.sidecar.graph, plan.sidecar.part) == (graph, part)
        and plan.sidecar.library == library
    ]
    if not found:
        title = title_of(graph, part)
        raise EngineError(f"{bundle} has no {library} plan of its {title}. Build one: {build}")
    complaints = _complaints(version, compute_capability, manifest.graph_hash(graph), profiles)
    for complaint in complaints:
        fitting = [plan for plan in found if not complaint(plan.sidecar)]
        if not fitting:
            raise EngineError(
                f"the plan {found[-1].folder} {complaint(found[-1].sidecar)}. Build again: {build}"
            )
        found = fitting
    return max(found, key=lambda plan: plan.sidecar.profiles[-1].max)


def find_plans(
    bundle: Path,
    manifest: Manifest,
    graph: str,
    library: PlanLibrary,
    version: str,
    compute_capability: str,
) -> tuple[Plan, ...]:
    """The plans that run a graph: its own, or the walk and the match of a matrix scorer.

    Args:
        bundle: path of the folder that holds `bundle.json` and the plans.
        manifest: manifest of the bundle.
        graph: name of the graph, such as "pair_scorer".
        library: library that is to run the plans.
        version: version of the library.
        compute_capability: compute capability of the GPU, such as "8.6".

    Raises:
        EngineError: one is missing, as for `find_plan`, or they have other batch sizes.
    """
    where = (bundle, manifest, graph, library, version, compute_capability)
    if manifest.graphs[graph].batched:
        return (find_plan(*where),)
    walk = find_plan(*where, "walk")
    return walk, find_plan(*where, "match", walk.sidecar.profiles)


def choose_profile(profiles: Sequence[Profile], count: int) -> tuple[int, Profile]:
    """The profile that supports a batch size and has the nearest optimum, with its number."""
    fitting = [(i, it) for i, it in enumerate(profiles) if count <= it.max]
    return min(fitting, key=lambda chosen: (abs(chosen[1].opt - count), chosen[1].max))


def why_not_fitting(
    sidecar: Sidecar, manifest: Manifest, version: str, compute_capability: str
) -> str:
    """Why a plan does not fit a bundle, a library or a GPU; "" if it does.

    Args:
        sidecar: description of the plan.
        manifest: manifest of the bundle the plan lies in.
        version: version of the library.
        compute_capability: compute capability of the GPU, such as "8.6".
    """
    if sidecar.graph not in manifest.graphs:
        return f"was built from a graph {sidecar.graph!r}, which the bundle does not have"
    wanted = manifest.graph_hash(sidecar.graph)
    complaints = _complaints(version, compute_capability, wanted)
    return next(filter(None, (complaint(sidecar) for complaint in complaints)), "")


def _complaints(
    version: str,
    compute_capability: str,
    graph_hash: str,
    profiles: tuple[Profile, ...] | None = None,
) -> tuple[Callable[[Sidecar], str], ...]:
    """What may be wrong with a plan, the first reason first; each is "" for one that fits."""
    return (
        lambda it: (
            f"was built with {it.library} {it.version}, here is {version}"
            if it.version != version
            else ""
        ),
        lambda it: (
            f"was built for GPUs of compute capability {', '.join(it.compute_capabilities)}, "
            f"this one has {compute_capability}"
            if compute_capability not in it.compute_capabilities
            else ""
        ),
        lambda it: (
            "was built from another export: the bundle has changed since"
            if it.graph_hash != graph_hash
            else ""
        ),
        lambda it: (
            f"takes batches {'; '.join(map(str, it.profiles))}, and the plan before it "
            f"{'; '.join(map(str, profiles))}"
            if profiles is not None and it.profiles != profiles
            else ""
        ),
    )


def read_plan(plan: Plan) -> bytes:
    """A plan's bytes, verified.

    Raises:
        EngineError: the plan cannot be read, or differs from its sidecar's hash.
    """
    bundle = plan.folder.parent.parent
    again = f"Build again: dsd-trt build {bundle} --engine {plan.sidecar.library}"
    try:
        if (found := plan.path.stat().st_size) == plan.sidecar.size:
            content = plan.path.read_bytes()
            found = len(content)
    except OSError as error:
        raise EngineError(f"cannot read {plan.path}: {error.strerror}. {again}") from None
    if found != plan.sidecar.size:
        raise EngineError(
            f"{plan.path} has {counted(found, 'byte')} instead of {plan.sidecar.size}. {again}"
        )
    if hashlib.sha256(content).hexdigest() != plan.sidecar.sha256:
        raise EngineError(f"{plan.path} was altered (sha256 differs). {again}")
    return content


def parse_profile(text: str) -> Profile:
    """Read "MIN,OPT,MAX".

    Raises:
        InputError: the text is not three ascending sizes.
    """
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise InputError(f"{text!r} is no batch MIN,OPT,MAX, such as 1,8,32")
    return Profile(*sizes)

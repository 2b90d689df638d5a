"""`dsd-trt inspect`: what a bundle is, from its files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsd_trt.bundle.lists import RULE
from dsd_trt.bundle.maps import why_no_maps
from dsd_trt.commands.options import signature_option, table_format_option
from dsd_trt.errors import BundleError, counted

if TYPE_CHECKING:
    from dsd_trt.bundle.lists import Lists
    from dsd_trt.bundle.manifest import Manifest
    from dsd_trt.bundle_facts import BundleFacts, PlanFacts

EXAMPLES = """\b
Examples:
  dsd-trt inspect my-scorer
  dsd-trt inspect my-scorer --json | jq .bundle.provenance
  dsd-trt inspect my-scorer --verify --require-signature scorer.pub
"""

_DIGITS = 12  # of a hash, enough to tell files apart


@click.command(epilog=EXAMPLES)
@click.argument("bundle", metavar="BUNDLE")
@table_format_option
@click.option("--json", "as_json", is_flag=True, help="The same as -f json.")
@click.option(
    "--verify",
    is_flag=True,
    help="Read every file and compare its hash, plans included; else sizes alone are compared.",
)
@signature_option
def inspect(
    bundle: str, form: str, as_json: bool, verify: bool, require_signature: Path | None
) -> None:
    """Say what BUNDLE is: its origin, score, probabilities, parity, BF16, sizes, plans, signature.

    BUNDLE is a folder, ORG/NAME[@REVISION] on the Hugging Face Hub, or "shapes", the demonstration.
    No engine is needed, and no weights are read; of a bundle on the hub only bundle.json is
    downloaded, unless --verify is given.

    Exit code 2: there is no bundle, or it is damaged; what is known of it is printed all the same.
    """
    from dsd_trt.bundle.place import described_folder
    from dsd_trt.bundle_facts import BundleFacts
    from dsd_trt.commands.output import write_standard_output

    folder = described_folder(bundle, whole=verify)
    facts = BundleFacts.read(folder, verify=verify, key=require_signature)
    if as_json or form == "json":
        write_standard_output(json.dumps(facts.to_plain(), indent=2) + "\n")
    else:
        write_standard_output(as_text(facts))
    if facts.faults:
        raise BundleError("\n".join(facts.faults))


def as_text(facts: BundleFacts) -> str:
    """The facts as sections of aligned lines."""
    it = facts.manifest
    parts = [
        f"{_printable(str(facts.folder))}\n"
        f"  a bundle in {it.precision}, {it.method.score} score, "
        f"{' and '.join(facts.modes)} mode, {_size(facts.sizes.bytes)}\n"
        f"  digest {it.digest}\n"
    ]
    for title, rows in (
        ("Made from", _origin(it)),
        ("Score", _score(facts)),
        ("Match probability", _probability(facts)),
        ("Parity", _parity(it.parity)),
        ("BF16", _bfloat16(it)),
        ("Files", _files(facts)),
        ("Engines", _engines(facts)),
        ("Signature", _signature(facts)),
    ):
        shown = [(_printable(name), _printable(value)) for name, value in rows]
        width = max(len(name) for name, _ in shown)
        lines = "".join(f"  {name:<{width}}  {value}".rstrip() + "\n" for name, value in shown)
        parts.append(f"{title}\n{lines}")
    return "\n".join(parts)


_Rows = list[tuple[str, str]]


def _origin(it: Manifest) -> _Rows:
    made = it.provenance
    hashes = sorted(made.weight_hashes.items())
    adapter = "none"
    if made.adapter_hash is not None:
        how = "an input of the pair scorer (dsd-trt adapt)" if it.adapter else "folded in"
        adapter = f"{made.adapter_hash[:_DIGITS]}, {how}, trained for {it.method.trained_for} mode"
    versions = ", ".join(f"{name} {version}" for name, version in made.library_versions.items())
    return [
        ("model", made.base_model),
        ("revision", made.revision or "not recorded"),
        *(
            ("weights" if at == 0 else "", f"{sha256[:_DIGITS]}  {name}")
            for at, (name, sha256) in enumerate(hashes)
        ),
        ("adapter", adapter),
        ("with", versions or "not recorded"),
    ]


def _score(facts: BundleFacts) -> _Rows:
    it, method = facts.manifest, facts.manifest.method
    levels = method.noise_levels
    heads = sum(map(len, method.head_weights.values))
    rows = [
        ("score", method.score),
        ("modes", ", ".join(facts.modes)),
        ("precision", it.precision),
        ("images", f"{it.preprocessing.resolution} pixels square, {it.preprocessing.resize}"),
        ("levels", ", ".join(f"{s:g}" for s in levels.fractions)),
        ("layers", f"{len(method.layer_names)}, with {heads} heads"),
        *(("", name) for name in method.layer_names),
        ("head weights", method.head_weights.mode),
        ("pooling", f"{method.pooling}, lambda {method.lam:g}"),
        ("tokens", method.token_mask),
    ]
    if it.has_denoising_error:
        rows.insert(1, ("denoising", f"weight {method.denoising_weight:g}"))
    if it.matrix is not None and it.matrix.lists is not None:
        rows.append(("lists", _lists(it.matrix.lists)))
    if it.matrix is not None and it.matrix.query_pool > 1:
        rows.append(("query pool", f"{it.matrix.query_pool} x {it.matrix.query_pool}"))
    return rows


def _lists(lists: Lists) -> str:
    """What pruned search has of lists: "300 of 100 texts, for the best 1, 5; none of images"."""
    parts = []
    for name, measured in (("texts", lists.texts), ("images", lists.images)):
        count = max((it.count for it in measured.values()), default=0)
        best = ", ".join(sorted(measured, key=int))
        told = f"{count} of {lists.candidates} {name}, for the best {best}"
        parts.append(told if count else f"none of {name}")
    if lists.rule != RULE:
        parts.append("measured for another rule, so not used: dsd-trt imitate, then export")
    return "; ".join(parts)


def _probability(facts: BundleFacts) -> _Rows:
    rows = list[tuple[str, str]]()
    for mode in facts.modes:
        found = facts.manifest.calibration_of(mode)
        if found is None:
            rows.append((f"{mode} mode", facts.why_no_probability(mode)))
            continue
        if (on := found.fitted_on) is None:
            where = "fitted when the adapter was trained"
        else:
            where = (
                f"fitted to {counted(on.pairs, 'pair')} of {on.table} on {on.date}, calibration "
                f"error {on.calibration_error:.3f}"
            )
        rows.append((f"{mode} mode", f"sigmoid({found.a:.6g} f {found.b:+.6g}), {where}"))
    return rows


def _parity(parity: Any) -> _Rows:
    """Figures of the export's report, which is free-form."""
    if not parity:
        return [("none", "not recorded")]
    try:
        return _parity_runs(parity)
    except (AttributeError, KeyError, TypeError, ValueError):
        return [("not known", "in another form: -f json shows it")]


def _parity_runs(parity: Any) -> _Rows:
    if not (runs := parity["runs"]):
        return [("none", "the export was not compared with PyTorch")]
    rows = [("compared with", f"{parity['reference']}, {counted(parity['pairs'], 'pair')}")]
    for run in runs:
        for name, figures in (("score", "pair mode"), ("matrix", "matrix mode")):
            if score := run.get(name):
                rows.append(
                    (
                        f"{run['engine']}, {figures}",
                        f"scores differ by up to {score['max_difference']:.2g}, Spearman "
                        f"{score['spearman']:.6f}, top-1 agreement {score['top1']:.1%}",
                    )
                )
    return rows


def _bfloat16(it: Manifest) -> _Rows:
    from dsd_trt.bundle.bfloat16 import in_words

    if not it.bfloat16:
        return [("none", "not compared with FP32 at export; openvino-bf16 does it at first use")]
    return [(f"{mode} mode", in_words(measured)) for mode, measured in it.bfloat16.items()]


def _files(facts: BundleFacts) -> _Rows:
    it, sizes = facts.manifest, facts.sizes
    check = "none, export again for one"
    if it.self_check is not None:
        check = f"tolerance {it.self_check.tolerance:g}"
    hashes = "not compared: --verify"
    if facts.verified is not None:
        hashes = "those of bundle.json" if facts.verified else "differ, see the error"
    rows = [
        *((name, _size(entry.size)) for name, entry in it.files.items()),
        ("together", f"{_size(sizes.bytes)}, of them weights {_size(sizes.weight_bytes)}"),
        ("hashes", hashes),
        ("self-check", check),
    ]
    if sizes.missing_bytes:
        rows.append(("not downloaded", _size(sizes.missing_bytes)))
    return rows


def _engines(facts: BundleFacts) -> _Rows:
    form = ", ".join(facts.manifest.cuda_form or {}) or "none: dsd-trt export --cuda-form"
    maps = facts.manifest.maps
    shown = (
        maps.file if maps else why_no_maps(facts.manifest.method) or "none: dsd-trt export --maps"
    )
    rows = [("form for CUDA", form), ("attention maps", shown)]
    if not facts.plans:
        rows.append(("TensorRT plans", f"none: dsd-trt build {_quoted(facts.folder)}"))
        return rows
    for plan in facts.plans:
        rows.append((_plan_name(plan), plan.why_not_here or "fits this machine"))
    rows.append(("plans together", _size(facts.sizes.plan_bytes)))
    return rows


def _plan_name(plan: PlanFacts) -> str:
    it = plan.described
    texts = "" if it.texts is None else f", texts {it.texts}"
    return (
        f"{it.title} for {it.library} {it.version}, GPUs {', '.join(it.compute_capabilities)}, "
        f"batches {'; '.join(map(str, it.profiles))}{texts}"
    )


def _signature(facts: BundleFacts) -> _Rows:
    if (it := facts.signature) is None:
        return [("none", f"dsd-trt sign {_quoted(facts.folder)} --key KEY")]
    state = "not verified: --require-signature KEY"
    if it.verified_with is not None:
        state = f"verified with {it.verified_with}"
    return [("key", it.key), ("comment", it.comment), ("state", state)]


def _quoted(folder: Path) -> str:
    return shlex.quote(str(folder))


def _printable(text: str) -> str:
    """A text from a bundle that anybody may have written, without what a terminal would obey."""
    return "".join(it if it.isprintable() else ascii(it)[1:-1] for it in text)


def _size(count: int) -> str:
    """A size in a readable unit."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return counted(count, "byte")

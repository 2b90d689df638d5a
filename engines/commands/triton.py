"""`dsd-trt triton`: write a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from dsd_trt.commands.log import note
from dsd_trt.commands.options import mode_option, signature_option

if TYPE_CHECKING:
    from dsd_trt.bundle.method import Mode
    from dsd_trt.engines.triton.repository import ServedBy


@click.command()
@click.argument("bundle")
@signature_option
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(("onnxruntime", "tensorrt", "python")),
    default="onnxruntime",
    show_default=True,
    help="Triton backend of the graphs; python is this package's runtime in Triton's Python "
    "backend.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Greatest number of items in a batch that Triton forms.",
)
@mode_option(
    "pair: one pass per pair and level. matrix: one walk per image and level, faster, with a "
    "different score. auto: the mode the adapter was trained for."
)
@click.option(
    "--no-self-check",
    is_flag=True,
    help="Serve graphs even if their outputs differ from the bundle's self-check.",
)
@click.option(
    "--no-lists",
    is_flag=True,
    help="Serve no matrix scorer in pair mode. dsd_rank_texts then takes more passes, and the "
    "server less disk and memory.",
)
def triton(
    bundle: str,
    require_signature: Path | None,
    out: Path,
    engine: str,
    max_batch_size: int,
    mode: str,
    no_self_check: bool,
    no_lists: bool,
) -> None:
    """Write OUT, a model repository from which Triton serves BUNDLE.

    BUNDLE is a folder, or ORG/NAME[@REVISION] on the Hugging Face Hub. Every model has its own
    copies of the files it needs; on file systems that clone files (Btrfs, XFS) they take no
    space. Clients call the model dsd_score, which takes encoded images and texts and returns the
    matrices of their probabilities and scores; or, in pair mode, dsd_rank_texts, which returns the
    best few of many texts for each image. With tensorrt, BUNDLE must contain plans.
    """
    import tritonclient.grpc.model_config_pb2  # noqa: F401  before gigabytes are hashed

    from dsd_trt.bundle.place import bundle_folder
    from dsd_trt.engines.triton.repository import require_empty, require_served, write_repository
    from dsd_trt.files.disk import in_gigabytes
    from dsd_trt.signature import open_bundle

    require_empty(out)
    require_served(cast("Mode", mode), cast("ServedBy", engine))
    written = write_repository(
        open_bundle(bundle_folder(bundle), require_signature),
        out,
        cast("ServedBy", engine),
        max_batch_size,
        mode=cast("Mode", mode),
        self_check=not no_self_check,
        lists=not no_lists,
    )
    note(
        f"wrote {', '.join(written.models)}; {written.mode} mode, "
        f"batches of {written.max_batch_size} at most; "
        f"{in_gigabytes(written.bytes_taken)} of disk. "
        f"Serve them: tritonserver --model-repository {out.resolve()}"
    )

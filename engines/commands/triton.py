"""`dsd-trt triton`: a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from dsd_trt.commands.options import signature_option

if TYPE_CHECKING:
    from dsd_trt.bundle.manifest import Mode
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
    help="Triton's ONNX Runtime or TensorRT backend, or this package's runtime in its python "
    "backend.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Most items in a batch that Triton forms.",
)
@click.option(
    "--mode",
    type=click.Choice(("auto", "pair", "matrix")),
    default="auto",
    show_default=True,
    help="One pass of the U-Net a pair; or one an image, a faster score of its own, if the bundle "
    "has it. auto: what the adapter was trained for.",
)
@click.option(
    "--no-self-check",
    is_flag=True,
    help="Serve graphs even where they compute anything else than the bundle knows of a few items.",
)
def triton(
    bundle: str,
    require_signature: Path | None,
    out: Path,
    engine: str,
    max_batch_size: int,
    mode: str,
    no_self_check: bool,
) -> None:
    """Write OUT, a model repository that Triton serves BUNDLE from.

    BUNDLE is a folder, or ORG/NAME[@REVISION] on the Hugging Face Hub. Every model has copies of
    the files it needs, which take no disk where the file system clones, as Btrfs and XFS do.
    Clients call its model dsd_score: encoded images and texts in, the matrix of their
    probabilities and scores out. With tensorrt, plans have to be in the bundle.
    """
    import tritonclient.grpc.model_config_pb2  # noqa: F401  before gigabytes are hashed

    from dsd_trt.bundle.folder import bundle_folder
    from dsd_trt.engines.triton.repository import write_repository
    from dsd_trt.files.disk import in_gigabytes
    from dsd_trt.signature import open_bundle

    written = write_repository(
        open_bundle(bundle_folder(bundle), require_signature),
        out,
        cast("ServedBy", engine),
        max_batch_size,
        mode=cast("Mode", mode),
        self_check=not no_self_check,
    )
    click.echo(
        f"wrote {', '.join(written.models)}; {written.mode} mode, "
        f"batches of {written.max_batch_size} at most; "
        f"{in_gigabytes(written.bytes_taken)} of disk. "
        f"Serve them: tritonserver --model-repository {out.resolve()}",
        err=True,
    )

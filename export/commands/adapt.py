"""`dsd-trt adapt`: replace the adapter of a bundle exported with `--adapter-input`."""

from __future__ import annotations

from pathlib import Path

import click

from dsd_trt.commands.log import note
from dsd_trt.commands.options import signature_option

EXAMPLES = """\b
Examples:
  dsd-trt export --adapter-input --out my-scorer
  dsd-trt adapt my-scorer new-adapter --out my-new-scorer
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@signature_option
@click.argument(
    "adapter", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="ADAPTER"
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Folder of the new bundle; with --force it may be BUNDLE itself.",
)
@click.option("--force", is_flag=True, help="Replace the --out folder if it is not empty.")
def adapt(
    bundle: str, require_signature: Path | None, adapter: Path, out: Path, force: bool
) -> None:
    """Replace the adapter of BUNDLE, which was exported with --adapter-input, by ADAPTER.

    BUNDLE is a folder, or ORG/NAME[@REVISION] on the Hugging Face Hub. Graphs, weights and
    compiled plans are copied; on file systems that clone files (Btrfs, XFS) copies take no space.
    """
    from dsd_trt.train.run.libraries import require_libraries

    require_libraries("torch", "diffusers", "transformers", "onnx")
    from dsd_trt.bundle.adapter_input import require_fed
    from dsd_trt.bundle.place import bundle_folder
    from dsd_trt.export.folder import check_replaceable
    from dsd_trt.files.disk import in_gigabytes
    from dsd_trt.signature import open_bundle
    from dsd_trt.train.diffusion.place import require_weights
    from dsd_trt.train.scoring.adapter_file import AdapterFile

    # What the arguments and their files tell comes first: the libraries take seconds to import.
    folder = bundle_folder(bundle)
    file = AdapterFile.read(adapter)
    check_replaceable(out, force)
    opened = open_bundle(folder, require_signature)
    require_fed(opened)
    require_weights(file.config.base, opened.manifest.provenance.weight_hashes)

    from dsd_trt.export.adapt import replace_adapter

    taken: list[int] = []
    replace_adapter(opened, adapter, out, force=force, copied=taken.append)
    note(
        f"wrote {out}, which takes {in_gigabytes(sum(taken))} of disk; try it: "
        f"dsd-trt score IMAGES TEXTS --bundle {out}"
    )

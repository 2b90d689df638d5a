"""`dsd-trt sign`: sign a bundle in minisign's format."""

from __future__ import annotations

from pathlib import Path

import click

from dsd_trt.commands.log import note

EXAMPLES = """\b
Examples:
  minisign -G -p scorer.pub -s scorer.key
  dsd-trt sign my-scorer --key scorer.key
  dsd-trt score photos/ texts.txt --bundle my-scorer --require-signature scorer.pub
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--key",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Secret key made by minisign -G; you are asked for its password.",
)
def sign(bundle: Path, key: Path) -> None:
    """Sign BUNDLE, a local folder: write bundle.json.minisig beside bundle.json.

    Compiled plans in the bundle are signed as well. Sign again after every export, adapt and build.
    """
    from dsd_trt.bundle.place import require_own
    from dsd_trt.signature import is_encrypted, sign_bundle

    require_own(bundle, "signatures")
    password = None
    if is_encrypted(key):
        password = click.prompt("Password", hide_input=True, err=True)
    for path in sign_bundle(bundle, key, password):
        note(f"wrote {path}")

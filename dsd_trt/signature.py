"""Signatures of bundles in minisign's format: proof of origin besides integrity.

`bundle.json` has the hash of every file, so its signature, `bundle.json.minisig`, covers the whole
bundle. A plan is executable code that `bundle.json` does not list; it has its own signature beside
its `engine.json`. All signatures are verified offline, with a public key that the caller provides.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from dsd_trt.bundle.folder import Bundle, read_bundle
from dsd_trt.bundle.manifest import MANIFEST_NAME, Manifest
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.bundle.snapshot import Snapshot
from dsd_trt.engine.tensorrt.plan import SIDECAR_NAME, plans
from dsd_trt.errors import BundleError, InputError, MissingExtraError, one_line
from dsd_trt.files.schema import read_text
from dsd_trt.files.whole import write_whole
from dsd_trt.installation import install_command
from dsd_trt.log import get_logger

logger = get_logger(__name__)

_SUFFIX = ".minisig"
SIGNATURE_NAME = MANIFEST_NAME + _SUFFIX
_SIGNATURE_BYTES = 2 + 8 + 64  # algorithm, identifier of the key, Ed25519
_LONGEST = 20_000  # longest signature or key in bytes; comments may have 8 KiB


def open_bundle(folder: Path, key: str | os.PathLike[str] | None) -> Bundle:
    """Open a bundle as `read_bundle` does, and verify its signature and its plans'.

    Args:
        folder: folder of the bundle.
        key: path of the public key, minisign.pub; None requires no signature.

    Raises:
        BundleError: the bundle is unsigned, signed with another key, or altered since; or it cannot
            be read, as for `read_bundle`.
        InputError: the key file cannot be read.
        MissingExtraError: the package that verifies is not installed.
    """
    if key is None:
        return read_bundle(folder)
    text = verify_signatures(folder, key)
    bundle = read_bundle(folder)
    if Manifest.from_json(text) != bundle.manifest:
        raise BundleError(f"{folder / MANIFEST_NAME} was changed while it was read")
    return bundle


def verify_signatures(folder: Path, key: str | os.PathLike[str]) -> str:
    """Verify the signatures of `bundle.json` and of every plan's description.

    Whether the files are those that these describe is verified by `read_bundle` and `read_plan`.

    Args:
        folder: folder of the bundle.
        key: path of the public key, minisign.pub.

    Returns:
        The signed text of `bundle.json`.

    Raises:
        BundleError: a signature is missing or not valid, as for `open_bundle`.
        InputError: the key file cannot be read.
        MissingExtraError: the package that verifies is not installed.
    """
    if not isinstance(key, (str, os.PathLike)):
        raise InputError(f"a key is named by a path or a string, got {key!r}")
    key = Path(key)
    public = _read_key(key, _library().PublicKey)
    text = _verify(folder, folder / MANIFEST_NAME, public, key)
    for plan in plans(folder):
        _verify(folder, plan.folder / SIDECAR_NAME, public, key)
    logger.info("the bundle %s is signed with the key %s", folder, key)
    return text


def signature_of(folder: Path) -> tuple[str, str] | None:
    """The key and the comment that a bundle's signature names, not verified; None if unsigned.

    Returns:
        The key's identifier as minisign shows it, and the comment that is signed along.

    Raises:
        BundleError: the file is no signature in minisign's format.
    """
    path = folder / SIGNATURE_NAME
    try:
        lines = read_text(path).splitlines()
        content = base64.b64decode(lines[1], validate=True)
        if len(lines) < 4 or len(content) != _SIGNATURE_BYTES:
            raise ValueError("it has other lines")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(
            f"{path} is no signature in minisign's format: {one_line(error)}. Sign again: "
            f"dsd-trt sign {folder} --key KEY"
        ) from None
    return content[2:10][::-1].hex().upper(), lines[2].removeprefix("trusted comment: ")


def sign_bundle(folder: Path, key: Path, password: str | None = None) -> list[Path]:
    """Verify a bundle, then sign it and its plans.

    Args:
        folder: folder of the bundle.
        key: path of the secret key.
        password: password of an encrypted key; None for an unencrypted one.

    Returns:
        Paths of the signatures.

    Raises:
        BundleError: the bundle cannot be read, as for `read_bundle`.
        InputError: the key cannot be read, or the password is wrong or missing.
        MissingExtraError: the package that signs is not installed.
        DsdError: a signature file cannot be written.
    """
    minisign = _library()
    secret = _read_key(key, minisign.SecretKey)
    if secret.is_encrypted():
        if password is None:
            raise InputError(f"the key {str(key)!r} is encrypted, and no password is given")
        try:
            secret.decrypt(password)
        except Exception as error:  # errors of the library and its dependencies
            raise InputError(f"cannot decrypt the key {str(key)!r}: {one_line(error)}") from None
    read_bundle(folder)
    signed = [folder / MANIFEST_NAME, *(plan.folder / SIDECAR_NAME for plan in plans(folder))]
    written = []
    for path in signed:
        content = path.read_bytes()
        # `sign_file` writes the legacy form; this form signs the content's BLAKE2b hash.
        comment = f"{path.relative_to(folder).as_posix()} of a dsd-trt bundle"
        signature = secret.sign(content, prehash=True, trusted_comment=comment)
        written.append(path.with_name(path.name + _SUFFIX))
        write_whole(written[-1], bytes(signature))
    return written


def is_encrypted(key: Path) -> bool:
    """Whether a secret key needs a password.

    Raises:
        InputError: the key file cannot be read.
        MissingExtraError: the package that signs is not installed.
    """
    return bool(_read_key(key, _library().SecretKey).is_encrypted())


def _verify(folder: Path, path: Path, public: Any, key: Path) -> str:
    """Text of a file, if its signature is valid.

    Raises:
        BundleError: there is no signature, or it is not valid.
    """
    signature_path = path.with_name(path.name + _SUFFIX)
    try:
        content = read_text(signature_path)
    except FileNotFoundError:
        if folder == EMBEDDED:
            raise BundleError(
                "the bundle that comes with dsd-trt is not signed, and a signature is required: "
                "name one of your own in its place"
            ) from None
        snapshot = Snapshot.around(folder)
        again = (
            f"download it: {snapshot.download([SIGNATURE_NAME], force=False)}"
            if snapshot and path.name == MANIFEST_NAME
            else f"sign it: dsd-trt sign {folder} --key KEY"
        )
        raise BundleError(
            f"{path} is not signed, and a signature is required; if you made it, {again}"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{signature_path} cannot be read: {error}") from None
    try:
        if len(content) > _LONGEST:
            raise ValueError("it is too long")
        signature = _library().Signature.from_bytes(content.encode())
        if not signature.is_prehashed():
            raise ValueError("it is of the legacy form, sign again with: dsd-trt sign")
        text = read_text(path)
        public.verify(text.encode(), signature)
    except MissingExtraError:
        raise
    except Exception as error:  # errors of the library and its dependencies
        raise BundleError(
            f"{signature_path} is no signature of {path.name} by the key {str(key)!r}: "
            f"{one_line(error)}"
        ) from None
    return text


def _read_key(path: Path, kind: Any) -> Any:
    try:
        text = read_text(path)
        if len(text) > _LONGEST:
            raise ValueError("it is too long")
        return kind.from_bytes(text.encode())
    except Exception as error:  # errors of the library and its dependencies
        raise InputError(
            f"{str(path)!r} is no {kind.__name__} in minisign's format: {one_line(error)}"
        ) from None


def _library() -> Any:
    try:
        import minisign
    except ImportError as error:
        raise MissingExtraError(
            "signatures need a package that is not installed here "
            f"({error}). Install it with: {install_command('sign')}"
        ) from error
    return minisign

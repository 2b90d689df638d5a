"""Signed bundles against the library's own verifier, and everything that is no signature."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dsd_trt import Bundle, BundleError, InputError, Scorer
from dsd_trt.commands.main import cli
from dsd_trt.engine.tensorrt.plan import Profile, Sidecar, write_plan
from dsd_trt.errors import MissingExtraError
from dsd_trt.signature import SIGNATURE_NAME, open_bundle, sign_bundle


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


@pytest.fixture
def minisign() -> Any:
    import minisign  # of the extra "test"

    return minisign


@pytest.fixture
def keys(minisign: Any, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Make the files of a secret and a public key."""

    def make(name: str, password: str | None = None) -> tuple[Path, Path]:
        pair = minisign.KeyPair.generate()
        if password:
            pair.secret_key.encrypt(password, opslimit=2**15, memlimit=2**20)
        secret, public = tmp_path / f"{name}.key", tmp_path / f"{name}.pub"
        secret.write_bytes(bytes(pair.secret_key))
        public.write_bytes(bytes(pair.public_key))
        return secret, public

    return make


def test_a_signed_bundle_opens_and_the_library_agrees(
    folder: Path, keys: Callable[..., tuple[Path, Path]], minisign: Any
) -> None:
    secret, public = keys("one")
    assert sign_bundle(folder, secret) == [folder / SIGNATURE_NAME]
    signature = minisign.Signature.from_file(folder / SIGNATURE_NAME)
    assert signature.is_prehashed()
    minisign.PublicKey.from_file(public).verify_file(folder / "bundle.json", signature)
    pixels = np.full((8, 8, 3), 100, np.uint8)
    scores = [
        Scorer.load(folder, "onnxruntime", require_signature=key).score([pixels], ["dog"]).scores
        for key in (public, None)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])


def test_what_is_no_signature_of_it_is_refused(
    folder: Path, keys: Callable[..., tuple[Path, Path]], minisign: Any
) -> None:
    (secret, public), (_, other) = keys("one"), keys("other")
    with pytest.raises(BundleError, match=r"bundle\.json is not signed"):
        open_bundle(folder, public)
    sign_bundle(folder, secret)
    signed = (folder / SIGNATURE_NAME).read_bytes()
    open_bundle(folder, public)
    with pytest.raises(BundleError, match="incompatible key identifiers"):
        open_bundle(folder, other)
    # A forger has made the hashes fit.
    content = (folder / "tokenizer.json").read_bytes() + b" "
    (folder / "tokenizer.json").write_bytes(content)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"]["tokenizer.json"] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    (folder / "bundle.json").write_text(json.dumps(manifest))
    open_bundle(folder, None)
    with pytest.raises(BundleError, match="signature verification failed"):
        open_bundle(folder, public)
    # The legacy form, which the library's verifier takes.
    key = minisign.SecretKey.from_file(secret)
    legacy = key.sign_file(folder / "bundle.json", drop_signature=False)
    minisign.PublicKey.from_file(public).verify_file(folder / "bundle.json", legacy)
    (folder / SIGNATURE_NAME).write_bytes(bytes(legacy))
    with pytest.raises(BundleError, match="of the legacy form"):
        open_bundle(folder, public)
    for junk in (b"", b"\xff", b"x" * 10**5, signed[:-20], signed.replace(b"\n", b"\n\n", 1)):
        (folder / SIGNATURE_NAME).write_bytes(junk)
        with pytest.raises(BundleError, match=r"bundle\.json\.minisig"):
            open_bundle(folder, public)
    for key_file in (secret, folder / "bundle.json", folder, folder / "none"):
        with pytest.raises(InputError, match="is no PublicKey in minisign's format"):
            open_bundle(folder, key_file)
    with pytest.raises(InputError, match="is no SecretKey in minisign's format"):
        sign_bundle(folder, other)


def test_plans_have_signatures_of_their_own(
    folder: Path, bundle: Bundle, keys: Callable[..., tuple[Path, Path]]
) -> None:
    secret, public = keys("one")
    sign_bundle(folder, secret)
    content = memoryview(b"plan")
    sidecar = Sidecar.of(
        content, bundle.manifest, "pair_scorer", "tensorrt", "10.9", ("8.6",), (Profile(1, 2, 4),)
    )
    plan = write_plan(folder, content, sidecar)
    with pytest.raises(BundleError, match=r"engine\.json is not signed"):
        open_bundle(folder, public)
    assert len(sign_bundle(folder, secret)) == 2
    open_bundle(folder, public)
    path = plan.folder / "engine.json"
    path.write_text(path.read_text().replace("8.6", "8.9"))
    with pytest.raises(BundleError, match=r"engine\.json\.minisig is no signature"):
        open_bundle(folder, public)


def test_the_commands_sign_and_require(
    folder: Path, keys: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    secret, public = keys("one", "pass word")
    run = CliRunner().invoke
    wrong = run(cli, ["sign", str(folder), "--key", str(secret)], input="pass\n")
    assert (wrong.exit_code, "cannot decrypt the key" in wrong.output) == (2, True), wrong.output
    done = run(cli, ["sign", str(folder), "--key", str(secret)], input="pass word\n")
    assert done.exit_code == 0, done.output
    (tmp_path / "texts.txt").write_text("dog\n")
    shutil.copy(Path(__file__).parents[2] / "examples" / "images" / "lone-star.png", tmp_path)
    score = ["score", str(tmp_path / "lone-star.png"), str(tmp_path / "texts.txt")]
    score += ["--bundle", str(folder), "--require-signature", str(public)]
    assert run(cli, score).exit_code == 0
    (folder / SIGNATURE_NAME).unlink()
    refused = run(cli, score)
    assert (refused.exit_code, "is not signed" in refused.output) == (2, True)


def test_the_embedded_bundle_is_not_to_be_signed(keys: Callable[..., tuple[Path, Path]]) -> None:
    _, public = keys("one")
    with pytest.raises(
        BundleError, match=r"not signed, .* name one of your own in its place"
    ) as error:
        Scorer.load(None, "onnxruntime", require_signature=public)
    assert "dsd-trt sign" not in str(error.value)


def test_without_the_package_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "minisign", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[sign\]"):
        open_bundle(folder, folder / "key.pub")
    open_bundle(folder, None)

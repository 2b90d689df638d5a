#!/usr/bin/env bash
# A tar as macOS writes it makes webdataset give every sample apart: the picture without its caption.
#
# Versions: webdataset 1.0.2, Python 3.11.  Date: 2026-11-28.
# macOS's tar puts a member ._NAME with a file's attributes before each NAME.
# Expected: such members are left out, or become samples of their own beside whole ones.
# Seen: each gives a sample whose key is the folder ("a/"), and as it stands between x.png and x.txt,
# the sample a/x ends there and begins anew: two samples of one key, one field each. At the top of
# the tar (without a folder) hidden members are left out, and samples are whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet webdataset==1.0.2
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import tarfile

import webdataset


def samples(*members):
    with tarfile.open("shard.tar", "w") as tar:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"some"))
    found = webdataset.WebDataset("shard.tar", shardshuffle=False)
    return [(s["__key__"], [f for f in s if not f.startswith("__")]) for s in found]


top = samples("._x.png", "x.png", "._x.txt", "x.txt")
within = samples("a/._x.png", "a/x.png", "a/._x.txt", "a/x.txt")
print("at the top:", top)
print("in a folder:", within)
assert top == [("x", ["png", "txt"])], "this has changed"
assert within == [
    ("a/", ["_x.png"]), ("a/x", ["png"]), ("a/", ["_x.txt"]), ("a/x", ["txt"]),
], "this has changed"
PYTHON
# at the top: [('x', ['png', 'txt'])]
# in a folder: [('a/', ['_x.png']), ('a/x', ['png']), ('a/', ['_x.txt']), ('a/x', ['txt'])]

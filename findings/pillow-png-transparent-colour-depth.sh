#!/usr/bin/env bash
# A PNG's transparent colour is not found by Pillow where samples have 4 bits, or 16 in colour.
#
# Versions: pillow 13.0.0, Python 3.11.  Date: 2026-11-28.
# Expected: pixels of the colour in tRNS become transparent, at every depth (PNG specification 11.3.1.1).
# Seen: image.info has the colour as stored, convert("RGBA") compares it with samples that were
# scaled (4 bits times 17) or cut (16 bits to the high 8), finds none, and every pixel stays opaque.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

from PIL import Image


def alpha(depth, colour, row, transparent):
    """Alpha of a PNG of two pixels, the first of which has the transparent colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0))
    png += chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return list(image.getchannel("A").tobytes())


first, second = struct.pack(">3H", 1000, 2000, 3000), struct.pack(">3H", 1, 2, 3)
found = {
    "grey, 8 bits": alpha(8, 0, bytes([3, 15]), struct.pack(">H", 3)),
    "grey, 4 bits": alpha(4, 0, bytes([0x3F]), struct.pack(">H", 3)),
    "colour, 16 bits": alpha(16, 2, first + second, first),
}
for kind, values in found.items():
    print(f"{kind}: alpha {values}")
assert list(found.values()) == [[0, 255], [255, 255], [255, 255]], "this has changed"
PYTHON
# grey, 8 bits: alpha [0, 255]
# grey, 4 bits: alpha [255, 255]
# colour, 16 bits: alpha [255, 255]

#!/usr/bin/env bash
# Pillow opens 16-bit TIFFs that it misreads: planes as 8-bit ones, WhiteIsZero as its negative.
#
# Versions: pillow 13.0.0, numpy 2.4, Python 3.11.  Date: 2026-11-28.
# Expected: the same picture whether samples lie pixel by pixel or plane by plane, as TIFF 6 has it
# (PlanarConfiguration 1 and 2); of PhotometricInterpretation 0 (WhiteIsZero) 65535 is black.
# Seen, without compression, no warning and no error: of planes each byte becomes a sample, so every
# pixel stands twice and the lower half of the picture is gone; WhiteIsZero comes out as stored.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 'numpy==2.4.*'
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct

import numpy as np
from PIL import Image


def tiff(samples, photometric, planar):
    """Little-endian, 16 bits, uncompressed: one strip, or one a plane."""
    height, width, channels = samples.shape
    planes = [samples] if planar == 1 else list(samples.transpose(2, 0, 1))
    strips = [plane.astype("<u2").tobytes() for plane in planes]
    offsets = [8 + sum(map(len, strips[:k])) for k in range(len(strips))]
    body, far, tags = b"".join(strips), b"", []
    for tag, kind, values in (
        (256, "I", [width]), (257, "I", [height]), (258, "H", [16] * channels), (259, "H", [1]),
        (262, "H", [photometric]), (273, "I", offsets), (277, "H", [channels]),
        (278, "I", [height]), (279, "I", list(map(len, strips))), (284, "H", [planar]),
    ):
        data = struct.pack(f"<{len(values)}{kind}", *values)
        if len(data) > 4:
            data, far = struct.pack("<I", 8 + len(body) + len(far)), far + data
        tags.append(struct.pack("<HHI4s", tag, {"H": 3, "I": 4}[kind], len(values), data))
    directory = struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body) + len(far)) + body + far + directory


def seen(*arguments):
    return np.asarray(Image.open(io.BytesIO(tiff(*arguments)))).tolist()


red, green, blue, white, black = ([65535, 0, 0], [0, 65535, 0], [0, 0, 65535], [65535] * 3, [0] * 3)
picture = np.array([[red, green, blue], [white, black, white]], np.uint16)
chunky, planar = seen(picture, 2, 1), seen(picture, 2, 2)
ramp = np.array([[[0], [257], [65535]]], np.uint16)
negative, plain = seen(ramp, 0, 1), seen(ramp, 1, 1)
print("pixel by pixel:", chunky)
print("plane by plane:", planar)
print("BlackIsZero:", plain, "WhiteIsZero:", negative)
assert chunky == (picture // 257).tolist(), "this has changed"
assert planar == [[[255, 0, 0]] * 2 + [[0, 255, 0]], [[0, 255, 0]] + [[0, 0, 255]] * 2], (
    "this has changed"
)
assert negative == plain == ramp[..., 0].tolist(), "this has changed"
PYTHON
# pixel by pixel: [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [255, 255, 255]]]
# plane by plane: [[[255, 0, 0], [255, 0, 0], [0, 255, 0]], [[0, 255, 0], [0, 0, 255], [0, 0, 255]]]
# BlackIsZero: [[0, 257, 65535]] WhiteIsZero: [[0, 257, 65535]]

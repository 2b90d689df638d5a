"""Tar files of every make: what is there is read, what is not is named."""

from __future__ import annotations

import gzip
import io
import logging
import subprocess
import tarfile
from pathlib import Path

import pytest

from dsd_trt.errors import ImageError
from dsd_trt.index.webdataset import split_key, tar_images

LINK, SYMLINK = tarfile.LNKTYPE, tarfile.SYMTYPE
Member = tuple[str, bytes | tuple[bytes, str]]
"""A name, and content or kind and target."""


def tar(members: list[Member], style: int = tarfile.PAX_FORMAT, mark: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as archive:
        for name, what in members:
            member = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                member.size = len(what)
                archive.addfile(member, io.BytesIO(what))
            else:
                member.type, member.linkname = what
                archive.addfile(member)
        end = archive.offset
    return buffer.getvalue() if mark else buffer.getvalue()[:end]


def picture(number: int) -> bytes:
    """Not one: 600 bytes, two blocks of a tar, that are copied as they are."""
    return bytes([number]) * 600


THREE: list[Member] = [(f"{number}.png", picture(number)) for number in range(3)]
OTHERS: list[Member] = [(f"{number}.png", picture(number)) for number in range(3, 6)]
BLOCK, MEMBER = 512, 3 * 512  # bytes; a member of THREE is its header and two blocks


def read(path: Path, content: bytes) -> tuple[dict[str, bytes], dict[str, str]]:
    """Images, and what could not be read, by name."""
    path.write_bytes(content)
    found = list(tar_images(path))
    images = {name: it for name, it in found if isinstance(it, bytes)}
    reasons = {name: str(it) for name, it in found if isinstance(it, ImageError)}
    assert len(images) + len(reasons) == len(found)  # no name is there twice
    return images, reasons


def pictures(*numbers: int) -> dict[str, bytes]:
    return {str(number): picture(number) for number in numbers}


# Names


@pytest.mark.parametrize(
    ("member", "key", "field"),
    [
        # As webdataset 1.0.2 has them.
        ("00.png", "00", "png"),
        ("000.img.PNG", "000", "img.PNG"),
        ("c.d.jpg", "c", "d.jpg"),
        ("./e.png", "./e", "png"),
        ("/e.png", "/e", "png"),
        ("../e.png", "../e", "png"),
        ("a.b/c.png", "a.b/c", "png"),
        ("a.b/c", "", ""),
        (".a/c.png", ".a/c", "png"),
        ("a..png", "a", ".png"),
        ("a b/ü.jpeg", "a b/ü", "jpeg"),
        ("__a.png", "__a", "png"),
        ("__a__.png", "__a__", "png"),
        ("__meta__/a.png", "", ""),
        ("a/__meta__/b.png", "a/__meta__/b", "png"),
        ("__a__", "", ""),
        ("._00.png", "", ""),
        (".png", "", ""),
        # Which makes `a/` of these the key, as if all were one sample.
        ("a/._00.png", "", ""),
        ("a/.png", "", ""),
    ],
)
def test_keys_are_webdatasets(member: str, key: str, field: str) -> None:
    assert split_key(member) == (key, field)


def test_every_field_that_ends_like_an_image_is_one(tmp_path: Path) -> None:
    members: list[Member] = [
        ("000.img.PNG", b"0"),
        ("000.txt", b"a caption"),
        ("c.d.jpg", b"1"),
        ("./e.png", b"2"),
        ("f.png.txt", b"no image"),
        ("g.png", b"3"),
        ("g.seg.png", b"4"),
        ("g.PNG", b"5"),
        ("folder.png/h.webp", b"6"),
    ]
    images, reasons = read(tmp_path / "a.tar", tar(members))
    assert list(images.items()) == [
        ("000", b"0"),
        ("c", b"1"),
        ("./e", b"2"),
        ("g", b"3"),
        ("g.seg.png", b"4"),
        ("g.PNG", b"5"),
        ("folder.png/h", b"6"),
    ]
    assert reasons == {}


def test_a_name_that_is_there_twice_loses_nothing_in_silence(tmp_path: Path) -> None:
    content = tar([("a.png", b"1"), ("a.png", b"2"), ("a.png", b"1")])
    images, reasons = read(tmp_path / "a.tar", content)
    assert images == {"a": b"1"}
    assert reasons == {f"a.png at byte {2 * BLOCK}": "an image before it has its name"}


def test_other_programs_leavings_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = ["._a.png", "__MACOSX/._a.png", "b/.hidden.jpg", "__meta__/c.png"]
    content = tar([("a.png", b"1"), *((name, b"x") for name in hidden), ("._a.txt", b"x")])
    with caplog.at_level(logging.WARNING, "dsd_trt"):
        assert read(tmp_path / "a.tar", content) == ({"a": b"1"}, {})
    assert "left out: 4, such as ._a.png" in caplog.text


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_names_that_are_not_utf_8(tmp_path: Path, style: int) -> None:
    long = "folder/" * 50 + "ü" * 100
    content = tar([(f"{long}.png", b"1"), ("caf\udce9.png", b"2"), ("caf\udce8.png", b"3")], style)
    images, reasons = read(tmp_path / "a.tar", content)
    assert images == {long: b"1", r"caf\udce9": b"2", r"caf\udce8": b"3"}
    assert reasons == {}


# Links


def test_links_are_followed_within_the_tar_and_named_where_they_lead_out(tmp_path: Path) -> None:
    members: list[Member] = [
        ("d/a.png", picture(1)),
        ("d/hard.png", (LINK, "d/a.png")),
        ("d/soft.png", (SYMLINK, "a.png")),
        ("chain.jpg", (SYMLINK, "./d/../d/soft.png")),
        ("blob.png", (SYMLINK, "blobs/0123")),
        ("latest", (SYMLINK, "d")),
        ("through.png", (SYMLINK, "latest/a.png")),
        ("e/ahead.png", (SYMLINK, "../blobs/0123")),
        ("blobs/0123", picture(2)),
        ("loop.png", (SYMLINK, "circle.png")),
        ("circle.png", (SYMLINK, "loop.png")),
        ("self.png", (LINK, "self.png")),
        ("gone.png", (SYMLINK, "nowhere.png")),
        ("above.png", (SYMLINK, "../d/a.png")),
        ("root.png", (SYMLINK, "/d/a.png")),
        ("folder.png", (SYMLINK, "d")),
        ("notes.txt", (SYMLINK, "nowhere.txt")),
    ]
    images, reasons = read(tmp_path / "a.tar", tar(members))
    first = ["d/a", "d/hard", "d/soft", "chain", "through"]
    assert images == {
        **{name: picture(1) for name in first},
        **{name: picture(2) for name in ("blob", "e/ahead")},
    }
    lost = ["loop", "circle", "self", "gone", "above", "root", "folder"]
    assert sorted(reasons) == sorted(lost)
    assert reasons["gone"] == "a link to 'nowhere.png', which is no file of the tar"


def test_a_file_packed_twice_is_a_link_to_itself_and_one_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    subprocess.run(["tar", "-cf", "packed.tar", "a.png", "a.png"], cwd=tmp_path, check=True)
    content = (tmp_path / "packed.tar").read_bytes()
    assert read(tmp_path / "a.tar", content) == ({"a": picture(1)}, {})


def test_devices_and_pipes_are_named(tmp_path: Path) -> None:
    kinds = {"p.png": tarfile.FIFOTYPE, "c.png": tarfile.CHRTYPE, "b.png": tarfile.BLKTYPE}
    content = tar([*((name, (kind, "")) for name, kind in kinds.items()), *THREE])
    images, reasons = read(tmp_path / "a.tar", content)
    assert images == pictures(0, 1, 2)
    assert reasons == dict.fromkeys("pcb", "a device or a pipe, no file")


@pytest.mark.parametrize("style", ["gnu", "posix"])
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_members_have_their_holes(tmp_path: Path, style: str, version: str) -> None:
    with (tmp_path / "sparse.bmp").open("wb") as file:
        for number in range(6):
            file.seek(number << 16)
            file.write(picture(number))
        file.truncate(1 << 19)
    options = [f"--format={style}", "-S", f"--sparse-version={version}"]
    subprocess.run(["tar", *options, "-cf", "a.tar", "sparse.bmp"], cwd=tmp_path, check=True)
    content = (tmp_path / "a.tar").read_bytes()
    assert len(content) < 1 << 16
    images, reasons = read(tmp_path / "b.tar", content)
    assert images == {"sparse": (tmp_path / "sparse.bmp").read_bytes()}
    assert reasons == {}


# Damage


@pytest.mark.parametrize(
    ("cut", "images", "reason"),
    [
        (2 * MEMBER, 2, "no mark of the end"),  # between members: nothing tells it from a whole one
        (2 * MEMBER + 1, 2, f"bytes {2 * MEMBER} to {2 * MEMBER} are no tar"),
        (2 * MEMBER + 300, 2, f"bytes {2 * MEMBER} to {2 * MEMBER + 299} are no tar"),
        (2 * MEMBER + BLOCK, 2, "cut off within '2.png'"),
        (2 * MEMBER + BLOCK + 599, 2, "cut off within '2.png'"),
        (2 * MEMBER + BLOCK + 600, 3, "cut off within '2.png'"),  # the image is whole
        (3 * MEMBER, 3, "no mark of the end"),
        (3 * MEMBER + 300, 3, f"bytes {3 * MEMBER} to {3 * MEMBER + 299} are no tar"),
        (3 * MEMBER + BLOCK, 3, None),  # half of the mark
        (3 * MEMBER + 2 * BLOCK, 3, None),
        (3 * MEMBER + 2 * BLOCK + 1, 3, None),
    ],
)
def test_a_tar_cut_anywhere(tmp_path: Path, cut: int, images: int, reason: str | None) -> None:
    found, reasons = read(tmp_path / "a.tar", tar(THREE)[:cut])
    assert found == pictures(*range(images))
    assert list(reasons) == ([] if reason is None else [""])
    assert reason is None or reason in reasons[""]


@pytest.mark.parametrize("zeros", [0, BLOCK, 2 * BLOCK, 20 * BLOCK])
def test_tars_one_after_another_are_read_as_one(tmp_path: Path, zeros: int) -> None:
    content = tar(THREE, mark=False) + bytes(zeros) + tar(OTHERS)
    assert read(tmp_path / "a.tar", content) == (pictures(*range(6)), {})


@pytest.mark.parametrize(
    ("content", "images", "bad"),
    [
        (tar(THREE)[: MEMBER + 300] + tar(OTHERS), [0, 3, 4, 5], (MEMBER, MEMBER + 299)),
        (tar(THREE) + b"more" + tar(OTHERS), range(6), (10240, 10243)),
        (tar(THREE) + b"garbage", range(3), (10240, 10246)),
        (b"garbage" + tar(THREE), range(3), (0, 6)),
        (
            tar(THREE)[:MEMBER] + b"\xff" * BLOCK + tar(THREE)[MEMBER + BLOCK :],
            [0, 2],
            (MEMBER, 2 * MEMBER - 1),
        ),
    ],
    ids=["cut and appended", "between", "after", "before", "a header"],
)
def test_damage_is_named_and_what_follows_it_is_read(
    tmp_path: Path, content: bytes, images: list[int], bad: tuple[int, int]
) -> None:
    found, reasons = read(tmp_path / "a.tar", content)
    assert found == pictures(*images)
    first, last = bad
    reason = f"not a whole tar file: bytes {first} to {last} are no tar: damaged or cut off"
    assert reasons == {"": reason}


def test_a_header_that_would_lead_back_ends_nothing(tmp_path: Path) -> None:
    content = bytearray(tar(THREE))
    header = content[MEMBER : MEMBER + BLOCK]
    header[124:136] = b"\xff" * 12  # a size of -1, in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[MEMBER : MEMBER + BLOCK] = header
    found, reasons = read(tmp_path / "a.tar", bytes(content))
    assert found == pictures(0, 2)
    assert f"bytes {MEMBER} to " in reasons[""]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no tar " * 200, "not a tar file"),
        (bytes(10240), "no images in the tar file"),
        (tar([]), "no images in the tar file"),
        (tar([("a.txt", b"a caption")]), "no images in the tar file"),
        (b"BZh9", "compressed with bzip2, which is not read; bunzip2 unpacks it"),
        (b"\xfd7zXZ\0", "compressed with xz, which is not read; unxz unpacks it"),
        (b"\x28\xb5\x2f\xfd", "compressed with Zstandard, which is not read; unzstd unpacks it"),
    ],
)
def test_what_is_no_tar_of_images_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    assert read(tmp_path / "a.tar", content) == ({}, {"": reason})


# Compression


def test_gzip_is_read_whatever_its_name(tmp_path: Path) -> None:
    packed = gzip.compress(tar(THREE))
    for name in ("a.tar.gz", "a.tgz", "a.tar"):
        assert read(tmp_path / name, packed) == (pictures(0, 1, 2), {})
    both = packed + gzip.compress(tar(OTHERS))
    assert read(tmp_path / "b.tgz", both) == (pictures(*range(6)), {})


@pytest.mark.parametrize("damage", ["cut", "checksum", "garbage"])
def test_damaged_gzip_keeps_what_came_before(tmp_path: Path, damage: str) -> None:
    stored = gzip.compress(tar(THREE), compresslevel=0)
    content = {
        "cut": stored[: 2 * MEMBER + 600],
        "checksum": stored[:-8] + b"12345678",
        "garbage": stored + b"garbage",
    }[damage]
    images, reasons = read(tmp_path / "a.tgz", content)
    assert images == pictures(*range(2 if damage == "cut" else 3))
    assert "gzip: " in reasons[""]

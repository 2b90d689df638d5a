"""Images decoded by several threads: in order, within bounds, and the same as by one."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_trt import Bundle, ImageError, Index, update_index
from dsd_trt.image import decoding
from dsd_trt.image import preprocess as preprocessing
from dsd_trt.image.decoding import decoded_in_order
from dsd_trt.image.preprocess import load_image, preprocess
from dsd_trt.image.room import ROOM, Room


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, whatever the machine has."""
    monkeypatch.setattr(decoding, "decoding_threads", lambda: 4)


def test_outcomes_keep_the_order_of_items() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 * (4 - number % 4))
        return number * number

    found = list(decoded_in_order(slow_first, range(20), 6))
    assert found == [(number, number * number) for number in range(20)]


def test_no_more_items_are_taken_than_may_wait() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(30):
            taken.append(number)
            yield number

    for place, _ in enumerate(decoded_in_order(abs, items(), 5)):
        assert len(taken) <= place + 1 + 5


def test_large_items_are_not_taken_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded ones count as well: an item is held until it is yielded."""
    monkeypatch.setattr(decoding, "MOST_BYTES", 10)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for _ in range(12):
            taken.append(6)
            yield 6

    for place, _ in enumerate(decoded_in_order(abs, items(), 8, int)):
        time.sleep(0.01)  # what was taken is decoded
        # One that is read while 6 bytes are held comes on top of the bound.
        assert sum(taken[place:]) <= 12
    assert len(taken) == 12


def test_an_error_arrives_in_its_items_turn() -> None:
    def decode(number: int) -> int:
        if number == 3:
            raise ValueError("the third")
        return number

    found = decoded_in_order(decode, range(10), 8)
    assert [next(found)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(found)
    assert not [it for it in threading.enumerate() if it.name.startswith("decode")]


def test_threads_decode_no_more_pixels_at_once_than_one_image_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_PIXELS", "100")
    room, lock = Room(), threading.Lock()
    now, most, alone = 0, 0, True

    def decode(pixels: int) -> None:
        nonlocal now, most, alone
        with room.held():
            room.take(pixels)
            with lock:
                now += pixels
                most = max(most, now)
                alone &= pixels <= 100 or now == pixels
            time.sleep(0.002)
            with room.held():  # as in `preprocess`: the outer one gives back
                room.take(pixels // 2)
            with lock:
                now -= pixels

    sizes = [60, 30, 30, 100, 10, 150, 40, 70] * 6  # 150: the caller's own bound was higher
    workers = [threading.Thread(target=decode, args=(size,)) for size in sizes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert 60 < most <= 150
    assert alone
    assert room._used == 0


def test_room_is_given_back_by_images_that_cannot_be_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_PIXELS", "5000")
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    with pytest.raises(ImageError):
        load_image(whole.getvalue()[:-200])
    assert ROOM._used == 0
    assert preprocess(whole.getvalue(), 8).shape == (8, 8, 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_does_not_wait_for_its_parents_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They hold all room, and decode a PIL image."""
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_PIXELS", "5000")
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ROOM.held(), preprocessing._one_at_a_time:
            ROOM.take(5000)
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(60)
    child = os.fork()
    if not child:
        os._exit(0 if preprocess(Image.new("RGB", (64, 64)), 8).shape == (8, 8, 3) else 1)
    try:
        until = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert ended == (child, 0)
    finally:
        done.set()
        thread.join()


def test_one_picture_given_many_times_is_decoded_by_one_thread_at_a_time(tmp_path: Path) -> None:
    Image.effect_noise((300, 200), 90).convert("RGB").save(tmp_path / "noise.png")
    with Image.open(tmp_path / "noise.png") as expected:
        want = preprocess(expected.copy(), 16)
    for _ in range(10):
        with Image.open(tmp_path / "noise.png") as picture:
            found = decoded_in_order(lambda it: preprocess(it, 16), [picture] * 8, 8)
            for _, pixels in found:
                np.testing.assert_array_equal(pixels, want)


def test_an_index_by_many_threads_is_that_by_one(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(30):
        size = (20 + 13 * (number % 7), 30)
        name = f"{number:02}.{('png', 'jpg', 'bmp')[number % 3]}"
        Image.effect_noise(size, 20 + number).convert("RGB").save(pictures / name)
    (pictures / "31.png").write_bytes((pictures / "03.png").read_bytes())  # a twin
    (pictures / "32.png").write_bytes(b"no image")
    files = [*sorted(pictures.iterdir()), tmp_path / "gone.png"]
    made = []
    for count in (1, 4):
        monkeypatch.setattr(decoding, "decoding_threads", lambda count=count: count)
        update = update_index(
            tmp_path / f"by-{count}", files, bundle.folder, "onnxruntime", shard_size=7
        )
        index = Index.open(tmp_path / f"by-{count}")
        latents = [it.latent().tobytes() for it in index if it.entry.shard is not None]
        made.append(([it.entry for it in index], latents, update.encoded, update.errors))
    assert made[0] == made[1]
    assert len(made[0][1]) == 31

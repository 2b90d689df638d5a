"""Commands and servers of the Triton environment, killed, reloaded and ended while they work."""

from __future__ import annotations

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bundles import closed_form
from client import PROTOCOLS, Client
from inputs import encode
from kills import KINDS, Command, kill_often
from server import Server
from test_load import PIXELS, TEXTS
from torture import Figures, scaled

from dsd_trt import Bundle


@pytest.mark.torture
def test_a_killed_triton_command_ends_as_if_nothing_had_been(
    bundle: Bundle, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for("kills of `triton` at random moments", *KINDS, "half-written")
    command = Command(
        ["triton", bundle.folder, "out"],
        kills=16,
        modules="dsd_trt.engines.triton.repository",
        replaces=True,
    )
    kill_often(command, tmp_path, figures)


ENDS_WITHIN = 30.0  # seconds


@pytest.mark.torture
@pytest.mark.parametrize("clients_go_on", [False, True])
@pytest.mark.parametrize("number", range(scaled(3)))
def test_a_server_that_is_told_to_end_answers_what_it_took(
    number: int, clients_go_on: bool, repository: Path, tmp_path: Path, figures: Figures
) -> None:
    """What was asked before SIGTERM is answered right; what comes later is answered or refused.

    A server whose clients go on ends when its exit timeout does, by Triton's code 1.
    """
    figures.look_for(
        "Triton requests while SIGTERM comes", "lost", "wrong", "hung", "foreign exceptions"
    )
    patience = () if clients_go_on else ("--exit-timeout-secs=25",)
    server = Server(repository, tmp_path, patience)
    told = threading.Event()
    sent: list[float] = []

    def work(place: int) -> None:
        with Client(server, PROTOCOLS[place % 2]) as client:
            for i in range(place, 100_000):
                if told.is_set() and not clients_go_on:
                    return
                pixels, text = PIXELS[i % len(PIXELS)], TEXTS[i % len(TEXTS)]
                asked = time.monotonic()
                try:
                    found = client("dsd_score", {"images": [encode(pixels)], "texts": [text]})
                except Exception as error:  # whatever the client's libraries make of a refusal
                    if not told.is_set() or asked < sent[0]:
                        figures.fault("lost", f"client {place}: {error!r}"[:300])
                    figures.ended("refused after SIGTERM")
                    return
                wanted = closed_form(pixels, text)
                if abs(float(found["scores"][0, 0]) - wanted) > 1e-5:
                    figures.fault("wrong", f"client {place}: {found['scores']} for {wanted}")
                figures.ended("answered after SIGTERM" if told.is_set() else "answered")

    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(work, place) for place in range(16)]
        time.sleep(1 + 0.37 * number)
        sent.append(time.monotonic())
        told.set()
        process = server.terminate()
        try:
            code = process.wait(ENDS_WITHIN)
            figures.measured["seconds from SIGTERM to its end"] = round(
                time.monotonic() - sent[0], 2
            )
            if code and not clients_go_on:
                figures.fault("foreign exceptions", f"exit code {code}")
        except subprocess.TimeoutExpired:
            figures.fault("hung", f"more than {ENDS_WITHIN} s")
        finally:
            server.stop()
        for job in jobs:
            job.result(60)

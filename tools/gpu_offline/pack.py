"""Pack what a GPU machine without a network lacks, in pieces that each fit one transfer.

    python tools/gpu_offline/pack.py --transfer 64 --python 3.12 --capability 9.0 --cuda 13

Run it in a clone on a machine that reaches a package registry. It writes `.kit/1`, `.kit/2` and so
on, and prints the calls for the GPU machine. docs/gpu.md explains them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from archives import MIB, ONNXRUNTIME, Target, archive
from pieces import MANIFEST, Kit, KitError, cut
from prune import PruneError
from stages import ORT, ROOT, RTX, SITE, STAGES, Stage

MARGIN = MIB // 4  # for manifest and headers of the pieces
HEADER = 768  # bytes around each file of the clone: a header in tar, and half a block
LEAST = 4 * MIB  # a transfer with less room is refused
UNPACKING = 15  # seconds that a call may take to unpack

# Tracked files that a run reads are in these; whatever else is large is named.
READ_THERE = (
    "dsd_trt/",
    "train/",
    "export/",
    "engines/",
    "tests/",
    "tools/",
    "benchmarks/tiny-clip",
)


def tracked() -> dict[str, int]:
    """Size in bytes of each file that travels: tracked, or neither tracked nor ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    if done.returncode:
        raise KitError(f"{ROOT} is no clone of git ({done.stderr.decode().strip()}): add --alone")
    names = [name.decode() for name in done.stdout.split(b"\0") if name]
    paths = {name: ROOT / name for name in names}
    return {name: path.lstat().st_size for name, path in paths.items() if path.is_file()}


def plan(kit: Kit, stages: Sequence[Stage] = STAGES) -> Iterator[tuple[int, list[Stage], int]]:
    """Transfers with the stages that can run after each, and a call's time limit in seconds.

    A stage runs as soon as its archives are complete, whatever is still to come. If it waits for a
    background stage, then with that one or later.
    """
    arrived: set[str] = set()
    left = [stage for stage in stages if not stage.optional]
    for transfer in range(1, kit.transfers + 1):
        arrived |= set(kit.whole_after(transfer))
        ready = [stage for stage in left if set(stage.needs) <= arrived]
        left = [stage for stage in left if stage not in ready]
        seconds = UNPACKING + sum(stage.limit for stage in ready if not stage.background)
        yield transfer, ready, seconds


def describe(kit: Kit, sizes: dict[int, int]) -> str:
    """The calls to make, as a table and as lines to copy."""
    rows, calls, total = [], [], 0
    for transfer, ready, seconds in plan(kit):
        whole = ", ".join(kit.whole_after(transfer)) or "-"
        names = " ".join(stage.name for stage in ready)
        command = f"python3 tools/gpu_offline/unpack.py .kit/{transfer}"
        if names:
            run = f"python3 tools/gpu_offline/run_stages.py --within {seconds - UNPACKING}"
            command += f"; {run} {names}"
        rows.append(f"{transfer:8}  {sizes[transfer] / MIB:5.1f}  {seconds:5}  {whole}")
        calls.append(f"{transfer}: {command}")
        total += seconds
    head = "transfer    MiB  limit  completes"
    about = (
        f"Limits are in seconds and add up to {total}. Every call writes results.json and "
        "results.tgz, with the results of those before it. If time is short, leave out test-gpu "
        "and the last call."
    )
    return "\n".join([head, *rows, "", *calls, "", about])


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--transfer",
        type=float,
        default=64,
        metavar="MIB",
        help="most that one transfer holds [64]",
    )
    add("--alone", action="store_true", help="the clone is there already and takes no room")
    add("--python", default="3.12", metavar="VERSION", help="Python version there [3.12]")
    add("--capability", default="9.0", metavar="X.Y", help="compute capability there [9.0]")
    add("--cuda", type=int, default=13, choices=sorted(ONNXRUNTIME), help="CUDA's major there [13]")
    add("--only", nargs="+", choices=(SITE, ORT, RTX), default=(SITE, ORT, RTX), help="archives")
    add("--also", nargs="+", default=(), metavar="NAME==VERSION", help="further wheels for site")
    add("--kit", type=Path, default=ROOT / ".kit", help="folder for the transfers [.kit]")
    add("--cache", type=Path, default=ROOT / ".kit-cache", help="packed archives [.kit-cache]")
    given = parser.parse_args(arguments)
    for name, form in (("python", r"3\.\d+"), ("capability", r"\d+\.\d")):
        if not re.fullmatch(form, getattr(given, name)):
            parser.error(f"--{name} {getattr(given, name)}: give two numbers, such as 9.0 or 3.12")
    target = Target(given.python, given.capability, given.cuda, tuple(given.also))
    try:
        print(pack(target, given.only, given.transfer, given.kit, given.cache, alone=given.alone))
    except (KitError, PruneError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def pack(
    target: Target,
    names: Sequence[str],
    transfer: float,
    folder: Path,
    cache: Path,
    *,
    alone: bool,
) -> str:
    """Write the kit; returns the calls to make.

    Args:
        target: versions and GPU of the machine.
        names: archives to pack, in the order in which they travel.
        transfer: most that one transfer holds, in MiB.
        folder: folder of the transfers, whose earlier content is removed.
        cache: folder of packed archives, which later calls use again.
        alone: whether the clone does not travel along.

    Raises:
        KitError: a transfer has no room, or a download failed.
        PruneError: a library has no machine code for the GPU.
    """
    travels = {} if alone else tracked()
    beside = sum(travels.values()) + HEADER * len(travels)
    room = int(transfer * MIB) - MARGIN - beside
    print(f"beside the clone ({beside / MIB:.1f} MiB) a transfer has {room / MIB:.1f} MiB")
    for name, size in sorted(travels.items(), key=lambda item: -item[1]):
        if size > MIB / 10 and not name.startswith(READ_THERE):
            print(f"  travels and is not read there: {name}, {size / MIB:.2f} MiB")
    if room < LEAST:
        raise KitError(
            f"a transfer of {transfer:g} MiB has too little room beside the clone: take the clone "
            "there first and pack with --alone"
        )
    contents = {name: archive(name, target, cache) for name in names}
    for name, content in contents.items():
        print(f"{name}: {len(content) / MIB:.1f} MiB")
    shutil.rmtree(folder, ignore_errors=True)
    kit = Kit(target.python, target.capability, cut(contents, room, folder))
    sizes = {}
    for number in range(1, kit.transfers + 1):
        part = folder / str(number)
        (part / MANIFEST).write_text(kit.to_json(), encoding="utf-8")
        sizes[number] = sum(path.stat().st_size for path in part.iterdir())
    return describe(kit, sizes)


if __name__ == "__main__":
    sys.exit(main())

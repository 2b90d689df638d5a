"""What was found out about a bundle, and what it needs of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsd_trt.doctor.finding import Finding


@dataclass(frozen=True)
class Needs:
    """What a bundle needs of a machine.

    Attributes:
        weight_bytes: size of the weights on disk.
        least_bytes: memory of activations with batches of one, estimated.
        usual_bytes: memory of activations within the budget, estimated.
        missing_bytes: size of files that are to be downloaded from the hub.
        compiled_bytes: size of OpenVINO's compiled models in the cache, estimated.
    """

    weight_bytes: int
    least_bytes: int
    usual_bytes: int
    missing_bytes: int
    compiled_bytes: int


@dataclass(frozen=True)
class Studied:
    """What was found out about a bundle.

    Attributes:
        folder: path of the bundle; None if there is no such bundle.
        findings: findings about its files.
        plans: findings about its plans, one per plan.
        needs: what it needs; None if its description cannot be read.
        error: message of the error with which a command would refuse it; "" if it is whole.
    """

    folder: str | None
    findings: tuple[Finding, ...]
    plans: tuple[Finding, ...] = ()
    needs: Needs | None = None
    error: str = ""

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Studied:
        """What `study_here` returned."""
        return cls(
            plain["folder"],
            tuple(map(Finding.from_plain, plain["findings"])),
            tuple(map(Finding.from_plain, plain["plans"])),
            plain["needs"] and Needs(**plain["needs"]),
            plain["error"],
        )

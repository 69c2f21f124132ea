# SPDX-License-Identifier: GPL-2.0-only
"""Runs of lab, as the tests make them."""

import dataclasses
import signal
from types import FrameType

import pytest

from program import LAB, call, end_all

# A check of the platform reports this about an IOMMU that keeps a translation.
NO_LONGER_ITS_OWN = "the device wrote to memory that is no longer its own"


def end_session(number: int, frame: FrameType | None) -> None:
    """Handle the signal at the suite's deadline: what has passed until then is reported."""
    try:
        end_all(number, frame)
    except SystemExit as ended:
        pytest.exit("the suite's deadline has passed", returncode=int(ended.code or 0))


signal.signal(signal.SIGTERM, end_session)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run of lab ended, and what it printed."""

    code: int
    out: str
    err: str


def lab(*arguments: str, deadline: float = 900, environment: dict[str, str] | None = None) -> Ended:
    """Run lab with these arguments."""
    variables = [f"{name}={value}" for name, value in (environment or {}).items()]
    return Ended(*call(["env", *variables, *LAB, *arguments], deadline))


def lab_run(*arguments: str) -> Ended:
    """Run a command in a guest, without the device."""
    return lab("run", "--no-bind", *arguments)

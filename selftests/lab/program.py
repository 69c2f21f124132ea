# SPDX-License-Identifier: GPL-2.0-only
"""Running programs, lab itself among them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from kernels import CHECKOUT

LAB = [str(CHECKOUT / "selftests/lab/lab.py")]

# The leaders of the process groups that run.
_running: set[int] = set()
_ended = False


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _end(process: subprocess.Popen[bytes], grace: float) -> tuple[bytes, bytes]:
    """End a process group: lab ends its guest when it is asked to."""
    _signal(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=grace)
    except subprocess.TimeoutExpired:
        _signal(process.pid, signal.SIGKILL)
        return process.communicate()


def call(arguments: Sequence[str], deadline: float, grace: float = 30) -> tuple[int, str, str]:
    """Run a program: exit code, stdout, stderr. At the deadline the code is 124.

    It has a process group of its own. What is left of that in the end is killed: a guest would
    outlive its lab. A program that calls others needs more grace than they.
    """
    if _ended:
        return 143, "", "it was not started any more"
    process = subprocess.Popen(arguments, cwd=CHECKOUT, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
    _running.add(process.pid)
    end = time.monotonic() + deadline
    code = None
    try:
        while True:
            try:
                out, err = process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if _ended or time.monotonic() >= end:
                    code = 143 if _ended else 124
                    out, err = _end(process, grace)
                    break
    except BaseException:
        _end(process, grace)
        raise
    finally:
        _signal(process.pid, signal.SIGKILL)
        _running.remove(process.pid)
    return (process.returncode if code is None else code,
            out.decode(errors="replace"), err.decode(errors="replace"))


def end_all(number: int, _: FrameType | None) -> None:
    """Handle a signal: start nothing more, end what runs, and exit.

    So end the lab's own programs that others of them call. (Those that a person calls are in a
    namespace of processes, which the script lab ends with all that is in it.)
    """
    global _ended  # pylint: disable=global-statement
    _ended = True
    for group in list(_running):
        _signal(group, signal.SIGTERM)
    sys.exit(128 + number)

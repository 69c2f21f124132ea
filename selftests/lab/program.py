# SPDX-License-Identifier: GPL-2.0-only
"""Running programs, lab itself among them."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from kernels import CHECKOUT

LAB = [str(CHECKOUT / "selftests/lab/lab.py")]

# The leaders of the process groups that run.
_running: set[int] = set()
_ended = False


def _end(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """End a process group: lab ends its guest when it is asked to."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def call(arguments: Sequence[str], deadline: float) -> tuple[int, str, str]:
    """Run a program: exit code, stdout, stderr. At the deadline the code is 124.

    It has a process group of its own, which ends with it: a guest would outlive its lab.
    """
    if _ended:
        return 143, "", "it was not started any more"
    process = subprocess.Popen(arguments, cwd=CHECKOUT, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
    _running.add(process.pid)
    try:
        out, err = _end(process) if _ended else process.communicate(timeout=deadline)
        code = process.returncode
    except subprocess.TimeoutExpired:
        out, err = _end(process)
        code = 124
    except BaseException:
        _end(process)
        raise
    finally:
        _running.remove(process.pid)
    return code, out.decode(errors="replace"), err.decode(errors="replace")


def end_all(number: int, _: FrameType | None) -> None:
    """Handle a signal: start nothing more, end what runs, and exit."""
    global _ended  # pylint: disable=global-statement
    _ended = True
    for group in list(_running):
        try:
            os.killpg(group, signal.SIGTERM)
        except ProcessLookupError:
            pass
    sys.exit(128 + number)

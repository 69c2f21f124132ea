# SPDX-License-Identifier: GPL-2.0-only
"""Running programs, lab itself among them."""

import subprocess
from collections.abc import Sequence

from kernels import CHECKOUT

LAB = [str(CHECKOUT / "selftests/lab/lab.py")]


def call(arguments: Sequence[str], deadline: float) -> tuple[int, str, str]:
    """Run a program: exit code, stdout, stderr. At the deadline the code is 124."""
    process = subprocess.Popen(arguments, cwd=CHECKOUT, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=deadline)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate()
        code = 124
    return code, out.decode(errors="replace"), err.decode(errors="replace")

# SPDX-License-Identifier: GPL-2.0-only
"""Lab's standard input, for the command in the guest."""

import os
import stat
import threading

from kernels import say


def passes_nothing() -> bool:
    """Whether there is nothing to pass: /dev/null, a terminal, or a descriptor that is closed."""
    try:
        status = os.fstat(0)
    except OSError:
        return True
    null = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev
    return null or os.isatty(0)


def pass_on(descriptor: int) -> None:
    """Write all of standard input to a descriptor, and close it."""
    try:
        while data := os.read(0, 1 << 16):
            while data:
                data = data[os.write(descriptor, data):]
    except OSError as error:
        say(f"standard input: {error.strerror}")
    os.close(descriptor)


def as_pipe() -> int | None:
    """The read end of a pipe that has what standard input has; None where there is nothing.

    A thread fills the pipe, for as long as lab runs. QEMU could not read every kind of
    file itself: it opens what it reads once more, which starts a file at its beginning and
    fails with a socket.
    """
    if passes_nothing():
        return None
    reader, writer = os.pipe()
    threading.Thread(target=pass_on, args=(writer,), daemon=True).start()
    return reader

# SPDX-License-Identifier: GPL-2.0-only
"""Lab's standard input is that of the command in the guest."""

import hashlib
import os
import pty
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from program import LAB

Completed = subprocess.CompletedProcess[bytes]
RUN = [*LAB, "run", "--no-bind", "--deadline", "300", "--"]


def run(*command: str, stdin: IO[bytes] | int) -> Completed:
    """Run a command in a guest with this standard input."""
    return subprocess.run([*RUN, *command], stdin=stdin, capture_output=True, check=False)


@pytest.mark.parametrize("size", [0, 3_000_000])
def test_every_byte_arrives(size: int, tmp_path: Path) -> None:
    """A file arrives as it is, bytes of all values, and then it has ended."""
    data = random.Random(1).randbytes(size)
    (tmp_path / "data").write_bytes(data)
    with (tmp_path / "data").open("rb") as stdin:
        ended = run("sh", "-c", "tee /tmp/copy && sha256sum /tmp/copy >&2", stdin=stdin)
    assert ended.returncode == 0, ended.stderr
    assert hashlib.sha256(data).hexdigest().encode() in ended.stderr
    assert ended.stdout == data


def test_rest_of_a_file_is_passed(tmp_path: Path) -> None:
    """What somebody else has read of the file is not passed; /dev/stdin is the same input."""
    (tmp_path / "data").write_bytes(b"one\nhi\n")
    with (tmp_path / "data").open("rb") as stdin:
        os.read(stdin.fileno(), 4)
        ended = run("cat", "/dev/stdin", stdin=stdin)
    assert (ended.returncode, ended.stdout) == (0, b"hi\n"), ended.stderr


def test_pipe_need_not_end() -> None:
    """A command that has what it needs ends the run, though its input goes on."""
    reader, writer = os.pipe()
    try:
        os.write(writer, b"hi\nmore\n")
        ended = run("head", "-n", "1", stdin=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert (ended.returncode, ended.stdout) == (0, b"hi\n"), ended.stderr


@pytest.fixture(name="terminal")
def new_terminal() -> Iterator[int]:
    """A terminal on which nobody types."""
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def test_terminal_is_not_passed(terminal: int) -> None:
    """A terminal has no end, so the command gets /dev/null."""
    ended = run("sh", "-c", "readlink /proc/self/fd/0; cat", stdin=terminal)
    assert (ended.returncode, ended.stdout) == (0, b"/dev/null\n"), ended.stderr


@pytest.mark.parametrize("redirection", ["</dev/null", "<&-"])
def test_no_input(redirection: str) -> None:
    """Without input the command gets /dev/null."""
    ended = subprocess.run(["sh", "-c", f'exec "$@" {redirection}', "sh", *RUN, "sh", "-c",
                            "readlink /proc/self/fd/0; cat"], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"/dev/null\n"), ended.stderr

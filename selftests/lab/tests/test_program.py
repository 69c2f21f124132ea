# SPDX-License-Identifier: GPL-2.0-only
"""How the lab's programs run others."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernels import CHECKOUT
from program import call

# A program that has one of its own running, as lab has QEMU.
PARENT = "sleep 1000 & echo $! >{file}; wait"


def ended(pid: str) -> bool:
    """Whether a process has ended, or does within 10 s."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def first_line(file: Path) -> str:
    """What a program writes there."""
    end = time.monotonic() + 60
    while not (file.exists() and file.read_text("utf-8").strip()):
        assert time.monotonic() < end, "the program did not begin"
        time.sleep(0.01)
    return file.read_text("utf-8").strip()


def test_nothing_outlives_a_deadline(tmp_path: Path) -> None:
    """At the deadline, what the program has begun ends too."""
    file = tmp_path / "pid"
    code, _, _ = call(["sh", "-c", PARENT.format(file=file)], 10)
    assert code == 124
    assert ended(first_line(file))


def test_deaf_program_is_killed(tmp_path: Path) -> None:
    """One that does not end when it is asked to is killed."""
    file = tmp_path / "pid"
    code, out, _ = call(["sh", "-c", f"trap '' TERM; echo $$ >{file}; echo begun; "
                                     "while :; do sleep 1; done"], 10, grace=1)
    assert (code, out) == (124, "begun\n")
    assert ended(first_line(file))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signal_ends_all(tmp_path: Path, name: str) -> None:
    """A signal ends what runs, in threads too, and nothing more is started."""
    file = tmp_path / "pid"
    script = f"""
import signal, sys
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, {str(CHECKOUT / "selftests/lab")!r})
from program import call, end_all
signal.signal(signal.{name}, end_all)
with ThreadPoolExecutor(max_workers=1) as pool:
    one = pool.submit(call, ["sh", "-c", {PARENT.format(file=file)!r}], 1000)
    two = pool.submit(call, ["touch", {str(tmp_path / "second")!r}], 1000)
    one.result()
"""
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        try:
            pid = first_line(file)
            process.send_signal(getattr(signal, name))
            assert process.wait(60) > 128
        finally:
            process.kill()
    assert ended(pid)
    assert not (tmp_path / "second").exists()


def test_nothing_outlives_its_parent(tmp_path: Path) -> None:
    """What a program leaves running when it ends is killed."""
    file = tmp_path / "pid"
    code, _, _ = call(["sh", "-c", f"sleep 1000 >/dev/null 2>&1 & echo $! >{file}; exit 3"], 100)
    assert code == 3
    assert ended(first_line(file))

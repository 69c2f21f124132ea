# SPDX-License-Identifier: GPL-2.0-only
"""Guests that hang while they boot. A script takes the place of QEMU."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kernels import CHECKOUT
from labs import Ended, lab

# Finds out where the guest's log and its answers go, and counts how often QEMU is started.
HEAD = """#!/bin/sh
echo >>${0%/*}/starts
for word; do
    case $word in
    file,id=serial,path=*) serial=${word#*path=} ;;
    file,id=control,path=*) control=${word#*path=} ;;
    esac
done
"""

Start = Callable[..., Ended]


@pytest.fixture(name="qemu")
def scripted_qemu(tmp_path: Path) -> Start:
    """Runs lab with a script in QEMU's place, which hangs at its end."""
    def run(script: str, *arguments: str) -> Ended:
        (tmp_path / "starts").unlink(missing_ok=True)
        program = tmp_path / "qemu-system-x86_64"
        program.write_text(f"{HEAD}{script}\nexec sleep 1000\n", encoding="utf-8")
        program.chmod(0o755)
        return lab("run", "--no-bind", *arguments, "--", "echo", "hi",
                   environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    return run


@pytest.fixture(name="starts")
def count_of_starts(tmp_path: Path) -> Callable[[], int]:
    """Counts how often the last run started QEMU."""
    return lambda: len((tmp_path / "starts").read_text().splitlines())


def test_stalled_guest_is_booted_once_more(qemu: Start, starts: Callable[[], int]) -> None:
    """A guest that does not begin is booted once more, and what was seen of it is kept."""
    ended = qemu('[ $(wc -l <${0%/*}/starts) != 1 ] || '
                 '{ echo "it hangs" >$serial; exec sleep 1000; }; '
                 'exec /usr/bin/qemu-system-x86_64 "$@"', "--boot-deadline", "5")
    assert (ended.code, ended.out, starts()) == (0, "hi\n", 2), ended.err
    log = re.search(r"booting once more\. Its log: (\S+)", ended.err)
    assert log
    assert (CHECKOUT / log[1]).read_text() == "it hangs\n"


def test_boots_once_more_at_most(qemu: Start, starts: Callable[[], int]) -> None:
    """A guest that hangs each time is given up at the second."""
    ended = qemu("", "--boot-deadline", "4", "--deadline", "8")
    assert (ended.code, starts()) == (1, 2)
    assert "the deadline has passed" in ended.err


def test_emulators_own_report_is_none(qemu: Start, starts: Callable[[], int]) -> None:
    """A breakpoint of the kernel's that QEMU's CPUs see too late is no reason to give up."""
    ended = qemu('[ $(wc -l <${0%/*}/starts) != 1 ] || '
                 '{ echo "[ 1.7] Oops: int3: 0000 [#1] SMP NOPTI" >$serial; exit; }; '
                 'exec /usr/bin/qemu-system-x86_64 "$@"')
    assert (ended.code, ended.out, starts()) == (0, "hi\n", 2), ended.err
    assert "Oops: int3: 0000 [#1] SMP NOPTI; booting once more. Its log: " in ended.err


@pytest.mark.parametrize("script, reason", [
    pytest.param("echo up >$control", "the deadline has passed", id="init"),
    pytest.param("echo 'Kernel panic - not syncing' >$serial", "Kernel panic", id="report")])
def test_what_has_begun_is_never_repeated(qemu: Start, starts: Callable[[], int], script: str,
                                          reason: str) -> None:
    """A run is not repeated when init was there, nor when the kernel reported something."""
    ended = qemu(script, "--boot-deadline", "8", "--deadline", "12")
    assert (ended.code, starts()) == (1, 1)
    assert reason in ended.err
    assert "once more" not in ended.err

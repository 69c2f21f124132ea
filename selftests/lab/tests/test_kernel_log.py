# SPDX-License-Identifier: GPL-2.0-only
"""What in a guest's kernel log fails a run."""

from pathlib import Path

import pytest

import guest
from labs import lab_run


@pytest.mark.parametrize("text, bad", [
    ("dma-api/error_count is 0", False),
    ("dma-api/error_count is 1", True),
    ("kmemleak: 2 unreferenced objects", True),
    ("DMA-API: it is disabled", True),
    ("DMA-API: dmaprobe: device driver tries to free DMA memory", True),
])
def test_verdicts_of_the_checkers(text: str, bad: bool, tmp_path: Path) -> None:
    """What the debug kernel's checkers have found fails a run; that they found nothing does not."""
    log = tmp_path / "log"
    log.write_text(f"[    1.000000] {text}\n", encoding="utf-8")
    assert bool(guest.reports_in(log)) == bad


def test_report_fails_a_run() -> None:
    """What looks like a kernel's WARN in the log fails a run whose command succeeded."""
    warning = "WARNING: CPU: 0 PID: 1 at lab/test.c:1"
    ended = lab_run("--", "sh", "-c", f"echo '<4>{warning}' >/dev/kmsg; echo hi")
    assert (ended.code, ended.out) == (1, "hi\n")
    assert warning in ended.err


def test_panic_fails_a_run() -> None:
    """A guest whose kernel panics is a failed run."""
    ended = lab_run("--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert ended.code == 1
    assert "Kernel panic" in ended.err

# SPDX-License-Identifier: GPL-2.0-only
"""A reader of lab's output that goes away, such as head(1)."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from program import LAB


def end_without_reader(*arguments: str) -> tuple[int, str]:
    """Run lab with nobody to read its standard output: exit code and standard error."""
    with subprocess.Popen([*LAB, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.close()
        _, err = process.communicate(timeout=200)
        return process.returncode, err


@pytest.mark.parametrize("arguments", [
    ["--help"], ["run", "--help"], ["check", "--help"], ["matrix", "--help"], ["matrix", "--list"],
    ["in", "--", "seq", "10"], ["lint", "spdx"]], ids=" ".join)
def test_sigpipe_ends_what_prints(arguments: list[str]) -> None:
    """Lab ends by SIGPIPE, without a word, as other programs do."""
    assert end_without_reader(*arguments) == (-signal.SIGPIPE, "")


def test_sigpipe_ends_coverage(tmp_path: Path) -> None:
    """The same for a report of coverage."""
    file = tmp_path / "counts"
    file.write_text(json.dumps({"a.c": {"1": 1}}), encoding="utf-8")
    assert end_without_reader("coverage", str(file)) == (-signal.SIGPIPE, "")


def test_sigpipe_ends_a_run() -> None:
    """A run ends at once when nobody reads what the command prints."""
    code, err = end_without_reader("run", "--no-bind", "--", "sh", "-c", "echo hi; sleep 1000")
    assert code == -signal.SIGPIPE
    assert "Traceback" not in err  # it may have waited for another lab, and have said so

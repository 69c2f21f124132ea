# SPDX-License-Identifier: GPL-2.0-only
"""Which lines of the module ran: the counts of several runs."""

from pathlib import Path

import coverage


def test_counts_add_up(tmp_path: Path) -> None:
    """Counts of several runs add up, and the lines that no run reached are named."""
    files = [tmp_path / name for name in ("one", "two")]
    coverage.write({"a.c": {3: 0, 4: 0, 7: 1, 9: 0, 12: 0}}, files[0])
    coverage.write({"a.c": {3: 0, 4: 0, 7: 2, 9: 1, 12: 0}, "b.c": {1: 5}}, files[1])
    counts = coverage.merged(files)
    assert counts == {"a.c": {3: 0, 4: 0, 7: 3, 9: 1, 12: 0}, "b.c": {1: 5}}
    assert coverage.missed(counts["a.c"]) == "3-4 12"
    assert coverage.total(counts) == 50
    assert "a.c" in coverage.report(counts)

# SPDX-License-Identifier: GPL-2.0-only
"""Which lines of kmod/ ran in guests.

The debug kernel's module counts its lines (gcov). A run's counts are kept in a
JSON file, {file: {line: count}}, and the counts of several runs add up.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kernels import CHECKOUT, LabError

Counts = dict[str, dict[int, int]]


def add(counts: Counts, file: str, line: int, count: int) -> None:
    """Count a line; an inline function's are in several objects."""
    lines = counts.setdefault(file, {})
    lines[line] = lines.get(line, 0) + count


def of_run(objects: Path, data: Path) -> Counts:
    """The counts in the .gcda files of a directory; the .gcno files are beside the objects."""
    counts: Counts = {}
    with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
        for gcda in sorted(data.glob("*.gcda")):
            shutil.copy(gcda, scratch)
            shutil.copy(objects / f"{gcda.stem}.gcno", scratch)
            done = subprocess.run(["gcov", "--json-format", "--stdout",
                                   f"{scratch}/{gcda.name}"], cwd=scratch, check=True,
                                  capture_output=True, text=True)
            if "stamp mismatch" in done.stderr:
                raise LabError(f"the module was built anew since this run: {done.stderr.strip()}")
            document = json.loads(done.stdout)
            for file in document["files"]:
                # The objects' directory has links to the sources.
                source = (Path(document["current_working_directory"]) / file["file"]).resolve()
                if source.is_relative_to(CHECKOUT / "kmod"):
                    for line in file["lines"]:
                        add(counts, str(source.relative_to(CHECKOUT)), line["line_number"],
                            line["count"])
    if not counts:
        raise LabError("the run left no coverage; the debug kernel's module does")
    return counts


def write(counts: Counts, path: Path) -> None:
    """Keep a run's counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(counts, indent=1), encoding="utf-8")


def merged(paths: Iterable[Path]) -> Counts:
    """The counts of several runs."""
    counts: Counts = {}
    for path in paths:
        for file, lines in json.loads(path.read_text(encoding="utf-8")).items():
            for line, count in lines.items():
                add(counts, file, int(line), count)
    return counts


def missed(lines: dict[int, int]) -> str:
    """The lines that did not run; a range has no line in it that did."""
    ranges: list[list[int]] = []
    previous = 1
    for line in sorted(lines):
        if lines[line] == 0:
            if previous == 0:
                ranges[-1][1] = line
            else:
                ranges.append([line, line])
        previous = lines[line]
    return " ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def percent(lines: Iterable[int]) -> float:
    """How many of the lines, by their counts, ran."""
    counts = list(lines)
    return 100 * sum(count > 0 for count in counts) / max(1, len(counts))


def total(counts: Counts) -> float:
    """How many of all lines ran."""
    return percent(count for lines in counts.values() for count in lines.values())


def report(counts: Counts) -> str:
    """A line for each file, with the lines that did not run, and the total."""
    table = []
    for file, lines in sorted(counts.items()):
        ran = sum(count > 0 for count in lines.values())
        table.append(f"{file:20} {ran:5} of {len(lines):5} lines {percent(lines.values()):6.1f} %"
                     f"  {missed(lines)}".rstrip())
    ran = sum(count > 0 for lines in counts.values() for count in lines.values())
    size = sum(map(len, counts.values()))
    table.append(f"{'total':20} {ran:5} of {size:5} lines {total(counts):6.1f} %")
    return "\n".join(table)

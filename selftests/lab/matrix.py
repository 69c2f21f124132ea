#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""lab matrix: the checks of the platform, on every IOMMU, domain and engine of the lab.

Each cell is a guest. In it `dmaprobe check` runs once for each device. Cells run side by
side as far as memory allows. Ends with the reasons and two tables: in what the IOMMUs
differ, and what passed, failed and was skipped in each cell. Exits with 1 when a check
failed, or a cell did not get to its end.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import ARCHS, DOMAINS, IOMMUS
from program import LAB, call, end_all
from report import of_checks, write_junit

# What runs for each device. The kernel reports few faults in 5 s, and a transfer of NVMe is
# many, so each check that waits for a report takes that long: not all ways are taken.
SUITES = {
    "edu": ["*"],
    "nvme": ["Data.*", "*/page", "*/linked", "*/coherent", "Sync.*", "Unlink.*", "Window.*",
             "InsideAGranule.*"],
    "testdev": ["*"],
}

# Before the document of each device.
MARK = "lab matrix: "


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is booted."""

    arch: str
    iommu: str
    domain: str
    kernel: str
    append: Sequence[str] = ()

    @property
    def name(self) -> str:
        """For people."""
        return " ".join([self.iommu, self.domain, self.kernel, *self.append])

    def options(self) -> list[str]:
        """As lab takes them."""
        return ["--arch", self.arch, "--iommu", self.iommu, "--domain", self.domain,
                "--kernel", self.kernel, *(f"--append={word}" for word in self.append)]


@dataclasses.dataclass
class Outcome:
    """What came of a cell: the documents of `dmaprobe check` by device, and trouble."""

    documents: dict[str, dict[str, Any]]
    trouble: str
    seconds: float

    def failed(self) -> bool:
        """Whether anything did."""
        return bool(self.trouble) or any(document["totals"]["not ok"]
                                         for document in self.documents.values())


def all_cells() -> list[Cell]:
    """Every IOMMU with every domain, by the stock kernel; and what only some can have."""
    cells = []
    for iommu, platform in IOMMUS.items():
        if iommu != "none":
            # One kind of machine is enough for those that several have.
            cells += [Cell(platform.archs[0], iommu, domain, "stock") for domain in DOMAINS]
    # Only the VFIO of lab's own kernel does without an IOMMU.
    cells += [Cell("x86_64", "none", "strict", "vfio"),
              Cell("x86_64", "vtd", "strict", "vfio"), Cell("x86_64", "amdvi", "strict", "vfio"),
              Cell("x86_64", "vtd", "identity", "stock", ("swiotlb=force",))]
    return cells


def script(devices: Sequence[str]) -> str:
    """What runs in the guest: the checks of each device, in turn."""
    lines = ['[ -z "$DMAPROBE_BDF" ] || dmaprobe unbind $DMAPROBE_BDF >/dev/null']
    for device in devices:
        bdf = f"$DMAPROBE_{device.upper()}"
        only = " ".join(f"--only '{pattern}'" for pattern in SUITES[device])
        # What is printed is there even if a later device takes the guest with it.
        lines += [f"dmaprobe bind --force {bdf} >&2 && echo '{MARK}{device}' && "
                  f"dmaprobe check --json {only} {bdf}",
                  f"dmaprobe unbind {bdf} >/dev/null"]
    return "\n".join([*lines, "exit 0"])


def documents_in(out: str) -> dict[str, dict[str, Any]]:
    """The documents that script() printed, by device."""
    documents = {}
    for part in out.split(MARK)[1:]:
        device, _, text = part.partition("\n")
        try:
            document = json.loads(text)
            documents[device] = {key: document[key] for key in ("domain", "checks", "totals")}
        except (ValueError, KeyError, TypeError):
            continue
    return documents


def without_verdict(documents: dict[str, dict[str, Any]]) -> str:
    """What is wrong when no device came to any verdict. (edu alone may reach no memory.)"""
    checks = [one for document in documents.values() for one in document["checks"]]
    if any(one["verdict"] != "skip" for one in checks):
        return ""
    why = dict.fromkeys(one["reason"] or "" for one in checks)
    return "\nnothing was checked: " + "; ".join(why)


def run_cell(cell: Cell, devices: Sequence[str], deadline: int) -> Outcome:
    """Boot it and run the checks."""
    began = time.monotonic()
    code, out, err = call(
        [*LAB, "run", *cell.options(), "--device", ",".join(devices),
         "--deadline", str(deadline), "--", "sh", "-c", script(devices)],
        deadline + 900)
    documents = documents_in(out)
    lacking = [device for device in devices if device not in documents]
    trouble = err.strip() if code or lacking else ""
    if lacking:
        trouble += f"\nnothing came of {', '.join(lacking)}"
    if documents:
        trouble += without_verdict(documents)
    return Outcome(documents, trouble.strip(), time.monotonic() - began)


def at_a_time(memory: int) -> int:
    """How many guests this machine has CPUs and memory for. They wait most of their time."""
    available = next(int(line.split()[1]) for line in
                     Path("/proc/meminfo").read_text("utf-8").splitlines()
                     if line.startswith("MemAvailable"))
    return max(1, min(3 * (os.cpu_count() or 1), available // 1024 // (memory + 300)))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table, the first its head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def table(outcomes: dict[Cell, Outcome], devices: Sequence[str]) -> str:
    """Cell by device: passed (of which quirks), failed, skipped."""
    def totals(outcome: Outcome, device: str) -> str:
        if device not in outcome.documents:
            return "no result"
        count = outcome.documents[device]["totals"]
        return f"{count['ok'] + count['quirk']} / {count['not ok']} / {count['skip']}"

    return aligned([["cell", *devices, "s"]] + [
        [cell.name, *(totals(outcome, device) for device in devices), f"{outcome.seconds:.0f}"]
        for cell, outcome in outcomes.items()]) + "\n(passed / failed / skipped)"


# --- in what IOMMUs differ -----------------------------------------------------


def checks_of(outcome: Outcome, name: str) -> list[dict[str, Any]]:
    """The checks of this name that came to a verdict, of all ways and devices."""
    return [one for document in outcome.documents.values() for one in document["checks"]
            if one["name"].partition("/")[0] == name and one["verdict"] in ("ok", "quirk")]


def domain_type(outcome: Outcome) -> str:
    """What came of the domain that was asked for."""
    return "; ".join(dict.fromkeys(document["domain"]["type"]
                                   for document in outcome.documents.values()))


def page_sizes(outcome: Outcome) -> str:
    """Of the domain. Powers of two that follow one another as a range."""
    def text(size: int) -> str:
        bits = size.bit_length() - 1
        return f"{1 << bits % 10}{' KMGTPE'[bits // 10]}"

    runs: list[list[int]] = []
    for document in list(outcome.documents.values())[:1]:
        for size in document["domain"]["page_sizes"]:
            if runs and runs[-1][-1] * 2 == size:
                runs[-1].append(size)
            else:
                runs.append([size])
    return " ".join(text(run[0]) + (f"-{text(run[-1])}" if len(run) > 1 else "") for run in runs)


def forbidden(name: str) -> Callable[[Outcome], str]:
    """Whether the IOMMU stops an access, and for which ways of memory it does not."""
    def field(outcome: Outcome) -> str:
        checks = checks_of(outcome, name)
        through = {one["name"].partition("/")[2] for one in checks if one["verdict"] == "quirk"}
        stopped = {one["name"].partition("/")[2] for one in checks} - through
        if not stopped:
            return "let through" if through else ""
        return "stopped" + (f", not {' '.join(sorted(through))}" if through else "")
    return field


def values(name: str, key: str) -> Callable[[Outcome], str]:
    """What a check measured, or several did."""
    def field(outcome: Outcome) -> str:
        found = [one["values"][key] for one in checks_of(outcome, name) if key in one["values"]]
        return "; ".join(dict.fromkeys(found))
    return field


def window(outcome: Outcome) -> str:
    """For how long after an unmap each device got through: the median and the longest."""
    measured = {device: one["values"] for device, document in outcome.documents.items()
                for one in document["checks"]
                if one["name"] == "Window.OfUnmap" and one["verdict"] in ("ok", "quirk")}
    return "; ".join(f"{device} {seen['window_us_median']}, {seen['window_us_max']} us"
                     for device, seen in measured.items())


DIFFERENCES: dict[str, Callable[[Outcome], str]] = {
    "domain": domain_type,
    "page sizes": page_sizes,
    "write to TO_DEVICE": forbidden("Permission.WriteThroughToDevice"),
    "read of FROM_DEVICE": forbidden("Permission.ReadThroughFromDevice"),
    "a fault report says": values("Edge.PastTheLastGranule", "fault_reports"),
    "reached before sync": values("Sync.OfALink", "reached_before_the_sync"),
    "window": window,
}


def differences(outcomes: dict[Cell, Outcome]) -> str:
    """In what the IOMMUs differ; only those that translate. An empty field: not seen."""
    rows = [[cell.name, *(field(outcome) for field in DIFFERENCES.values())]
            for cell, outcome in outcomes.items()
            if any(document["domain"]["type"].startswith("DMA")
                   for document in outcome.documents.values())]
    return aligned([["cell", *DIFFERENCES], *rows]) if rows else "(no IOMMU translates)"


def reasons(outcomes: dict[Cell, Outcome]) -> str:
    """What failed, what is a quirk, and why checks were skipped, each text once for a cell."""
    lines = []
    for cell, outcome in outcomes.items():
        reported: Counter[str] = Counter()
        for device, document in outcome.documents.items():
            for one in document["checks"]:
                text = one["quirk"] if one["verdict"] == "quirk" else one["reason"]
                if one["verdict"] == "not ok":
                    text = f"{one['name']}: {text}"
                if one["verdict"] != "ok":
                    reported[f"{one['verdict']}: {device}: {text}"] += 1
        lines += [f"{cell.name}:", *(f"  {text}" + (f" ({count} checks)" if count > 1 else "")
                                     for text, count in reported.items())]
        if outcome.trouble:
            lines += [f"  trouble: {line}" for line in outcome.trouble.splitlines()]
    return "\n".join(lines)


def main() -> int:
    """Run the cells that were chosen."""
    options = argparse.ArgumentParser(prog="lab matrix", description=__doc__)
    for name, values in (("arch", ARCHS), ("iommu", IOMMUS), ("domain", DOMAINS),
                         ("kernel", ("stock", "vfio"))):
        options.add_argument(f"--{name}", choices=values, action="append",
                             help="only cells of this one; may be given several times")
    options.add_argument("--device", choices=SUITES, action="append",
                         help="only this device; may be given several times")
    options.add_argument("--deadline", type=int, default=1800, metavar="SECONDS",
                         help="end a cell after this long (default: 1800)")
    options.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit's XML")
    options.add_argument("--list", action="store_true", help="name the cells, and run none")
    chosen = options.parse_args()
    cells = [cell for cell in all_cells()
             if all(not (wanted := getattr(chosen, name)) or getattr(cell, name) in wanted
                    for name in ("arch", "iommu", "domain", "kernel"))]
    devices = chosen.device or list(SUITES)
    if not cells:
        options.error("there is no such cell; --list names those there are")
    if chosen.list:
        print("\n".join(cell.name for cell in cells))
        return 0

    outcomes: dict[Cell, Outcome] = {}
    with ThreadPoolExecutor(max_workers=at_a_time(512)) as pool:
        running = {cell: pool.submit(run_cell, cell, devices, chosen.deadline) for cell in cells}
        for number, cell in enumerate(cells, 1):
            outcomes[cell] = running[cell].result()
            print(f"lab: {number} of {len(cells)}: {cell.name}: "
                  f"{'failed' if outcomes[cell].failed() else 'ok'}, "
                  f"{outcomes[cell].seconds:.0f} s", file=sys.stderr, flush=True)
    if chosen.json:
        print(json.dumps({"cells": [{**dataclasses.asdict(cell), "name": cell.name,
                                     **dataclasses.asdict(outcome)}
                                    for cell, outcome in outcomes.items()]}, indent=2))
    else:
        print(reasons(outcomes), differences(outcomes), table(outcomes, devices), sep="\n\n")
    if chosen.junit:
        reports = {}
        for cell, outcome in outcomes.items():
            reports[cell.name] = of_checks(outcome.documents, outcome.trouble)
            reports[cell.name].seconds = outcome.seconds
        write_junit(chosen.junit, "dmaprobe matrix", reports)
    return 1 if any(outcome.failed() for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no traceback when nobody reads the output
    signal.signal(signal.SIGINT, end_all)
    signal.signal(signal.SIGTERM, end_all)
    sys.exit(main())

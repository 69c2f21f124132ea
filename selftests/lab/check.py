#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""make check: every test of dmaprobe. Runs in lab's root file system (`lab check`).

Prints each suite as a KTAP subtest when it has ended, and on the last line
"N passed, N failed, N skipped". Exits with 1 when a test failed, a suite ended
before its plan, or nothing ran.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import coverage
from kernels import CHECKOUT
from program import LAB, call, end_all
from report import Report, Result, show, write_junit
from suites import SUITES

# How many of the module's lines have to run in all suites that measure it, in percent.
LEAST_COVERAGE = 90


def build(names: list[str]) -> str:
    """Build what the suites need; returns the output of a failed build."""
    for goal in dict.fromkeys(goal for name in names for goal in SUITES[name].build):
        print(f"# make {' '.join(goal)}", flush=True)
        code, out, err = call(["make", "-s", f"-j{os.cpu_count() or 1}", *goal], 1800)
        if code:
            return f"make {' '.join(goal)}\n{out}{err}"
    booted = dict.fromkeys(word for name in names for before, word in
                           zip(SUITES[name].options, SUITES[name].options[1:])
                           if before == "--kernel")
    if booted:
        arguments = [f"--kernel={name}" for name in booted]
        if subprocess.run([*LAB, "setup", *arguments], check=False).returncode:
            return "lab setup failed"
    return ""


def perform(name: str) -> Report:
    """Run one suite."""
    began = time.monotonic()
    suite = SUITES[name]
    try:
        report = suite.run(suite)
    except Exception:  # pylint: disable=broad-except
        report = Report()
        report.fail(f"{name}.run", traceback.format_exc())
    if not report.results:
        report.fail(f"{name}.empty", "the suite has no tests")
    report.seconds = time.monotonic() - began
    return report


def covered(names: Sequence[str]) -> Report:
    """Which lines of the module ran in the suites that measure it, taken together."""
    report = Report()
    files = [file for name in names if (file := SUITES[name].coverage)]
    lacking = [str(file.relative_to(CHECKOUT)) for file in files if not file.exists()]
    if lacking:
        report.fail("coverage.lines", f"not written: {' '.join(lacking)}")
        return report
    counts = coverage.merged(files)
    report.notes = coverage.report(counts)
    # A part of the suites need not reach it.
    whole = all(name in names for name, suite in SUITES.items() if suite.coverage)
    if whole and coverage.total(counts) < LEAST_COVERAGE:
        report.fail("coverage.lines", f"less than {LEAST_COVERAGE} %")
    else:
        report.results.append(Result("coverage.lines", "passed"))
    return report


def main() -> int:
    """Build, run, report."""
    options = argparse.ArgumentParser(prog="lab check", description=__doc__)
    options.add_argument("--suite", choices=SUITES, action="append",
                         help="run only this suite; may be given several times")
    options.add_argument("--all", action="store_true", help="run the longer suites as well")
    options.add_argument("--longer", action="store_true", help="run only the longer suites")
    options.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit's XML")
    chosen = options.parse_args()
    names = [name for name, suite in SUITES.items()
             if name in (chosen.suite or []) or chosen.all
             or not chosen.suite and suite.longer == chosen.longer]
    tells_coverage = any(SUITES[name].coverage for name in names)

    reports: dict[str, Report] = {}
    print("KTAP version 1", f"1..{len(names) + tells_coverage}", sep="\n", flush=True)
    broken = build(names)
    if broken:
        reports["build"] = Report()
        reports["build"].fail("build", broken)
        show(1, "build", reports["build"])
    else:
        # Half of the time a guest waits until the kernel reports faults again. Those of the longer
        # suites mostly work.
        each = 1 if any(SUITES[name].longer for name in names) else 2
        with ThreadPoolExecutor(max_workers=each * (os.cpu_count() or 1)) as pool:
            running = {name: pool.submit(perform, name) for name in names}
            for number, name in enumerate(names, 1):
                reports[name] = running[name].result()
                show(number, name, reports[name])
        if tells_coverage:
            reports["coverage"] = covered(names)
            show(len(names) + 1, "coverage", reports["coverage"])
    if chosen.junit:
        write_junit(chosen.junit, "dmaprobe", reports)

    results = [result for report in reports.values() for result in report.results]
    count = {status: sum(result.status == status for result in results)
             for status in ("passed", "failed", "skipped")}
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] or not count["passed"] else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no traceback when nobody reads the output
    signal.signal(signal.SIGINT, end_all)
    signal.signal(signal.SIGTERM, end_all)
    sys.exit(main())

#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""make check: every test of dmaprobe. Runs in lab's root file system (`lab check`).

Prints each suite as a KTAP subtest when it has ended, and on the last line
"N passed, N failed, N skipped". Exits with 1 when a test failed, a suite ended
before its plan, or nothing ran.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "lab"))
import coverage  # noqa: E402
import guest  # noqa: E402
import kernels  # noqa: E402

CHECKOUT = Path(__file__).resolve().parent.parent
LAB = [str(CHECKOUT / "selftests/lab/lab.py")]
SCHEMAS = CHECKOUT / "tools/schema"
SANITIZED = "build/san"
COVERAGE = CHECKOUT / "build/coverage"
# How many of the module's lines have to run in all suites that measure it, in percent.
LEAST_COVERAGE = 90

# The ways by which the selftests make their calls ($DMAPROBE_TRANSPORT), and what
# runs by each. Tests of the tool and of the engines go by the library, whatever
# the transport. They are slow too, because the kernel reports few faults in 5 s. Those
# of many callers at a time, and of too much of everything, take all ways at once or
# have no use for another; nor has what looks at all that is mapped after each call.
HOSTILE = ("*Races*:*Reset*:Fuzz*:*Unplug*:Limits*:Numbers*:*Permissions*:*Vfio*:SharedGroup*:"
           "*FailNth*")
# Tests of engines for other devices than edu.
NVME, TESTDEV = "*Nvme*", "Testdev*"
ONCE = f"-Tool*:*Engine*:{NVME}:{TESTDEV}:{HOSTILE}:Reach*"
TRANSPORTS = {"ioctl": f"-{NVME}:{TESTDEV}", "ring": ONCE, "run": ONCE}

# What runs with other domains and IOMMUs: what may depend on them. Not the contract
# of the ABI, nor the ways by which calls come.
ELSEWHERE = f"-{HOSTILE}:*Stuck*:Abi*:Ring*:Run*:CallTable*:{NVME}:{TESTDEV}"

# What a check of selftests/conformance says of an IOMMU that keeps a translation.
NO_LONGER_ITS_OWN = "the device wrote to memory that is no longer its own"


@dataclasses.dataclass
class Result:
    """One test's outcome: "passed", "failed" or "skipped", and what it said."""

    name: str
    status: str
    reason: str = ""
    said: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Report:
    """A suite's outcome: its results, and what else there is to show."""

    results: list[Result] = dataclasses.field(default_factory=list)
    notes: str = ""
    seconds: float = 0

    def fail(self, name: str, why: str) -> None:
        """Add a failure that no test reported itself."""
        self.results.append(Result(name, "failed", said=why.splitlines()))


LINE = re.compile(r"(?P<bad>not )?ok\b *\d* *-? *(?P<name>.*?)"
                  r"(?: +# *(?P<what>SKIP|TODO)\b *(?P<reason>.*))?$")


def parse_ktap(text: str, code: int, where: str) -> Report:
    """Results out of KTAP. What is missing, by the plan or the exit code, is a failure."""
    report = Report()
    plan: int | None = None
    said: list[str] = []
    for line in text.splitlines():
        if match := re.fullmatch(r"1\.\.(\d+)(?: .*)?", line):
            plan = int(match[1])
        elif line.startswith("Bail out!"):
            report.fail(f"{where}.bail_out", line)
        elif match := LINE.fullmatch(line):
            status = "failed" if match["bad"] else "passed"
            if match["what"] == "SKIP" and not match["bad"]:
                status = "skipped"
            report.results.append(Result(match["name"], status, match["reason"] or "", said))
            said = []
        elif line and not line.startswith("KTAP version"):
            said.append(line.removeprefix("# "))
    seen = len(report.results)
    bad = any(result.status == "failed" for result in report.results)
    if plan is None:
        report.fail(f"{where}.plan", "it ended without a plan")
    elif plan != seen:
        report.fail(f"{where}.plan", f"{plan} tests were planned, {seen} were seen")
    elif code and not bad:
        report.fail(f"{where}.exit", f"every test passed, but the exit code is {code}")
    if said:
        report.notes = "\n".join(said)
    return report


def call(arguments: Sequence[str], deadline: float) -> tuple[int, str, str]:
    """Run a program: exit code, stdout, stderr. At the deadline the code is 124."""
    process = subprocess.Popen(arguments, cwd=CHECKOUT, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=deadline)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate()
        code = 124
    return code, out.decode(errors="replace"), err.decode(errors="replace")


# --- suites ------------------------------------------------------------------


def unit(_: "Suite") -> Report:
    """The unit tests, on this machine, with the address and undefined-behaviour sanitizers."""
    code, out, err = call([f"{SANITIZED}/selftests/dmaprobe-unittest"], 120)
    report = parse_ktap(out, code, "unit")
    if code:
        report.notes += err
    return report


def parse_passes(text: str, code: int, transports: Sequence[str]) -> Report:
    """Results of the selftests by each transport, out of what in_guest()'s script says."""
    report = Report()
    parts = re.split(r"^# check: transport (\w+)\n", text, flags=re.M)
    said = dict(zip(parts[1::2], parts[2::2]))
    for transport in transports:
        ktap, _, end = said.get(transport, "").partition("# check: exit ")
        one = parse_ktap(ktap, int(end) if end.strip().isdigit() else 1, "selftest")
        if not one.results:
            one.fail("selftest.empty", "no test ran")
        for result in one.results:
            result.name = f"{transport}: {result.name}"
        report.results += one.results
        report.notes += "".join(f"{transport}: {line}\n" for line in one.notes.splitlines())
    if code and not any(result.status == "failed" for result in report.results):
        report.fail("selftest.exit", f"every test passed, but the exit code is {code}")
    return report


# What of the tool's documents is held against its schema, in each guest.
DOCUMENTS = {"info": "info --json $DMAPROBE_BDF",
             "check": "check --json --only 'Data.BothWays/page' --only 'Window.*' $DMAPROBE_BDF",
             "bench": "bench dispatch --json --rounds 128 --repeat 1 $DMAPROBE_BDF"}


def in_guest(suite: "Suite") -> Report:
    """The selftests in a guest, and the documents that dmaprobe writes there."""
    script = [f"dmaprobe {command} >/out/{name}.json 2>/out/{name}.err"
              for name, command in DOCUMENTS.items()]
    script.append("all=0")
    for transport in suite.transports:
        chosen = suite.only or TRANSPORTS[transport]
        script.append(f"echo '# check: transport {transport}'; "
                      f"DMAPROBE_TRANSPORT={transport} {suite.environment} dmaprobe-selftest "
                      f"--gtest_filter='{chosen}'; "
                      "code=$?; "
                      "echo; echo \"# check: exit $code\"; [ $code = 0 ] || all=$code")
    script.append("exit $all")
    options = [*suite.options, "--deadline", str(suite.deadline)]
    if suite.coverage:
        options += ["--coverage", str(suite.coverage)]
        suite.coverage.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        code, out, err = call([*LAB, "run", *options, "--out", scratch,
                               "--", "sh", "-c", "\n".join(script)], suite.deadline + 900)
        report = parse_passes(out, code, suite.transports)
        if code:
            report.notes += err
        for name in DOCUMENTS:
            document = Path(scratch) / f"{name}.json"
            said = Path(scratch) / f"{name}.err"
            valid = call(["jsonschema", "-i", str(document),
                          str(SCHEMAS / f"{name}.schema.json")], 60)
            if document.exists() and valid[0] == 0:
                report.results.append(Result(f"schema.{name}", "passed"))
            else:
                report.fail(f"schema.{name}", "".join(valid[1:])
                            + (said.read_text(encoding="utf-8") if said.exists() else ""))
    return report


def costs(suite: "Suite") -> Report:
    """What calls cost in instructions, which is the same from run to run."""
    code, out, err = call([*LAB, "run", "--icount", *suite.options, "--deadline", "1500", "--",
                           "env", "DMAPROBE_ICOUNT=1", "dmaprobe-selftest",
                           f"--gtest_filter={suite.only}"], 2400)
    report = parse_ktap(out, code, "cost")
    if code:
        report.notes += err
    return report


def matrix(suite: "Suite") -> Report:
    """Cells of `lab matrix`: the checks of the platform."""
    report = Report()
    code, out, err = call([*LAB, "matrix", "--json", *suite.options], suite.deadline)
    try:
        cells = json.loads(out)["cells"]
    except (ValueError, KeyError):
        report.fail("matrix.document", f"exit code {code}\n{err}")
        return report
    for cell in cells:
        for device, document in cell["documents"].items():
            for one in document["checks"]:
                status = {"not ok": "failed", "skip": "skipped"}.get(one["verdict"], "passed")
                said = [f"quirk: {one['quirk']}"] if one["quirk"] else []
                if status == "failed":
                    said += (one["reason"] or "").splitlines()
                report.results.append(Result(f"{cell['name']}: {device}: {one['name']}", status,
                                             one["reason"] or "", said))
        if cell["trouble"]:
            report.fail(f"{cell['name']}: cell", cell["trouble"])
    if code and not any(result.status == "failed" for result in report.results):
        report.fail("matrix.exit", f"no check failed, but the exit code is {code}\n{err}")
    return report


def functions(tests: Sequence[Callable[[], None]]) -> Report:
    """Tests that are functions of this file; one that raises has failed."""
    report = Report()
    for test in tests:
        name = test.__name__.replace("_", ".", 1)
        try:
            test()
            report.results.append(Result(name, "passed"))
        except Exception:  # pylint: disable=broad-except
            report.fail(name, traceback.format_exc())
    return report


def expect(condition: bool, text: object) -> None:
    """A test's assertion."""
    if not condition:
        raise AssertionError(text)


def lab_run(*arguments: str) -> tuple[int, str, str]:
    """lab run, without the device."""
    return call([*LAB, "run", "--no-bind", *arguments], 200)


def lab_run_bound(*arguments: str) -> tuple[int, str, str]:
    """lab run, with the device bound."""
    return call([*LAB, "run", *arguments], 200)


def lab_passes_everything_through() -> None:
    """Output on its own stream, the exit code, quoting, and files out of the guest."""
    script = ("echo one; echo two >&2; echo \"$1\" >/out/word; mkdir /out/d; "
              "head -c 3000000 /dev/zero >/out/d/big; exit 42")
    with tempfile.TemporaryDirectory() as scratch:
        code, out, err = lab_run("--out", scratch, "--", "sh", "-c", script, "sh", "it's a $word")
        expect(code == 42, (code, err))
        expect(out == "one\n", out)
        expect("two\n" in err and "one\n" not in err, err)
        expect((Path(scratch) / "word").read_text() == "it's a $word\n", "the file's contents")
        expect((Path(scratch) / "d/big").stat().st_size == 3000000, "the file's size")


def lab_keeps_a_large_output_whole() -> None:
    """Every byte of a large output arrives, and those before a leftover process is waited for."""
    code, out, err = lab_run("--", "sh", "-c", "sleep 1000 & seq 200000")
    expect(code == 0, err)
    expect(out == "".join(f"{n}\n" for n in range(1, 200001)), len(out))


def lab_deadline_ends_a_run() -> None:
    """A command that does not end is ended, and the end of the log is shown."""
    began = time.monotonic()
    code, _, err = lab_run("--deadline", "5", "--", "sleep", "1000")
    expect(code == 1, code)
    expect("the deadline has passed" in err, err)
    expect(time.monotonic() - began < 60, "it took too long")


def lab_kernel_report_fails_a_run() -> None:
    """What looks like a kernel's WARN in the log fails a run whose command succeeded."""
    code, out, err = lab_run("--", "sh", "-c",
                             "echo '<4>WARNING: CPU: 0 PID: 1 at lab/test.c:1' >/dev/kmsg; echo hi")
    expect(code == 1, code)
    expect(out == "hi\n", out)
    expect("WARNING: CPU: 0 PID: 1 at lab/test.c:1" in err, err)


def lab_reads_the_checkers_verdicts() -> None:
    """What the debug kernel's checkers have found fails a run; that they found nothing does not."""
    for text, bad in (("dma-api/error_count is 0", False), ("dma-api/error_count is 1", True),
                      ("kmemleak: 2 unreferenced objects", True),
                      ("DMA-API: it is disabled", True),
                      ("DMA-API: dmaprobe: device driver tries to free DMA memory", True)):
        with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
            log.write(f"[    1.000000] {text}\n")
            log.flush()
            expect(bool(guest.reports_in(Path(log.name))) == bad, text)


def lab_kernel_panic_fails_a_run() -> None:
    """A guest whose kernel panics is a failed run."""
    code, _, err = lab_run("--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    expect(code == 1, code)
    expect("Kernel panic" in err, err)


def with_qemu(script: str, *arguments: str) -> tuple[int, str, str, int]:
    """lab run with a script in QEMU's place; also returns how often that was started.

    The script finds in $serial and $control where the guest's log and its answers go.
    """
    lines = ["#!/bin/sh", "echo >>${0%/*}/starts", "for word; do case $word in",
             "file,id=serial,path=*) serial=${word#*path=} ;;",
             "file,id=control,path=*) control=${word#*path=} ;;",
             "esac; done", script, "exec sleep 1000", ""]
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "qemu-system-x86_64"
        program.write_text("\n".join(lines), encoding="utf-8")
        program.chmod(0o755)
        code, out, err = call(["env", f"PATH={scratch}:{os.environ['PATH']}", *LAB, "run",
                               "--no-bind", *arguments, "--", "echo", "hi"], 200)
        return code, out, err, len((Path(scratch) / "starts").read_text().splitlines())


def lab_boots_a_stalled_guest_once_more() -> None:
    """A guest that does not begin is booted once more, and what was seen of it is kept."""
    script = ('[ $(wc -l <${0%/*}/starts) != 1 ] || '
              '{ echo "it hangs" >$serial; exec sleep 1000; }; '
              'exec /usr/bin/qemu-system-x86_64 "$@"')
    code, out, err, starts = with_qemu(script, "--boot-deadline", "3")
    expect((code, out, starts) == (0, "hi\n", 2), (code, out, err, starts))
    said = re.search(r"booting once more\. Its log: (\S+)", err)
    expect(said is not None, err)
    if said:
        expect((CHECKOUT / said[1]).read_text() == "it hangs\n", said[1])


def lab_boots_once_more_at_most() -> None:
    """A guest that hangs each time is given up at the second."""
    code, _, err, starts = with_qemu("", "--boot-deadline", "1", "--deadline", "3")
    expect((code, starts) == (1, 2), (code, err, starts))
    expect("the deadline has passed" in err, err)


def lab_never_repeats_what_has_begun() -> None:
    """A run is not repeated when init was there, nor when the kernel reported something."""
    deadlines = ("--boot-deadline", "5", "--deadline", "8")
    code, _, err, starts = with_qemu("echo up >$control", *deadlines)
    expect((code, starts) == (1, 1), (code, err, starts))
    expect("the deadline has passed" in err and "once more" not in err, err)
    code, _, err, starts = with_qemu("echo 'Kernel panic - not syncing' >$serial", *deadlines)
    expect((code, starts) == (1, 1), (code, err, starts))
    expect("Kernel panic" in err and "once more" not in err, err)


def lab_unplugs_and_plugs() -> None:
    """A guest can have a device taken away, and given back; and nothing else."""
    script = ("there() { [ -e /sys/bus/pci/devices/$DMAPROBE_BDF2 ]; }; "
              "await() { n=0; until $1; do n=$((n + 1)); [ $n -lt 300 ] || exit 9; "
              "usleep 100000; done; }; gone() { ! there; }; there || exit 1; "
              "lab-host device_del edu2 || exit 2; await gone; "
              "lab-host device_del edu2 && exit 3; "
              "lab-host device_add edu2 || exit 4; await there; "
              "lab-host device_add edu2 && exit 5; "
              "lab-host quit edu2 && exit 6; lab-host device_del ports && exit 7; "
              "echo 'unknown' >$DMAPROBE_LAB_PORT; echo done")
    code, out, err = lab_run("--", "sh", "-c", script)
    expect((code, out) == (0, "done\n"), (code, out, err))
    for text in ("Device 'edu2' not found", "Duplicate device ID 'edu2'", "unknown verb: quit",
                 "unknown device: ports; there are edu1 edu2"):
        expect(text in err, (text, err))


def checks_see_stale_translations() -> None:
    """A lazy domain that is taken for a strict one: what should be gone is not, and that shows."""
    # It is gone after 10 ms, which a busy machine may let pass.
    for _ in range(4):
        code, out, err = call([*LAB, "run", "--domain", "lazy", "--device", "testdev", "--", "env",
                               "DMAPROBE_EXPECT_STRICT=1", "dmaprobe", "check",
                               "--only", "After.ItIsTaken/page", "--only", "Unlink.OfAPart"], 200)
        if code == 1:
            break
    expect(code == 1, (code, out, err))
    expect("\nnot ok 2 After.ItIsTaken/page\n" in out, out)
    expect(NO_LONGER_ITS_OWN in out, out)
    # dma_iova_unlink() invalidates at once there as well.
    expect("\nok 1 Unlink.OfAPart\n" in out, out)


def lab_refuses_unknown_values() -> None:
    """Values that lab does not know are refused, with those it does know."""
    for option, known in (("--kernel", "vfio"), ("--iommu", "vtd"), ("--domain", "strict"),
                          ("--device", "edu"), ("--arch", "arm64")):
        code, _, err = lab_run(option, "fancy", "--", "true")
        expect(code == 2 and "fancy" in err and known in err, (option, code, err))


def lab_icount_repeats() -> None:
    """Under --icount the same work takes the same time in the guest, on one CPU."""
    script = ("now() { sed -n 's/^now at \\([0-9]*\\).*/\\1/p' /proc/timer_list; }; nproc; "
              "for pass in 1 2; do a=$(now); i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; "
              "b=$(now); done; echo $((b - a))")
    took = []
    for _ in range(2):
        code, out, err = lab_run("--icount", "--kernel", "vfio", "--", "sh", "-c", script)
        expect(code == 0, err)
        cpus, nanoseconds = map(int, out.split())
        expect(cpus == 1, cpus)
        took.append(nanoseconds)
    expect(max(took) < min(took) * 1.01, took)


def check_counts_what_is_missing() -> None:
    """A suite that crashes, stops early or has no plan has failed."""
    def statuses(text: str, code: int = 0) -> list[str]:
        return [result.status for result in parse_ktap(text, code, "x").results]

    expect(statuses("1..2\nok 1 a\nok 2 b # SKIP no\n") == ["passed", "skipped"], "good")
    expect(statuses("1..1\nnot ok 1 a\n", 1) == ["failed"], "bad")
    expect(statuses("1..2\nok 1 a\n", 139) == ["passed", "failed"], "short")
    expect(statuses("ok 1 a\n") == ["passed", "failed"], "no plan")
    expect(statuses("", 1) == ["failed"], "nothing")
    expect(statuses("1..1\nok 1 a\n", 1) == ["passed", "failed"], "bad exit")
    expect(statuses("1..1\nBail out! why\n", 1) == ["failed"], "bail out")


def check_keeps_transports_apart() -> None:
    """Each transport has its own plan, and one that did not run has failed."""
    def outcome(text: str, code: int = 0) -> list[tuple[str, str]]:
        return [(result.name, result.status)
                for result in parse_passes(text, code, ["ioctl", "ring"]).results]

    first = "# check: transport ioctl\n1..1\nok 1 a\n\n# check: exit 0\n"
    second = "# check: transport ring\n1..1\nok 1 a\n\n# check: exit 0\n"
    passed = [("ioctl: a", "passed"), ("ring: a", "passed")]
    expect(outcome(first + second) == passed, "good")
    expect(outcome(first + second, 1) == [*passed, ("selftest.exit", "failed")], "bad exit")
    expect(outcome(first) == [passed[0], ("ring: selftest.plan", "failed")], "missing")
    expect(outcome(first + second.replace("1..1", "1..2"), 1) ==
           [*passed, ("ring: selftest.plan", "failed")], "short")
    expect(outcome(first + second.replace("exit 0", "exit 1"), 1) ==
           [*passed, ("ring: selftest.exit", "failed")], "its exit")
    expect(outcome(first + second.partition("\n\n")[0], 1) ==
           [*passed, ("ring: selftest.exit", "failed")], "no exit")
    expect(outcome(first + second.replace("1..1\nok 1 a", "1..0")) ==
           [passed[0], ("ring: selftest.empty", "failed")], "nothing ran")
    expect(outcome(first.replace("ok 1", "not ok 1") + second, 1) ==
           [("ioctl: a", "failed"), passed[1]], "bad")


def lab_layers_kernel_options() -> None:
    """A later fragment goes over an earlier one, and what Kconfig refuses is reported."""
    options = kernels.options_in("# text\nCONFIG_A=y\nCONFIG_B=1\n# CONFIG_C is not set\n"
                                 "CONFIG_B=2\nCONFIG_A_B=y\n# CONFIG_A is not set\n")
    expect(list(options.values()) == ["# CONFIG_A is not set", "CONFIG_B=2",
                                      "# CONFIG_C is not set", "CONFIG_A_B=y"], options)
    expect(kernels.not_taken(options, "CONFIG_B=2\nCONFIG_A_B=y\n") == [], "all taken")
    expect(kernels.not_taken(options, "CONFIG_A=m\nCONFIG_B=1\n# CONFIG_C is not set\n") ==
           ["# CONFIG_A is not set", "CONFIG_B=2", "CONFIG_A_B=y"], "three lost")


def lab_adds_coverage_up() -> None:
    """Counts of several runs add up, and the lines that no run reached are named."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("one", "two")]
        coverage.write({"a.c": {3: 0, 4: 0, 7: 1, 9: 0, 12: 0}}, files[0])
        coverage.write({"a.c": {3: 0, 4: 0, 7: 2, 9: 1, 12: 0}, "b.c": {1: 5}}, files[1])
        counts = coverage.merged(files)
    expect(counts == {"a.c": {3: 0, 4: 0, 7: 3, 9: 1, 12: 0}, "b.c": {1: 5}}, counts)
    expect(coverage.missed(counts["a.c"]) == "3-4 12", coverage.missed(counts["a.c"]))
    expect(coverage.total(counts) == 50, coverage.total(counts))
    expect("a.c" in coverage.report(counts), coverage.report(counts))


def checks_know_a_bridge() -> None:
    """Faults of a device behind a bridge are reported under the bridge's requester id."""
    code, out, err = call([*LAB, "run", "--device", "bridged", "--", "sh", "-c",
                           "dmaprobe demo $DMAPROBE_BDF && dmaprobe check --only 'After.*/page' "
                           "--only 'Edge.PastTheLastGranule/page' $DMAPROBE_BDF"], 200)
    expect(code == 0, (code, out, err))
    expect("15 of 15 steps as they must be, 2 faults caught\n" in out, out)
    expect("a bridge above the device" in out, out)
    expect("# Totals: pass:2 fail:0" in out, out)


def checks_do_without_reports() -> None:
    """Where no report of the IOMMU is understood, the memory is the witness; or nothing is."""
    blind = "touch /tmp/log; mount --bind /tmp/log /dev/kmsg; "
    code, out, err = call([*LAB, "run", "--deadline", "300", "--", "sh", "-c", blind +
                           "dmaprobe demo $DMAPROBE_BDF && dmaprobe check --only 'After.*/page' "
                           "--only 'Permission.Write*/page' --only 'Edge.Past*/page' "
                           "$DMAPROBE_BDF"], 400)
    expect(code == 0, (code, out, err))
    expect("0 faults caught, 2 without a report that is understood\n" in out, out)
    expect("# Totals: pass:2 fail:0 xfail:0 xpass:0 skip:1 error:0" in out, out)
    expect(out.count("quirk: the device was stopped, and no report of the IOMMU is") == 2, out)
    # What is not stopped is seen all the same.
    for _ in range(4):
        code, out, err = call([*LAB, "run", "--domain", "lazy", "--device", "testdev", "--", "sh",
                               "-c", blind + "DMAPROBE_EXPECT_STRICT=1 dmaprobe check --only "
                               "After.ItIsTaken/page $DMAPROBE_BDF"], 200)
        if code == 1:
            break
    expect(code == 1, (code, out, err))
    expect(NO_LONGER_ITS_OWN in out, out)


def checks_are_stopped() -> None:
    """What comes in between is no finding: another check, an unbind, the tool's end."""
    script = """
        run="dmaprobe check --only Data.* $DMAPROBE_BDF"
        busy() { grep -qs dmaprobe-confor /proc/[0-9]*/comm; }
        $run >/out/first 2>&1 & pid=$!
        until busy; do sleep 0.1; done
        $run --json >/out/second.json 2>/out/second; echo second $?
        sleep 1; echo $DMAPROBE_BDF >/sys/bus/pci/drivers/dmaprobe/unbind
        wait $pid; echo first $?
        echo $DMAPROBE_BDF >/sys/bus/pci/drivers_probe
        $run >/out/third 2>&1 & pid=$!
        until busy; do sleep 0.1; done
        kill -9 $pid; sleep 2; busy; echo left $?
    """
    with tempfile.TemporaryDirectory() as scratch:
        code, out, err = lab_run_bound("--out", scratch, "--", "sh", "-c", script)
        expect((code, out) == (0, "second 3\nfirst 3\nleft 1\n"), (code, out, err))
        for name, text in (("second", "another dmaprobe check has "),
                           ("first", "the device was unbound or unplugged")):
            said = (Path(scratch) / name).read_text(encoding="utf-8")
            expect(text in said, said)
        document = json.loads((Path(scratch) / "second.json").read_text(encoding="utf-8"))
        expect(document["error"]["exit"] == 3, document)


def the_lab(_: "Suite") -> Report:
    """The lab and this program test themselves."""
    return functions([
        check_counts_what_is_missing, check_keeps_transports_apart, lab_layers_kernel_options,
        lab_adds_coverage_up, lab_refuses_unknown_values,
        lab_passes_everything_through, lab_keeps_a_large_output_whole, lab_deadline_ends_a_run,
        lab_kernel_report_fails_a_run, lab_reads_the_checkers_verdicts,
        lab_kernel_panic_fails_a_run,
        lab_boots_a_stalled_guest_once_more, lab_boots_once_more_at_most,
        lab_never_repeats_what_has_begun, lab_unplugs_and_plugs, lab_icount_repeats,
        checks_see_stale_translations, checks_know_a_bridge, checks_do_without_reports,
        checks_are_stopped])


def planted(_: "Suite") -> Report:
    """A platform that does wrong, as the debug kernel can be made to: the checks notice.

    An IOMMU that keeps what was unmapped spoils all that comes after, so each check has a
    guest of its own.
    """
    report = Report()
    skip = "/sys/module/iommu/parameters/skip_invalidation"
    for iommu, name, says in (
            ("vtd", "After.ItIsTaken/page", NO_LONGER_ITS_OWN),
            ("vtd", "After.ItIsTaken/linked", NO_LONGER_ITS_OWN),
            ("vtd", "Unlink.OfAPart", "the device wrote after the unlink"),
            ("amdvi", "Unlink.OfAPart", "the device wrote after the unlink")):
        one = f"dmaprobe check --only {name} $DMAPROBE_BDF"
        code, out, err = call([*LAB, "run", "--kernel", "debug", "--iommu", iommu,
                               "--device", "testdev", "--deadline", "300", "--", "sh", "-c",
                               f"{one} || exit 9; echo Y >{skip} || exit 8; {one}"], 900)
        test = f"{iommu}: {name} without invalidation"
        if code == 1 and f"\nnot ok 1 {name}\n" in out and says in out:
            report.results.append(Result(test, "passed"))
        else:
            report.fail(test, f"exit code {code}\n{out}\n{err}")
    return report


@dataclasses.dataclass(frozen=True)
class Suite:
    """What runs, with which options of lab, and what each make has to build for it first."""

    run: Callable[["Suite"], Report]
    options: Sequence[str]
    build: Sequence[tuple[str, ...]]
    longer: bool = False
    transports: Sequence[str] = ("ioctl",)
    only: str = ""  # a filter of GoogleTest
    deadline: int = 1500  # of the guest, in seconds
    environment: str = ""  # of the selftests, as sh takes it
    coverage: Path | None = None  # where to keep which lines of the module ran


GUEST = ("BUILD=build/lab", "STATIC=1", "build/lab/bin/dmaprobe",
         "build/lab/selftests/dmaprobe-selftest", "build/lab/selftests/dmaprobe-conformance")
ARM64 = ("BUILD=build/lab-arm64", "STATIC=1", *guest.ARCHS["arm64"].make,
         "build/lab-arm64/bin/dmaprobe", "build/lab-arm64/selftests/dmaprobe-conformance")
ARM64_TESTS = (*ARM64, "build/lab-arm64/selftests/dmaprobe-selftest")

# In the order in which they start: the longest first. The longer suites run only
# when they are asked for.
SUITES = {
    # Where *Boundary* is left out, these tests were not seen.
    "debug": Suite(in_guest, ["--kernel", "debug"], [GUEST], longer=True, deadline=3000,
                   only=f"{TRANSPORTS['ioctl']}:*BoundaryTime*",
                   coverage=COVERAGE / "debug.json"),
    "debug-amdvi": Suite(in_guest, ["--kernel", "debug", "--iommu", "amdvi"], [GUEST], longer=True,
                         deadline=3000, only=f"{TRANSPORTS['ioctl']}:*Boundary*",
                         coverage=COVERAGE / "debug-amdvi.json"),
    "fuzz": Suite(in_guest, ["--kernel", "debug"], [GUEST], longer=True, only="Fuzz.*",
                  deadline=3000,
                  environment="DMAPROBE_FUZZ_CALLS=100000",
                  coverage=COVERAGE / "fuzz.json"),
    "matrix": Suite(matrix, [], [GUEST, ARM64], longer=True, deadline=4000),
    "arm64": Suite(in_guest, ["--arch", "arm64"], [ARM64_TESTS], longer=True,
                   only=f"{TRANSPORTS['ioctl']}:*Boundary*"),
    "stock": Suite(in_guest, ["--kernel", "stock"], [GUEST]),
    "stable": Suite(in_guest, ["--kernel", "stable"], [GUEST]),
    "vfio": Suite(in_guest, ["--kernel", "vfio"], [GUEST]),
    # A cross-section of the matrix.
    "cell-x86": Suite(matrix, ["--kernel", "vfio", "--iommu", "vtd", "--device", "nvme"], [GUEST]),
    "cell-arm64": Suite(matrix, ["--iommu", "smmuv3", "--domain", "strict", "--device", "nvme"],
                        [ARM64]),
    "nvme": Suite(in_guest, ["--kernel", "vfio", "--device", "nvme"], [GUEST], only=NVME),
    "lab": Suite(the_lab, ["--kernel", "vfio"], [GUEST]),
    "unit": Suite(unit, [], [
        (f"BUILD={SANITIZED}", "SAN=1", f"{SANITIZED}/selftests/dmaprobe-unittest")]),
    "ways": Suite(in_guest, ["--kernel", "stock"], [GUEST], longer=True,
                  transports=("ring", "run")),
    "lazy": Suite(in_guest, ["--kernel", "stock", "--domain", "lazy"], [GUEST], longer=True,
                  only=f"{ELSEWHERE}:*Boundary*"),
    "stable-lazy": Suite(in_guest, ["--kernel", "stable", "--domain", "lazy"], [GUEST], longer=True,
                         only="Abi.SetMask*"),
    "identity": Suite(in_guest, ["--kernel", "stock", "--domain", "identity"], [GUEST], longer=True,
                      only=ELSEWHERE),
    "virtio": Suite(in_guest, ["--kernel", "vfio", "--iommu", "virtio"], [GUEST], longer=True,
                    only=ELSEWHERE),
    "nvme-sysfs": Suite(in_guest, ["--kernel", "stock", "--device", "nvme"], [GUEST], longer=True,
                        only=NVME),
    "nvme-arm64": Suite(in_guest, ["--arch", "arm64", "--device", "nvme"], [ARM64_TESTS],
                        longer=True, only=NVME),
    "testdev": Suite(in_guest, ["--kernel", "stock", "--device", "testdev"], [GUEST], longer=True,
                     only=TESTDEV),
    "swiotlb": Suite(in_guest, ["--kernel", "stock", "--domain", "identity",
                                "--append", "swiotlb=force"], [GUEST], longer=True,
                     only="*Sg*:Segment*:*Attributes*:*Mapping*:Bars*:Resource*:BoundaryLog*"
                          "-*Engine*"),
    "planted": Suite(planted, ["--kernel", "debug"], [GUEST], longer=True),
    "cost": Suite(costs, ["--kernel", "stock", "--memory", "1024"], [GUEST], longer=True,
                  only="Cost.*:ManyMappings.*"),
}


# --- running and reporting ---------------------------------------------------


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


def show(number: int, name: str, report: Report) -> None:
    """Print a suite as a KTAP subtest."""
    lines = [f"    1..{len(report.results)}"]
    for index, result in enumerate(report.results, 1):
        lines += [f"    # {line}" for line in result.said]
        skip = f" # SKIP {result.reason}" if result.status == "skipped" else ""
        lines.append(f"    {'not ' * (result.status == 'failed')}ok {index} {result.name}{skip}")
    lines += [f"    # {line}" for line in report.notes.splitlines()]
    bad = any(result.status == "failed" for result in report.results)
    print(f"# Subtest: {name}", *lines,
          f"{'not ' * bad}ok {number} {name} # {report.seconds:.1f} s", sep="\n", flush=True)


def write_junit(path: Path, reports: dict[str, Report]) -> None:
    """The same as JUnit's XML."""
    top = xml.Element("testsuites", name="dmaprobe")
    for name, report in reports.items():
        suite = xml.SubElement(top, "testsuite", name=name, time=f"{report.seconds:.1f}",
                               tests=str(len(report.results)))
        for status, attribute in (("failed", "failures"), ("skipped", "skipped")):
            count = sum(result.status == status for result in report.results)
            suite.set(attribute, str(count))
        for result in report.results:
            case = xml.SubElement(suite, "testcase", classname=name, name=result.name)
            if result.status == "failed":
                xml.SubElement(case, "failure", message="failed").text = "\n".join(result.said)
            elif result.status == "skipped":
                xml.SubElement(case, "skipped", message=result.reason)
    xml.indent(top)
    path.parent.mkdir(parents=True, exist_ok=True)
    xml.ElementTree(top).write(path, encoding="utf-8", xml_declaration=True)


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
        write_junit(chosen.junit, reports)

    results = [result for report in reports.values() for result in report.results]
    count = {status: sum(result.status == status for result in results)
             for status in ("passed", "failed", "skipped")}
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())

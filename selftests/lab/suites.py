# SPDX-License-Identifier: GPL-2.0-only
"""The suites of `lab check`: what each runs, and where."""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kernels import CHECKOUT, HERE
from machine import ARCHS
from program import LAB, call
from report import Report, Result, of_checks, parse_junit, parse_ktap

SCHEMAS = CHECKOUT / "tools/schema"
SANITIZED = "build/san"
COVERAGE = CHECKOUT / "build/coverage"

# Folders of selftests/, which are classes of tests; dmaprobe-selftest takes them as --in=.
# What each call does depends on the transport and on the platform. Tests of the tool and of
# the engines go by the library, whatever the transport. Those under stress use all
# transports at once.
CALLS = "module/calls,module/boundary,library"
EVERYWHERE = f"{CALLS},engines,tool"
# By each transport ($DMAPROBE_TRANSPORT), and on other IOMMUs, domains and CPUs.
TRANSPORTS = {"ioctl": "module,library,engines,tool", "ring": f"module/abi,{CALLS}",
              "run": f"module/abi,{CALLS}"}
# Tests of engines for other devices than edu.
NVME, TESTDEV = "*Nvme*", "*Testdev*"
EDU = f"-{NVME}:{TESTDEV}"
# Who may do what depends neither on the transport nor on the platform.
NO_RIGHTS = f"{EDU}:*Permissions*:*Vfio*:SharedGroup*"


def unit(_: "Suite") -> Report:
    """The unit tests, on this machine, with the address and undefined-behaviour sanitizers."""
    code, out, err = call([f"{SANITIZED}/selftests/dmaprobe-unittest"], 120)
    report = parse_ktap(out, code, "unit")
    if code:
        report.notes += err
    return report


def parse_passes(text: str, code: int, transports: Sequence[str]) -> Report:
    """Results of the selftests by each transport, out of what in_guest()'s script prints."""
    report = Report()
    parts = re.split(r"^# check: transport (\w+)\n", text, flags=re.M)
    said = dict(zip(parts[1::2], parts[2::2]))
    for transport in transports:
        ktap, _, end = said.get(transport, "").partition("# check: exit ")
        one = parse_ktap(ktap, int(end) if end.strip().isdigit() else 1, "selftest")
        if not one.results:
            one.fail("selftest.empty", "no test ran")
        elif all(result.status == "skipped" for result in one.results):
            one.fail("selftest.empty", "every test was skipped")
        for result in one.results:
            result.name = f"{transport}: {result.name}"
        report.results += one.results
        report.notes += "".join(f"{transport}: {line}\n" for line in one.notes.splitlines())
    if code and not report.failed():
        report.fail("selftest.exit", f"every test passed, but the exit code is {code}")
    return report


# The tool's documents, each of which is held against its schema in each guest. faults runs beside
# the others, which make some: demo above all. demo and check wait until the kernel reports faults
# again.
DOCUMENTS = {"faults": "faults --json --count 1 $DMAPROBE_BDF",
             "unbind": "unbind --json $DMAPROBE_BDF",
             "bind": "bind --json --force $DMAPROBE_BDF",
             "version": "--version --json",
             "error": "info --json fffe:fe:1e.7",
             "list": "list --json",
             "info": "info --json $DMAPROBE_BDF",
             "demo": "demo --json $DMAPROBE_BDF",
             "check-list": "check --list --json",
             "check": "check --json --only 'Data.BothWays/page' --only 'Window.*' $DMAPROBE_BDF",
             "bench": "bench dispatch --json --rounds 128 --repeat 1 $DMAPROBE_BDF"}


def write_documents() -> list[str]:
    """Shell commands that write each of them into /out."""
    lines = {name: f"dmaprobe {command} >/out/{name}.json 2>/out/{name}.err"
             for name, command in DOCUMENTS.items()}
    return [f"{lines.pop('faults')} & faults=$!; sleep 1", *lines.values(),
            "kill $faults 2>/dev/null; wait $faults"]


def validate_documents(directory: Path) -> Report:
    """Each of them obeys its schema."""
    report = Report()
    for name in DOCUMENTS:
        document, said = directory / f"{name}.json", directory / f"{name}.err"
        demo = directory / "demo.json"
        if name == "faults" and document.exists() and not document.read_bytes() \
                and demo.exists() and '"faults": []' in demo.read_text("utf-8", "replace"):
            report.results.append(Result(f"schema.{name}", "skipped", "demo saw no fault"))
            continue
        code, out, err = call(["jsonschema", "--base-uri", f"{SCHEMAS.as_uri()}/", "-i",
                               str(document), str(SCHEMAS / f"{name}.schema.json")], 60)
        if document.exists() and code == 0:
            report.results.append(Result(f"schema.{name}", "passed"))
        else:
            report.fail(f"schema.{name}", out + err
                        + (said.read_text("utf-8", "replace") if said.exists() else ""))
    return report


def in_guest(suite: "Suite") -> Report:
    """The selftests in a guest, and the documents that dmaprobe writes there."""
    script = ["all=0"]
    for transport in suite.transports:
        folders = suite.folders or TRANSPORTS[transport]
        script.append(f"echo '# check: transport {transport}'; "
                      f"DMAPROBE_TRANSPORT={transport} {suite.environment} dmaprobe-selftest "
                      f"--in={folders} --gtest_filter='{suite.only}'; "
                      "code=$?; "
                      "echo; echo \"# check: exit $code\"; [ $code = 0 ] || all=$code")
    # Last, since the kernel reports few faults in 5 s, and the tests count on theirs.
    script += [*write_documents(), "exit $all"]
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
        report.results += validate_documents(Path(scratch)).results
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
    # Each cell has its own deadline. Of the 19, at least four run at a time.
    code, out, err = call([*LAB, "matrix", "--json", "--deadline", str(suite.deadline),
                           *suite.options], 5 * (suite.deadline + 900), grace=90)
    try:
        cells = json.loads(out)["cells"]
    except (ValueError, KeyError):
        report.fail("matrix.document", f"exit code {code}\n{err}")
        return report
    for cell in cells:
        for result in of_checks(cell["documents"], cell["trouble"]).results:
            result.name = f"{cell['name']}: {result.name}"
            report.results.append(result)
    if code and not report.failed():
        report.fail("matrix.exit", f"no check failed, but the exit code is {code}\n{err}")
    return report


def pytest(suite: "Suite") -> Report:
    """The tests in tests/, of lab and of this program, that the suite's markers choose."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "junit.xml"
        code, out, err = call(["python3", "-m", "pytest", "-v", "-m", suite.only,
                               f"--junitxml={file}", str(HERE / "tests")], suite.deadline,
                              grace=90)
        if file.exists():
            return parse_junit(file.read_text(encoding="utf-8"), code, "pytest")
    report = Report()
    report.fail("pytest.exit", f"exit code {code}\n{out}{err}")
    return report


@dataclasses.dataclass(frozen=True)
class Suite:
    """What runs, with which options of lab, and what each make has to build for it first."""

    run: Callable[["Suite"], Report]
    options: Sequence[str]
    build: Sequence[tuple[str, ...]]
    longer: bool = False
    transports: Sequence[str] = ("ioctl",)
    folders: str = ""  # of selftests/; without it those of the transport
    only: str = EDU  # a filter of GoogleTest; for pytest, markers
    deadline: int = 1500  # of the guest, in seconds
    environment: str = ""  # of the selftests, as sh takes it
    coverage: Path | None = None  # where to keep which lines of the module ran


GUEST = ("BUILD=build/lab", "STATIC=1", "build/lab/bin/dmaprobe",
         "build/lab/selftests/dmaprobe-selftest", "build/lab/selftests/dmaprobe-conformance")
ARM64 = ("BUILD=build/lab-arm64", "STATIC=1", *ARCHS["arm64"].make,
         "build/lab-arm64/bin/dmaprobe", "build/lab-arm64/selftests/dmaprobe-conformance")
ARM64_TESTS = (*ARM64, "build/lab-arm64/selftests/dmaprobe-selftest")

# QEMU remaps interrupts for VT-d and arm64 only; tests by users take them for granted.
UNSAFE = ("--append", "dmaprobe.allow_unsafe_interrupts=1")

# In the order in which they start: the longest first. The longer suites run only
# when they are asked for.
SUITES = {
    # Where *Boundary* is left out, these tests were not seen.
    "debug": Suite(in_guest, ["--kernel", "debug"], [GUEST], longer=True, deadline=3000,
                   only=f"{EDU}:*BoundaryTime*", coverage=COVERAGE / "debug.json"),
    "debug-amdvi": Suite(in_guest, ["--kernel", "debug", "--iommu", "amdvi", *UNSAFE], [GUEST],
                         longer=True, deadline=3000, only=f"{EDU}:*Boundary*",
                         coverage=COVERAGE / "debug-amdvi.json"),
    "fuzz": Suite(in_guest, ["--kernel", "debug"], [GUEST], longer=True, only="Fuzz.*",
                  deadline=3000,
                  environment="DMAPROBE_FUZZ_CALLS=100000",
                  coverage=COVERAGE / "fuzz.json"),
    "matrix": Suite(matrix, [], [GUEST, ARM64], longer=True),
    "arm64": Suite(in_guest, ["--arch", "arm64"], [ARM64_TESTS], longer=True,
                   only=f"{EDU}:*Boundary*"),
    "stock": Suite(in_guest, ["--kernel", "stock"], [GUEST]),
    "stable": Suite(in_guest, ["--kernel", "stable"], [GUEST]),
    "vfio": Suite(in_guest, ["--kernel", "vfio"], [GUEST]),
    # A cross-section of the matrix.
    "cell-x86": Suite(matrix, ["--kernel", "vfio", "--iommu", "vtd", "--device", "nvme"], [GUEST]),
    "cell-arm64": Suite(matrix, ["--iommu", "smmuv3", "--domain", "strict", "--device", "nvme"],
                        [ARM64]),
    "nvme": Suite(in_guest, ["--kernel", "vfio", "--device", "nvme"], [GUEST], only=NVME),
    "lab": Suite(pytest, ["--kernel", "stock", "--kernel", "vfio"],
                 [(*GUEST, "build/lab/selftests/dmaprobe-doubletest",
                  "build/lab/selftests/dmaprobe-doubletool")], only="not planted",
                 deadline=4000),
    "unit": Suite(unit, [], [
        (f"BUILD={SANITIZED}", "SAN=1", f"{SANITIZED}/selftests/dmaprobe-unittest")]),
    "ways": Suite(in_guest, ["--kernel", "stock"], [GUEST], longer=True,
                  # By a ring the test's own memory comes too near to the limit that it sets.
                  transports=("ring", "run"),
                  only=f"{NO_RIGHTS}:BoundaryCharge.NobodyIsKilledForIt"),
    "lazy": Suite(in_guest, ["--kernel", "stock", "--domain", "lazy"], [GUEST], longer=True,
                  folders=EVERYWHERE, only=f"{NO_RIGHTS}:*Boundary*"),
    "stable-lazy": Suite(in_guest, ["--kernel", "stable", "--domain", "lazy"], [GUEST], longer=True,
                         only="Abi.SetMask*"),
    "identity": Suite(in_guest, ["--kernel", "stock", "--domain", "identity"], [GUEST], longer=True,
                      folders=EVERYWHERE, only=NO_RIGHTS),
    "virtio": Suite(in_guest, ["--kernel", "vfio", "--iommu", "virtio", *UNSAFE], [GUEST],
                    longer=True, folders=EVERYWHERE, only=NO_RIGHTS),
    "nvme-sysfs": Suite(in_guest, ["--kernel", "stock", "--device", "nvme"], [GUEST], longer=True,
                        only=NVME),
    "nvme-arm64": Suite(in_guest, ["--arch", "arm64", "--device", "nvme"], [ARM64_TESTS],
                        longer=True, only=NVME),
    "testdev": Suite(in_guest, ["--kernel", "stock", "--device", "testdev"], [GUEST], longer=True,
                     only=TESTDEV),
    "swiotlb": Suite(in_guest, ["--kernel", "stock", "--domain", "identity",
                                "--append", "swiotlb=force"], [GUEST], longer=True,
                     folders="module/calls,module/boundary",
                     only="*Sg*:Segment*:*Attributes*:*Mapping*:Bars*:Resource*:BoundaryLog*"),
    "planted": Suite(pytest, ["--kernel", "debug"], [GUEST], longer=True, only="planted",
                     deadline=4000),
    "cost": Suite(costs, ["--kernel", "stock", "--memory", "1024"], [GUEST], longer=True,
                  only="Cost.*:ManyMappings.*"),
}

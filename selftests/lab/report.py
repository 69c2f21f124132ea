# SPDX-License-Identifier: GPL-2.0-only
"""Results of tests: read from KTAP and JUnit's XML, printed as KTAP, written as JUnit's XML."""

import dataclasses
import re
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any


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

    def failed(self) -> bool:
        """Whether any test did."""
        return any(result.status == "failed" for result in self.results)

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
    bad = report.failed()
    if plan is None:
        report.fail(f"{where}.plan", "it ended without a plan")
    elif plan != seen:
        report.fail(f"{where}.plan", f"{plan} tests were planned, {seen} were seen")
    elif code and not bad:
        report.fail(f"{where}.exit", f"every test passed, but the exit code is {code}")
    if said:
        report.notes = "\n".join(said)
    return report


def parse_junit(text: str, code: int, where: str) -> Report:
    """Results out of the XML that pytest writes; a test is named by its file and function."""
    report = Report()
    for case in xml.fromstring(text).iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2].removeprefix("test_")
        name = case.get("name", "").removeprefix("test_")
        result = Result(f"{file}.{name}".lstrip("."), "passed")
        for verdict in case:
            if verdict.tag in ("failure", "error"):
                result.status = "failed"
                result.said += (verdict.text or verdict.get("message") or "").splitlines()
            elif verdict.tag == "skipped":
                result.status = "skipped"
                result.reason = verdict.get("message", "")
        report.results.append(result)
    if code and not report.failed():
        report.fail(f"{where}.exit", f"every test passed, but the exit code is {code}")
    return report


def of_checks(documents: dict[str, dict[str, Any]], trouble: str) -> Report:
    """A cell of the matrix: what `dmaprobe check --json` printed, by device, and other trouble."""
    report = Report()
    for device, document in documents.items():
        for one in document["checks"]:
            status = {"not ok": "failed", "skip": "skipped"}.get(one["verdict"], "passed")
            said = [f"quirk: {one['quirk']}"] if one["quirk"] else []
            if status == "failed":
                said += (one["reason"] or "").splitlines()
            report.results.append(Result(f"{device}: {one['name']}", status, one["reason"] or "",
                                         said))
    if trouble:
        report.fail("cell", trouble)
    return report


def show(number: int, name: str, report: Report) -> None:
    """Print a suite as a KTAP subtest."""
    lines = [f"    1..{len(report.results)}"]
    for index, result in enumerate(report.results, 1):
        lines += [f"    # {line}" for line in result.said]
        skip = f" # SKIP {result.reason}" if result.status == "skipped" else ""
        lines.append(f"    {'not ' * (result.status == 'failed')}ok {index} {result.name}{skip}")
    lines += [f"    # {line}" for line in report.notes.splitlines()]
    print(f"# Subtest: {name}", *lines,
          f"{'not ' * report.failed()}ok {number} {name} # {report.seconds:.1f} s",
          sep="\n", flush=True)


# What XML 1.0 has no way to write. Serial logs have it.
NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: Path, title: str, reports: dict[str, Report]) -> None:
    """Write reports as JUnit's XML, a testsuite for each."""
    top = xml.Element("testsuites", name=title)
    for name, report in reports.items():
        suite = xml.SubElement(top, "testsuite", name=name, time=f"{report.seconds:.1f}",
                               tests=str(len(report.results)))
        for status, attribute in (("failed", "failures"), ("skipped", "skipped")):
            count = sum(result.status == status for result in report.results)
            suite.set(attribute, str(count))
        for result in report.results:
            case = xml.SubElement(suite, "testcase", classname=name, name=result.name)
            if result.status == "failed":
                xml.SubElement(case, "failure", message="failed").text = \
                    NOT_XML.sub("?", "\n".join(result.said))
            elif result.status == "skipped":
                xml.SubElement(case, "skipped", message=NOT_XML.sub("?", result.reason))
    xml.indent(top)
    path.parent.mkdir(parents=True, exist_ok=True)
    xml.ElementTree(top).write(path, encoding="utf-8", xml_declaration=True)

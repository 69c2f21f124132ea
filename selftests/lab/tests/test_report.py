# SPDX-License-Identifier: GPL-2.0-only
"""How results are read, counted, printed and written."""

import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from matrix import without_verdict
from report import Report, Result, of_checks, parse_junit, parse_ktap, show, write_junit
from suites import parse_passes


@pytest.mark.parametrize("text, code, statuses", [
    pytest.param("1..2\nok 1 a\nok 2 b # SKIP no\n", 0, ["passed", "skipped"], id="good"),
    pytest.param("1..1\nnot ok 1 a\n", 1, ["failed"], id="bad"),
    pytest.param("1..2\nok 1 a\n", 139, ["passed", "failed"], id="short"),
    pytest.param("ok 1 a\n", 0, ["passed", "failed"], id="no plan"),
    pytest.param("", 1, ["failed"], id="nothing"),
    pytest.param("1..1\nok 1 a\n", 1, ["passed", "failed"], id="bad exit"),
    pytest.param("1..1\nBail out! why\n", 1, ["failed"], id="bail out"),
])
def test_ktap_counts_what_is_missing(text: str, code: int, statuses: list[str]) -> None:
    """A suite that crashes, stops early or has no plan has failed."""
    assert [result.status for result in parse_ktap(text, code, "x").results] == statuses


FIRST = "# check: transport ioctl\n1..1\nok 1 a\n\n# check: exit 0\n"
SECOND = "# check: transport ring\n1..1\nok 1 a\n\n# check: exit 0\n"
IOCTL, RING = ("ioctl: a", "passed"), ("ring: a", "passed")


@pytest.mark.parametrize("text, code, outcome", [
    pytest.param(FIRST + SECOND, 0, [IOCTL, RING], id="good"),
    pytest.param(FIRST + SECOND, 1, [IOCTL, RING, ("selftest.exit", "failed")], id="bad exit"),
    pytest.param(FIRST, 0, [IOCTL, ("ring: selftest.plan", "failed")], id="missing"),
    pytest.param(FIRST + SECOND.replace("1..1", "1..2"), 1,
                 [IOCTL, RING, ("ring: selftest.plan", "failed")], id="short"),
    pytest.param(FIRST + SECOND.replace("exit 0", "exit 1"), 1,
                 [IOCTL, RING, ("ring: selftest.exit", "failed")], id="its exit"),
    pytest.param(FIRST + SECOND.partition("\n\n")[0], 1,
                 [IOCTL, RING, ("ring: selftest.exit", "failed")], id="no exit"),
    pytest.param(FIRST + SECOND.replace("1..1\nok 1 a", "1..0"), 0,
                 [IOCTL, ("ring: selftest.empty", "failed")], id="nothing ran"),
    pytest.param(FIRST + SECOND.replace("ok 1 a", "ok 1 a # SKIP no"), 0,
                 [IOCTL, ("ring: a", "skipped"), ("ring: selftest.empty", "failed")],
                 id="all skipped"),
    pytest.param(FIRST.replace("ok 1", "not ok 1") + SECOND, 1,
                 [("ioctl: a", "failed"), RING], id="bad"),
])
def test_transports_are_kept_apart(text: str, code: int, outcome: list[tuple[str, str]]) -> None:
    """Each transport has its own plan, and one that did not run has failed."""
    results = parse_passes(text, code, ["ioctl", "ring"]).results
    assert [(result.name, result.status) for result in results] == outcome


JUNIT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_run" name="test_ends" time="0.1"/>
<testcase classname="tests.test_run" name="test_knows[--iommu]"><failure message="m">a
b</failure></testcase>
<testcase classname="tests.test_run" name="test_up"><error message="m">c</error></testcase>
<testcase classname="tests.test_run" name="test_out"><skipped message="no KVM"/></testcase>
<testcase classname="" name="tests.test_broken"><error message="collection failure">d</error>
</testcase></testsuite></testsuites>"""


def test_pytest_results_are_read() -> None:
    """Names are short, and a failure is shown with pytest's text."""
    assert parse_junit(JUNIT, 1, "pytest").results == [
        Result("run.ends", "passed"), Result("run.knows[--iommu]", "failed", said=["a", "b"]),
        Result("run.up", "failed", said=["c"]), Result("run.out", "skipped", "no KVM"),
        Result("tests.test_broken", "failed", said=["d"])]


def test_pytest_that_breaks_has_failed() -> None:
    """An exit code that no result explains is a failure."""
    assert [result.name for result in parse_junit("<testsuites/>", 3, "pytest").results] == [
        "pytest.exit"]


def test_checks_of_a_cell() -> None:
    """Verdicts become results, a quirk is shown, and trouble is a failure."""
    checks = [{"name": name, "verdict": verdict, "quirk": quirk, "reason": reason}
              for name, verdict, quirk, reason in [
                  ("A", "ok", None, None), ("B", "quirk", "slow", None),
                  ("C", "not ok", None, "it is\nwrong"), ("D", "skip", None, "no bridge")]]
    assert of_checks({"edu": {"checks": checks}}, "no memory").results == [
        Result("edu: A", "passed"), Result("edu: B", "passed", said=["quirk: slow"]),
        Result("edu: C", "failed", "it is\nwrong", ["it is", "wrong"]),
        Result("edu: D", "skipped", "no bridge"), Result("cell", "failed", said=["no memory"])]


@pytest.mark.parametrize("verdicts, said", [
    (["skip", "skip"], "\nnothing was checked: no engine"), (["skip", "ok"], ""),
    (["quirk"], ""), (["not ok"], ""), ([], "\nnothing was checked: ")])
def test_cell_has_a_verdict(verdicts: list[str], said: str) -> None:
    """A cell of which every check is skipped is trouble."""
    checks = [{"verdict": verdict, "reason": "no engine"} for verdict in verdicts]
    assert without_verdict({"edu": {"checks": []}, "nvme": {"checks": checks}}) == said


@pytest.fixture(name="report")
def mixed_report() -> Report:
    """A report with a result of each kind."""
    return Report([Result("a", "passed"), Result("b", "failed", said=["why", "it"]),
                   Result("c", "skipped", "no device")], "a note", 1.25)


def test_ktap_is_printed(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """A suite is a subtest, with its plan, and it fails with any of its tests."""
    show(3, "suite", report)
    assert capsys.readouterr().out.splitlines() == [
        "# Subtest: suite", "    1..3", "    ok 1 a", "    # why", "    # it", "    not ok 2 b",
        "    ok 3 c # SKIP no device", "    # a note", "not ok 3 suite # 1.2 s"]


def test_junit_is_written(report: Report, tmp_path: Path) -> None:
    """Counts and texts are in the XML, whose folder is made."""
    path = tmp_path / "new" / "report.xml"
    write_junit(path, "title", {"suite": report})
    top = xml.parse(path).getroot()
    assert top.attrib == {"name": "title"}
    assert top[0].attrib == {"name": "suite", "time": "1.2", "tests": "3", "failures": "1",
                             "skipped": "1"}
    assert top[0][1][0].text == "why\nit"
    assert top[0][2][0].get("message") == "no device"


def test_junit_is_readable(tmp_path: Path) -> None:
    """Whatever a log has: control characters, and bytes that are no text."""
    odd = "\x1b[2J\x00\udcff\ufffe\x7f ü \U0001f600"
    write_junit(tmp_path / "report.xml", "title",
                {"suite": Report([Result("a", "failed", said=[odd]), Result("b", "skipped", odd)])})
    top = xml.parse(tmp_path / "report.xml").getroot()
    assert top[0][0][0].text == top[0][1][0].get("message") == "?[2J???\x7f ü \U0001f600"

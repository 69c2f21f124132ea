# SPDX-License-Identifier: GPL-2.0-only
"""What `dmaprobe check` and `dmaprobe demo` report about platforms that only the lab has."""

import itertools
import json
import re
from pathlib import Path

import pytest

from labs import NO_LONGER_ITS_OWN, Ended, lab

# No report of the IOMMU is seen: the kernel's log is another file.
BLIND = "touch /tmp/log; mount --bind /tmp/log /dev/kmsg; "


def checks_that_see_stale_translations(checks: str, before: str = "") -> Ended:
    """Takes a lazy domain for a strict one, as often as it takes.

    What was unmapped is gone after 10 ms, which a busy machine may let pass.
    """
    return lab("run", "--domain", "lazy", "--device", "testdev", "--deadline", "500",
               "--", "sh", "-c", f"""
        {before}
        for try in $(seq 20); do
            DMAPROBE_EXPECT_STRICT=1 dmaprobe check --ktap {checks} >/tmp/try
            code=$?
            [ $code = 1 ] && break
        done
        cat /tmp/try
        exit $code""")


def test_stale_translations_are_seen() -> None:
    """A lazy domain that is taken for a strict one: what should be gone is not, and that shows."""
    ended = checks_that_see_stale_translations(
        "--only After.AccessAfterRelease/page --only Unlink.OfAPart")
    assert ended.code == 1, ended.err
    assert "\nnot ok 2 After.AccessAfterRelease/page\n" in ended.out
    assert NO_LONGER_ITS_OWN in ended.out
    # dma_iova_unlink() invalidates at once there as well.
    assert "\nok 1 Unlink.OfAPart\n" in ended.out


def test_stale_translations_are_seen_without_reports() -> None:
    """What is not stopped is seen by the memory alone."""
    ended = checks_that_see_stale_translations(
        "--only After.AccessAfterRelease/page $DMAPROBE_BDF", before=BLIND)
    assert ended.code == 1, ended.err
    assert NO_LONGER_ITS_OWN in ended.out


def test_bridge_is_known() -> None:
    """Faults of a device behind a bridge are reported under the bridge's requester id."""
    ended = lab("run", "--device", "bridged", "--", "sh", "-c",
                "dmaprobe demo $DMAPROBE_BDF && dmaprobe check --ktap --only 'After.*/page' "
                "--only 'Edge.PastTheLastGranule/page' $DMAPROBE_BDF")
    assert ended.code == 0, ended
    assert "15 of 15 steps as they must be, 2 faults caught\n" in ended.out
    assert "a bridge above the device" in ended.out
    assert "# Totals: pass:2 fail:0" in ended.out


def test_memory_is_the_witness_without_reports() -> None:
    """Where no report of the IOMMU is understood, the memory is the witness; or nothing is."""
    ended = lab("run", "--deadline", "300", "--", "sh", "-c", BLIND +
                "dmaprobe demo $DMAPROBE_BDF && dmaprobe check --ktap --only 'After.*/page' "
                "--only 'Permission.Write*/page' --only 'Edge.Past*/page' $DMAPROBE_BDF")
    assert ended.code == 0, ended
    assert "0 faults caught, 2 without a report that is understood\n" in ended.out
    assert "# Totals: pass:2 fail:0 xfail:0 xpass:0 skip:1 error:0" in ended.out
    assert ended.out.count("quirk: the device was stopped, and no report of the IOMMU is") == 2


DOUBLE_CHECKS = ["Permission.WriteThroughToDevice/page", "Permission.ReadThroughFromDevice/page",
                 "Edge.PastTheLastGranule/page", "Edge.BeforeTheFirstGranule/page",
                 "After.AccessAfterRelease/page"]


def results(ended: Ended) -> dict[str, str]:
    """The result of each check: ok, not ok, quirk or skip."""
    found: dict[str, str] = {}
    result = ""
    for line in ended.out.splitlines():
        if match := re.match(r"(ok|not ok) \d+ (\S+)( # SKIP)?", line):
            found[match[2]] = "skip" if match[3] else result or match[1]
        result = "quirk" if line.startswith("# quirk: ") else result if line[:1] == "#" else ""
    return found


def check_a_double(device: str, behaviour: str, before: str = "") -> Ended:
    """Runs checks with a double in front of the device's engine."""
    return lab("run", "--device", device, "--deadline", "400", "--", "sh", "-c", f"""
        {before}
        export DMAPROBE_DOUBLE={behaviour}
        for checks in Permission Edge After; do
            dmaprobe-doubletest --gtest_filter="$checks.*/page" || code=$?
        done
        exit ${{code:-0}}""")


def test_posted_writes_pass() -> None:
    """Blocked writes end with success, as a real device's do; the memory and a fault are seen."""
    ended = check_a_double("nvme", "posted")
    assert ended.code == 0, ended
    assert results(ended) == dict.fromkeys(DOUBLE_CHECKS, "ok")


def test_posted_writes_are_seen_by_the_memory_alone() -> None:
    """Without a report, the memory of a stopped write is still seen to be as it was."""
    ended = check_a_double("nvme", "posted", before=BLIND)
    assert ended.code == 0, ended
    assert results(ended) == {"Permission.WriteThroughToDevice/page": "quirk",
                              "Permission.ReadThroughFromDevice/page": "quirk",
                              "Edge.PastTheLastGranule/page": "skip",
                              "Edge.BeforeTheFirstGranule/page": "skip",
                              "After.AccessAfterRelease/page": "quirk"}


@pytest.mark.parametrize("device", ["edu", "nvme"])
def test_writes_that_are_let_through_fail(device: str) -> None:
    """Each check of a write that should be stopped fails, that of a read does not."""
    ended = check_a_double(device, "through")
    assert ended.code == 1, ended
    assert results(ended) == {**dict.fromkeys(DOUBLE_CHECKS, "not ok"),
                              "Permission.ReadThroughFromDevice/page": "ok"}
    assert ended.out.count("the IOMMU did not report the fault, as it does others") == 2
    assert NO_LONGER_ITS_OWN in ended.out


def test_demo_sees_a_write_that_is_let_through() -> None:
    """By the memory, where no report of the IOMMU is seen."""
    ended = lab("run", "--", "sh", "-c", BLIND + "export DMAPROBE_DOUBLE=through; "
                "dmaprobe-doubletool demo $DMAPROBE_BDF")
    assert ended.code == 1, ended
    assert "the buffer changed at" in ended.out


def test_demo_resets_after_a_fault(tmp_path: Path) -> None:
    """QEMU's own trace shows the controller start anew after each fault that the demo provokes."""
    trace = tmp_path / "trace"
    started, fault = "pci_nvme_mmio_start_success", "vtd_dmar_fault"
    ended = lab("run", "--device", "nvme", "--qemu-arg", "-D", "--qemu-arg", str(trace),
                "--qemu-arg", "-trace", "--qemu-arg", started,
                "--qemu-arg", "-trace", "--qemu-arg", fault, "--", "dmaprobe", "demo")
    assert ended.code == 0, ended
    assert "2 faults caught" in ended.out
    # An access of the bus each is a fault; they come one after the other. A fault whose report is
    # late is provoked once more.
    seen = re.findall(f"^(?:{started}|{fault})\\b", trace.read_text(), re.MULTILINE)
    order = [event for event, _ in itertools.groupby(seen)]
    assert order[0] == order[-1] == started, trace.read_text()
    assert order.count(fault) >= 2, trace.read_text()


def test_demo_fails_by_a_device_that_does_not_answer() -> None:
    """That the IOMMU stopped the device and reported it does not excuse a transfer without end."""
    ended = lab("run", "--", "sh", "-c", "export DMAPROBE_DOUBLE=posted; "
                "dmaprobe-doubletool demo $DMAPROBE_BDF || exit 9; "
                "export DMAPROBE_DOUBLE=late; dmaprobe-doubletool demo $DMAPROBE_BDF")
    assert ended.code == 1, ended
    assert "10. The device is asked to read the hole   FAILED\n" in ended.out
    assert "FAILED: 9 of 10 steps as they must be" in ended.out


def nvme_with(*namespaces: str) -> list[str]:
    """Arguments of lab for one more NVMe controller, whose namespaces have these properties."""
    words = ["-device", "nvme,id=two,serial=two,addr=0xa"]
    for number, properties in enumerate(namespaces, 1):
        words += ["-blockdev", f"driver=null-co,node-name=n{number},size=1048576,read-zeroes=on",
                  "-device", f"nvme-ns,bus=two,drive=n{number},nsid={number}{properties}"]
    return [f"--qemu-arg={word}" for word in words]


TAKE_NVME = """
    dmaprobe bind --force "$DMAPROBE_NVME" &&
        dmaprobe check --only Data.BothWays/page "$DMAPROBE_NVME"
"""


def test_namespace_with_metadata_is_passed_over() -> None:
    """Reads of it transfer more than its blocks; the next one will do."""
    ended = lab("run", *nvme_with(",ms=8", ""), "--", "sh", "-c", TAKE_NVME)
    assert ended.code == 0, ended
    assert "1 checks: 1 ok" in ended.out
    ended = lab("run", *nvme_with(",ms=8"), "--", "sh", "-c", TAKE_NVME)
    assert ended.code == 4, ended
    assert "and metadata" in ended.err


AS_USER = """
    chown 1000 /dev/dmaprobe/* /sys/bus/pci/devices/$DMAPROBE_BDF/config
    chown 1000 /sys/bus/pci/devices/$DMAPROBE_BDF/resource[0-9]
    [ ! -e /dev/vfio/devices ] || chown 1000 /dev/vfio/devices/* /dev/iommu
    dmaprobe info | grep confined
    su user -c "cd /tmp; dmaprobe check --only 'Data.BothWays/page' $DMAPROBE_BDF"
"""


@pytest.mark.parametrize("options, code, text", [
    pytest.param([], 0, "  ok      Data.BothWays/page\n", id="confined"),
    pytest.param(["--iommu", "virtio"], 4, "no IOMMU confines its DMA and its interrupts",
                 id="its interrupts are not"),
    pytest.param(["--domain", "identity"], 4, "no IOMMU confines its DMA", id="its DMA is not"),
    pytest.param(["--kernel", "vfio"], 0, "  ok      Data.BothWays/page\n", id="confined, by VFIO"),
    pytest.param(["--kernel", "vfio", "--domain", "identity"], 4, "vfio", id="by VFIO"),
    pytest.param(["--iommu", "virtio", "--append", "dmaprobe.allow_unsafe_interrupts=1"], 0,
                 "  ok      Data.BothWays/page\n", id="let pass")])
def test_users_need_a_confined_device(options: list[str], code: int, text: str) -> None:
    """Without CAP_SYS_RAWIO, bus mastering takes an IOMMU that confines DMA and interrupts."""
    ended = lab("run", *options, "--", "sh", "-c", AS_USER)
    assert ended.code == code, ended
    assert text in ended.out
    assert f"confined          {'yes' if code == 0 else 'no'}: " in ended.out


INTERRUPTED = """
    run="dmaprobe check --only Data.* $DMAPROBE_BDF"
    within_30_s() { n=0; until "$@" || [ $n = 300 ]; do n=$((n+1)); sleep 0.1; done; }
    begin() { $run >/out/$1 2>&1 & pid=$!; within_30_s grep -qs '^  ok ' /out/$1; }
    checks() { grep -ls dmaprobe-confor /proc/[0-9]*/comm; }
    none() { ! checks; }
    begin first
    $run --json >/out/second.json 2>/out/second; echo second $?
    echo $DMAPROBE_BDF >/sys/bus/pci/drivers/dmaprobe/unbind
    wait $pid; echo first $?
    echo $DMAPROBE_BDF >/sys/bus/pci/drivers_probe
    begin third
    kill -9 $pid; within_30_s none >/dev/null; checks; echo left $?
    begin fourth
    kill -BUS $(checks | cut -d/ -f3)
    wait $pid; echo fourth $?
"""


def test_interrupted_checks_find_nothing(tmp_path: Path) -> None:
    """Another check, an unbind and the tool's end are no findings; SIGBUS with the device is."""
    ended = lab("run", "--out", str(tmp_path), "--", "sh", "-c", INTERRUPTED)
    assert (ended.code, ended.out) == (0, "second 3\nfirst 3\nleft 1\nfourth 1\n"), ended.err
    assert "another dmaprobe check has " in (tmp_path / "second").read_text()
    assert "which says nothing about the platform: " in (tmp_path / "first").read_text()
    assert re.search(r"the checks ended at .*: Bus error", (tmp_path / "fourth").read_text())
    assert json.loads((tmp_path / "second.json").read_text())["error"]["exit"] == 3

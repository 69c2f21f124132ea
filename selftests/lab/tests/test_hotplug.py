# SPDX-License-Identifier: GPL-2.0-only
"""Devices that come and go while a guest runs."""

from labs import lab_run

SCRIPT = """
    there() { [ -e /sys/bus/pci/devices/$DMAPROBE_BDF2 ]; }
    gone() { ! there; }
    await() { n=0; until $1; do n=$((n + 1)); [ $n -lt 300 ] || exit 9; usleep 100000; done; }
    there || exit 1
    lab-host device_del edu2 || exit 2; await gone
    lab-host device_del edu2 && exit 3
    lab-host device_add edu2 || exit 4; await there
    lab-host device_add edu2 && exit 5
    lab-host quit edu2 && exit 6
    lab-host device_del ports && exit 7
    echo 'unknown' >$DMAPROBE_LAB_PORT
    echo done
"""


def test_unplug_and_plug() -> None:
    """A guest can have a device taken away, and given back; and nothing else."""
    ended = lab_run("--", "sh", "-c", SCRIPT)
    assert (ended.code, ended.out) == (0, "done\n"), ended.err
    for text in ("Device 'edu2' not found", "Duplicate device ID 'edu2'", "unknown verb: quit",
                 "unknown device: ports; there are edu1 edu2"):
        assert text in ended.err

# SPDX-License-Identifier: GPL-2.0-only
"""The machines that QEMU emulates: their CPUs, IOMMUs and devices, and its command line."""

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

from kernels import Kernel


@dataclasses.dataclass(frozen=True)
class Arch:
    """A kind of CPU: the machine that has it, and the tools that build for it."""

    qemu: str
    machine: str  # QEMU's board, to which an IOMMU may add
    cpu: str  # emulated, unless the IOMMU needs another one
    kernel: Sequence[str]
    cpus: int
    iommu: str  # what it has by default
    qemu_arguments: Sequence[str] = ()
    busybox: Path = Path("/usr/bin/busybox")
    make: Sequence[str] = ()
    build: str = "build/lab"
    cross: str = ""


ARCHS = {
    "x86_64": Arch(
        # With five levels of page tables, an interrupt in identify_cpu(), which clears the CPU's
        # capabilities for a moment, makes KASAN report every pointer.
        "qemu-system-x86_64", "q35,kernel-irqchip=split", "max,la57=off",
        ["console=ttyS0", "mitigations=off", "no_timer_check"], 2, "vtd",
        # Ports are plugged natively, as on real machines, not by ACPI.
        ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]),
    "arm64": Arch(
        "qemu-system-aarch64", "virt,gic-version=3", "neoverse-n1",
        # A port that sleeps does not notice what is plugged in: QEMU has no wake-up for that.
        ["console=ttyAMA0", "pcie_port_pm=off"], 2, "smmuv3",
        busybox=Path("/opt/arm64/usr/bin/busybox"),
        make=["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"], build="build/lab-arm64",
        cross="aarch64-linux-gnu-"),
}


@dataclasses.dataclass(frozen=True)
class Platform:
    """What an entry of a table below adds to QEMU's and to the kernel's command line.

    And how much memory, in MiB, a guest has with it, the CPU it needs, and the modules.
    """

    qemu: Sequence[str] = ()
    kernel: Sequence[str] = ()
    memory: int = 512
    cpu: str = ""
    modules: Sequence[str] = ()
    machine: str = ""  # what it adds to QEMU's board
    archs: Sequence[str] = ("x86_64",)


# Where nothing translates, edu must reach all memory with its 28 bits of address.
REACHED_BY_EDU = 256


IOMMUS = {
    "vtd": Platform(["-device", "intel-iommu,intremap=on"], ["intel_iommu=on"]),
    # Scalable mode: the first stage translates, whose page tables are those of CPUs.
    "vtd-scalable": Platform(["-device", "intel-iommu,intremap=on,scalable-mode=on,fsts=on"],
                             ["intel_iommu=on,sm_on"]),
    # Linux looks for this one on AMD's CPUs only.
    "amdvi": Platform(["-device", "amd-iommu,dma-remap=on"], cpu="EPYC"),
    "virtio": Platform(["-device", "virtio-iommu-pci"], ["intel_iommu=off"],
                       archs=("x86_64", "arm64")),
    "smmuv3": Platform(machine=",iommu=smmuv3", archs=("arm64",)),
    # By VFIO's mode for such machines, which Debian's kernels lack.
    "none": Platform([], ["intel_iommu=off", "vfio.enable_unsafe_noiommu_mode=1"], REACHED_BY_EDU,
                     archs=("x86_64", "arm64")),
}

DOMAINS = {
    "strict": Platform(kernel=["iommu.passthrough=0", "iommu.strict=1"]),
    "lazy": Platform(kernel=["iommu.passthrough=0", "iommu.strict=0"]),
    "identity": Platform(kernel=["iommu.passthrough=1"], memory=REACHED_BY_EDU),
}

# What can be plugged in. Those with an id and a bus can be unplugged, and each of these sits
# behind a port of its own. Of edu there is a spare one too, and two functions of one device,
# which share a group.
DEVICES = {
    "edu": Platform([
        "-device", "pcie-root-port,id=port1,chassis=1,addr=4",
        "-device", "edu,id=edu1,bus=port1",
        "-device", "pcie-root-port,id=port2,chassis=2,addr=5",
        "-device", "edu,id=edu2,bus=port2",
        "-device", "pcie-root-port,id=port3,chassis=3,addr=6",
        "-device", "edu,bus=port3,addr=0.0,multifunction=on",
        "-device", "edu,bus=port3,addr=0.1"]),
    # Behind a bridge to conventional PCI, whose requester id its DMA carries.
    "bridged": Platform([
        "-device", "pcie-root-port,id=port5,chassis=5,addr=9",
        "-device", "pcie-pci-bridge,id=bridge,bus=port5",
        "-device", "edu,bus=bridge,addr=3"]),
    "testdev": Platform(["-device", "iommu-testdev,addr=7"]),
    "nvme": Platform([
        "-blockdev", "driver=file,node-name=disk,filename=DISK",
        "-device", "pcie-root-port,id=port4,chassis=4,addr=8",
        "-device", "nvme,id=nvme1,bus=port4,drive=disk,serial=dmaprobe"], modules=["nvme"]),
}

# The disk behind NVMe: 64-bit words, each the number of its place by this factor.
DISK_WORDS = 4 << 17
DISK_FACTOR = 0x9E3779B97F4A7C15

# What a kernel of lab's own needs. The debug kernel's checkers take memory. The
# DMA API's must not run out of entries, because it then ends its work; tests hold
# 100,000 mappings. Reports of init are not to be lost in a limit of their rate.
# Any check of slabs takes the CPUs' caches of free objects away, in which pointers
# to what leaked stay, so that kmemleak does not see that it leaked.
KERNELS = {
    "debug": Platform(kernel=["dma_debug_entries=200000", "kasan_multi_shot",
                              "printk.devkmsg=on", "slab_debug=Z,kmalloc-*",
                              "iommu.debug_pagealloc=1"], memory=1024),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is booted."""

    kernel: Kernel
    iommu: str = "vtd"
    domain: str = "strict"
    devices: Sequence[str] = ("edu",)  # the first is the one to be bound
    memory: int | None = None  # MiB
    icount: bool = False  # one CPU, whose clock counts its instructions
    qemu: Sequence[str] = ()
    append: Sequence[str] = ()


def plugged_in(machine: Machine, disk: str) -> list[str]:
    """The part of QEMU's command line that plugs the devices in."""
    words = [word for name in machine.devices for word in DEVICES[name].qemu]
    return [word.replace("DISK", disk) for word in words]


def disk_image() -> bytes:
    """What is on the disk."""
    words = [number * DISK_FACTOR & 0xffffffffffffffff for number in range(DISK_WORDS)]
    return struct.pack(f"<{DISK_WORDS}Q", *words)


def command_line(machine: Machine, accelerator: str, initrd: str, log: str,
                 devices: Sequence[str]) -> list[str]:
    """QEMU's command line, without the ports."""
    iommu, domain = IOMMUS[machine.iommu], DOMAINS[machine.domain]
    arch = ARCHS[machine.kernel.arch]
    kernel = [*arch.kernel, "loglevel=5", "panic=-1", "random.trust_cpu=on",
              *iommu.kernel, *domain.kernel]
    cpu = iommu.cpu or {"kvm": "host", "tcg": arch.cpu}[accelerator]
    memory = machine.memory or min(iommu.memory, domain.memory)
    if special := KERNELS.get(machine.kernel.name):
        kernel += special.kernel
        memory = machine.memory or special.memory
    acceleration = ["-accel", {"kvm": "kvm", "tcg": "tcg,thread=multi"}[accelerator],
                    "-smp", str(arch.cpus)]
    if machine.icount:
        acceleration = ["-accel", "tcg,thread=single", "-icount", "shift=0", "-smp", "1"]
    return [
        arch.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", arch.machine + iommu.machine,
        *acceleration, "-cpu", cpu, "-m", str(memory),
        "-kernel", str(machine.kernel.image), "-initrd", initrd,
        "-append", " ".join([*kernel, *machine.append]),
        *arch.qemu_arguments, *iommu.qemu, *devices,
        "-chardev", f"file,id=serial,path={log}", "-serial", "chardev:serial",
        # No ioeventfd: what the guest writes has left it when its write returns.
        "-device", "virtio-serial-pci,id=ports,ioeventfd=off,addr=3",
        *machine.qemu,
    ]

# SPDX-License-Identifier: GPL-2.0-only
"""One run of a guest: its initramfs, its machine, and what comes out of it.

The guest talks to lab by virtio-serial ports, each with a pipe at lab's end:
"stdout" and "stderr" of the command, "files" (a tar of /out) and "control".
On the last, the script `init` sends one line when it has begun, before the
command: "up"; and one when the command has ended: the exit code and how many
bytes went into each of the other three. Lab ends the machine when it has them
all. By one more port, "host", the guest asks lab to unplug and to plug a device
(hotplug.py).
"""

import contextlib
import dataclasses
import hashlib
import io
import lzma
import os
import re
import secrets
import selectors
import signal
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import hotplug
from kernels import CACHE, HERE, Kernel, say, tail

Sink = Callable[[bytes], object]


@dataclasses.dataclass(frozen=True)
class Arch:
    """A kind of CPU: the machine that has it, and the tools that build for it."""

    qemu: str
    machine: str  # QEMU's board, to which an IOMMU may add
    cpu: str  # emulated, unless the IOMMU wants another one
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
        "qemu-system-x86_64", "q35,kernel-irqchip=split", "max",
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

    And how much memory, in MiB, a guest has with it, the CPU it wants, and the modules.
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

# What a kernel of lab's own wants. The debug kernel's checkers take memory. The
# DMA API's must not run out of entries, because it then ends its work; tests hold
# 100,000 mappings. Reports of init are not to be lost in a limit of their rate.
# Any check of slabs takes the CPUs' caches of free objects away, in which pointers
# to what leaked stay, so that kmemleak does not see that it leaked.
KERNELS = {
    "debug": Platform(kernel=["dma_debug_entries=200000", "kasan_multi_shot",
                              "printk.devkmsg=on", "slab_debug=Z,kmalloc-*",
                              "iommu.debug_pagealloc=1"], memory=1024),
}

# Texts by which a kernel reports a bug of its own. Faults that an IOMMU reports
# are not among them: dmaprobe provokes those.
REPORTS = re.compile(
    r"WARNING: |BUG: |\bBUG at |Oops: |Kernel panic|general protection fault|"
    r"KASAN|KCSAN|KFENCE|UBSAN|DMA-API: |dma-api/error_count is [1-9]|"
    r"INFO: task .* blocked|INFO: rcu|INFO: trying to register|"
    r"possible circular locking|possible recursive locking|inconsistent lock state|"
    r"suspicious RCU usage|held lock freed|lock held when returning|"
    r"refcount_t: |list_(add|del) corruption|kmemleak: [1-9]|"
    r"stack segment|invalid opcode|divide error|unable to handle|"
    r"sleeping function called|scheduling while atomic|Voluntary context switch|"
    r"Objects remaining|double free|Slab corruption|Bad page state|soft lockup|hard LOCKUP")


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


@dataclasses.dataclass
class Outcome:
    """How a run went. `code` is None when the guest did not get to report one.

    `stalled`: it did not get to its init in time, and its kernel says nothing of
    why. Nothing has been done in it, so it can be booted once more.
    """

    code: int | None
    trouble: str = ""
    stalled: bool = False
    reports: list[str] = dataclasses.field(default_factory=list)


# --- the initramfs: cpio archives, one after the other ---------------------


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An uncompressed cpio archive (newc) of (name, mode, contents)."""
    out = io.BytesIO()

    def add(name: str, mode: int, data: bytes, rdev: tuple[int, int] = (0, 0)) -> None:
        fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name) + 1, 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
        out.write(name.encode() + b"\0")
        out.write(b"\0" * (-out.tell() % 4))
        out.write(data)
        out.write(b"\0" * (-out.tell() % 4))

    made: set[str] = set()
    for name, mode, data in entries:
        for parent in reversed(Path(name).parents[:-1]):
            if str(parent) not in made:
                made.add(str(parent))
                add(str(parent), 0o040755, b"")
        if mode & 0o170000 == 0o040000:
            made.add(name)
        add(name, mode, data, (5, 1) if mode & 0o170000 == 0o020000 else (0, 0))
    add("TRAILER!!!", 0, b"")
    return out.getvalue()


DIRECTORY, PROGRAM, FILE, LINK, CONSOLE = 0o040755, 0o100755, 0o100644, 0o120777, 0o020600


class Modules:
    """The modules of a kernel, by modules.dep."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.files: dict[str, str] = {}
        self.needs: dict[str, list[str]] = {}
        for line in (kernel.modules / "modules.dep").read_text(encoding="utf-8").splitlines():
            file, _, needs = line.partition(":")
            self.files[self.name(file)] = file
            self.needs[self.name(file)] = [self.name(need) for need in needs.split()]

    @staticmethod
    def name(file: str) -> str:
        """A module's name, by its file's."""
        return Path(file).name.partition(".ko")[0].replace("-", "_")

    def below(self, wanted: Iterable[str]) -> list[str]:
        """The modules wanted and all they need; what the kernel has built in is left out.

        In the order of modules.dep: a module stands before what it needs.
        """
        order: list[str] = []
        for name in (name.replace("-", "_") for name in wanted):
            if name in self.files:
                order += [name, *self.needs[name]]
        return list(reversed(dict.fromkeys(reversed(order))))

    def in_guest(self, name: str) -> str:
        """A module's file in the guest, where modules are not compressed."""
        return re.sub(r"\.ko\..*", ".ko", self.files[name])

    def read(self, name: str) -> bytes:
        """A module, uncompressed."""
        path = self.kernel.modules / self.files[name]
        if path.suffix == ".ko":
            return path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(path.read_bytes())
        return subprocess.run(["zstd", "-dcq", str(path)], check=True, capture_output=True).stdout


# What a guest needs before dmaprobe: lab's ports, and the means to bind.
GUEST_MODULES = [
    "virtio_pci", "virtio_console", "virtio_iommu", "vfio_pci_core", "iommufd", "vfio_pci"]


def base(modules: Modules, wanted: list[str]) -> bytes:
    """The part of the initramfs that depends on the kernel only; kept in the cache."""
    busybox = ARCHS[modules.kernel.arch].busybox
    key = hashlib.sha256(repr((modules.kernel.image.stat().st_mtime, busybox.stat().st_mtime,
                               Path(__file__).read_bytes(), wanted)).encode())
    name = f"{modules.kernel.arch}-{modules.kernel.name}-{key.hexdigest()[:12]}.cpio"
    path = CACHE / "initramfs" / name
    if path.exists():
        return path.read_bytes()

    def entries() -> Iterator[tuple[str, int, bytes]]:
        for name in ("proc", "sys", "lab"):
            yield name, DIRECTORY, b""
        yield "dev/console", CONSOLE, b""
        yield "bin/busybox", PROGRAM, busybox.read_bytes()
        # Debian's busybox has the same applets for every CPU.
        applets = subprocess.run(["/usr/bin/busybox", "--list"], check=True, capture_output=True)
        for applet in applets.stdout.decode().split():
            if applet != "busybox":
                yield f"bin/{applet}", LINK, b"busybox"
        for name in wanted:
            yield (f"lib/modules/{modules.kernel.release}/{modules.in_guest(name)}", FILE,
                   modules.read(name))

    archive = cpio(entries())
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{secrets.token_hex(4)}")
    scratch.write_bytes(archive)
    scratch.rename(path)
    return archive


def initramfs(kernel: Kernel, settings: dict[str, str], command: str, module: Path | None,
              programs: Sequence[Path], devices: Sequence[str] = ()) -> bytes:
    """Everything the guest has: base, and what changes from run to run."""
    modules = Modules(kernel)
    needs: list[str] = []
    if module:
        needs = subprocess.run(["modinfo", "-F", "depends", str(module)], check=True,
                               capture_output=True, text=True).stdout.strip().split(",")
    drivers = [name for device in devices for name in DEVICES[device].modules]
    carried = modules.below([*GUEST_MODULES, *drivers, *needs])
    dep = [f"{modules.in_guest(name)}: {' '.join(map(modules.in_guest, modules.needs[name]))}"
           for name in carried]
    if module:
        below = map(modules.in_guest, modules.below(needs))
        dep.append(f"extra/dmaprobe.ko: {' '.join(below)}")

    top = f"lib/modules/{kernel.release}"
    entries = [
        ("init", PROGRAM, (HERE / "init").read_bytes()),
        ("bin/lab-host", PROGRAM, (HERE / "lab-host").read_bytes()),
        ("lab/command", FILE, command.encode()),
        ("lab/settings", FILE, "".join(f"{k}='{v}'\n" for k, v in settings.items()).encode()),
        (f"{top}/modules.dep", FILE, "".join(f"{line}\n" for line in dep).encode()),
    ]
    if module:
        entries.append((f"{top}/extra/dmaprobe.ko", FILE, module.read_bytes()))
    entries += [(f"bin/{program.name}", PROGRAM, program.read_bytes()) for program in programs]
    return base(modules, carried) + cpio(entries)


# --- the machine -------------------------------------------------------------


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


def accelerator_for(machine: Machine) -> str:
    """kvm where a trial has shown that it runs this kernel, else tcg."""
    native = machine.kernel.arch == os.uname().machine
    if machine.icount or not native or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    try:
        cpu = next(line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
                   if line.startswith("model name"))
    except StopIteration:
        cpu = "unknown"
    host = repr((os.uname().release, os.uname().version, cpu, machine.kernel.release, machine.iommu,
                 machine.kernel.image.stat().st_mtime))
    verdict = CACHE / "kvm" / hashlib.sha256(host.encode()).hexdigest()[:12]
    if not verdict.exists():
        say(f"trying KVM with the {machine.kernel.name} kernel")
        verdict.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
            log = Path(scratch) / "log"
            outcome = run(dataclasses.replace(machine, qemu=(), append=()), "kvm",
                          initramfs(machine.kernel, {}, "true", None, []),
                          log, deadline=8)
        works = outcome.code == 0 and not outcome.reports
        # The whole register dump of a CPU may follow.
        why = outcome.trouble.partition(";")[0]
        say("KVM works" if works else f"KVM does not run it ({why}); using emulation")
        verdict.write_text("kvm" if works else "tcg", encoding="utf-8")
    return verdict.read_text(encoding="utf-8")


def reports_in(log: Path) -> list[str]:
    """The kernel's reports in a serial log, each with the lines that follow it."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found: list[str] = []
    last = -1
    for number, line in enumerate(lines):
        if number > last and REPORTS.search(line):
            last = number + 30
            found.append("\n".join(lines[number:last + 1]))
    return found


class Port:
    """One port: the pipe at lab's end, and what to do with what comes."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name = name
        self.sink = sink
        self.seen = 0
        self.reader, self.writer = os.pipe()

    def receive(self) -> bool:
        """Take what is there; False at the end."""
        data = os.read(self.reader, 1 << 16)
        self.seen += len(data)
        self.sink(data)
        return bool(data)


def run(machine: Machine, accelerator: str, initrd: bytes, log: Path, *, deadline: float,
        boot_deadline: float = 0, stdout: Sink = len, stderr: Sink = len,
        files: Sink = len, console: bool = False) -> Outcome:
    """Boot the machine, pass on what comes out of it, and wait for its end.

    The deadlines, in seconds from now, are for the end and for init to have begun;
    0 for none.
    """
    control, complaints = bytearray(), bytearray()
    ports = [Port("stdout", stdout), Port("stderr", stderr), Port("files", files)]
    last = Port("control", control.extend)
    qemu_says = Port("qemu", complaints.extend)
    with (tempfile.NamedTemporaryFile(prefix="lab-", suffix=".cpio") as archive,
          tempfile.NamedTemporaryFile(prefix="lab-", suffix=".disk") as disk):
        archive.write(initrd)
        archive.flush()
        if "nvme" in machine.devices:
            disk.write(disk_image())
            disk.flush()
        devices = plugged_in(machine, disk.name)
        arguments = command_line(machine, accelerator, archive.name, str(log), devices)
        for port in [*ports, last]:
            arguments += ["-chardev", f"file,id={port.name},path=/proc/self/fd/{port.writer}",
                          "-device", f"virtserialport,chardev={port.name},name={port.name}"]
        if console:
            arguments += ["-chardev", "stdio,id=console,signal=off",
                          "-device", "virtconsole,chardev=console"]
        host = hotplug.Host(devices)
        arguments += host.arguments
        process = subprocess.Popen(
            arguments, stdin=None if console else subprocess.DEVNULL,
            stdout=None if console else qemu_says.writer, stderr=qemu_says.writer,
            pass_fds=[*(port.writer for port in [*ports, last]), *host.passed])
        host.start()
        try:
            trouble = wait(ports, last, control, qemu_says, complaints, deadline, boot_deadline)
        finally:
            # SIGTERM lets QEMU give a terminal back its settings.
            process.send_signal(signal.SIGTERM if console else signal.SIGKILL)
            process.wait()
            host.stop()
            os.set_blocking(last.reader, False)
            with contextlib.suppress(BlockingIOError):
                last.receive()  # what came in the last moment
            for port in [*ports, last, qemu_says]:
                os.close(port.reader)
    outcome = Outcome(None, trouble, reports=reports_in(log) if log.exists() else [])
    outcome.stalled = trouble == STALLED and not control and not outcome.reports
    words = outcome_told(control)
    if words and not trouble:
        if words[0].isdigit():
            outcome.code = int(words[0])
        else:
            outcome.trouble = "the guest could not be set up"
    elif said := [line for line in complaints.decode(errors="replace").splitlines()
                  if line and "is deprecated" not in line]:
        outcome.trouble += "; QEMU says: " + "\n".join(said)
    return outcome


STALLED = "the guest did not begin with its init in time"


def outcome_told(control: bytearray) -> list[bytes]:
    """The words of init's second line; none before it is complete."""
    lines = bytes(control).split(b"\n")
    return lines[1].split() if len(lines) > 2 else []


def wait(ports: list[Port], last: Port, control: bytearray, qemu_says: Port,
         complaints: bytearray, deadline: float, boot_deadline: float) -> str:
    """Serve the ports until the guest has reported its end, and all it sent is here.

    Returns what went wrong, if anything did.
    """
    now = time.monotonic()
    end = now + (deadline or float("inf"))
    boot_end = now + (boot_deadline or float("inf"))
    grace = float("inf")
    with selectors.DefaultSelector() as selector:
        for port in [*ports, last, qemu_says]:
            selector.register(port.reader, selectors.EVENT_READ, port)
            os.close(port.writer)
        while selector.get_map():
            limit = min(end, grace, now + 0.5)
            for key, _ in selector.select(max(0.0, limit - now)):
                if not key.data.receive():
                    selector.unregister(key.fileobj)
            # All that has come was received: what is missing now is late.
            now = time.monotonic()
            if counts := outcome_told(control)[1:]:
                # "-" stands for a port that something in the guest still holds open.
                grace = min(grace, now + 5)
                if now > grace or all(count == b"-" or port.seen >= int(count)
                                      for port, count in zip(ports, counts)):
                    return ""
            if now > end:
                return "the deadline has passed"
            if not control and now > boot_end:
                return STALLED
            if b"KVM internal error" in complaints:
                return "KVM internal error"
    return "" if outcome_told(control) else "the guest ended before its command did"


# Where in /out init puts the module's coverage.
COVERAGE = ".coverage"


def extract(archive: bytes, directory: Path, *, coverage: bool) -> None:
    """Put the files that came out of the guest into a directory: the coverage, or the others."""
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        chosen = [member for member in tar
                  if (COVERAGE in Path(member.name).parts) == coverage]
        tar.extractall(directory, members=chosen, filter="data")


def end_of_log(log: Path) -> str:
    """The last lines of a serial log, to show."""
    if not log.exists():
        return "(no serial log)"
    return "".join(tail(log, 25))

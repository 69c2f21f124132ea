# SPDX-License-Identifier: GPL-2.0-only
"""One run of a guest, from its boot to its end, and what comes out of it.

The guest talks to lab by virtio-serial ports, each with a pipe at lab's end:
"stdout" and "stderr" of the command, "files" (a tar of /out) and "control".
On the last, the script `init` sends one line when it has begun, before the
command: "up"; and one when the command has ended: the exit code and how many
bytes went into each of the other three. Lab ends the machine when it has them
all. From the port "stdin", where there is one, the command reads. By one more port,
"host", the guest asks lab to unplug and to plug a device (hotplug.py).
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import secrets
import selectors
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hotplug
from initramfs import initramfs
from kernels import CACHE, say, tail
from machine import Machine, command_line, disk_image, plugged_in

Sink = Callable[[bytes], object]

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


@dataclasses.dataclass
class Outcome:
    """How a run went. `code` is None when the guest did not get to report one.

    `stalled`: it did not get to its init, by no fault of its kernel's. Nothing has been
    done in it, so it can be booted once more.
    """

    code: int | None
    trouble: str = ""
    stalled: bool = False
    reports: list[str] = dataclasses.field(default_factory=list)


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
                          # Long enough for a busy machine, since the verdict is kept.
                          log, deadline=30)
        works = outcome.code == 0 and not outcome.reports
        # The whole register dump of a CPU may follow.
        why = outcome.trouble.partition(";")[0]
        say("KVM works" if works else f"KVM does not run it ({why}); using emulation")
        scratch_file = verdict.with_suffix(f".{secrets.token_hex(4)}")
        scratch_file.write_text("kvm" if works else "tcg", encoding="utf-8")
        scratch_file.rename(verdict)
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
        files: Sink = len, stdin: int | None = None, console: bool = False) -> Outcome:
    """Boot the machine, pass on what comes out of it, and wait for its end.

    `stdin` is the read end of a pipe, from which QEMU takes what the guest reads.

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
        if stdin is not None:
            arguments += ["-chardev", "file,id=stdin,path=/dev/null,"
                          f"input-path=/proc/self/fd/{stdin}",
                          "-device", "virtserialport,chardev=stdin,name=stdin"]
        if console:
            arguments += ["-chardev", "stdio,id=console,signal=off",
                          "-device", "virtconsole,chardev=console"]
        host = hotplug.Host(devices)
        arguments += host.arguments
        process = subprocess.Popen(
            arguments, stdin=None if console else subprocess.DEVNULL,
            stdout=None if console else qemu_says.writer, stderr=qemu_says.writer,
            pass_fds=[*(port.writer for port in [*ports, last]), *host.passed,
                      *([] if stdin is None else [stdin])])
        host.start()
        try:
            trouble = wait(ports, last, control, qemu_says, complaints, deadline, boot_deadline)
        finally:
            # SIGTERM lets QEMU give a terminal back its settings.
            process.send_signal(signal.SIGTERM if console else signal.SIGKILL)
            process.wait()
            host.stop()
            for port in [*ports, last, qemu_says]:
                os.set_blocking(port.reader, False)
                with contextlib.suppress(BlockingIOError):
                    while port.receive():  # what came in the last moment
                        pass
                os.close(port.reader)
    outcome = Outcome(None, trouble, reports=reports_in(log) if log.exists() else [])
    outcome.stalled = not control and (
        trouble == STALLED if not outcome.reports
        else accelerator == "tcg" and EMULATORS_OWN in outcome.reports[0].partition("\n")[0])
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


STALLED = "the init of the guest did not start in time"

# While a kernel boots, it patches its code, with a breakpoint where others may run into it. Once in
# a long while QEMU's emulated CPUs see the breakpoint after it has gone.
EMULATORS_OWN = "Oops: int3: "


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

#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""The lab's verbs. The script `lab` runs this inside lab's root file system."""

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import coverage
import guest
import kernels
from initramfs import initramfs
from kernels import CHECKOUT, Kernel, LabError, Lock, UsageError, say
from machine import ARCHS, DEVICES, DOMAINS, IOMMUS, Arch, Machine
from standard_input import as_pipe

BUILD = Path("build/lab")  # of modules for all CPUs, and of the programs for this one's
PROGRAMS = {
    "dmaprobe": "bin/dmaprobe",
    "dmaprobe-selftest": "selftests/dmaprobe-selftest",
    "dmaprobe-conformance": "selftests/dmaprobe-conformance",
    "dmaprobe-doubletest": "selftests/dmaprobe-doubletest",
    "dmaprobe-doubletool": "selftests/dmaprobe-doubletool",
}
LOGS_KEPT = 100

# Seconds for a guest to begin with its init. A boot takes 5 on a quiet machine, and
# under --icount twice as long. Once in a long while one hangs.
BOOT_DEADLINE = 60
BOOT_DEADLINE_SLOW = 240  # with --icount, and of the debug kernel

EPILOG = """\
In the guest: COMMAND runs as root, with busybox's tools, dmaprobe, and the test
programs that it names (selftests/README.md). It reads lab's standard input, unless
that is a terminal. The module is loaded, and the first device of the first kind that
--device names is bound to it. $DMAPROBE_BDF is that device,
$DMAPROBE_BDF2 the second of its kind, without a driver, $DMAPROBE_BUSY_BDF one
that its driver is using. What the command leaves in /out comes back to --out.

Exit code: the command's; 1 also when lab itself failed, when the deadline
passed, or when the kernel reported a bug of its own; 2 wrong usage; 4 this
machine lacks something. Each run's kernel log is kept in build/lab/logs.
"""


def make(*arguments: str) -> None:
    """Run the checkout's make; it talks to stderr only, so that stdout stays the guest's."""
    done = subprocess.run(["make", "-s", "-C", str(CHECKOUT), f"-j{os.cpu_count() or 1}",
                           *arguments], stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise LabError(f"the build failed: make {shlex.join(arguments)}")


def build_module(kernel: Kernel) -> Path:
    """dmaprobe.ko for a kernel, built unless it is newer than all it is made from."""
    module = CHECKOUT / BUILD / "modules" / kernel.release / "dmaprobe.ko"
    sources = [CHECKOUT / "Makefile", kernel.headers]
    for directory in ("kmod", "uapi"):
        sources += (CHECKOUT / directory).rglob("[!.]*.[ch]")
        sources += (CHECKOUT / directory).rglob("Kbuild")
        sources += (CHECKOUT / directory).rglob("Makefile")
    newest = max(path.stat().st_mtime for path in sources)
    if not module.exists() or module.stat().st_mtime < newest:
        say(f"building the module for {kernel.release}")
        # Only the debug kernel can count which of its lines ran.
        make(f"BUILD={BUILD}", f"KDIR={kernel.headers}", *ARCHS[kernel.arch].make,
             *(["GCOV=1"] if kernel.name == "debug" else []), "modules")
        module.touch()
    return module


def build_programs(arch: Arch, names: list[str]) -> list[Path]:
    """The guest's programs, statically linked, without their debug information."""
    build = Path(arch.build)
    for name in names:
        if not (CHECKOUT / build / PROGRAMS[name]).exists():
            say(f"building {name}")
    make(f"BUILD={build}", "STATIC=1", *arch.make, *(str(build / PROGRAMS[name]) for name in names))
    stripped = []
    for name in names:
        program = CHECKOUT / build / PROGRAMS[name]
        copy = CHECKOUT / build / "guest" / name
        if not copy.exists() or copy.stat().st_mtime < program.stat().st_mtime:
            copy.parent.mkdir(exist_ok=True)
            subprocess.run([f"{arch.cross}strip", "-o", str(copy), str(program)], check=True)
        stripped.append(copy)
    return stripped


def new_log(kernel: Kernel) -> Path:
    """The path for a run's serial log; old logs are removed."""
    directory = CHECKOUT / BUILD / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    for old in sorted(directory.glob("*.log"))[:-LOGS_KEPT]:
        old.unlink(missing_ok=True)
    return directory / f"{time.strftime('%Y%m%d-%H%M%S')}-{kernel.name}-{secrets.token_hex(2)}.log"


def writer(descriptor: int) -> guest.Sink:
    """A sink that passes everything on to a file descriptor, at once."""
    def write(data: bytes) -> None:
        while data:
            data = data[os.write(descriptor, data):]
    return write


def boot(options: argparse.Namespace, command: list[str] | None) -> int:
    """Run a command in a guest, or an interactive shell."""
    if not command and not sys.stdin.isatty():
        raise LabError("lab shell needs a terminal; lab run -- COMMAND does not")
    arch = ARCHS[options.arch]
    iommu = options.iommu or arch.iommu
    if options.arch not in IOMMUS[iommu].archs:
        raise UsageError(f"there is no {options.arch} machine with {iommu}")
    kernel = kernels.get(options.kernel, options.arch)
    # By "dmaprobe check" the tool runs the checks of the platform; the selftests try that.
    text = shlex.join(command or [])
    # A script may come by standard input or by --file. A shell need not wait for the selftests.
    checks = any(word in text for word in ("check", "dmaprobe-selftest")) or options.file \
        or not command or command[0].endswith("sh") and len(command) == 1
    names = [name for name in PROGRAMS
             if name == "dmaprobe" or name in text or name == "dmaprobe-conformance" and checks]
    machine = Machine(kernel, iommu, options.domain, options.device, options.memory,
                      options.icount, tuple(options.qemu_arg), tuple(options.append))
    stdin = as_pipe() if command else None
    settings = {"LAB_BIND": "" if options.no_bind else "1",
                "LAB_DEVICE": options.device[0],
                "LAB_SHELL": "" if command else "1",
                "LAB_STDIN": "" if stdin is None else "1",
                "LAB_COVERAGE": guest.COVERAGE if options.coverage else ""}
    # What was built is also read under the lock: another lab may build it anew.
    with Lock(CHECKOUT / BUILD / "lock", "builds in this checkout"):
        module = build_module(kernel)
        programs = build_programs(arch, names)
        initrd = initramfs(kernel, settings, shlex.join(command or []), module,
                           [*programs, *options.file], options.device)
    accelerator = guest.accelerator_for(machine)
    boot_deadline = 0.0
    if command:
        slow = options.icount or kernel.name == "debug"
        boot_deadline = options.boot_deadline or (BOOT_DEADLINE_SLOW if slow else BOOT_DEADLINE)
    files = bytearray()

    def run_in(log: Path, boot_deadline: float) -> guest.Outcome:
        return guest.run(machine, accelerator, initrd, log,
                         deadline=options.deadline if command else 0,
                         boot_deadline=boot_deadline, stdout=writer(1), stderr=writer(2),
                         files=files.extend, stdin=stdin, console=not command)

    log = new_log(kernel)
    outcome = run_in(log, boot_deadline)
    if outcome.stalled:
        why = outcome.reports[0].partition("\n")[0] if outcome.reports \
            else f"{outcome.trouble} ({boot_deadline:g} s)"
        say(f"{why}; booting once more. Its log: {os.path.relpath(log)}")
        log = new_log(kernel)
        outcome = run_in(log, 0)
    shown = os.path.relpath(log)
    if files and outcome.code is not None:
        try:
            if options.out:
                guest.extract(bytes(files), options.out, coverage=False)
            if options.coverage:
                with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
                    guest.extract(bytes(files), Path(scratch), coverage=True)
                    coverage.write(coverage.of_run(module.resolve().parent,
                                                   Path(scratch) / guest.COVERAGE),
                                   options.coverage)
        except (tarfile.TarError, OSError) as error:
            say(f"the guest's /out did not come whole: {error}")
            outcome.code = outcome.code or 1
    if outcome.trouble:
        say(outcome.trouble)
    if outcome.reports:
        say(f"the guest's kernel reported trouble ({shown}):")
        print("\n".join(outcome.reports), file=sys.stderr)
    elif outcome.trouble:
        end = guest.end_of_log(log)
        say(f"the end of {shown}:" if end else f"{shown} is empty")
        sys.stderr.write(end)
    if outcome.trouble or outcome.reports:
        return 1
    return outcome.code if outcome.code is not None else 1


def setup(names: list[str]) -> int:
    """Make the kernels, so that the first run need not."""
    for name in names:
        kernel = kernels.get(name)
        machine = Machine(kernel)
        say(f"{name}: {kernel.release}, runs by {guest.accelerator_for(machine)}")
    return 0


def devices(text: str) -> tuple[str, ...]:
    """The value of --device."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in DEVICES:
            raise argparse.ArgumentTypeError(
                f"invalid choice: '{name}' (choose from {', '.join(DEVICES)})")
    return names


def duration(text: str) -> float:
    """The value of --deadline and --boot-deadline."""
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 s")
    return seconds


def program(text: str) -> Path:
    """The value of --file."""
    if not os.access(text, os.R_OK | os.X_OK) or os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is not a program that can be run")
    return Path(text)


def with_values(arguments: list[str]) -> list[str]:
    """Words that start with a dash may be values of these options: `--qemu-arg -device`."""
    joined: list[str] = []
    words = iter(arguments)
    for word in words:
        value = next(words, None) if word in ("--qemu-arg", "--append") else None
        joined.append(word if value is None else f"{word}={value}")
    return joined


def parser() -> argparse.ArgumentParser:
    """The command line."""
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--kernel", choices=kernels.KERNELS, default="stock",
                         help="stock: Debian's newest (default); stable: Debian trixie's own; "
                              "vfio: trimmed, with iommufd and the VFIO cdev; "
                              "debug: the same with the kernel's checkers")
    machine.add_argument("--arch", choices=ARCHS, default="x86_64")
    machine.add_argument("--iommu", choices=IOMMUS,
                         help="vtd, vtd-scalable, amdvi (x86_64); smmuv3 (arm64); virtio, none "
                              "(both); default: vtd, smmuv3")
    machine.add_argument("--domain", choices=DOMAINS, default="strict",
                         help="the default domain's type (default: strict)")
    machine.add_argument("--device", type=devices, default=("edu",), metavar="DEVICE[,DEVICE]...",
                         help=f"what is plugged in, of {', '.join(DEVICES)}; the first is "
                              "bound (default: edu)")
    machine.add_argument("--no-bind", action="store_true",
                         help="leave module and device alone")
    machine.add_argument("--memory", type=int, metavar="MIB",
                         help="the guest's memory (default: 512; 256 where nothing translates, "
                              "so that edu reaches all of it)")
    machine.add_argument("--icount", action="store_true",
                         help="one CPU, emulated without KVM, whose clock counts its instructions: "
                              "a nanosecond in the guest is an instruction, run after run alike")
    machine.add_argument("--qemu-arg", action="append", default=[], metavar="ARG",
                         help="one more argument for QEMU")
    machine.add_argument("--append", action="append", default=[], metavar="ARG",
                         help="one more argument for the guest's kernel")
    machine.add_argument("--out", type=Path, metavar="DIR",
                         help="where the files in the guest's /out go")

    machine.add_argument("--file", type=program, action="append", default=[], metavar="FILE",
                         help="take a program or script along: /bin/NAME in the guest; "
                              "statically linked, since the guest has no libraries")
    machine.add_argument("--coverage", type=Path, metavar="FILE",
                         help="with the debug kernel: write to FILE which lines of the module "
                              "ran; see lab coverage")

    top = argparse.ArgumentParser(
        prog="lab", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Kernels with an emulated IOMMU and devices, for dmaprobe to run on.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("setup", help="make everything a run needs")
    verb.add_argument("--kernel", choices=kernels.KERNELS, action="append")
    verb = verbs.add_parser("run", parents=[machine], help="run a command in a guest",
                            usage="lab run [OPTION]... -- COMMAND...", epilog=EPILOG,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    verb.add_argument("--deadline", type=duration, default=600, metavar="SECONDS",
                      help="end the run after this long (default: 600)")
    verb.add_argument("--boot-deadline", type=duration, metavar="SECONDS",
                      help="boot once more when the guest's init has not begun after this long "
                           f"(default: {BOOT_DEADLINE}; {BOOT_DEADLINE_SLOW} with --icount or the "
                           "debug kernel)")
    verbs.add_parser("shell", parents=[machine], help="a shell in a guest")
    verb = verbs.add_parser("coverage", help="report which lines of the module ran")
    verb.add_argument("files", type=Path, nargs="+", metavar="FILE",
                      help="what runs with --coverage wrote; the counts add up")
    verbs.add_parser("in", usage="lab in -- COMMAND...",
                     help="run a command in lab's root file system, on this machine")
    verbs.add_parser("check", add_help=False, help="run every test (check.py)")
    verbs.add_parser("matrix", add_help=False,
                     help="check the platform on every IOMMU, domain and engine "
                          "(matrix.py)")
    verbs.add_parser("lint", add_help=False, help="run every linter (lint.sh)")
    verbs.add_parser("clean", help="remove the cache")
    return top


def main(arguments: list[str]) -> int:
    """Do what the command line says."""
    command: list[str] = []
    if "--" in arguments:
        command = arguments[arguments.index("--") + 1:]
        arguments = arguments[:arguments.index("--")]
    top = parser()
    options, rest = top.parse_known_args(with_values(arguments))
    if options.verb in ("check", "matrix", "lint"):
        program = {"check": "check.py", "matrix": "matrix.py", "lint": "lint.sh"}[options.verb]
        os.execv(CHECKOUT / "selftests/lab" / program, [program, *rest])
    if rest:
        top.error(f"unknown argument: {rest[0]} (a command goes after --)")
    if options.verb in ("run", "in") and not command:
        top.error(f"lab {options.verb} needs a command: lab {options.verb} -- COMMAND...")
    if options.verb in ("run", "shell") and options.iommu == "none" and not options.no_bind \
            and options.kernel != "vfio":
        top.error("--iommu none needs --kernel vfio: the VFIO of other kernels takes no device "
                  "without an IOMMU")
    if options.verb in ("run", "shell") and options.iommu == "none" and options.domain != "strict":
        top.error("--iommu none: without an IOMMU there is no domain to choose")
    if options.verb in ("run", "shell") and options.coverage and options.kernel != "debug":
        top.error("--coverage needs --kernel debug, whose modules count the lines that ran")
    if options.verb in ("run", "shell") and options.out:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            top.error(f"--out {options.out}: {error.strerror}")
    if options.verb == "in":
        try:
            os.execvp(command[0], command)
        except OSError as error:
            raise LabError(f"{command[0]}: {error.strerror}") from error
    if options.verb == "coverage":
        try:
            print(coverage.report(coverage.merged(options.files)))
        except (OSError, ValueError) as error:
            raise LabError(f"{error}: not a file that lab run --coverage wrote") from error
        return 0
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # guests are ended first, see below
    if options.verb == "setup":
        return setup(options.kernel or list(kernels.KERNELS))
    return boot(options, command if options.verb == "run" else None)


if __name__ == "__main__":
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # or else the first file that is opened is taken for stdin
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no traceback when nobody reads the output
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        say(str(error))
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)

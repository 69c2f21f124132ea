# SPDX-License-Identifier: GPL-2.0-only
"""The lab's kernels: where they are, and how the ones that Debian lacks are built."""

import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
CACHE = Path(os.environ.get("DMAPROBE_CACHE", "/nonexistent"))


class LabError(Exception):
    """The lab itself failed; the text is for the user."""


def say(text: str) -> None:
    """Report progress to the user."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted, and against which a module can be built."""

    name: str
    arch: str
    release: str
    image: Path
    modules: Path
    headers: Path


class Lock:
    """A lock file held for the length of a with block."""

    def __init__(self, path: Path, waiting: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", encoding="utf-8")
        self.waiting = waiting

    def __enter__(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self.waiting:
                say(f"waiting for another lab that {self.waiting}")
            fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.file.close()


def from_debian(name: str, arch: str) -> Kernel:
    """A kernel that root.sh unpacked."""
    top = Path("/opt/kernels") / (name if arch == "x86_64" else f"{arch}-{name}")
    release = (top / "release").read_text(encoding="utf-8").strip()
    modules = top / "lib/modules" / release
    return Kernel(name, arch, release, modules / "vmlinuz", modules,
                  Path(f"/usr/src/linux-headers-{release}"))


def newest_source() -> Path:
    """The newest kernel source in the root file system."""
    def version(path: Path) -> list[int]:
        return [int(part) for part in path.name.split("-")[2].removesuffix(".tar.xz").split(".")]
    found = sorted(Path("/usr/src").glob("linux-source-*.tar.xz"), key=version)
    if not found:
        raise LabError("the root file system has no kernel source: lab clean, lab setup")
    return found[-1]


# Which fragments in kernel/ a kernel's configuration is made of. A later one goes
# over those before it. A kernel/NAME.patch goes over that kernel's source.
FRAGMENTS = {"vfio": ["vfio"], "debug": ["vfio", "debug"]}

# How many minutes a build takes on two cores: printed before it starts.
MINUTES = {"vfio": 10, "debug": 13}


def options_in(fragments: str) -> dict[str, str]:
    """The options of a configuration by their names, each with the last line it has."""
    return {re.findall(r"CONFIG_\w+", line)[0]: line for line in
            re.findall(r"^(?:CONFIG_\w+=.*|# CONFIG_\w+ is not set)$", fragments, re.M)}


def not_taken(options: dict[str, str], config: str) -> list[str]:
    """The options that Kconfig did not accept. What is off need not be in its file."""
    taken = set(config.splitlines())
    return [line for option, line in options.items() if line not in taken and
            (not line.startswith("#") or any(one.startswith(f"{option}=") for one in taken))]


def from_source(name: str, arch: str) -> Kernel:
    """A kernel of allnoconfig and its fragments, built if need be."""
    fragments = "".join((HERE / "kernel" / f"{fragment}.config").read_text(encoding="utf-8")
                        for fragment in FRAGMENTS[name])
    patch = HERE / "kernel" / f"{name}.patch"
    source = newest_source()
    compiler = subprocess.run(["gcc", "-dumpfullversion"], check=True, capture_output=True,
                              text=True).stdout
    stat = source.stat()
    key = hashlib.sha256(b"\0".join([
        source.name.encode(), str(stat.st_size).encode(), str(int(stat.st_mtime)).encode(),
        fragments.encode(), compiler.encode(),
        patch.read_bytes() if patch.exists() else b""])).hexdigest()[:12]
    top = CACHE / f"kernel-{name}-{key}"
    if not top.is_dir():
        with Lock(CACHE / f"kernel-{name}.lock", f"builds the {name} kernel"):
            if not top.is_dir():
                build(name, source, fragments, patch, top)
    release = (top / "release").read_text(encoding="utf-8").strip()
    return Kernel(name, arch, release, top / "bzImage", top / "lib/modules" / release,
                  top / "headers")


def build(name: str, source: Path, fragments: str, patch: Path, top: Path) -> None:
    """Build a kernel into the directory `top`, which appears only when it is complete."""
    began = time.monotonic()
    work = top.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    tree, objects, result = work / "source", work / "objects", work / "result"
    for directory in (tree, objects, result):
        directory.mkdir(parents=True)

    say(f"building the {name} kernel from {source.name} "
        f"(about {MINUTES[name]} minutes on 2 cores)")
    subprocess.run(["tar", "-x", "-C", str(tree), "--strip-components=1", "-f", str(source)],
                   check=True)
    if patch.exists():
        subprocess.run(["patch", "-d", str(tree), "-p1", "-s", "-i", str(patch)], check=True)
    options = options_in(f'{fragments}CONFIG_LOCALVERSION="-{name}"\n')
    config = work / "allconfig"
    config.write_text("".join(f"{line}\n" for line in options.values()), encoding="utf-8")
    log = CACHE / f"kernel-{name}.log"
    with log.open("wb") as output:
        make = ["make", "-C", str(tree), f"O={objects}", f"-j{os.cpu_count() or 1}"]

        def step(*arguments: str) -> None:
            process = subprocess.Popen([*make, *arguments], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert process.stdout
            compiled, reported = 0, time.monotonic()
            for line in process.stdout:
                output.write(line)
                compiled += line.startswith((b"  CC ", b"  AS "))
                if time.monotonic() - reported > (2 if sys.stderr.isatty() else 20):
                    reported = time.monotonic()
                    say(f"{name} kernel: {compiled} objects in {reported - began:.0f} s")
            if process.wait() != 0:
                output.flush()
                sys.stderr.writelines(tail(log, 30))
                raise LabError(f"building the {name} kernel failed; its log is {log}")

        step(f"KCONFIG_ALLCONFIG={config}", "allnoconfig")
        lost = not_taken(options, (objects / ".config").read_text(encoding="utf-8"))
        if lost:
            raise LabError(f"the {name} kernel's configuration did not take: {' '.join(lost)}")
        step("bzImage", "modules")
        step(f"INSTALL_MOD_PATH={result}", "modules_install")
        step("run-command", "KBUILD_RUN_COMMAND=$(srctree)/scripts/package/install-extmod-build "
             f"{result}/headers")
    shutil.copy(objects / "arch/x86/boot/bzImage", result / "bzImage")
    shutil.copy(objects / ".config", result / "config")
    shutil.copy(objects / "include/config/kernel.release", result / "release")
    result.rename(top)
    shutil.rmtree(work)
    say(f"the {name} kernel took {time.monotonic() - began:.0f} s")


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-lines:]


# Every kernel the lab knows, and what makes it.
KERNELS: dict[str, Callable[[str, str], Kernel]] = {
    "stock": from_debian,
    "stable": from_debian,
    "vfio": from_source,
    "debug": from_source,
}


# Those that there are for other CPUs than this machine's.
FOREIGN = {"arm64": ["stock"]}


def get(name: str, arch: str = "x86_64") -> Kernel:
    """The kernel of that name, built if need be."""
    if arch in FOREIGN and name not in FOREIGN[arch]:
        raise LabError(f"there is no {name} kernel for {arch}; there is {' '.join(FOREIGN[arch])}")
    return KERNELS[name](name, arch)

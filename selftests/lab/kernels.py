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
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
CACHE = Path(os.environ.get("DMAPROBE_CACHE", "/nonexistent"))


class LabError(Exception):
    """The lab itself failed; the text is for the user."""


class UsageError(LabError):
    """The command line asks for what does not exist."""


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


# Which fragments in kernel/ a kernel's configuration is made of. The kernel's own
# merge_config.sh lays a later one over those before it. A kernel/NAME.patch goes over that
# kernel's source.
FRAGMENTS = {"vfio": ["vfio"], "debug": ["vfio", "debug"]}

# How many minutes a build takes on two cores: printed before it starts.
MINUTES = {"vfio": 10, "debug": 13}


def refused(text: str) -> list[str]:
    """The lines of the fragments that Kconfig did not take, out of what merge_config.sh printed."""
    return re.findall(r"^WARNING: .*\nRequested value: *(.*)$", text, re.M)


def configure(name: str, tree: Path, objects: Path, fragments: Sequence[Path]) -> str:
    """Configure a kernel: allnoconfig, and the fragments. Returns what the script printed."""
    done = subprocess.run(["scripts/kconfig/merge_config.sh", "-n", "-O", objects, *fragments],
                          cwd=tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise LabError(f"configuring the {name} kernel failed:\n{done.stdout}")
    if lost := refused(done.stdout):
        raise LabError(f"the {name} kernel's configuration did not take: {', '.join(lost)}")
    return done.stdout


def from_source(name: str, arch: str) -> Kernel:
    """A kernel of allnoconfig and its fragments, built if need be."""
    fragments = [HERE / "kernel" / f"{fragment}.config" for fragment in FRAGMENTS[name]]
    patch = HERE / "kernel" / f"{name}.patch"
    source = newest_source()
    compiler = subprocess.run(["gcc", "-dumpfullversion"], check=True, capture_output=True,
                              text=True).stdout
    stat = source.stat()
    key = hashlib.sha256(b"\0".join([
        source.name.encode(), str(stat.st_size).encode(), str(int(stat.st_mtime)).encode(),
        b"".join(fragment.read_bytes() for fragment in fragments), compiler.encode(),
        patch.read_bytes() if patch.exists() else b""])).hexdigest()[:12]
    top = CACHE / f"kernel-{name}-{key}"
    if not top.is_dir():
        with Lock(CACHE / f"kernel-{name}.lock", f"builds the {name} kernel"):
            if not top.is_dir():
                build(name, source, fragments, patch, top)
    release = (top / "release").read_text(encoding="utf-8").strip()
    return Kernel(name, arch, release, top / "bzImage", top / "lib/modules" / release,
                  top / "headers")


def build(name: str, source: Path, fragments: Sequence[Path], patch: Path, top: Path) -> None:
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
        # Quiet about the lines that are elsewhere; asks nothing.
        done = subprocess.run(["patch", "-d", str(tree), "-p1", "-s", "--batch", "--forward", "-i",
                               str(patch)], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, check=False)
        if done.returncode:
            shutil.rmtree(work, ignore_errors=True)
            raise LabError(f"{patch} does not apply to {source.name}:\n{done.stdout}{done.stderr}")
    own = work / "localversion.config"
    own.write_text(f'CONFIG_LOCALVERSION="-{name}"\n', encoding="utf-8")
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

        output.write(configure(name, tree, objects, [*fragments, own]).encode())
        step("bzImage", "modules")
        step(f"INSTALL_MOD_PATH={result}", "modules_install")
        step("run-command", "KBUILD_RUN_COMMAND=$(srctree)/scripts/package/install-extmod-build "
             f"{result}/headers")
    shutil.copy(objects / "arch/x86/boot/bzImage", result / "bzImage")
    shutil.copy(objects / ".config", result / "config")
    shutil.copy(objects / "include/config/kernel.release", result / "release")
    result.rename(top)
    shutil.rmtree(work)
    say(f"built the {name} kernel in {time.monotonic() - began:.0f} s")


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
        raise UsageError(f"there is no {name} kernel for {arch}; "
                         f"there is {' '.join(FOREIGN[arch])}")
    return KERNELS[name](name, arch)

# SPDX-License-Identifier: GPL-2.0-only
"""The guest's initramfs: cpio archives, one after the other."""

import hashlib
import io
import lzma
import re
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kernels import CACHE, HERE, Kernel
from machine import ARCHS, DEVICES


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

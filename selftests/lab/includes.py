#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Includes and imports go one way. Prints each that does not, and exits with 1 then.

A folder may include itself and the folders and files that ALLOWED names for it, no others of
the checkout. A module of the lab may import those that stand before it in LAB.
"""

import ast
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent

# For each folder, the longest match counts.
TESTS = {"selftests/support", "lib/include", "uapi"}
ALLOWED: dict[str, set[str]] = {
    "uapi": set(),
    "kmod": {"uapi"},
    "lib/include": {"uapi"},
    "lib/src": {"lib/include", "uapi"},
    # An engine is written as one of a program is; the list of them is all that it shares.
    "lib/src/engines": {"lib/include", "lib/src/builtin_engines.h"},
    "tools": {"lib/include", "uapi"},
    "selftests/support": {"lib/include", "uapi"},
    "selftests/conformance": TESTS,
    "selftests/module/abi": TESTS,
    "selftests/module/boundary": TESTS,
    "selftests/module/calls": TESTS,
    "selftests/module/stress": TESTS,
    "selftests/library": TESTS,
    "selftests/double": {"lib/include", "uapi"},
    "selftests/engines": TESTS,
    "selftests/tool": TESTS,
    # What a controller says of itself is no part of the API.
    "selftests/unit": TESTS | {"lib/src/engines/nvme.h"},
    "Documentation": {"lib/include"},
}
# Nothing of the lab imports these: they are programs, and tests/ may import all of it.
PROGRAMS = ["check", "matrix", "lab", "includes"]
LAB = ["kernels", "coverage", "hotplug", "standard_input", "program", "report", "machine",
       "initramfs", "guest", "suites"]
# Where <...> and "..." are looked up, besides the includer's own folder.
ROOTS = ("lib/include", "uapi", "selftests")


def folder_of(path: Path) -> str:
    """The key of ALLOWED for a file, or its directory."""
    for parent in path.parents:
        if str(parent) in ALLOWED:
            return str(parent)
    return str(path.parent)


def included(source: Path, name: str) -> Path | None:
    """The file of the checkout that an include means, relative to it."""
    for root in (source.parent, *map(Path, ROOTS)):
        file = (CHECKOUT / root / name).resolve()
        if file.is_file() and file.is_relative_to(CHECKOUT):
            return file.relative_to(CHECKOUT)
    return None


def wrong_includes() -> list[str]:
    """One line for each include that goes the wrong way."""
    wrong = []
    for pattern in ("*.h", "*.c", "*.cc"):
        for file in CHECKOUT.rglob(pattern):
            source = file.relative_to(CHECKOUT)
            if source.parts[0].startswith(("build", ".")):
                continue
            here = folder_of(source)
            if here not in ALLOWED:
                wrong.append(f"{source}: no rule for this folder in {Path(__file__).name}")
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
                target = included(source, match[1]) if match else None
                there = folder_of(target) if target else here
                if there != here and not {there, str(target)} & ALLOWED[here]:
                    wrong.append(f"{source}:{number}: {here} must not include {target}; legal: "
                                 f"{', '.join(sorted(ALLOWED[here])) or 'nothing'}")
    return sorted(wrong)


def wrong_imports() -> list[str]:
    """One line for each import of the lab that goes the wrong way."""
    wrong = []
    for file in Path(__file__).parent.glob("*.py"):
        if file.stem not in LAB + PROGRAMS:
            wrong.append(f"{file.name}: not in the list of modules in {Path(__file__).name}")
            continue
        legal = LAB[:LAB.index(file.stem)] if file.stem in LAB else LAB
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            wrong += [f"{file.name}:{node.lineno}: must not import {name}; legal: "
                      f"{', '.join(legal) or 'nothing'}"
                      for name in names if name in LAB + PROGRAMS and name not in legal]
    return sorted(wrong)


if __name__ == "__main__":
    found = wrong_includes() + wrong_imports()
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(1 if found else 0)

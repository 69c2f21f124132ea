#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Holds dmaprobe.txt against uapi/linux/dmaprobe.h, so that it cannot go stale.

Every command must have its ioctl and a place in a run, every struct the members of
the header's, in order and of their sizes, and every list of flags all the values.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE.parents[1] / "uapi/linux/dmaprobe.h"
DESCRIPTION = HERE / "dmaprobe.txt"

C_BITS = {"__u32": 32, "__s32": 32, "__aligned_u64": 64, "char": 8}

Members = list[tuple[str, int]]  # name and bits


def header_structs(text: str) -> dict[str, Members]:
    """The structs of the header."""
    found: dict[str, Members] = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.M | re.S):
        members = re.findall(r"^\t(\w+)\s+(\w+)(?:\[(\d+)\])?;", body, re.M)
        if len(members) != body.count(";"):
            sys.exit(f"{HEADER.name}: struct {name} has members that are not understood")
        found[name] = [(member, C_BITS[ctype] * int(count or 1))
                       for ctype, member, count in members]
    return found


def header_commands(text: str) -> dict[str, str]:
    """The commands of the header, each with its struct."""
    numbers = dict(re.findall(r"^#define (DMAPROBE_\w+)\s+_IO\(DMAPROBE_IOC_MAGIC, (\d+)\)$",
                              text, re.M))
    if len(set(numbers.values())) != len(numbers) or not numbers:
        sys.exit(f"{HEADER.name}: commands that are not understood, or have one number")
    return {name: name.lower() for name in numbers}


def header_enums(text: str) -> dict[str, list[str]]:
    """The enums of the header, with the names of their values."""
    return {name: re.findall(r"^\t(\w+)(?: =[^,]*)?,", body, re.M)
            for name, body in re.findall(r"^enum (\w+) \{\n(.*?)^\};", text, re.M | re.S)}


class Description:
    """dmaprobe.txt, as far as it has to be understood."""

    def __init__(self, text: str) -> None:
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        text = "\n".join(lines)
        self.bits = {"fd": 32, "bool32": 32}
        for name, base in re.findall(r"^resource (\w+)\[(\w+)\]", text, re.M):
            self.bits[name] = self.size_of(base)
        self.flags = {name: re.split(r",\s*", values)
                      for name, values in re.findall(r"^(\w+) = (.*)$", text, re.M)}
        blocks = re.findall(r"^(\w+) ([{\[])\n(.*?)^[}\]]", text, re.M | re.S)
        for name, alias in re.findall(r"^type (\w+) (\w+\[[^\n]*)$", text, re.M):
            if "{" not in alias:
                self.bits[name] = self.size_of(alias)
        self.unions = {name: re.findall(r"^\t(\w+)\t(.*)$", body, re.M)
                       for name, kind, body in blocks if kind == "["}
        for name, members in self.unions.items():
            sizes = {self.size_of(member) for _, member in members if "_of[" not in member}
            if len(sizes) > 1:
                sys.exit(f"{DESCRIPTION.name}: members of {name} differ in size")
            if sizes:
                self.bits[name] = sizes.pop()
        self.structs = {name: [(member, self.size_of(kind))
                               for member, kind in re.findall(r"^\t(\w+)\t(.*)$", body, re.M)]
                        for name, kind, body in blocks if kind == "{"}
        self.calls = re.findall(r"^ioctl\$(\w+)\(fd fd_dmaprobe, cmd const\[(\w+)\], "
                                r"arg ptr\[inout, (\w+)\]\)$", text, re.M)

    def size_of(self, kind: str) -> int:
        """The bits of a type."""
        kind = re.sub(r" \((in|out|inout)\)$", "", kind)
        if kind in self.bits:
            return self.bits[kind]
        if found := re.fullmatch(r"int(\d+)(\[.*\])?", kind):
            return int(found[1])
        if re.match(r"(ptr|vma)64\b", kind):
            return 64
        if found := re.fullmatch(r"(?:const|flags|len|bytesize)\[.*, int(\d+)\]", kind):
            return int(found[1])
        if found := re.fullmatch(r"array\[int8, (\d+)\]", kind):
            return 8 * int(found[1])
        sys.exit(f"{DESCRIPTION.name}: the size of {kind!r} is not known")


def differences(header: str, description: Description) -> list[str]:
    """What is wrong with the description."""
    wrong = []
    enums = header_enums(header)
    structs = header_structs(header)

    commands = header_commands(header)
    wanted = {(name, name, struct) for name, struct in commands.items()}
    wrong += [f"no ioctl: {call[0]}" for call in sorted(wanted - set(description.calls))]
    wrong += [f"no such command: {call}" for call in sorted(set(description.calls) - wanted)]

    in_runs = {(found[1], found[2]) for _, kind in description.unions["dmaprobe_run_op"]
               if (found := re.fullmatch(r"dmaprobe_run_op_of\[(\w+), (\w+)\]", kind))}
    wanted_in_runs = set(commands.items()) - {("DMAPROBE_RUN", "dmaprobe_run")}
    wrong += [f"not as in a run: {name}" for name, _ in sorted(wanted_in_runs ^ in_runs)]

    for name, members in structs.items():
        if name == "dmaprobe_run_op":  # one for each command
            continue
        described = description.structs.get(name)
        if described != members:
            wrong.append(f"struct {name}: the header has {members}, the description {described}")
    wrong += [f"no such struct: {name}" for name in description.structs if name not in structs]

    for name, values in enums.items():
        if name in description.flags and description.flags[name] != values:
            wrong.append(f"{name}: the header has {', '.join(values)}")
    wrong += [f"no such value: {value}" for values in description.flags.values()
              for value in values if value.startswith("DMAPROBE_") and value not in header]
    return wrong


def main() -> int:
    """The check."""
    wrong = differences(HEADER.read_text(), Description(DESCRIPTION.read_text()))
    print("\n".join(f"{DESCRIPTION.name}: {line}" for line in wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-only
"""A Sphinx directive that includes the kernel-doc comments of a header.

    .. kernel-doc:: uapi/linux/dmaprobe.h

The kernel's own script turns the comments into reStructuredText. It is taken
from $KERNEL_DOC, or from where lab's root file system has it. Each command gets
a section, with the enums and structs that stand between it and the command
before. So a new command is in the manual as soon as it is in the header.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

TOP = Path(__file__).resolve().parent.parent
IN_LAB = "/opt/linux/tools/docs/kernel-doc"

# Where the text of the next comment starts, and whether it is a command's.
BLOCK = re.compile(r"^\.\. (?:_[^\n]*:|c:(?:struct|enum|union|function|macro):: )", re.M)
COMMAND = re.compile(r"^ *ioctl\((\w+)\)$", re.M)
DEFINED = re.compile(r"^#define\s+(\w+)\s+_IO\(", re.M)


def run_kernel_doc(header: Path) -> str:
    """The header's comments as reStructuredText."""
    script = os.environ.get("KERNEL_DOC", IN_LAB)
    if not Path(script).is_file():
        raise ExtensionError(f"no kernel-doc at {script}: use `make docs`, which runs in lab's "
                             "root file system, or set KERNEL_DOC to the script in a kernel tree "
                             "(tools/docs/kernel-doc)")
    done = subprocess.run(["python3", script, "-rst", "-Werror", str(header)],
                          capture_output=True, text=True, check=False)
    if done.returncode or done.stderr.strip():
        raise ExtensionError(f"kernel-doc {header}:\n{done.stderr}")
    return done.stdout


def sections(text: str) -> Sequence[tuple[str, list[str]]]:
    """The comments, ordered into (title, comments)."""
    starts = [match.start() for match in BLOCK.finditer(text)]
    blocks = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)])]
    result: list[tuple[str, list[str]]] = []
    pending: list[str] = []
    for block in blocks:
        command = COMMAND.search(block)
        if not command:
            pending.append(block)
            continue
        if not result and pending:
            result.append(("All commands", pending))
            pending = []
        result.append((command.group(1), [block, *pending]))
        pending = []
    if pending:
        result.append(("Others", pending))
    return result


class KernelDoc(SphinxDirective):
    """The directive; its argument is the header's path from the top of the tree."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the nodes."""
        header = TOP / self.arguments[0]
        self.env.note_dependency(str(header))
        found = sections(run_kernel_doc(header))
        lost = set(DEFINED.findall(header.read_text("utf-8"))) - {title for title, _ in found}
        if lost:
            raise ExtensionError(f"{header}: no kernel-doc of the form `struct x - ioctl(COMMAND)` "
                                 f"for {', '.join(sorted(lost))}")
        lines: list[str] = []
        for title, blocks in found:
            lines += [title, "-" * len(title), ""]
            for block in blocks:
                lines += [*block.expandtabs(8).splitlines(), ""]
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, source=str(header)), node)
        return list(node.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("kernel-doc", KernelDoc)
    return {"parallel_read_safe": True}

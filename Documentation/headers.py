# SPDX-License-Identifier: GPL-2.0-only
"""How Doxygen sees a header of the library: the filter that Doxyfile names.

No line is added, so that Doxygen's warnings name the right ones.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

# The same holds for all moves, and for all comparisons that are the default.
MOVE = re.compile(r"&&( other)?\) noexcept( = default;|;| : .*\{\})$")
COMPARISON = re.compile(r"operator[<=>]=>?\(.*\) const( noexcept)? = default;$")


def seen(name: str, lines: list[str]) -> Iterator[str]:
    """The lines as Doxygen sees them."""
    head = True
    after_parameter = False
    for line in lines:
        if line.startswith("// SPDX"):
            line = "/// @file"
        elif head and line.startswith("// "):
            line = "/" + line  # what the file is for
        elif line == 'namespace [[gnu::visibility("default")]] dmaprobe {':
            # A section of the manual. Breathe finds no functions in a namespace in
            # a group, so all namespaces go; library.py puts this one back.
            line = f"/** @addtogroup {name} */ /** @{{ */"
        elif line == "} // namespace dmaprobe":
            line = "/** @} */"
        elif re.match(r"namespace \w+ {|} // namespace ", line):
            line = ""
        elif line == "protected: // of the library alone":
            line = "private:"
        elif MOVE.search(line):
            line += " ///< Takes over what the other one has; that one is left closed."
        elif COMPARISON.search(line):
            line += " ///< Compares all members."
        comment = line.lstrip().startswith("///")
        head &= comment
        after_parameter = comment and (after_parameter or "/// @param" in line)
        if after_parameter and re.match(r" */// E[A-Z0-9]{2,}", line):
            # Errors are not part of the last parameter's description.
            line = line.replace("///", "/// @errors", 1)
            after_parameter = False
        yield line


if __name__ == "__main__":
    header = Path(sys.argv[1])
    print(*seen(header.stem, header.read_text("utf-8").splitlines()), sep="\n")

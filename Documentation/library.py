# SPDX-License-Identifier: GPL-2.0-only
"""A Sphinx directive that shows what Doxygen has read in a directory's headers.

    .. library:: lib/include/dmaprobe

Each header gets a section. So a new header is in the manual as soon as it is
in the directory.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

TOP = Path(__file__).resolve().parent.parent


class Library(SphinxDirective):
    """The directive; its argument is the directory's path from the top of the tree."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the nodes."""
        directory = TOP / self.arguments[0]
        self.env.note_reread()
        lines = [".. cpp:namespace:: dmaprobe", ""]
        for header in sorted(directory.glob("*.h")):
            title = f"<{directory.name}/{header.name}>"
            # The label is Doxygen's name for the header, which its links use.
            lines += [f".. _{header.stem}_8h:", "", title, "~" * len(title), "",
                      f".. doxygenfile:: {header.name}",
                      "   :sections: briefdescription detaileddescription", "",
                      f".. doxygengroup:: {header.stem}", "   :content-only:", "   :members:",
                      "   :protected-members:", ""]
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, source=str(directory)), node)
        return list(node.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("library", Library)
    return {"parallel_read_safe": True}

# SPDX-License-Identifier: GPL-2.0-only
"""How Sphinx builds this directory; `make docs` in the top directory runs it."""

import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

project = "dmaprobe"
author = "dmaprobe developers"
project_copyright = "dmaprobe developers"
_version = re.search(r"^VERSION\s*:=\s*(\S+)", (HERE.parent / "Makefile").read_text("utf-8"), re.M)
release = version = _version.group(1) if _version else ""

extensions = ["breathe", "kerneldoc", "library"]
primary_domain = "c"
highlight_language = "none"
html_theme = "alabaster"
html_theme_options = {"description": "The kernel's DMA-mapping API, call by call",
                      "fixed_sidebar": True, "page_width": "1080px"}
html_show_sourcelink = False
html_copy_source = False

# The library's reference: Doxygen reads, breathe shows (library.py).
breathe_default_project = "dmaprobe"
# Declared in public headers, defined nowhere that a reader needs to look.
nitpick_ignore = [("cpp:identifier", name) for name in ("Channel", "IovaSpaceTag", "PhysSpaceTag")]
# The suffix of a literal operator is no identifier.
nitpick_ignore_regex = [("cpp:identifier", "_[A-Za-z]+")]
# It calls what Sphinx 9 will no longer have.
warnings.filterwarnings("ignore", module="breathe")

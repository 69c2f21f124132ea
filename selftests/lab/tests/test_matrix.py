# SPDX-License-Identifier: GPL-2.0-only
"""What lab matrix reads of the guests' output."""

import json

from matrix import MARK, documents_in

WHOLE = {"domain": {"type": "DMA"}, "checks": [], "totals": {"ok": 0}}


def test_documents_are_found() -> None:
    """Each behind its mark, with what matrix wants of it."""
    text = json.dumps({**WHOLE, "version": 1}, indent=2)
    out = f"some text\n{MARK}edu\n{text}\n{MARK}nvme\n{text}\n"
    assert documents_in(out) == {"edu": WHOLE, "nvme": WHOLE}


def test_what_is_no_document_is_none() -> None:
    """A device that took the guest with it, one whose check failed, and odd texts."""
    text = json.dumps(WHOLE)
    for other in ("", text[:-5], '{"version":1,"error":{"exit":1}}', "null", "[]", "7"):
        out = f"{MARK}edu\n{text}\n{MARK}nvme\n{other}"
        assert documents_in(out) == {"edu": WHOLE}, other
    assert not documents_in("")

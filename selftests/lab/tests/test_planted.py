# SPDX-License-Identifier: GPL-2.0-only
"""A platform that does wrong, as the debug kernel can be made to: the checks notice.

An IOMMU that keeps what was unmapped spoils all that comes after, so each check has a
guest of its own.
"""

import pytest

from labs import NO_LONGER_ITS_OWN, lab

SKIP = "/sys/module/iommu/parameters/skip_invalidation"


WRITTEN = {"After.AccessAfterRelease/page": NO_LONGER_ITS_OWN,
           "After.AccessAfterRelease/linked": NO_LONGER_ITS_OWN,
           "Unlink.OfAPart": "the device wrote after the unlink"}


@pytest.mark.planted
@pytest.mark.parametrize("iommu, name", [
    *(("vtd", name) for name in WRITTEN), ("amdvi", "Unlink.OfAPart")])
def test_without_invalidation(iommu: str, name: str) -> None:
    """A check passes, and fails when the IOMMU is not notified of what was unmapped."""
    check = f"dmaprobe check --ktap --only {name} $DMAPROBE_BDF"
    ended = lab("run", "--kernel", "debug", "--iommu", iommu, "--device", "testdev",
                "--deadline", "300", "--", "sh", "-c",
                f"{check} || exit 9; echo Y >{SKIP} || exit 8; {check}")
    assert ended.code == 1, ended
    assert f"\nnot ok 1 {name}\n" in ended.out
    assert WRITTEN[name] in ended.out

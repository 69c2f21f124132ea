# SPDX-License-Identifier: GPL-2.0-only
"""How the kernels' configurations are made."""

import shutil
from pathlib import Path

import pytest

import kernels

# The kernel's own, as root.sh and Debian's headers have them.
MERGE_CONFIG = Path("/opt/linux/scripts/kconfig/merge_config.sh")
CONF = sorted(Path("/usr/lib").glob("linux-kbuild-*/scripts/kconfig/conf"))[-1]

KCONFIG = """
config A
    bool "a"
config B
    int "b"
    default 0
config BELOW_A
    bool "needs a"
    depends on A
config SELECTS
    bool "selects"
    select SELECTED
config SELECTED
    bool "selected"
"""


@pytest.fixture(name="tree")
def small_tree(tmp_path: Path) -> Path:
    """A kernel's source that has options, and nothing else."""
    tree = tmp_path / "source"
    (tree / "scripts/kconfig").mkdir(parents=True)
    shutil.copy(MERGE_CONFIG, tree / "scripts/kconfig")
    (tree / "Kconfig").write_text(KCONFIG)
    (tree / "Makefile").write_text(
        f"allnoconfig:\n\tcd $(O) && {CONF} --allnoconfig ../source/Kconfig\n")
    (tmp_path / "objects").mkdir()
    return tree


def configured(tree: Path, *fragments: str) -> set[str]:
    """The lines of the configuration that comes of these fragments."""
    files = [tree.parent / f"{number}.config" for number in range(len(fragments))]
    for file, fragment in zip(files, fragments):
        file.write_text(fragment)
    objects = tree.parent / "objects"
    kernels.configure("small", tree, objects, files)
    return set((objects / ".config").read_text().splitlines())


def test_fragments_are_layered(tree: Path) -> None:
    """A later fragment goes over an earlier one."""
    config = configured(tree, "# text\nCONFIG_A=y\nCONFIG_B=1\nCONFIG_SELECTS=y\n",
                        "CONFIG_B=2\n# CONFIG_A is not set\n# CONFIG_BELOW_A is not set\n")
    assert {"CONFIG_B=2", "# CONFIG_A is not set", "CONFIG_SELECTS=y",
            "CONFIG_SELECTED=y"} <= config


@pytest.mark.parametrize("fragment, lost", [
    pytest.param("CONFIG_BELOW_A=y\n", "CONFIG_BELOW_A=y", id="needs another"),
    pytest.param("CONFIG_NONE=y\n", "CONFIG_NONE=y", id="unknown"),
    pytest.param("CONFIG_B=no\n", "CONFIG_B=no", id="no number"),
    pytest.param("CONFIG_SELECTS=y\n# CONFIG_SELECTED is not set\n",
                 "# CONFIG_SELECTED is not set", id="selected")])
def test_refused_option_fails(tree: Path, fragment: str, lost: str) -> None:
    """An option that Kconfig does not take fails the build, and is named."""
    with pytest.raises(kernels.LabError) as error:
        configured(tree, "CONFIG_B=1\n", fragment)
    assert str(error.value) == f"the small kernel's configuration did not take: {lost}"


def test_failing_script_fails(tree: Path) -> None:
    """So does a fragment that is not there."""
    with pytest.raises(kernels.LabError, match="does not exist"):
        kernels.configure("small", tree, tree.parent / "objects", [tree / "none", tree / "none2"])

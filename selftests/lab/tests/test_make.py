# SPDX-License-Identifier: GPL-2.0-only
"""What the Makefile makes of flags that a distribution or a person gives."""

import pytest

from program import call


def compiling(*settings: str, in_environment: bool = False) -> str:
    """The command that compiles a file of the library."""
    before, after = (settings, ()) if in_environment else ((), settings)
    code, out, err = call(["env", "-u", "WERROR", *before, "make", "-n", "V=1", "BUILD=build/none",
                           *after, "build/none/obj/lib/src/types.o"], 60)
    assert code == 0, err
    return next(line for line in out.splitlines() if "types.cc" in line and "-c" in line)


@pytest.mark.parametrize("in_environment", [False, True], ids=["argument", "environment"])
@pytest.mark.parametrize("flags", ["CXXFLAGS=-O3", "CPPFLAGS=-DNDEBUG"])
def test_flags_are_added(flags: str, in_environment: bool) -> None:
    """They are added to what the build cannot do without."""
    words = compiling(flags, in_environment=in_environment).split()
    assert flags.partition("=")[2] in words
    assert {"-std=c++23", "-Ilib/include", "-Iuapi", "-fPIC", "-fvisibility=hidden"} <= set(words)


def test_library_alone_needs_no_kernel() -> None:
    """Without kernel headers, all but the module can be installed."""
    code, _, err = call(["make", "-n", "BUILD=build/none", "KDIR=/none", "install-user"], 60)
    assert code == 0, err
    code, _, err = call(["make", "-n", "BUILD=build/none", "KDIR=/none", "install"], 60)
    assert code != 0
    assert "no kernel headers at /none" in err


def test_warnings_are_errors_for_us_alone() -> None:
    """A newer compiler's warnings do not break somebody else's build."""
    assert "-Werror" not in compiling().split()
    assert "-Werror" in compiling("WERROR=1").split()

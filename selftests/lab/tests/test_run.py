# SPDX-License-Identifier: GPL-2.0-only
"""What goes into a guest and comes out of it."""

from pathlib import Path

import pytest

from labs import lab, lab_run


def test_everything_comes_through(tmp_path: Path) -> None:
    """Output on its own stream, the exit code, quoting, and files out of the guest."""
    script = ("echo one; echo two >&2; echo \"$1\" >/out/word; mkdir /out/d; "
              "head -c 3000000 /dev/zero >/out/d/big; exit 42")
    ended = lab_run("--out", str(tmp_path), "--", "sh", "-c", script, "sh", "it's a $word")
    assert (ended.code, ended.out) == (42, "one\n")
    assert "two\n" in ended.err and "one\n" not in ended.err
    assert (tmp_path / "word").read_text() == "it's a $word\n"
    assert (tmp_path / "d/big").stat().st_size == 3000000


def test_large_output_is_whole() -> None:
    """Every byte of a large output arrives, and those before a leftover process is waited for."""
    ended = lab_run("--", "sh", "-c", "sleep 1000 & seq 200000")
    assert ended.code == 0
    assert ended.out == "".join(f"{n}\n" for n in range(1, 200001))


def test_deadline_ends_a_run() -> None:
    """A command that does not end is ended, and the end of the log is shown."""
    ended = lab_run("--deadline", "5", "--", "sleep", "1000")
    assert ended.code == 1
    assert "the deadline has passed" in ended.err


@pytest.mark.parametrize("option, known", [
    ("--kernel", "vfio"), ("--iommu", "vtd"), ("--domain", "strict"), ("--device", "edu"),
    ("--arch", "arm64")])
def test_unknown_values_are_refused(option: str, known: str) -> None:
    """A value that lab does not know is refused, with those it does know."""
    ended = lab_run(option, "fancy", "--", "true")
    assert ended.code == 2
    assert "fancy" in ended.err and known in ended.err


@pytest.mark.parametrize("arguments, text", [
    pytest.param(["run"], "lab run needs a command: lab run -- COMMAND...", id="run"),
    pytest.param(["in"], "lab in needs a command: lab in -- COMMAND...", id="in"),
    pytest.param(["run", "--iommu", "none", "--domain", "lazy", "--kernel", "vfio", "--", "true"],
                 "there is no domain to choose", id="no domain"),
    pytest.param(["run", "--coverage", "/tmp/c", "--", "true"], "--coverage needs --kernel debug",
                 id="coverage"),
    pytest.param(["run", "--out", "/dev/null/x", "--", "true"], "/dev/null/x: Not a directory",
                 id="out"),
    pytest.param(["run", "--deadline", "0", "--", "true"], "0 is not more than 0 s", id="deadline"),
    pytest.param(["run", "--iommu", "none", "--", "true"], "--iommu none needs --kernel vfio: ",
                 id="no IOMMU"),
    pytest.param(["run", "--iommu", "smmuv3", "--", "true"],
                 "there is no x86_64 machine with smmuv3", id="no such machine"),
    pytest.param(["run", "--arch", "arm64", "--kernel", "vfio", "--", "true"],
                 "there is no vfio kernel for arm64", id="no such kernel"),
    pytest.param(["run", "--file", "/none", "--", "true"], "/none is not a program", id="no file"),
])
def test_wrong_usage_is_explained(arguments: list[str], text: str) -> None:
    """Wrong usage exits with 2 and a text that names what is missing."""
    ended = lab(*arguments)
    assert ended.code == 2
    assert text in ended.err


def test_missing_program_is_named() -> None:
    """What is not there is an error of one line."""
    ended = lab("in", "--", "nosuch")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "lab: nosuch: No such file or directory\n"


def test_icount_repeats() -> None:
    """Under --icount the same work takes the same time in the guest, on one CPU."""
    script = ("now() { sed -n 's/^now at \\([0-9]*\\).*/\\1/p' /proc/timer_list; }; nproc; "
              "for pass in 1 2; do a=$(now); i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; "
              "b=$(now); done; echo $((b - a))")
    took = []
    for _ in range(2):
        ended = lab_run("--icount", "--kernel", "vfio", "--", "sh", "-c", script)
        assert ended.code == 0, ended.err
        cpus, nanoseconds = map(int, ended.out.split())
        assert cpus == 1
        took.append(nanoseconds)
    assert max(took) < min(took) * 1.01

#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make lint: every static check. Runs in lab's root file system (`lab lint`).
# A check that fails does not keep the others from running. Names of checks as
# arguments run only those.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit

linux=/opt/linux # checkpatch and kernel-doc, put there by selftests/lab/root.sh
build=build/lint
jobs=$(nproc)
failed=()
only=("$@")

# files PATTERN...: the checkout's files of those names
files() {
	local names=(-name "$1")
	while shift && (($#)); do
		names+=(-o -name "$1")
	done
	find . \( -name .git -o -name 'build*' -o -name '.*_cache' -o -name __pycache__ \) -prune -o \
		-type f \( "${names[@]}" \) -print | sed 's,^\./,,' | sort
}

# check NAME COMMAND...: runs a check, prints how it went
known=()
check() {
	local name=$1 began=$SECONDS output
	shift
	known+=("$name")
	((${#only[@]} == 0)) || [[ " ${only[*]} " = *" $name "* ]] || return
	if output=$("$@" 2>&1); then
		printf 'ok      %-12s %3d s\n' "$name" $((SECONDS - began))
	else
		failed+=("$name")
		printf '%s\nFAILED  %-12s %3d s\n' "$output" "$name" $((SECONDS - began))
	fi
}

spdx() {
	local file without
	# What cannot have a comment has a file beside it.
	without=$(files '*' | grep -v '^LICENSES/' | xargs -d '\n' grep -L SPDX-License-Identifier |
		while read -r file; do [[ -f $file.license ]] || echo "$file"; done)
	[[ -z $without ]] || { echo "no SPDX line: $without"; return 1; }
}

checkpatch() {
	local sources
	# These two are not C as it stands, but arguments of macros.
	mapfile -t sources < <(files '*.[ch]' | grep -E '^(kmod|uapi)/' | grep -v -e /trace.h -e /ops.h)
	perl "$linux/scripts/checkpatch.pl" --strict --no-tree --quiet --no-summary --file "${sources[@]}"
}

# The module, with the compiler's extra warnings and with sparse, for each kernel.
module() {
	local headers output status=0
	rm -rf "$build/modules"
	for headers in /usr/src/linux-headers-*-amd64; do
		# Debian's sparse does not know two operators that newer kernels use.
		output=$(make -s -j"$jobs" BUILD="$build" KDIR="$headers" W=1 C=2 \
			CHECK='sparse -D__typeof_unqual__=typeof "-D__builtin_strlen(s)=(sizeof(s)-1)"' modules 2>&1) || status=1
		# Debian's headers come without the vmlinux that BTF needs; that is no matter.
		output=$(grep -v 'Skipping BTF generation' <<<"$output")
		[[ -z $output ]] || { printf '%s:\n%s\n' "$headers" "$output"; status=1; }
	done
	return $status
}

kernel_doc() {
	"$linux/tools/docs/kernel-doc" -Wall -Werror -none uapi/linux/dmaprobe.h
}

format() {
	local sources
	mapfile -t sources < <(files '*.cc' '*.h' | grep -E '^(lib|tools|selftests)/')
	clang-format --dry-run -Werror --ferror-limit=1 "${sources[@]}"
}

# A file is not looked at again as long as it, the headers and the rules stay. The
# path-sensitive checks give up on a function after 20,000 steps, a tenth of what they would do:
# they take most of the time, and have found nothing further on.
tidy() {
	local source stale=() newest
	newest=.clang-tidy
	for source in $(files '*.h'); do
		[[ $newest -nt $source ]] || newest=$source
	done
	for source in $(files '*.cc'); do
		[[ $build/tidy/$source -nt $source && $build/tidy/$source -nt $newest ]] || stale+=("$source")
	done
	# shellcheck disable=SC2016 # for the inner shell
	printf '%s\n' "${stale[@]}" | xargs -r -P "$jobs" -I{} bash -c '
		output=$(clang-tidy --quiet "$1" -- -std=c++23 -Ilib/include -Iuapi -Iselftests \
			-Xclang -analyzer-config -Xclang max-nodes=20000 \
			-DDMAPROBE_VERSION_STRING=\"\" 2>&1) || { echo "$output"; exit 1; }
		mkdir -p "$2/${1%/*}" && touch "$2/$1"' tidy {} "$build/tidy"
}

shell() {
	shellcheck selftests/lab/lab selftests/lab/root.sh selftests/lab/lint.sh .ci/run &&
		shellcheck -s busybox selftests/lab/init selftests/lab/lab-host
}

python() {
	local sources
	mapfile -t sources < <(files '*.py')
	MYPYPATH=selftests/lab:selftests/lab/tests \
		mypy --strict --no-error-summary selftests/lab/*.py selftests/lab/tests/*.py &&
		mypy --strict --no-error-summary selftests/syzkaller/check.py &&
		pyflakes3 "${sources[@]}" && pycodestyle --max-line-length=100 "${sources[@]}"
}

docs() {
	make -s BUILD="$build" docs-here
}

# Plain English: a program reports, prints, shows or answers, and is "it". The look behind is for
# a method of Python's files.
english() {
	local sources
	mapfile -t sources < <(files '*.[ch]' '*.cc' '*.py' '*.sh' '*.rst' '*.md' '*.1' \
		init lab lab-host run)
	grep -HnPi '(?<!\.)\bt(ells?|old)\b|\bwhat there i[s]\b|\bhe\b' "${sources[@]}"
	(($? == 1)) # nothing found; 2 is an error
}

check spdx spdx
check checkpatch checkpatch
check kernel-doc kernel_doc
check shell shell
check python python
check format format
check docs docs
check includes python3 selftests/lab/includes.py
check english english
check syzkaller python3 selftests/syzkaller/check.py
check module module
check tidy tidy

for name in "${only[@]}"; do
	[[ " ${known[*]} " = *" $name "* ]] || { echo "lint: unknown check $name; the checks are ${known[*]}"; exit 2; }
done
if ((${#failed[@]})); then
	echo "lint: failed: ${failed[*]}"
	exit 1
fi
echo "lint: clean"

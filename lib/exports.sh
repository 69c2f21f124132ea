#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Prints what a shared library exports though no public header declares it, and fails then.
#   lib/exports.sh LIBRARY
set -eu

headers=$(dirname "$0")/include/dmaprobe
names=$(nm -DC --defined-only "$1" | sed -E '/ A DMAPROBE_0\.1$/d
	s/^[0-9a-f]+ . ((vtable|typeinfo|typeinfo name) for )?//
	s/^dmaprobe::(operator[^(]*|[A-Za-z0-9_]+).*/\1/' | sort -u)
[ -n "$names" ] || { echo "$1 exports nothing"; exit 1; }
status=0
while read -r name; do
	# A class with its members, or a function.
	pattern="^(class|struct) $name( .*)?\{|[ &*]$name\("
	if ! grep -qE "$pattern" "$headers"/*.h; then
		echo "$1 exports $name, which is in no public header"
		status=1
	fi
done <<END
$names
END
exit $status

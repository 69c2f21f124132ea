#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# The second half of making lab's root file system: `lab` has installed the
# packages listed in root.packages, and runs this script inside the new root.
# It adds what comes from trixie-backports, Debian's kernels, what belongs to
# arm64, and a few tools out of the kernel's source.
#
# `lab` keys the root by the text of this file and of root.packages.
set -eu
export DEBIAN_FRONTEND=noninteractive

say() { echo "lab: root: $*" >&2; }

# kernel_of PACKAGE SUITE: the release that the suite's PACKAGE stands for
kernel_of() {
	apt-cache show "$1/$2" |
		sed -n 's/^Depends:.*linux-image-\([0-9][^ ,]*\).*/\1/p' | head -n 1
}

# download PACKAGE...: into the current directory
download() { apt-get -qq -o APT::Sandbox::User=root download "$@"; }

# newest REGEX: the package of the highest version in its name
newest() { apt-cache pkgnames | grep -Ex "$1" | sort -V | tail -n 1; }

# unpack_kernel NAME RELEASE [:ARCH]: image and modules to /opt/kernels/NAME. The
# packages are not installed: that would make an initramfs, which lab has no use for.
unpack_kernel() {
	say "kernel $1 is $2"
	mkdir -p "/opt/kernels/$1/debs"
	cd "/opt/kernels/$1"
	# Newer packages keep image and modules apart, in two dependencies.
	parts=$(apt-cache depends "linux-image-$2${3-}" |
		sed -n 's/.*Depends: \(linux-\(binary\|modules\)-[0-9].*\)/\1/p')
	# shellcheck disable=SC2086 # one word per package
	(cd debs && download "linux-image-$2${3-}" $parts)
	for deb in debs/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x --transform 's,^\./usr/,./,' \
			--exclude '*/share' --exclude '*/kernel/net' --exclude '*/kernel/sound' \
			--exclude '*/drivers/net' --exclude '*/drivers/gpu' --exclude '*/drivers/media'
	done
	rm -r debs
	mv boot/vmlinuz-* "lib/modules/$2/vmlinuz" 2>/dev/null || true
	rm -rf boot
	test -f "lib/modules/$2/vmlinuz"
	touch "lib/modules/$2/modules.order" "lib/modules/$2/modules.builtin" \
		"lib/modules/$2/modules.builtin.modinfo"
	depmod -b . "$2"
	echo "$2" >release
}

stock=$(kernel_of linux-image-amd64 trixie-backports)
stable=$(kernel_of linux-image-amd64 trixie)
arm64=$(kernel_of linux-image-arm64:arm64 trixie-backports)
headers=$(newest 'linux-headers-[0-9.]+([+~][a-z0-9]+)?(-[0-9]+)?-amd64')
source=$(newest 'linux-source-[0-9.]+')

say "QEMU, $headers, $source"
apt-get -qq -y --no-install-recommends -t trixie-backports install \
	"linux-headers-$stock" "linux-headers-$stable" "$headers" "$source" \
	qemu-system-x86 qemu-system-arm >/dev/null

unpack_kernel stock "$stock" &
unpacking=$!
unpack_kernel stable "$stable"
unpack_kernel arm64-stock "$arm64" :arm64
wait "$unpacking"

# Unpacked too: what they would run at installation is not for this CPU. The tools that
# the headers need are those of this machine's own.
say "headers and libraries for arm64"
mkdir -p /opt/arm64/debs
cd /opt/arm64/debs
download "linux-headers-$arm64:arm64" libgtest-dev:arm64 libgmock-dev:arm64 liburing-dev:arm64 \
	busybox-static:arm64
for deb in linux-headers-* lib*; do
	dpkg-deb -x "$deb" /
done
dpkg-deb -x busybox-static_* /opt/arm64
cd /
rm -r /opt/arm64/debs

say "checkpatch, kernel-doc and merge_config out of $source"
mkdir -p /opt/linux
tar -x -C /opt/linux --strip-components 1 --wildcards -f "/usr/src/$source.tar.xz" \
	'*/scripts/checkpatch.pl' '*/scripts/spelling.txt' \
	'*/scripts/const_structs.checkpatch' '*/scripts/checker-valid.sh' \
	'*/scripts/kconfig/merge_config.sh' '*/tools/docs' '*/tools/lib/python' '*/Documentation/sphinx'
# The headers' makefiles ask this script whether sparse will do, but lack it.
for scripts in /usr/src/linux-headers-*-common/scripts; do
	cp -n /opt/linux/scripts/checker-valid.sh "$scripts"
done

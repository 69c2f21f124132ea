# SPDX-License-Identifier: GPL-2.0-only
#
# dmaprobe: module, library, tool and tests.
#
#   make demo            the whole sequence in the lab, on an emulated IOMMU
#   make check           every test, in the lab
#   make check-all       the longer suites too
#   make lint            style and static checks, in the lab's root
#   make docs            the documentation, in the lab's root
#   make                 all that "make install" needs, for this machine
#   make install         module for the running kernel, library, tool, man page
#   make install-user    the same without the module: it needs no kernel headers
#   make clean           remove what was built (not the lab's cache)
#
# Variables: BUILD (where to build), KDIR (kernel to build the module for),
# V=1 (show commands), STATIC=1 (static programs), SAN=1 (ASan and UBSan),
# CROSS_COMPILE=aarch64-linux-gnu- with ARCH=arm64 (for another CPU),
# WERROR=1 (warnings are errors, as in the lab),
# GCOV=1 (the module counts its lines, for a kernel with GCOV_KERNEL and KCOV),
# DESTDIR, PREFIX (install).

BUILD	?= build
PREFIX	?= /usr/local
KDIR	?= /lib/modules/$(shell uname -r)/build
LAB	:= selftests/lab/lab
VERSION	:= 0.1.0

CXX	?= g++
ifdef CROSS_COMPILE
CXX	:= $(CROSS_COMPILE)g++
AR	:= $(CROSS_COMPILE)ar
endif
# What is given on the command line is added to, not put in place of, what is needed.
override CPPFLAGS += -Ilib/include -Iuapi -MMD -MP -DDMAPROBE_VERSION_STRING='"$(VERSION)"'
CXXFLAGS ?= -O2 -g
override CXXFLAGS += -std=c++23 -Wall -Wextra -Wconversion -Wshadow $(if $(WERROR),-Werror)
ifeq ($(STATIC),1)
override LDFLAGS += -static
endif
ifeq ($(SAN),1)
override CXXFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
override LDFLAGS += -fsanitize=address,undefined
endif
Q	:= $(if $(V),,@)
say	= $(if $(V),,@echo "  $(1)	$(2)")

.PHONY: all
all: user-install modules

include lib/Build.mk
include tools/Build.mk
include selftests/Build.mk

$(BUILD)/obj/%.o: %.cc
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

# What runs in the lab's guest, and what is installed on a machine.
.PHONY: user user-install
user: $(BUILD)/lib/headers.ok $(BUILD)/bin/dmaprobe \
	$(BUILD)/selftests/dmaprobe-selftest $(BUILD)/selftests/dmaprobe-unittest \
	$(BUILD)/selftests/dmaprobe-conformance $(BUILD)/selftests/dmaprobe-doubletest \
	$(BUILD)/selftests/dmaprobe-doubletool $(if $(CROSS_COMPILE),,$(BUILD)/selftests/shared.ok)
user-install: $(BUILD)/lib/libdmaprobe.a $(BUILD)/lib/libdmaprobe.so.0.1 $(BUILD)/bin/dmaprobe \
	$(BUILD)/selftests/dmaprobe-conformance

# The module is built in a tree of links, so that one checkout serves several
# kernels and stays clean.
.PHONY: modules
modules:
	$(if $(wildcard $(KDIR)/Makefile),,$(error no kernel headers at $(KDIR): \
		install linux-headers-$(shell uname -r), or give KDIR=))
	$(eval KREL := $(shell MAKEFLAGS= $(MAKE) -s --no-print-directory -C $(KDIR) kernelrelease))
	@mkdir -p $(BUILD)/modules/$(KREL)/kmod
	@ln -sfn $(CURDIR)/uapi $(BUILD)/modules/$(KREL)/uapi
	@ln -sf $(wildcard $(CURDIR)/kmod/*) $(BUILD)/modules/$(KREL)/kmod/
	$(Q)$(MAKE) -s --no-print-directory -C $(KDIR) \
		M=$(abspath $(BUILD))/modules/$(KREL)/kmod modules
	@ln -sf kmod/dmaprobe.ko $(BUILD)/modules/$(KREL)/dmaprobe.ko

.PHONY: install install-user install-module
install: install-user install-module
install-user: user-install
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig \
		$(DESTDIR)$(PREFIX)/include/dmaprobe $(DESTDIR)$(PREFIX)/include/linux \
		$(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/dmaprobe/schema
	install -m 755 $(BUILD)/bin/dmaprobe $(DESTDIR)$(PREFIX)/bin/
	install -D -m 755 $(BUILD)/selftests/dmaprobe-conformance \
		$(DESTDIR)$(PREFIX)/libexec/dmaprobe/dmaprobe-conformance
	install -m 644 $(BUILD)/lib/libdmaprobe.a $(BUILD)/lib/libdmaprobe.so.0.1 $(DESTDIR)$(PREFIX)/lib/
	ln -sf libdmaprobe.so.0.1 $(DESTDIR)$(PREFIX)/lib/libdmaprobe.so
	install -m 644 lib/include/dmaprobe/*.h $(DESTDIR)$(PREFIX)/include/dmaprobe/
	install -m 644 uapi/linux/dmaprobe.h $(DESTDIR)$(PREFIX)/include/linux/
	sed -e 's,@PREFIX@,$(PREFIX),' -e 's,@VERSION@,$(VERSION),' lib/dmaprobe.pc.in \
		> $(DESTDIR)$(PREFIX)/lib/pkgconfig/dmaprobe.pc
	install -m 644 tools/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -m 644 tools/schema/*.json $(DESTDIR)$(PREFIX)/share/dmaprobe/schema/
	$(if $(DESTDIR),,ldconfig)
install-module: modules
	$(eval KREL := $(shell MAKEFLAGS= $(MAKE) -s --no-print-directory -C $(KDIR) kernelrelease))
	install -D -m 644 $(BUILD)/modules/$(KREL)/dmaprobe.ko \
		$(DESTDIR)/lib/modules/$(KREL)/updates/dmaprobe.ko
	$(if $(DESTDIR),,depmod $(KREL))

.PHONY: demo check check-all lint docs
demo:
	@$(LAB) run -- dmaprobe demo

check:
	@$(LAB) check

check-all:
	@$(LAB) check --all

lint:
	@$(LAB) lint

docs:
	@$(LAB) in -- $(MAKE) -s docs-here

.PHONY: docs-here
docs-here:
	@mkdir -p $(BUILD)/docs
	$(Q)BUILD=$(BUILD) doxygen Documentation/Doxyfile
	$(Q)sphinx-build -q -W -n -d $(BUILD)/docs/doctrees \
		-D breathe_projects.dmaprobe=$(abspath $(BUILD))/docs/doxygen/xml \
		Documentation $(BUILD)/docs/html
	@echo "$(BUILD)/docs/html/index.html"

.PHONY: clean
clean:
	rm -rf $(BUILD)

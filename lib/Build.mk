# SPDX-License-Identifier: GPL-2.0-only
# The library, static and shared.

LIB_SRCS := \
	lib/src/alloc.cc \
	lib/src/api_calls.cc \
	lib/src/bar.cc \
	lib/src/batch.cc \
	lib/src/buffer.cc \
	lib/src/calls.cc \
	lib/src/device.cc \
	lib/src/device_sysfs.cc \
	lib/src/device_vfio.cc \
	lib/src/dmabuf.cc \
	lib/src/engine.cc \
	lib/src/engines/edu.cc \
	lib/src/engines/nvme.cc \
	lib/src/engines/testdev.cc \
	lib/src/fault.cc \
	lib/src/fault_watcher.cc \
	lib/src/file.cc \
	lib/src/interrupts.cc \
	lib/src/iova.cc \
	lib/src/mapping.cc \
	lib/src/pci.cc \
	lib/src/pci_bind.cc \
	lib/src/pci_usage.cc \
	lib/src/pool.cc \
	lib/src/ring.cc \
	lib/src/run.cc \
	lib/src/session.cc \
	lib/src/shared.cc \
	lib/src/translate.cc \
	lib/src/types.cc \
	lib/src/wait.cc

# What else a program links that links the library statically.
LIB_LIBS := -luring

LIB_HEADERS := $(wildcard lib/include/dmaprobe/*.h)
LIB_OBJS := $(LIB_SRCS:%.cc=$(BUILD)/obj/%.o)

# One set of objects for both. What the shared library exports is what the public headers declare:
# their namespace is visible, all else is not, and the version script leaves out what is of
# libstdc++.
$(LIB_OBJS): override CXXFLAGS += -fPIC -fvisibility=hidden -fvisibility-inlines-hidden

$(BUILD)/lib/libdmaprobe.a: $(LIB_OBJS)
	$(call say,AR,$@)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/lib/libdmaprobe.so.0.1: $(LIB_OBJS) lib/libdmaprobe.map
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CXXFLAGS) $(filter-out -static,$(LDFLAGS)) -shared -Wl,-soname,libdmaprobe.so.0.1 \
		-Wl,--version-script=lib/libdmaprobe.map -Wl,-z,defs -o $@ $(LIB_OBJS) $(LIB_LIBS)

# Each public header must compile alone.
$(BUILD)/lib/headers.ok: $(LIB_HEADERS) uapi/linux/dmaprobe.h
	$(call say,HEADERS,lib/include/dmaprobe)
	@mkdir -p $(@D)
	$(Q)for h in $(notdir $(LIB_HEADERS)); do \
		echo "#include <dmaprobe/$$h>" | \
			$(CXX) $(filter-out -MMD -MP,$(CPPFLAGS)) $(CXXFLAGS) -fsyntax-only -x c++ - || exit 1; \
	done
	$(Q)touch $@

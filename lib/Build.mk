# SPDX-License-Identifier: GPL-2.0-only
# The library, static and shared.

LIB_SRCS := \
	lib/src/alloc.cc \
	lib/src/api_calls.cc \
	lib/src/batch.cc \
	lib/src/buffer.cc \
	lib/src/calls.cc \
	lib/src/device.cc \
	lib/src/dmabuf.cc \
	lib/src/engine.cc \
	lib/src/engines/edu.cc \
	lib/src/engines/nvme.cc \
	lib/src/engines/testdev.cc \
	lib/src/fault.cc \
	lib/src/file.cc \
	lib/src/iova.cc \
	lib/src/mapping.cc \
	lib/src/pci.cc \
	lib/src/pool.cc \
	lib/src/ring.cc \
	lib/src/run.cc \
	lib/src/session.cc \
	lib/src/shared.cc \
	lib/src/translate.cc \
	lib/src/types.cc

# What else a program links that links the library statically.
LIB_LIBS := -luring

LIB_HEADERS := $(wildcard lib/include/dmaprobe/*.h)
LIB_OBJS := $(LIB_SRCS:%.cc=$(BUILD)/obj/%.o)
LIB_PIC_OBJS := $(LIB_SRCS:%.cc=$(BUILD)/obj/%.pic.o)

$(BUILD)/lib/libdmaprobe.a: $(LIB_OBJS)
	$(call say,AR,$@)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/lib/libdmaprobe.so.0: $(LIB_PIC_OBJS)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CXXFLAGS) $(filter-out -static,$(LDFLAGS)) -shared -Wl,-soname,libdmaprobe.so.0 -o $@ $^ $(LIB_LIBS)

# Each public header must compile alone, and so must the manual's example.
$(BUILD)/lib/headers.ok: $(LIB_HEADERS) uapi/linux/dmaprobe.h Documentation/example.cc
	$(call say,HEADERS,lib/include/dmaprobe)
	@mkdir -p $(@D)
	$(Q)for h in $(notdir $(LIB_HEADERS)); do \
		echo "#include <dmaprobe/$$h>" | \
			$(CXX) $(filter-out -MMD -MP,$(CPPFLAGS)) $(CXXFLAGS) -fsyntax-only -x c++ - || exit 1; \
	done
	$(Q)$(CXX) $(filter-out -MMD -MP,$(CPPFLAGS)) $(CXXFLAGS) -fsyntax-only Documentation/example.cc
	$(Q)touch $@

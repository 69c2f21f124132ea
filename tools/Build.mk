# SPDX-License-Identifier: GPL-2.0-only
# The command-line tool.

TOOL_SRCS := \
	tools/bench.cc \
	tools/bind.cc \
	tools/check.cc \
	tools/demo.cc \
	tools/faults.cc \
	tools/info.cc \
	tools/list.cc \
	tools/main.cc \
	tools/output.cc

$(BUILD)/bin/dmaprobe: $(TOOL_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(LIB_LIBS)

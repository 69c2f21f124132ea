# SPDX-License-Identifier: GPL-2.0-only
# The command-line tool.

TOOL_SRCS := $(wildcard tools/*.cc)

$(BUILD)/bin/dmaprobe: $(TOOL_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(LIB_LIBS)

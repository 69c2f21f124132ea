# SPDX-License-Identifier: GPL-2.0-only
# The test programs: dmaprobe-selftest wants the module and a device,
# dmaprobe-unittest runs anywhere.

SELFTEST_SRCS := \
	selftests/abi.cc \
	selftests/buffer.cc \
	selftests/cost.cc \
	selftests/engine.cc \
	selftests/fixture.cc \
	selftests/iova.cc \
	selftests/ktap.cc \
	selftests/lifecycle.cc \
	selftests/main.cc \
	selftests/mapping.cc \
	selftests/ring.cc \
	selftests/run.cc \
	selftests/system.cc \
	selftests/tool.cc \
	selftests/uring.cc

UNITTEST_SRCS := \
	selftests/fixture.cc \
	selftests/ktap.cc \
	selftests/main.cc \
	selftests/system.cc \
	selftests/unit_engine.cc \
	selftests/unit_fault.cc \
	selftests/unit_ktap.cc \
	selftests/unit_pci.cc \
	selftests/unit_types.cc \
	selftests/uring.cc

LINK_TESTS = $(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) -luring -lgmock -lgtest -pthread

$(BUILD)/selftests/dmaprobe-selftest: $(SELFTEST_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(LINK_TESTS)

$(BUILD)/selftests/dmaprobe-unittest: $(UNITTEST_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(LINK_TESTS)

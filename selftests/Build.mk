# SPDX-License-Identifier: GPL-2.0-only
# The test programs: dmaprobe-selftest wants the module and a device,
# dmaprobe-unittest runs anywhere. dmaprobe-conformance tests the platform; the
# tool runs it ("dmaprobe check").

SELFTEST_SRCS := \
	selftests/abi.cc \
	selftests/alloc.cc \
	selftests/arena.cc \
	selftests/attrs.cc \
	selftests/boundary.cc \
	selftests/boundary_charge.cc \
	selftests/boundary_device.cc \
	selftests/boundary_lists.cc \
	selftests/boundary_objects.cc \
	selftests/boundary_tables.cc \
	selftests/boundary_time.cc \
	selftests/buffer.cc \
	selftests/calls.cc \
	selftests/cost.cc \
	selftests/dmabuf.cc \
	selftests/engine.cc \
	selftests/failnth.cc \
	selftests/fixture.cc \
	selftests/fuzz.cc \
	selftests/iova.cc \
	selftests/ktap.cc \
	selftests/library.cc \
	selftests/lifecycle.cc \
	selftests/limits.cc \
	selftests/main.cc \
	selftests/mapping.cc \
	selftests/nvme.cc \
	selftests/ops.cc \
	selftests/permissions.cc \
	selftests/pin.cc \
	selftests/pool.cc \
	selftests/races.cc \
	selftests/reach.cc \
	selftests/reach_calls.cc \
	selftests/reach_model.cc \
	selftests/resource.cc \
	selftests/ring.cc \
	selftests/run.cc \
	selftests/sg.cc \
	selftests/stuck.cc \
	selftests/system.cc \
	selftests/target.cc \
	selftests/testdev.cc \
	selftests/tool.cc \
	selftests/unplug.cc \
	selftests/uring.cc \
	selftests/vfio.cc

UNITTEST_SRCS := \
	selftests/fixture.cc \
	selftests/ktap.cc \
	selftests/main.cc \
	selftests/system.cc \
	selftests/unit_engine.cc \
	selftests/unit_fault.cc \
	selftests/unit_ktap.cc \
	selftests/unit_library.cc \
	selftests/unit_pci.cc \
	selftests/unit_types.cc \
	selftests/uring.cc

CONFORMANCE_SRCS := \
	selftests/conformance/check.cc \
	selftests/conformance/device.cc \
	selftests/fixture.cc \
	selftests/ktap.cc \
	selftests/main.cc \
	selftests/system.cc \
	selftests/target.cc \
	selftests/uring.cc

# Half of what a check from nothing takes is to compile the tests. What they cost matters
# only where costs are measured.
$(BUILD)/obj/selftests/%.o: CXXFLAGS += -O0
$(BUILD)/obj/selftests/cost.o $(BUILD)/obj/selftests/uring.o: CXXFLAGS += -O2

# It embeds both.
$(BUILD)/obj/selftests/calls.o: Documentation/api-calls.csv uapi/linux/dmaprobe.h

LINK_TESTS = $(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIB_LIBS) -lgmock -lgtest -pthread

$(BUILD)/selftests/dmaprobe-selftest: $(SELFTEST_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(LINK_TESTS)

$(BUILD)/selftests/dmaprobe-conformance: $(CONFORMANCE_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(LINK_TESTS)

$(BUILD)/selftests/dmaprobe-unittest: $(UNITTEST_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(LINK_TESTS)

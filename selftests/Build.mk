# SPDX-License-Identifier: GPL-2.0-only
# The test programs. dmaprobe-selftest needs the module and a device, dmaprobe-unittest runs
# anywhere. dmaprobe-conformance judges the platform; "dmaprobe check" runs it. dmaprobe-doubletest
# is dmaprobe-conformance, and dmaprobe-doubletool the tool, with double/; only the lab's tests run them.

SUPPORT_SRCS := $(wildcard selftests/support/*.cc)
SELFTEST_SRCS := $(wildcard selftests/module/*/*.cc selftests/library/*.cc selftests/engines/*.cc selftests/tool/*.cc)
UNITTEST_SRCS := $(wildcard selftests/unit/*.cc)
CONFORMANCE_SRCS := $(wildcard selftests/conformance/*.cc)
DOUBLE_SRCS := $(wildcard selftests/double/*.cc)

# Compiling the tests is half of a check from nothing. Their own speed matters only where
# costs are measured.
$(BUILD)/obj/selftests/%.o: CXXFLAGS += -O0
$(BUILD)/obj/selftests/module/abi/cost.o $(BUILD)/obj/selftests/support/uring.o: CXXFLAGS += -O2
$(BUILD)/obj/selftests/%.o: CPPFLAGS += -Iselftests

# It embeds both.
$(BUILD)/obj/selftests/module/abi/api_calls.o: Documentation/api-calls.csv uapi/linux/dmaprobe.h

# Each program takes what it uses of support/.
$(BUILD)/selftests/support.a: $(SUPPORT_SRCS:%.cc=$(BUILD)/obj/%.o)
	$(call say,AR,$@)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

# GoogleTest has a getaddrinfo() that nothing here calls, of which the linker warns when it is
# linked statically. (The linker's own --no-warnings hides errors as well.)
define test_program
$(BUILD)/selftests/$(1): $(2:%.cc=$(BUILD)/obj/%.o) $(BUILD)/selftests/support.a $(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$$@)
	@mkdir -p $$(@D)
	$(Q)$$(CXX) $$(CXXFLAGS) $$(LDFLAGS) -o $$@ $$^ $$(LIB_LIBS) -lgmock -lgtest -pthread \
		2>$$@.log; code=$$$$?; grep -v 'MakeConnection()\|getaddrinfo' $$@.log >&2; \
		rm -f $$@.log; exit $$$$code
endef
$(eval $(call test_program,dmaprobe-selftest,$(SELFTEST_SRCS)))
$(eval $(call test_program,dmaprobe-unittest,$(UNITTEST_SRCS)))
$(eval $(call test_program,dmaprobe-conformance,$(CONFORMANCE_SRCS)))
$(eval $(call test_program,dmaprobe-doubletest,$(CONFORMANCE_SRCS) $(DOUBLE_SRCS)))

# Without GoogleTest, as the tool is.
$(BUILD)/selftests/dmaprobe-doubletool: $(TOOL_SRCS:%.cc=$(BUILD)/obj/%.o) $(DOUBLE_SRCS:%.cc=$(BUILD)/obj/%.o) \
		$(BUILD)/lib/libdmaprobe.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $^ $(LIB_LIBS)

# The shared library exports what the public headers declare and nothing else: the manual's example,
# the tool and the tests find all that they use of it there.
$(BUILD)/selftests/shared.ok: $(BUILD)/lib/libdmaprobe.so.0.1 lib/exports.sh Documentation/example.cc \
		$(TOOL_SRCS:%.cc=$(BUILD)/obj/%.o) $(SELFTEST_SRCS:%.cc=$(BUILD)/obj/%.o) \
		$(UNITTEST_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/selftests/support.a
	$(call say,SHARED,$<)
	$(Q)lib/exports.sh $<
	$(Q)link() { $(CXX) $(CXXFLAGS) $(filter-out -static,$(LDFLAGS)) -o $@.tmp "$$@" $<; } && \
		link $(filter-out -MMD -MP,$(CPPFLAGS)) Documentation/example.cc && \
		link $(TOOL_SRCS:%.cc=$(BUILD)/obj/%.o) && \
		link $(SELFTEST_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/selftests/support.a \
			-lgmock -lgtest -luring -pthread && \
		link $(UNITTEST_SRCS:%.cc=$(BUILD)/obj/%.o) $(BUILD)/selftests/support.a \
			-lgmock -lgtest -luring -pthread
	$(Q)rm -f $@.tmp
	$(Q)touch $@

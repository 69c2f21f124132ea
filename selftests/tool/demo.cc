// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe demo and faults.

#include "tool.h"

#include <algorithm>
#include <chrono>
#include <format>
#include <unistd.h>

namespace selftest {

namespace {

TEST_F(Tool, DemoOfADeviceInUse) {
    if (const std::string lacking = demo_lacks(); !lacking.empty())
        GTEST_SKIP() << lacking;
    // A mapping of another session holds the mask that the demo wants to set.
    Raw other = Raw::open(bdf);
    Buffer b;
    dmaprobe_map map = {};

    ASSERT_TRUE(other);
    ASSERT_OK(other.alloc(b, page_size()));
    map.buffer_id = b.id;
    map.length = page_size();
    ASSERT_OK(other(map));
    const Outcome o = dmaprobe({"demo", bdf});
    EXPECT_EQ(o.code, exit_failed) << o.err;
    one_line_of(o.err, {});
}

TEST_F(Tool, Demo) {
    const std::string lacking = demo_lacks();

    if (const std::string why = no_faults(); lacking.empty() && !why.empty())
        GTEST_SKIP() << why;

    // Each makes two faults.
    const auto run_demo = [&](const std::vector<std::string>& args) {
        const Faults two(2);

        return dmaprobe(args);
    };
    const Outcome text = run_demo({"demo", bdf});
    const Outcome o = run_demo({"demo", bdf, "--json"});
    const json demo = json::parse(o.out, nullptr, false);
    ASSERT_FALSE(demo.is_discarded()) << "no valid JSON: " << o.out;
    if (!lacking.empty()) {
        EXPECT_EQ(text.code, exit_lacking) << text.err;
        one_line_of(text.err, {"skipped"});
        EXPECT_EQ(o.code, exit_lacking);
        EXPECT_EQ(demo.value("result", ""), "skipped");
        EXPECT_TRUE(demo.value("reason", json()).is_string());
        GTEST_SKIP() << lacking;
    }

    EXPECT_EQ(text.code, exit_ok) << text.out << text.err;
    EXPECT_EQ(text.err, "");
    EXPECT_EQ(o.code, exit_ok) << o.err;
    EXPECT_EQ(demo.value("result", ""), "ok");
    EXPECT_EQ(demo.value("device", ""), bdf);
    EXPECT_EQ(demo.value("version", 0), 1);
    // Of the vocabulary of sysfs.
    const std::string domain = read_text(pci_path(bdf) + "/iommu_group/type");
    EXPECT_EQ(demo.value("domain", ""), domain);
    EXPECT_THAT(text.out, HasSubstr(std::format("domain {},", domain)));
    std::string iova;
    for (const json& step : demo.value("steps", json::array())) {
        EXPECT_TRUE(step.value("ok", false)) << step;
        if (step.value("name", "") == "iova_alloc")
            iova = step["values"].value("iova", "");
    }
    ASSERT_TRUE(iova.starts_with("0x")) << iova;

    // The IOMMU reported a write to the space after it was destroyed, at the
    // address that the device was given.
    const uint64_t first = std::stoull(iova, nullptr, 16);
    bool destroyed = false;
    bool placed = true;
    bool has_access = true;
    for (const json& fault : demo.value("faults", json::array())) {
        if (fault.at("iova").is_null()) {
            // As QEMU emulates it.
            EXPECT_EQ(fault.value("platform", ""), "amd-vi") << fault;
            destroyed |= fault.value("step", "") == "fault_destroyed";
            placed = false;
            continue;
        }
        const uint64_t asked = std::stoull(fault.value("asked", "0"), nullptr, 16);
        const uint64_t at = std::stoull(fault.value("iova", "0"), nullptr, 16);

        EXPECT_EQ(fault.value("bdf", ""), bdf);
        EXPECT_EQ(at, asked / 4096 * 4096) << fault;
        EXPECT_GE(asked, first);
        EXPECT_LT(asked, first + 4 * page_size());
        EXPECT_THAT(fault.value("raw", ""), HasSubstr(std::format("{:x}", at)));
        if (fault.value("step", "") == "fault_destroyed") {
            destroyed = true;
            has_access = fault.value("access", "") != "unknown";
            if (has_access) {
                EXPECT_EQ(fault.value("access", ""), "write");
            } else {
                // As QEMU emulates it, where nothing is mapped.
                EXPECT_EQ(fault.value("platform", ""), "virtio-iommu") << fault;
            }
        }
    }
    EXPECT_TRUE(destroyed) << "no fault after the destroy: " << o.out;
    // The report for people shows the same events, with its own addresses.
    EXPECT_THAT(text.out, HasSubstr(!placed      ? "faults, and does not"
                                    : has_access ? "faults: write of 0x"
                                                 : "faults: access of 0x"));
    // It leaves nothing behind.
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    expect_hole(first, 4 * page_size());
    EXPECT_OK(s.set_mask(0xffffffff));
}

// Those of the device and those of all, as they come; nobody needs the device for it.
TEST_F(Tool, Faults) {
    fails({"faults", "--count", "many"}, exit_usage, {"--count"});
    fails({"faults", no_such_device}, exit_failed, {no_such_device});
    const Outcome failed = dmaprobe({"faults", "--json", no_such_device});
    EXPECT_FALSE(json::parse(failed.out, nullptr, false).is_discarded()) << failed.out;
    EXPECT_EQ(std::ranges::count(failed.out, '\n'), 1) << failed.out;
    const Outcome none = dmaprobe({"faults", "--seconds", "0"});
    EXPECT_EQ(none.code, exit_ok) << none.err;
    EXPECT_EQ(none.out, "");
    if (const std::string why = demo_lacks(); !why.empty())
        GTEST_SKIP() << why;
    if (const std::string why = no_faults(); !why.empty())
        GTEST_SKIP() << why;
    const Faults limit(Faults::all);
    const Outcome o = run({"sh", "-c",
                           "dmaprobe faults --count 1 --seconds 60 --json " + bdf +
                               " & sleep 1; dmaprobe demo " + bdf + " >/dev/null; wait $!"},
                          std::chrono::seconds(100));
    EXPECT_EQ(o.code, exit_ok) << o.err;
    const json fault = json::parse(o.out, nullptr, false);
    ASSERT_FALSE(fault.is_discarded()) << o.out;
    EXPECT_FALSE(fault.value("raw", "").empty()) << o.out;
    EXPECT_EQ(fault.value("version", 0), 1);
    EXPECT_EQ(std::ranges::count(o.out, '\n'), 1);
}

// The step that runs, on stderr if that is a terminal.
TEST_F(Tool, DemoProgress) {
    Terminal err;

    ASSERT_TRUE(err);
    const Faults two(2);
    const Outcome o = dmaprobe({"demo", "--json", bdf}, [&] { err.replace(STDERR_FILENO); });
    EXPECT_FALSE(json::parse(o.out, nullptr, false).is_discarded()) << o.out;
    EXPECT_THAT(err.text(), HasSubstr("step 1: Open a session"));
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe bind and unbind, and what the others say of a device that is not bound.

#include "tool.h"

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <format>
#include <fstream>
#include <utility>

namespace selftest {

namespace {

TEST_F(Tool, Bridge) {
    const std::string port = std::filesystem::canonical(pci_path(bdf)).parent_path().filename();

    if (!exists(pci_path(port)))
        GTEST_SKIP() << "the device is behind no port";
    const KeepDriver keep_port(port);
    fails({"bind", port}, exit_failed, {port, "bridge"});
    fails({"bind", "--force", port}, exit_failed, {port, "bridge"});
}

TEST_F(Tool, DeviceInUseByItsDriver) {
    const std::string busy = env("DMAPROBE_BUSY_BDF");

    if (busy.empty())
        GTEST_SKIP() << "no device in use: DMAPROBE_BUSY_BDF is not set";
    const std::string driver = driver_of(busy);
    ASSERT_NE(driver, "") << busy << " has no driver";
    fails({"bind", busy}, exit_failed, {busy, driver});
    EXPECT_EQ(driver_of(busy), driver) << "the driver was unbound";
    const std::string override = read_text(pci_path(busy) + "/driver_override");
    EXPECT_TRUE(override.empty() || override == "(null)") << override;
    fails({"unbind", busy}, exit_failed, {busy, driver});
    EXPECT_EQ(driver_of(busy), driver) << "the driver was unbound";
    fails({"info", busy}, exit_failed, {busy});
}

TEST_F(Tool, NotBound) {
    const std::string other = env("DMAPROBE_BDF2");

    if (!other.empty()) {
        ASSERT_EQ(driver_of(other), "") << "the second device should have no driver";
        for (const char* verb : {"info", "demo", "unbind"})
            fails({verb, other}, exit_failed, {other, "bound"});
    }
    ASSERT_EQ(dmaprobe({"unbind", bdf}).code, exit_ok);
    for (const char* verb : {"info", "demo", "unbind"})
        fails({verb, bdf}, exit_failed, {bdf, "bound"});
    // Without a name there is nothing to choose.
    for (const char* verb : {"info", "demo"})
        fails({verb}, exit_failed, {"bound"});
}

TEST_F(Tool, ModuleNotLoaded) {
    if (!exists("/sys/module/dmaprobe/initstate"))
        GTEST_SKIP() << "dmaprobe is built into the kernel";
    int err = 0;
    ASSERT_TRUE(
        wait_for([&] { return (err = remove_module(driver_name)) == 0; }, std::chrono::seconds(5)))
        << strerrorname_np(err);
    for (const char* verb : {"info", "demo"}) {
        fails({verb, bdf}, exit_failed, {"module", "not loaded"});
        fails({verb}, exit_failed, {"module", "not loaded"});
    }
    // The device is reserved for it still.
    EXPECT_EQ(works({"unbind", bdf, "--json"}).value("bdf", ""), bdf);
    EXPECT_NE(read_text(pci_path(bdf) + "/driver_override"), driver_name);
    fails({"unbind", bdf}, exit_failed, {bdf});
    const json list = works({"list", "--json"});
    EXPECT_EQ(list.value("module_loaded", true), false);
}

TEST_F(Tool, BindAndUnbind) {
    Outcome o = dmaprobe({"bind", bdf});
    EXPECT_EQ(o.code, exit_ok) << "already bound: " << o.err;
    o = dmaprobe({"unbind", bdf});
    EXPECT_EQ(o.code, exit_ok) << o.err;
    EXPECT_EQ(driver_of(bdf), "");
    EXPECT_NE(read_text(pci_path(bdf) + "/driver_override"), driver_name);
    o = dmaprobe({"bind", bdf});
    EXPECT_EQ(o.code, exit_ok) << o.err;
    EXPECT_EQ(driver_of(bdf), driver_name);
    EXPECT_TRUE(wait_for([&] { return exists(node_path(bdf)); }, std::chrono::seconds(5)));
    EXPECT_EQ(works({"unbind", bdf, "--json"}).value("bdf", ""), bdf);
    EXPECT_EQ(driver_of(bdf), "");
    EXPECT_EQ(works({"bind", bdf, "--json"}).value("bdf", ""), bdf);
    EXPECT_EQ(driver_of(bdf), driver_name);
}

// Unbound by hand, or by the module's end, it is still reserved for dmaprobe.
TEST_F(Tool, UnbindAfterTheDriverWentAway) {
    ASSERT_EQ(dmaprobe({"bind", bdf}).code, exit_ok);
    ASSERT_EQ(unbind_driver(bdf), 0);
    EXPECT_EQ(read_text(pci_path(bdf) + "/driver_override"), driver_name);
    EXPECT_EQ(works({"unbind", bdf, "--json"}).value("bdf", ""), bdf);
    EXPECT_NE(read_text(pci_path(bdf) + "/driver_override"), driver_name);
    fails({"unbind", bdf}, exit_failed, {"not bound"});
    EXPECT_EQ(dmaprobe({"bind", bdf}).code, exit_ok);
}

// A driver that does not take the device back is named.
TEST_F(Tool, UnbindWithoutItsDriver) {
    const std::string remembered = "/run/dmaprobe/" + bdf;

    ASSERT_EQ(dmaprobe({"bind", bdf}).code, exit_ok);
    const std::string before = exists(remembered) ? read_text(remembered) : "";
    std::filesystem::create_directories("/run/dmaprobe");
    std::ofstream(remembered) << "driver=no-such-driver\ndriver_override=\ndomain=\n";
    const Outcome o = dmaprobe({"unbind", bdf});
    EXPECT_EQ(o.code, exit_failed);
    one_line_of(o.err, {bdf, "no-such-driver"});
    // The kernel may have chosen another.
    EXPECT_NE(driver_of(bdf), driver_name);
    EXPECT_FALSE(exists(remembered));
    EXPECT_EQ(dmaprobe({"bind", "--force", bdf}).code, exit_ok);
    if (!before.empty())
        std::ofstream(remembered) << before << '\n';
}

// The group's domain is of the type that was asked for, as long as the device is bound.
TEST_F(Tool, BindWithADomain) {
    const std::string type = pci_path(bdf) + "/iommu_group/type";
    const std::string before = read_text(type);

    // "unknown" in VFIO's group for devices without an IOMMU.
    if (!exists(type) || before == "unknown")
        GTEST_SKIP() << "the device has no default domain";
    fails({"bind", bdf, "--domain", "fancy"}, exit_usage,
          {"fancy", "DMA (strict)", "DMA-FQ (lazy)", "identity"});
    const char* other = before == "identity" ? "strict" : "identity";
    fails({"bind", bdf, "--domain", other}, exit_failed, {bdf, before, "unbind"});
    EXPECT_EQ(read_text(type), before);
    ASSERT_EQ(dmaprobe({"unbind", bdf}).code, exit_ok);
    // By sysfs' words and by those of the kernel's command line; info has sysfs' own.
    for (const auto& [name, in_sysfs] : {std::pair{"identity", "identity"},
                                         {"lazy", "DMA-FQ"},
                                         {"DMA-FQ", "DMA-FQ"},
                                         {"strict", "DMA"},
                                         {"DMA", "DMA"}}) {
        const Outcome o = dmaprobe({"bind", bdf, "--domain", name});

        SCOPED_TRACE(name);
        // Not every IOMMU has all types for every device.
        if (o.code == exit_lacking) {
            diagnose(o.err);
            EXPECT_EQ(driver_of(bdf), "");
            EXPECT_EQ(read_text(type), before);
            continue;
        }
        ASSERT_EQ(o.code, exit_ok) << o.err;
        EXPECT_EQ(driver_of(bdf), driver_name);
        EXPECT_EQ(read_text(type), in_sysfs);
        ASSERT_TRUE(wait_for([&] { return exists(node_path(bdf)); }, std::chrono::seconds(5)));
        EXPECT_EQ(works({"info", bdf, "--json"})["domain"].value("type", ""), in_sysfs);
        if (before != in_sysfs) {
            EXPECT_THAT(o.out, HasSubstr(std::format("was {} and is {}", before, in_sysfs)));
        }
        ASSERT_EQ(dmaprobe({"unbind", bdf}).code, exit_ok);
        EXPECT_EQ(read_text(type), before);
    }
    EXPECT_EQ(dmaprobe({"bind", bdf}).code, exit_ok);
    EXPECT_EQ(driver_of(bdf), driver_name);
}

TEST_F(Tool, BindLoadsTheModule) {
    if (!exists("/sys/module/dmaprobe/initstate"))
        GTEST_SKIP() << "dmaprobe is built into the kernel";
    // Unbound by the tool, so that loading alone would not bind it.
    Outcome o = dmaprobe({"unbind", bdf});
    ASSERT_EQ(o.code, exit_ok) << o.err;
    int err = 0;
    ASSERT_TRUE(
        wait_for([&] { return (err = remove_module(driver_name)) == 0; }, std::chrono::seconds(5)))
        << strerrorname_np(err);
    o = dmaprobe({"bind", bdf});
    EXPECT_EQ(o.code, exit_ok) << o.err;
    EXPECT_EQ(driver_of(bdf), driver_name);
}

// What had the device before gets it back, override and all.
TEST_F(Tool, UnbindRestoresThePreviousDriver) {
    const std::string other = env("DMAPROBE_BDF2");
    const std::string previous = "vfio-pci";

    if (other.empty())
        GTEST_SKIP() << "no second device: DMAPROBE_BDF2 is not set";
    run({"modprobe", previous});
    if (!exists("/sys/bus/pci/drivers/" + previous))
        GTEST_SKIP() << "there is no driver " << previous;
    KeepDriver keep_other(other);
    ASSERT_OK(write_text(pci_path(other) + "/driver_override", previous + "\n"));
    ASSERT_OK(probe_driver(other));
    ASSERT_EQ(driver_of(other), previous);

    fails({"bind", other}, exit_failed, {other, previous});
    EXPECT_EQ(driver_of(other), previous);
    Outcome o = dmaprobe({"bind", "--force", other});
    EXPECT_EQ(o.code, exit_ok) << o.err;
    EXPECT_EQ(driver_of(other), driver_name);
    // Now two are bound, and one must be named.
    fails({"info"}, exit_usage, {bdf, other});
    o = dmaprobe({"unbind", other});
    EXPECT_EQ(o.code, exit_ok) << o.err;
    EXPECT_EQ(driver_of(other), previous);
    EXPECT_EQ(read_text(pci_path(other) + "/driver_override"), previous);
    EXPECT_TRUE(keep_other.restore());
}

} // namespace
} // namespace selftest

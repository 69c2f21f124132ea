// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe list and info.

#include "tool.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <format>
#include <fstream>
#include <unistd.h>

namespace selftest {

namespace {

TEST_F(Tool, List) {
    const Outcome text = dmaprobe({"list"});

    EXPECT_EQ(text.code, exit_ok) << text.err;
    EXPECT_EQ(text.err, "");
    const json list = works({"list", "--json"});
    EXPECT_EQ(list.value("module_loaded", false), true);
    ASSERT_TRUE(list.contains("devices"));
    bool found = false;
    size_t functions = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator("/sys/bus/pci/devices"))
        functions++;
    EXPECT_EQ(list["devices"].size(), functions);
    for (const json& device : list["devices"]) {
        EXPECT_THAT(text.out, HasSubstr(device.value("bdf", "?")));
        if (device["bdf"] != bdf)
            continue;
        found = true;
        EXPECT_EQ(device.value("driver", json()), driver_name);
    }
    EXPECT_TRUE(found) << bdf << " is not listed";

    const json bound = works({"list", "--bound", "--json"});
    EXPECT_LT(bound["devices"].size(), functions) << "the root port is not bound";
    for (const json& device : bound["devices"])
        EXPECT_EQ(device.value("driver", json()), driver_name);
    EXPECT_THAT(dmaprobe({"list", "--bound"}).out, HasSubstr("\n" + bdf));
}

TEST_F(Tool, Info) {
    const Outcome text = dmaprobe({"info", bdf});

    EXPECT_EQ(text.code, exit_ok) << text.err;
    EXPECT_EQ(text.err, "");
    EXPECT_THAT(text.out, HasSubstr(bdf));
    EXPECT_LE(std::ranges::count(text.out, '\n'), 25) << text.out;
    EXPECT_THAT(text.out, HasSubstr("--calls"));
    const Outcome table = dmaprobe({"info", bdf, "--calls"});
    EXPECT_EQ(table.code, exit_ok) << table.err;
    EXPECT_THAT(table.out, HasSubstr("  dma_map_single"));
    EXPECT_THAT(table.out, HasSubstr("\nCalls of older kernels that are gone\n"));
    EXPECT_FALSE(text.out.contains("dma_map_single")) << text.out;
    // The option may stand before or behind the verb; the device may be left out.
    const json info = works({"info", bdf, "--json"});
    EXPECT_EQ(works({"--json", "info", bdf}), info);
    EXPECT_EQ(works({"info", "--json"}), info);
    EXPECT_EQ(info["device"].value("bdf", ""), bdf);
    EXPECT_EQ(info["device"].value("driver", json()), driver_name);
    EXPECT_EQ(info["abi"].value("module", 0), DMAPROBE_ABI_VERSION);
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    const dmaprobe_get_limits limits = s.limits();
    EXPECT_EQ(info["limits"].value("dma_mask", ""), std::format("{:#x}", limits.dma_mask));
    EXPECT_EQ(info["limits"].value("merge_boundary", ""),
              std::format("{:#x}", limits.merge_boundary));
    EXPECT_EQ(info["limits"].value("iommu", !s.translated()), s.translated());
    EXPECT_EQ(info["limits"].value("can_mmap", false),
              (limits.props & DMAPROBE_DEVICE_CAN_MMAP) != 0);
    EXPECT_EQ(info["limits"].value("confined", false),
              (limits.props & DMAPROBE_DEVICE_CONFINED) != 0);
    EXPECT_EQ(info["limits"].value("cache_alignment", 0U), limits.cache_alignment);
    // It says what this kernel does not offer, and why.
    for (const auto& [name, feature] :
         {std::pair{"dma_map_phys", uint32_t{DMAPROBE_FEATURE_MAP_PHYS}},
          std::pair{"dma_iova_try_alloc", uint32_t{DMAPROBE_FEATURE_DMA_IOVA}},
          std::pair{"dma_map_single", uint32_t{0}}}) {
        const auto why = s.missing(feature);
        const json& calls = info["calls"];
        const auto call =
            std::ranges::find_if(calls, [&](const json& c) { return c.value("name", "") == name; });

        ASSERT_NE(call, calls.end()) << name;
        EXPECT_EQ(call->value("status", ""), why ? "missing" : "offered") << name;
        if (why) {
            EXPECT_THAT(*why, HasSubstr(call->value("detail", "?")));
            EXPECT_THAT(table.out, HasSubstr(call->value("detail", "?")));
        }
    }
}

TEST_F(Tool, InfoBesideASession) {
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    EXPECT_EQ(works({"info", bdf, "--json"})["device"].value("bdf", ""), bdf);
}

// It does not open the device: that would reset it.
TEST_F(Tool, InfoWithoutTheEngine) {
    const Outcome text = dmaprobe({"info", "--no-engine", bdf});
    EXPECT_EQ(text.code, exit_ok) << text.err;
    EXPECT_THAT(text.out, HasSubstr("--no-engine"));

    const json info = works({"info", "--no-engine", "--json", bdf});
    EXPECT_TRUE(info["access"]["path"].is_null()) << info["access"];
    json whole = works({"info", "--json", bdf});
    ASSERT_TRUE(whole["engine"].is_object());
    EXPECT_TRUE(whole["engine"].value("ready", false)) << whole["engine"];
    EXPECT_FALSE(whole["access"]["path"].is_null()) << whole["access"];
    EXPECT_TRUE(info["engine"]["ready"].is_null()) << info["engine"];
    EXPECT_TRUE(info["engine"]["completion"].is_null()) << info["engine"];
    EXPECT_EQ(info["engine"]["name"], whole["engine"]["name"]);
    EXPECT_EQ(info["limits"], whole["limits"]);
    EXPECT_EQ(info["domain"], whole["domain"]);
}

// Names beside the ids, of the file that has them.
TEST_F(Tool, Names) {
    const std::string file = "/tmp/dmaprobe-pci.ids";
    const json device = works({"info", "--no-engine", "--json", bdf})["device"];
    const std::string id = device.value("vendor", "");
    const std::string of_class = device.value("class", "");
    const auto with_file = [&] { setenv("DMAPROBE_PCI_IDS", file.c_str(), 1); };
    const auto without = [] { setenv("DMAPROBE_PCI_IDS", "/nonexistent", 1); };

    std::ofstream(file) << std::format("# A comment\n\n0001  Somebody else\n\t{1}  Not this\n"
                                       "{0}  Test Vendor\n\t{1}  Test Device\n"
                                       "\t\t{0} {1}  Not a device\n"
                                       "C {2}  Test Class\n\t{3}  Test Subclass\n",
                                       id, device.value("device", ""), of_class.substr(0, 2),
                                       of_class.substr(2, 2));
    const json named = works({"info", "--no-engine", "--json", bdf}, with_file)["device"];
    EXPECT_EQ(named.value("vendor_name", json()), "Test Vendor");
    EXPECT_EQ(named.value("device_name", json()), "Test Device");
    EXPECT_EQ(named.value("class_name", json()), "Test Subclass");
    for (const std::vector<std::string>& args :
         {std::vector<std::string>{"info", "--no-engine", bdf}, {"list", "--bound"}})
        EXPECT_THAT(dmaprobe(args, with_file).out,
                    HasSubstr("Test Subclass: Test Vendor Test Device\n"));

    // A class may have a name and a subclass none; so may a vendor and a device.
    std::ofstream(file) << std::format("{}  Test Vendor\nC {}  Test Class\n", id,
                                       of_class.substr(0, 2));
    EXPECT_THAT(dmaprobe({"list"}, with_file).out, HasSubstr("Test Class: Test Vendor\n"));

    const json unnamed = works({"info", "--no-engine", "--json", bdf}, without)["device"];
    for (const char* name : {"vendor_name", "device_name", "class_name"})
        EXPECT_TRUE(unnamed.at(name).is_null()) << name;
    EXPECT_FALSE(dmaprobe({"list"}, without).out.contains("NAME"));
    unlink(file.c_str());
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// The dmaprobe command, as a person or a script uses it: what it prints where, and
// the exit code. Wrong use is one line on stderr.

#include "fixture.h"
#include "ktap.h"
#include "system.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <format>
#include <fstream>
#include <unistd.h>

namespace selftest {
namespace {

using nlohmann::json;
using testing::HasSubstr;

constexpr int exit_ok = 0;
constexpr int exit_failed = 1;
constexpr int exit_usage = 2;
constexpr int exit_lacking = 4;

// A place on the bus that no machine has.
constexpr char no_such_device[] = "fffe:fe:1e.7";

Outcome dmaprobe(std::vector<std::string> args, const std::function<void()>& in_child = {}) {
    args.insert(args.begin(), "dmaprobe");
    return run(args, std::chrono::seconds(60), in_child);
}

class Tool : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        // The tool is to be the only one on the device.
        EXPECT_OK(s.close());
        keep.emplace(bdf);
    }

    void TearDown() override {
        if (keep) {
            EXPECT_TRUE(keep->restore()) << "the device was not bound again";
        }
    }

    // One line on stderr that mentions these, nothing on stdout; and with --json
    // the same in a document.
    void fails(const std::vector<std::string>& args, int code,
               const std::vector<std::string>& mentions,
               const std::function<void()>& in_child = {}) const {
        std::string command = "dmaprobe";
        for (const std::string& arg : args)
            command += " " + arg;
        SCOPED_TRACE(command);

        Outcome o = dmaprobe(args, in_child);
        EXPECT_FALSE(o.late);
        EXPECT_EQ(o.code, code) << o.err;
        EXPECT_EQ(o.out, "");
        one_line_of(o.err, mentions);

        std::vector<std::string> with_json = args;
        with_json.emplace_back("--json");
        o = dmaprobe(with_json, in_child);
        EXPECT_EQ(o.code, code) << o.err;
        one_line_of(o.err, mentions);
        const json document = json::parse(o.out, nullptr, false);
        ASSERT_FALSE(document.is_discarded()) << "no valid JSON: " << o.out;
        ASSERT_TRUE(document.contains("error")) << o.out;
        const json& error = document["error"];
        ASSERT_TRUE(error.value("message", json()).is_string()) << o.out;
        EXPECT_EQ(error.value("exit", -1), code);
        for (const std::string& text : mentions)
            EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(text));
    }

    static void one_line_of(const std::string& err, const std::vector<std::string>& mentions) {
        EXPECT_EQ(std::ranges::count(err, '\n'), 1) << err;
        EXPECT_TRUE(err.ends_with('\n')) << err;
        EXPECT_TRUE(err.starts_with("dmaprobe: ")) << err;
        for (const std::string& text : mentions)
            EXPECT_THAT(err, HasSubstr(text));
    }

    // A document on stdout and nothing on stderr.
    static json works(const std::vector<std::string>& args) {
        const Outcome o = dmaprobe(args);

        EXPECT_EQ(o.code, exit_ok) << o.err;
        EXPECT_EQ(o.err, "");
        json document = json::parse(o.out, nullptr, false);
        EXPECT_FALSE(document.is_discarded()) << "no valid JSON: " << o.out;
        return document;
    }

    // What the demo needs and this machine lacks, or nothing.
    std::string demo_lacks() const {
        const Raw raw = Raw::open(bdf);

        EXPECT_TRUE(raw);
        if (const auto why = raw.missing(DMAPROBE_FEATURE_DMA_IOVA))
            return *why;
        return raw.translated() ? "" : "no IOMMU translates for the device";
    }
    // Why the demo cannot see its faults, or nothing.
    std::string no_faults() const { return Raw::open(bdf).no_faults(); }

    std::optional<KeepDriver> keep;
};

// --- wrong use ---------------------------------------------------------------

TEST_F(Tool, NoArguments) {
    fails({}, exit_usage, {"verb"});
}

TEST_F(Tool, WrongVerb) {
    fails({"frobnicate"}, exit_usage, {"frobnicate"});
    // Verbs are exact.
    fails({"inf", bdf}, exit_usage, {"'inf'"});
    fails({"INFO", bdf}, exit_usage, {"'INFO'"});
    fails({""}, exit_usage, {"verb"});
}

TEST_F(Tool, WrongOption) {
    fails({"--no-such-option"}, exit_usage, {"--no-such-option"});
    fails({"info", "--no-such-option"}, exit_usage, {"--no-such-option"});
    fails({"unbind", "--force", bdf}, exit_usage, {"--force"});
    fails({"info", bdf, "too-much"}, exit_usage, {"too-much"});
    fails({"list", bdf}, exit_usage, {bdf});
}

TEST_F(Tool, MissingBdf) {
    fails({"bind"}, exit_usage, {"BDF"});
    fails({"unbind"}, exit_usage, {"BDF"});
}

TEST_F(Tool, MalformedBdf) {
    for (const char* verb : {"bind", "unbind", "info", "demo"})
        for (const char* text : {"nonsense", "0000:01:00", "0000:01:00.8", "eth0"})
            fails({verb, text}, exit_usage, {text});
}

TEST_F(Tool, UnknownBdf) {
    for (const char* verb : {"bind", "unbind", "info", "demo"})
        fails({verb, no_such_device}, exit_failed, {no_such_device});
}

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

TEST_F(Tool, NoRoot) {
    const auto nobody = [] {
        if (setgid(65534) || setuid(65534))
            _exit(126);
    };

    fails({"info", bdf}, exit_failed, {"root"}, nobody);
    fails({"demo", bdf}, exit_failed, {"root"}, nobody);
    fails({"unbind", bdf}, exit_failed, {"root"}, nobody);
    EXPECT_EQ(driver_of(bdf), driver_name);
    if (const std::string other = env("DMAPROBE_BDF2"); !other.empty()) {
        fails({"bind", other}, exit_failed, {"root"}, nobody);
        EXPECT_EQ(driver_of(other), "");
    }
    // Looking is free.
    const Outcome o = dmaprobe({"list"}, nobody);
    EXPECT_EQ(o.code, exit_ok) << o.err;
    EXPECT_THAT(o.out, HasSubstr(bdf));
}

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

// --- what it is for ----------------------------------------------------------

TEST_F(Tool, HelpAndVersion) {
    for (const char* arg : {"--help", "--version"}) {
        const Outcome o = dmaprobe({arg});

        EXPECT_EQ(o.code, exit_ok) << arg;
        EXPECT_EQ(o.err, "") << arg;
        EXPECT_THAT(o.out, HasSubstr("dmaprobe")) << arg;
    }
    for (const char* verb : {"list", "bind", "unbind", "info", "demo"}) {
        const Outcome o = dmaprobe({verb, "--help"});

        EXPECT_EQ(o.code, exit_ok) << verb;
        EXPECT_THAT(o.out, HasSubstr(verb));
    }
    EXPECT_EQ(works({"--version", "--json"}).value("abi_version", 0), DMAPROBE_ABI_VERSION);
}

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
}

TEST_F(Tool, Info) {
    const Outcome text = dmaprobe({"info", bdf});

    EXPECT_EQ(text.code, exit_ok) << text.err;
    EXPECT_EQ(text.err, "");
    EXPECT_THAT(text.out, HasSubstr(bdf));
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
            EXPECT_THAT(text.out, HasSubstr(call->value("detail", "?")));
        }
    }
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

// Every way is measured, and the numbers hang together. How large they may be is
// for those tests to say whose clock counts instructions.
TEST_F(Tool, BenchDispatch) {
    const std::vector<std::string> few = {"--rounds", "100", "--repeat", "2"};
    const auto bench = [&](std::vector<std::string> args) {
        args.insert(args.begin(), {"bench", "dispatch"});
        args.insert(args.end(), few.begin(), few.end());
        return args;
    };
    const Outcome text = dmaprobe(bench({bdf}));
    EXPECT_EQ(text.code, exit_ok) << text.err;
    EXPECT_EQ(text.err, "");
    EXPECT_THAT(text.out, HasSubstr(bdf));
    EXPECT_THAT(text.out, HasSubstr("in ns"));
    for (const char* line :
         {"loop inside the module", "vectored run", "ring, depth 1 ", "ring, depth 8",
          "ring, depth 32", "ring, depth 128", "ioctl ", "ENOTTY", "Map and unmap 4 KiB"})
        EXPECT_THAT(text.out, HasSubstr(line));
    EXPECT_THAT(dmaprobe(bench({"--icount"})).out, HasSubstr("in instructions"));

    const json doc = works(bench({"--json", "--icount"}));
    EXPECT_EQ(doc.value("device", ""), bdf);
    EXPECT_EQ(doc.value("unit", ""), "instructions");
    EXPECT_EQ(doc.value("rounds", 0), 128) << "whole runs";
    EXPECT_EQ(doc.value("repeat", 0), 2);
    std::vector<std::string> seen;
    for (const json& row : doc["rows"]) {
        SCOPED_TRACE(row.dump());
        seen.push_back(std::format("{} {} {}", row.value("op", ""), row.value("way", ""),
                                   row["depth"].dump()));
        if (row["skipped"].is_string()) {
            EXPECT_EQ(row.value("way", ""), "ring");
            EXPECT_TRUE(row["min"].is_null());
            continue;
        }
        EXPECT_TRUE(row["skipped"].is_null());
        EXPECT_GE(row["min"].get<double>(), 0);
        EXPECT_GE(row["median"].get<double>(), row["min"].get<double>());
        if (row["way"] == "module") {
            EXPECT_EQ(row["ratio"].get<double>(), 1);
        }
    }
    EXPECT_THAT(
        seen, testing::ElementsAre("nop module null", "nop run 128", "nop ring 1", "nop ring 8",
                                   "nop ring 32", "nop ring 128", "nop ioctl null",
                                   "nop enotty null", "map_unmap module null", "map_unmap run 128",
                                   "map_unmap ring 1", "map_unmap ring 8", "map_unmap ring 32",
                                   "map_unmap ring 128", "map_unmap ioctl null"));
    // It leaves nothing behind.
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    EXPECT_OK(s.set_mask(0xffffffff));
}

TEST_F(Tool, BenchUsage) {
    fails({"bench"}, exit_usage, {"bench", "--help"});
    fails({"bench", "frobnicate"}, exit_usage, {"frobnicate", "dispatch"});
    fails({"bench", "dispatch", bdf, "--rounds", "0"}, exit_usage, {"--rounds"});
    fails({"bench", "dispatch", bdf, "--rounds", "10000001"}, exit_usage, {"--rounds"});
    fails({"bench", "dispatch", bdf, "--rounds", "many"}, exit_usage, {"--rounds"});
    fails({"bench", "dispatch", bdf, "--repeat", "0"}, exit_usage, {"--repeat"});
    fails({"bench", "dispatch", no_such_device}, exit_failed, {no_such_device});
}

// Those of the device and those of all, as they come; nobody needs the device for it.
TEST_F(Tool, Faults) {
    fails({"faults", "--count", "many"}, exit_usage, {"--count"});
    fails({"faults", no_such_device}, exit_failed, {no_such_device});
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
    EXPECT_EQ(std::ranges::count(o.out, '\n'), 1);
}

// Output that cannot be written is a failure.
TEST_F(Tool, FullDisk) {
    const Outcome o = run({"sh", "-c", "dmaprobe list >/dev/full"});
    EXPECT_EQ(o.code, exit_failed);
    EXPECT_THAT(o.err, HasSubstr("could not be written"));
}

TEST_F(Tool, CheckUsage) {
    fails({"check", bdf, "--fancy"}, exit_usage, {"--fancy"});
    fails({"check", "0000:00:1e.7"}, exit_failed, {"0000:00:1e.7"});
    const Outcome o = dmaprobe({"check", "--list"});
    if (o.code == exit_lacking)
        GTEST_SKIP() << o.err;
    EXPECT_EQ(o.code, exit_ok) << o.err;
    for (const char* name : {"\nData.BothWays/linked\n", "\nAfter.ItIsTaken/page\n", "\nWindow."})
        EXPECT_THAT("\n" + o.out, HasSubstr(name));
    fails({"check", bdf, "--only", "Data.*", "--only", "Typo"}, exit_usage, {"'Typo'", "--list"});
    fails({"check", bdf, "--junit", "/nonexistent/junit.xml"}, exit_failed,
          {"/nonexistent/junit.xml"});
    // What stands behind a pattern is the device.
    fails({"check", "--only", "Data.*", no_such_device}, exit_failed, {no_such_device});
    const json list = works({"check", "--list", "--only", "Data.BothWays/p?ge", "--json"});
    EXPECT_EQ(list["checks"], json::array({"Data.BothWays/page"}));
}

// A check that could not be made is none that was passed.
TEST_F(Tool, CheckOfNothing) {
    const Outcome o = dmaprobe({"check", bdf, "--only", "Window.*"});
    if (o.code == exit_lacking && o.out.empty())
        GTEST_SKIP() << o.err;
    if (Raw::open(bdf).translated() && o.out.contains("\nok 1 Window.OfUnmap\n"))
        GTEST_SKIP() << "the domain is lazy";
    EXPECT_EQ(o.code, exit_lacking) << o.out;
    EXPECT_THAT(o.err, HasSubstr("nothing could be checked"));
}

// One check, by each form of output.
TEST_F(Tool, Check) {
    const std::vector<std::string> args = {"check", bdf, "--only", "Data.BothWays/page"};
    const std::string junit = "/tmp/dmaprobe-check.xml";

    EXPECT_OK(s.close());
    Outcome o = dmaprobe(args);
    if (o.code == exit_lacking)
        GTEST_SKIP() << o.err;
    EXPECT_EQ(o.code, o.out.contains(" # SKIP ") ? exit_lacking : exit_ok) << o.out << o.err;
    EXPECT_TRUE(o.out.starts_with("KTAP version 1\n1..1\n")) << o.out;
    EXPECT_THAT(o.out, HasSubstr("\nok 1 Data.BothWays/page"));
    EXPECT_THAT(o.out, HasSubstr("\n# rule: "));

    std::vector<std::string> words = args;
    words.insert(words.end(), {"--json", "--junit", junit});
    o = dmaprobe(words);
    const json document = json::parse(o.out, nullptr, false);
    ASSERT_FALSE(document.is_discarded()) << o.out << o.err;
    EXPECT_EQ(document["device"].value("bdf", ""), bdf);
    ASSERT_EQ(document["checks"].size(), 1u);
    const json& check = document["checks"][0];
    EXPECT_EQ(check.value("name", ""), "Data.BothWays/page");
    EXPECT_THAT((std::vector<std::string>{"ok", "skip"}),
                testing::Contains(check.value("verdict", "")));
    EXPECT_EQ(document["totals"].value(check.value("verdict", ""), 0), 1);

    EXPECT_EQ(o.code, check.value("verdict", "") == "skip" ? exit_lacking : exit_ok) << o.err;
    EXPECT_THAT(read_text(junit), HasSubstr("<testcase classname=\"Data\" name=\"BothWays/page\""));
    unlink(junit.c_str());
}

TEST_F(Tool, InfoBesideASession) {
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    EXPECT_EQ(works({"info", bdf, "--json"})["device"].value("bdf", ""), bdf);
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

// The group's domain is of the type that was asked for, as long as the device is bound.
TEST_F(Tool, BindWithADomain) {
    const std::string type = pci_path(bdf) + "/iommu_group/type";
    const std::string before = read_text(type);

    // "unknown" in VFIO's group for devices without an IOMMU.
    if (!exists(type) || before == "unknown")
        GTEST_SKIP() << "the device has no default domain";
    fails({"bind", bdf, "--domain", "fancy"}, exit_usage, {"fancy", "strict", "lazy", "identity"});
    const char* other = before == "identity" ? "strict" : "identity";
    fails({"bind", bdf, "--domain", other}, exit_failed, {bdf, before, "unbind"});
    EXPECT_EQ(read_text(type), before);
    ASSERT_EQ(dmaprobe({"unbind", bdf}).code, exit_ok);
    for (const auto& [name, in_sysfs, shown] : {std::tuple{"identity", "identity", "identity"},
                                                {"lazy", "DMA-FQ", "dma-fq"},
                                                {"strict", "DMA", "dma"}}) {
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
        EXPECT_EQ(works({"info", bdf, "--json"})["domain"].value("type", ""), shown);
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

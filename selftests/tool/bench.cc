// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe bench.

#include "tool.h"

#include <format>
#include <unistd.h>

namespace selftest {

namespace {

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

// Which way is measured, on stderr if that is a terminal.
TEST_F(Tool, BenchProgress) {
    Terminal err;

    ASSERT_TRUE(err);
    const Outcome o = dmaprobe({"bench", "dispatch", "--json", "--rounds", "128", "--repeat", "1"},
                               [&] { err.replace(STDERR_FILENO); });
    EXPECT_FALSE(json::parse(o.out, nullptr, false).is_discarded()) << o.out;
    const std::string text = err.text();
    EXPECT_THAT(text, HasSubstr("1 of 15: loop inside the module"));
    EXPECT_TRUE(text.ends_with("\r\x1b[K")) << text;
}

} // namespace
} // namespace selftest

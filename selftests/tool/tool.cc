// SPDX-License-Identifier: GPL-2.0-only
// What is common to all verbs: wrong use, help, terminals.

#include "tool.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

namespace selftest {

Outcome dmaprobe(std::vector<std::string> args, const std::function<void()>& in_child) {
    args.insert(args.begin(), "dmaprobe");
    return run(args, std::chrono::seconds(60), in_child);
}

Terminal::Terminal() : master_(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK)) {
    std::array<char, 64> name{};

    if (master_ && !grantpt(master_.get()) && !unlockpt(master_.get()) &&
        !ptsname_r(master_.get(), name.data(), name.size()))
        slave_ = Fd(open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
}

void Terminal::replace(int fd) const {
    dup2(slave_.get(), fd);
}

std::string Terminal::text() {
    std::string text;
    std::array<char, 4096> piece{};

    for (ssize_t n = 0; (n = read(master_.get(), piece.data(), piece.size())) > 0;)
        text.append(piece.data(), static_cast<size_t>(n));
    return text;
}

void Tool::SetUp() {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure())
        return;
    // The tool is to be the only one on the device.
    EXPECT_OK(s.close());
    keep.emplace(bdf);
}

void Tool::TearDown() {
    if (keep) {
        EXPECT_TRUE(keep->restore()) << "the device was not bound again";
    }
}

void Tool::fails(const std::vector<std::string>& args, int code,
                 const std::vector<std::string>& mentions,
                 const std::function<void()>& in_child) const {
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
    EXPECT_EQ(document.value("version", 0), 1) << o.out;
    ASSERT_TRUE(document.contains("error")) << o.out;
    const json& error = document["error"];
    ASSERT_TRUE(error.value("message", json()).is_string()) << o.out;
    EXPECT_EQ(error.value("exit", -1), code);
    for (const std::string& text : mentions)
        EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(text));
}

void Tool::one_line_of(const std::string& err, const std::vector<std::string>& mentions) {
    EXPECT_EQ(std::ranges::count(err, '\n'), 1) << err;
    EXPECT_TRUE(err.ends_with('\n')) << err;
    EXPECT_TRUE(err.starts_with("dmaprobe: ")) << err;
    for (const std::string& text : mentions)
        EXPECT_THAT(err, HasSubstr(text));
}

json Tool::works(const std::vector<std::string>& args, const std::function<void()>& in_child) {
    const Outcome o = dmaprobe(args, in_child);

    EXPECT_EQ(o.code, exit_ok) << o.err;
    EXPECT_EQ(o.err, "");
    json document = json::parse(o.out, nullptr, false);
    EXPECT_FALSE(document.is_discarded()) << "no valid JSON: " << o.out;
    EXPECT_EQ(document.value("version", 0), 1) << o.out;
    return document;
}

std::string Tool::demo_lacks() const {
    const Raw raw = Raw::open(bdf);

    EXPECT_TRUE(raw);
    if (const auto why = raw.missing(DMAPROBE_FEATURE_DMA_IOVA))
        return *why;
    return raw.translated() ? "" : "no IOMMU translates for the device";
}

namespace {

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
    fails({"info", bdf, "--json=/tmp/dmaprobe.json"}, exit_usage, {"--json", "check"});
    EXPECT_FALSE(exists("/tmp/dmaprobe.json"));
}

TEST_F(Tool, MissingBdf) {
    fails({"bind"}, exit_usage, {"BDF"});
    fails({"unbind"}, exit_usage, {"BDF"});
}

TEST_F(Tool, MalformedBdf) {
    for (const char* verb : {"bind", "unbind", "info", "demo"})
        for (const char* text : {"nonsense", "0000:01:00", "0000:01:00.8", "eth0"})
            fails({verb, text}, exit_usage, {text});
    // A variable that is not set.
    for (const char* verb : {"bind", "unbind", "info", "demo", "check", "faults"})
        fails({verb, ""}, exit_usage, {"'' is no PCI address"});
}

TEST_F(Tool, UnknownBdf) {
    for (const char* verb : {"bind", "unbind", "info", "demo"})
        fails({verb, no_such_device}, exit_failed, {no_such_device});
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
    const json version = works({"--version", "--json"});
    EXPECT_EQ(version.value("abi_version", 0), DMAPROBE_ABI_VERSION);
    EXPECT_NE(version.value("tool_version", ""), "");
}

// Output that cannot be written is a failure.
TEST_F(Tool, FullDisk) {
    const Outcome o = run({"sh", "-c", "dmaprobe list >/dev/full"});
    EXPECT_EQ(o.code, exit_failed);
    EXPECT_THAT(o.err, HasSubstr("could not be written"));
}

} // namespace
} // namespace selftest

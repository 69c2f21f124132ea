// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe check. The checks themselves are not tested here.

#include "tool.h"

#include <array>
#include <cstdlib>
#include <filesystem>
#include <format>
#include <fstream>
#include <grp.h>
#include <unistd.h>

namespace selftest {

namespace {

// The tool beside a program of ours that acts as the one with the checks.
class FakeChecks : public Tool {
protected:
    void SetUp() override {
        Tool::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        const Outcome which = run({"sh", "-c", "command -v dmaprobe"});
        std::filesystem::create_directories(folder);
        std::filesystem::copy_file(which.out.substr(0, which.out.find('\n')), folder + "/dmaprobe",
                                   std::filesystem::copy_options::overwrite_existing);
    }
    void TearDown() override {
        std::filesystem::remove_all(folder);
        Tool::TearDown();
    }

    // The four verdicts, as GoogleTest and KTAP have them.
    void write_checks() const {
        const std::string path = folder + "/dmaprobe-conformance";

        std::ofstream(path) << R"(#!/bin/sh
[ -z "$GTEST_TOTAL_SHARDS" ] || exit 1
for word; do case $word in
--gtest_list_tests) printf 'One.\n  Good\n  Odd\n  Bad\n  Missing\n'; exit ;;
--gtest_output=json:*) json=${word#*:} ;;
esac; done
cat <<END
KTAP version 1
1..4
# rule: all is well
ok 1 One.Good
# rule: all is well
# quirk: in 12 ms
ok 2 One.Odd
# selftests/one.cc:12: first line
# second line
# rule: all is well
# value: 5
not ok 3 One.Bad
ok 4 One.Missing # SKIP no such thing
END
cat >$json <<END
{"testsuites": [{"name": "One", "testsuite": [
{"name": "Good", "result": "COMPLETED"}, {"name": "Odd", "result": "COMPLETED", "quirk": "in 12 ms"},
{"name": "Bad", "result": "COMPLETED", "failures": [{"failure": "selftests/one.cc:12\nfirst line"}]},
{"name": "Missing", "result": "SKIPPED", "skipped": [{"message": "no such thing"}]}]}]}
END
exit 1
)";
        std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    }

    Outcome check(const std::vector<std::string>& options,
                  const std::function<void()>& in_child = {}) const {
        std::vector<std::string> words = {folder + "/dmaprobe", "check", bdf};

        words.insert(words.end(), options.begin(), options.end());
        return run(words, std::chrono::seconds(30), in_child);
    }

    std::string folder = "/tmp/dmaprobe-fake";
};

TEST_F(Tool, CheckUsage) {
    fails({"check", bdf, "--fancy"}, exit_usage, {"--fancy"});
    fails({"check", "0000:00:1e.7"}, exit_failed, {"0000:00:1e.7"});
    const Outcome o = dmaprobe({"check", "--list"});
    if (o.code == exit_lacking)
        GTEST_SKIP() << o.err;
    EXPECT_EQ(o.code, exit_ok) << o.err;
    for (const char* name :
         {"\nData.BothWays/linked\n", "\nAfter.AccessAfterRelease/page\n", "\nWindow."})
        EXPECT_THAT("\n" + o.out, HasSubstr(name));
    fails({"check", bdf, "--only", "Data.*", "--only", "Typo"}, exit_usage, {"'Typo'", "--list"});
    for (const std::string option : {"--junit=", "--json="})
        fails({"check", bdf, option + "/nonexistent/file"}, exit_failed, {"/nonexistent/file"});
    EXPECT_EQ(dmaprobe({"check", bdf, "--ktap", "--json"}).code, exit_usage);
    for (const std::string option : {"--junit=/tmp/file", "--json=/tmp/file", "--ktap"})
        EXPECT_EQ(dmaprobe({"check", "--list", option}).code, exit_usage) << option;
    fails({"check", bdf, "--json="}, exit_usage, {"--json"});
    // What stands behind a pattern is the device.
    fails({"check", "--only", "Data.*", no_such_device}, exit_failed, {no_such_device});
    const json list = works({"check", "--list", "--only", "Data.BothWays/p?ge", "--json"});
    EXPECT_EQ(list["checks"], json::array({"Data.BothWays/page"}));
    // The name alone stands for all its ways.
    const json all = works({"check", "--list", "--only", "Data.BothWays", "--json"});
    EXPECT_GT(all["checks"].size(), 5u);
}

// A check that could not be made is none that was passed.
TEST_F(Tool, CheckOfNothing) {
    const Outcome o = dmaprobe({"check", bdf, "--ktap", "--only", "Window.*"});
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
    std::vector<std::string> words = args;
    words.emplace_back("--ktap");
    Outcome o = dmaprobe(words);
    if (o.code == exit_lacking && o.out.empty())
        GTEST_SKIP() << o.err;
    EXPECT_EQ(o.code, o.out.contains(" # SKIP ") ? exit_lacking : exit_ok) << o.out << o.err;
    EXPECT_TRUE(o.out.starts_with("KTAP version 1\n1..1\n")) << o.out;
    EXPECT_THAT(o.out, HasSubstr("\nok 1 Data.BothWays/page"));
    EXPECT_THAT(o.out, HasSubstr("\n# rule: "));

    words = args;
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

    // All forms at once: KTAP on stdout, the others in files.
    const std::string file = "/tmp/dmaprobe-check.json";
    words = args;
    words.insert(words.end(), {"--ktap", "--json=" + file, "--junit", junit});
    o = dmaprobe(words);
    EXPECT_TRUE(o.out.starts_with("KTAP version 1\n1..1\n")) << o.out << o.err;
    const json again = json::parse(read_text(file), nullptr, false);
    ASSERT_FALSE(again.is_discarded());
    EXPECT_EQ(again["checks"][0]["verdict"], check["verdict"]);
    EXPECT_THAT(read_text(junit), HasSubstr("<testcase classname=\"Data\" name=\"BothWays/page\""));
    unlink(junit.c_str());
    unlink(file.c_str());

    // For people by default.
    o = dmaprobe(args);
    EXPECT_FALSE(o.out.contains("KTAP")) << o.out;
    EXPECT_TRUE(o.out.starts_with(bdf)) << o.out;
    EXPECT_THAT(o.out, HasSubstr("  Data.BothWays/page"));
    EXPECT_THAT(o.out, HasSubstr("\n1 checks: "));
}

// A check aims DMA at memory that was given back. Where other drivers' devices share the group,
// that could be theirs.
TEST_F(Tool, CheckInASharedGroup) {
    const std::vector<std::string> pair = group_of_like(bdf);
    const std::string other_driver = "vfio-pci";

    if (pair.empty())
        GTEST_SKIP() << "no two functions of the device's kind share a group";
    run({"modprobe", other_driver});
    if (!exists("/sys/bus/pci/drivers/" + other_driver))
        GTEST_SKIP() << "there is no driver " << other_driver;
    if (const Outcome list = dmaprobe({"check", "--list"}); list.code == exit_lacking)
        GTEST_SKIP() << list.err;
    KeepDriver keep_first(pair[0]);
    KeepDriver keep_second(pair[1]);
    for (size_t i = 0; i < 2; i++) {
        if (!driver_of(pair[i]).empty()) {
            ASSERT_OK(unbind_driver(pair[i]));
        }
        ASSERT_OK(
            write_text(pci_path(pair[i]) + "/driver_override", i ? other_driver : driver_name));
        ASSERT_OK(probe_driver(pair[i]));
    }
    ASSERT_EQ(driver_of(pair[0]), driver_name);
    ASSERT_EQ(driver_of(pair[1]), other_driver);
    const std::vector<std::string> args = {"check", pair[0], "--only", "Data.BothWays/page"};
    Outcome o = dmaprobe(args);
    EXPECT_EQ(o.code, exit_lacking) << o.out << o.err;
    EXPECT_EQ(o.out, "");
    EXPECT_THAT(o.err, HasSubstr("shares its IOMMU group with " + pair[1] + " (vfio-pci)"));
    EXPECT_THAT(o.err, HasSubstr("check --force"));
    std::vector<std::string> forced = args;
    forced.emplace_back("--force");
    o = dmaprobe(forced);
    EXPECT_FALSE(o.late);
    switch (o.code) {
    case exit_ok:
        EXPECT_THAT(o.out, HasSubstr("  ok      Data.BothWays/page"));
        break;
    case exit_lacking: // no engine, or none that reaches all memory
        EXPECT_THAT(o.out, HasSubstr("  skip    Data.BothWays/page"));
        break;
    case exit_stopped: // without a node of its own for the device, where VFIO may reset both
        EXPECT_FALSE(exists("/dev/vfio/devices"));
        EXPECT_THAT(o.err, HasSubstr("which says nothing about the platform: "));
        break;
    default:
        ADD_FAILURE() << o.code << o.out << o.err;
    }
    EXPECT_TRUE(keep_second.restore());
    EXPECT_TRUE(keep_first.restore());
}

// What a user may not do is skipped, and is no finding.
TEST_F(Tool, CheckByAUser) {
    constexpr uid_t user = 1000;
    std::vector<std::string> files = {node_path(bdf), pci_path(bdf) + "/config"};

    if (!(Raw::open(bdf).limits().props & DMAPROBE_DEVICE_CONFINED))
        GTEST_SKIP() << "the device is not confined, so that users cannot enable it";
    if (exists("/dev/vfio/devices"))
        GTEST_SKIP() << "the way to the BARs is VFIO's";
    for (int i = 0; i < 6; i++)
        if (const std::string bar = std::format("{}/resource{}", pci_path(bdf), i); exists(bar))
            files.push_back(bar);
    for (const std::string& file : files)
        ASSERT_EQ(chown(file.c_str(), user, 0), 0) << file;
    const Outcome o =
        run({"dmaprobe", "check", "--only", "Data.BothWays/p*", "--only", "Edge.*/page", bdf},
            std::chrono::seconds(100), [] {
                if (setgroups(0, nullptr) || setgid(user) || setuid(user))
                    _exit(99);
            });
    for (const std::string& file : files)
        EXPECT_EQ(chown(file.c_str(), 0, 0), 0) << file;
    if (o.code == exit_lacking && o.out.empty())
        GTEST_SKIP() << o.err;
    EXPECT_EQ(o.code, exit_ok) << o.out << o.err;
    EXPECT_THAT(o.out, HasSubstr("ok      Data.BothWays/page"));
    EXPECT_THAT(o.out, testing::ContainsRegex("skip +Data.BothWays/pool +pool_create: "));
    EXPECT_THAT(o.out, HasSubstr(", 0 not ok, "));
}

// Results that cannot be written to the end are no results.
TEST_F(FakeChecks, FullDisk) {
    write_checks();
    const Outcome o = check({"--junit=/dev/full"});
    EXPECT_EQ(o.code, exit_failed);
    one_line_of(o.err, {"/dev/full"});
}

// A line for each check, and below it why it failed.
TEST_F(FakeChecks, ForPeople) {
    write_checks();
    const Outcome o = check({}, [] { setenv("GTEST_TOTAL_SHARDS", "2", 1); });
    EXPECT_EQ(o.code, exit_failed) << o.err;
    EXPECT_EQ(o.err, "");
    EXPECT_THAT(o.out, HasSubstr("\n"
                                 "  ok      One.Good\n"
                                 "  quirk   One.Odd      in 12 ms\n"
                                 "  not ok  One.Bad\n"
                                 "            first line\n"
                                 "            second line\n"
                                 "  skip    One.Missing  no such thing\n"
                                 "\n"
                                 "4 checks: 1 ok, 1 with a quirk, 1 not ok, 1 skipped\n"));
    EXPECT_THAT(o.out, HasSubstr("domain " + read_text(pci_path(bdf) + "/iommu_group/type")));
    // KTAP is passed on as it is.
    const Outcome ktap = check({"--ktap"});
    EXPECT_EQ(ktap.code, exit_failed);
    EXPECT_TRUE(ktap.out.starts_with("KTAP version 1\n1..4\n# rule")) << ktap.out;
    EXPECT_TRUE(ktap.out.ends_with("\nok 4 One.Missing # SKIP no such thing\n")) << ktap.out;
}

// Colours on a terminal, unless NO_COLOR is set; what runs, on stderr if that is one.
TEST_F(FakeChecks, OnATerminal) {
    write_checks();
    for (const bool colours : {true, false}) {
        Terminal out;

        ASSERT_TRUE(out);
        check({}, [&] {
            out.replace(STDOUT_FILENO);
            if (!colours)
                setenv("NO_COLOR", "1", 1);
        });
        const std::string text = out.text();
        EXPECT_EQ(text.contains("\x1b[31mnot ok\x1b[0m"), colours) << text;
        EXPECT_EQ(text.contains('\x1b'), colours) << text;
    }
    EXPECT_FALSE(check({}).out.contains('\x1b'));

    Terminal err;
    ASSERT_TRUE(err);
    const Outcome o = check({"--json"}, [&] { err.replace(STDERR_FILENO); });
    const std::string progress = err.text();
    EXPECT_FALSE(json::parse(o.out, nullptr, false).is_discarded()) << o.out;
    EXPECT_THAT(progress, HasSubstr("1 of 4: One.Good"));
    EXPECT_THAT(progress, HasSubstr("4 of 4: One.Missing"));
    EXPECT_TRUE(progress.ends_with("\r\x1b[K")) << "it is not removed";
}

// A failure is in the file as well.
TEST_F(FakeChecks, EndBeforeTheReport) {
    const std::string path = folder + "/dmaprobe-conformance";
    const std::string file = folder + "/check.json";
    struct End {
        std::string commands;
        const char* message;
    };
    const std::string both = "echo ok 1 One.Good; echo ok 2 One.Bad";
    const std::string good = R"({"name": "Good", "result": "COMPLETED"})";
    const std::string bad = R"({"name": "Bad", "result": "COMPLETED"})";
    const auto report = [](const std::string& checks) {
        return "; for word; do case $word in --gtest_output=json:*) cat >${word#*:} <<END\n"
               R"({"testsuites": [{"name": "One", "testsuite": [)" +
               checks + "]}]}\nEND\nesac; done";
    };

    for (const End& end :
         {End{"", "One.Good, 1 of 2: exit code 0"},
          {"echo ok 1 One.Good; kill -SEGV $$", "One.Bad, 2 of 2: Segmentation fault"},
          {"echo ok 1 One.Good; echo 'Bail out! too late'; exit 1", "One.Bad, 2 of 2: too late"},
          {both, "after the last of them: exit code 0"},
          {both + report(good), "after the last of them: exit code 0"},
          {std::format("{}{}; exit 1", both, report(std::format("{}, {}", good, bad))),
           "after the last of them: exit code 1"},
          {"echo ok 1 One.Good" + report(good), "One.Bad, 2 of 2: exit code 0"}}) {
        SCOPED_TRACE(end.commands);
        std::ofstream(path) << "#!/bin/sh\nif [ $1 = --gtest_list_tests ]\n"
                               "then printf 'One.\\n  Good\\n  Bad\\n'; exit; fi\n"
                            << end.commands << '\n';
        std::filesystem::permissions(path, std::filesystem::perms::owner_all);
        const Outcome o = check({"--json=" + file, "--junit=" + folder + "/check.xml"});
        EXPECT_EQ(o.code, exit_failed);
        EXPECT_FALSE(exists(folder + "/check.xml")) << "it is empty";
        one_line_of(o.err, {end.message});
        const json document = json::parse(read_text(file), nullptr, false);
        ASSERT_FALSE(document.is_discarded());
        EXPECT_EQ(document.value("error", json::object()).value("exit", 0), exit_failed);
    }
}

} // namespace
} // namespace selftest

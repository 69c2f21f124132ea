// SPDX-License-Identifier: GPL-2.0-only
// The KTAP printer, seen from outside: this program runs itself with a few tests
// that are disabled otherwise.

#include "support/ktap.h"
#include "support/fixture.h"
#include "support/system.h"

#include <cstdlib>
#include <filesystem>
#include <unistd.h>

namespace selftest {
namespace {

TEST(DISABLED_KtapSample, Passes) {
    RecordProperty("value", 42);
}

TEST(DISABLED_KtapSample, Fails) {
    EXPECT_EQ(1, 2) << "first line\nsecond line";
}

TEST(DISABLED_KtapSample, Skips) {
    GTEST_SKIP() << "no such\n  machine";
}

TEST(DISABLED_KtapSample, SkipsWithoutAReason) {
    GTEST_SKIP();
}

TEST(DISABLED_KtapSample, FailsThenSkips) {
    ADD_FAILURE() << "broken";
    GTEST_SKIP() << "and skipped";
}

class DISABLED_KtapSuite : public testing::Test {
protected:
    static void SetUpTestSuite() { FAIL() << "the suite cannot be set up"; }
};

TEST_F(DISABLED_KtapSuite, Never) {}

Outcome run_self(const std::string& filter, const std::vector<std::string>& more = {}) {
    std::vector<std::string> argv = {"/proc/self/exe", "--gtest_also_run_disabled_tests",
                                     "--gtest_filter=" + filter};

    // /proc/self/exe would be the child's own when it is looked up there.
    argv[0] = std::filesystem::read_symlink(argv[0]).string();
    argv.insert(argv.end(), more.begin(), more.end());
    return run(argv);
}

TEST(Folders, ChooseTests) {
    Outcome o = run_self("*KtapSample.Passes", {"--in=unit"});
    EXPECT_EQ(o.code, 0);
    EXPECT_THAT(o.out, testing::HasSubstr("1..1\n"));
    o = run_self("*", {"--in=unit", "--gtest_list_tests"});
    EXPECT_EQ(o.code, 0);
    EXPECT_THAT(o.out, testing::HasSubstr("  ChooseTests\n"));
}

// A name with no tests is wrong, and so is an empty one: not all tests, and not none.
TEST(Folders, WithoutTests) {
    for (const char* words : {"--in=", "--in=unit,", "--in=,unit", "--in=unit,,unit", "--in=uni",
                              "--in=unit,library"}) {
        const Outcome o = run_self("*KtapSample.Passes", {words});

        EXPECT_EQ(o.code, 2) << words;
        EXPECT_EQ(o.out, "") << words;
        EXPECT_THAT(o.err, testing::HasSubstr("no test in selftests/")) << words;
    }
}

TEST(Ktap, PlanAndResults) {
    const Outcome o = run_self("*KtapSample.Passes:*KtapSample.Skips*:*KtapSample.Fails");

    EXPECT_EQ(o.code, 1);
    EXPECT_EQ(o.err, "");
    EXPECT_TRUE(o.out.starts_with("KTAP version 1\n1..4\n")) << o.out;
    EXPECT_THAT(o.out, testing::HasSubstr("# value: 42\nok 1 DISABLED_KtapSample.Passes\n"));
    EXPECT_THAT(o.out, testing::HasSubstr("\nnot ok 2 DISABLED_KtapSample.Fails\n"));
    EXPECT_THAT(o.out, testing::HasSubstr("# first line\n# second line\n"));
    EXPECT_THAT(o.out,
                testing::HasSubstr("\nok 3 DISABLED_KtapSample.Skips # SKIP no such machine\n"));
    EXPECT_THAT(o.out,
                testing::HasSubstr(
                    "\nok 4 DISABLED_KtapSample.SkipsWithoutAReason # SKIP no reason given\n"));
    EXPECT_TRUE(o.out.ends_with("\n# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:2 error:0\n"))
        << o.out;
}

// No line but of these kinds, whatever the tests print.
TEST(Ktap, EveryLineIsKtap) {
    const Outcome o = run_self("*KtapSample*");
    std::string_view rest = o.out;

    while (!rest.empty()) {
        const size_t end = rest.find('\n');
        const std::string_view line = rest.substr(0, end);

        EXPECT_TRUE(line.starts_with("# ") || line.starts_with("ok ") ||
                    line.starts_with("not ok ") || line == "KTAP version 1" ||
                    line.starts_with("1.."))
            << line;
        ASSERT_NE(end, std::string_view::npos) << "the last line has no end";
        rest.remove_prefix(end + 1);
    }
}

TEST(Ktap, FailureCountsMoreThanSkip) {
    const Outcome o = run_self("*KtapSample.FailsThenSkips");

    EXPECT_EQ(o.code, 1);
    EXPECT_THAT(o.out, testing::HasSubstr("\nnot ok 1 DISABLED_KtapSample.FailsThenSkips\n"));
}

TEST(Ktap, SuiteThatCannotBeSetUp) {
    const Outcome o = run_self("DISABLED_KtapSuite*");

    EXPECT_NE(o.code, 0);
    EXPECT_THAT(o.out, testing::HasSubstr("the suite cannot be set up"));
}

TEST(Ktap, NothingToRun) {
    const Outcome o = run_self("No.Such");

    EXPECT_EQ(o.code, 0);
    EXPECT_TRUE(o.out.starts_with("KTAP version 1\n1..0\n")) << o.out;
}

TEST(Ktap, RepeatedAndShuffled) {
    const Outcome o = run_self("*KtapSample.Passes:*KtapSample.Skips",
                               {"--gtest_repeat=3", "--gtest_shuffle", "--gtest_random_seed=5"});

    EXPECT_EQ(o.code, 0);
    EXPECT_TRUE(o.out.starts_with("KTAP version 1\n1..6\n")) << o.out;
    EXPECT_THAT(o.out, testing::HasSubstr("# shuffled with --gtest_random_seed=5\n"));
    EXPECT_THAT(o.out, testing::HasSubstr("\nok 6 "));
    EXPECT_THAT(o.out,
                testing::HasSubstr("# Totals: pass:3 fail:0 xfail:0 xpass:0 skip:3 error:0\n"));
}

TEST(Ktap, JunitAsWell) {
    char dir[] = "/tmp/dmaprobe-ktap-XXXXXX";

    ASSERT_NE(mkdtemp(dir), nullptr);
    const std::string path = std::string(dir) + "/report.xml";
    const Outcome o =
        run_self("*KtapSample.Passes:*KtapSample.Fails", {"--gtest_output=xml:" + path});
    const std::string xml = read_text(path);
    std::filesystem::remove_all(dir);

    EXPECT_EQ(o.code, 1);
    EXPECT_THAT(xml, testing::HasSubstr("<testsuites tests=\"2\" failures=\"1\""));
    EXPECT_THAT(xml, testing::HasSubstr("name=\"Passes\""));
    EXPECT_THAT(xml, testing::HasSubstr("value=\"42\""));
}

TEST(Ktap, UnknownArgument) {
    const Outcome o = run_self("No.Such", {"--no-such-argument"});

    EXPECT_EQ(o.code, 2);
    EXPECT_EQ(o.out, "");
    EXPECT_THAT(o.err, testing::HasSubstr("--no-such-argument"));
}

TEST(KtapText, Prefix) {
    EXPECT_EQ(with_prefix("# ", ""), "");
    EXPECT_EQ(with_prefix("# ", "a"), "# a\n");
    EXPECT_EQ(with_prefix("# ", "a\n"), "# a\n");
    EXPECT_EQ(with_prefix("# ", "a\n\nb"), "# a\n# \n# b\n");
}

TEST(KtapText, OneLine) {
    EXPECT_EQ(one_line(""), "");
    EXPECT_EQ(one_line("  a \n\t b\n"), "a b");
}

} // namespace
} // namespace selftest

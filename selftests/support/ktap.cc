// SPDX-License-Identifier: GPL-2.0-only
// A GoogleTest listener that prints KTAP, version 1: a plan, one result line
// for each test, everything else as "# " lines before the result it belongs to.

#include "ktap.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <format>

namespace selftest {

std::string with_prefix(std::string_view prefix, std::string_view text) {
    std::string out;

    while (!text.empty()) {
        const size_t end = text.find('\n');
        const std::string_view line = text.substr(0, end);

        out += prefix;
        out += line;
        out += '\n';
        if (end == std::string_view::npos)
            break;
        text.remove_prefix(end + 1);
    }
    return out;
}

std::string one_line(std::string_view text) {
    std::string out;

    for (const char c : text) {
        const bool space = c == '\n' || c == '\r' || c == '\t' || c == ' ';

        if (!space)
            out += c;
        else if (!out.empty() && out.back() != ' ')
            out += ' ';
    }
    while (!out.empty() && out.back() == ' ')
        out.pop_back();
    return out;
}

// Written at once and flushed: what was printed before a crash must not be lost,
// and a forked child must not inherit a full buffer.
static void put(std::string_view text) {
    fwrite(text.data(), 1, text.size(), stdout);
    fflush(stdout);
}

void diagnose(std::string_view text) {
    put(with_prefix("# ", text));
}

namespace {

class Ktap : public testing::EmptyTestEventListener {
public:
    void OnTestProgramStart(const testing::UnitTest& all) override {
        const int repeat = GTEST_FLAG_GET(repeat);

        put("KTAP version 1\n");
        // Repeated without end, there is no number to plan.
        if (repeat >= 0)
            put(std::format("1..{}\n", all.test_to_run_count() * repeat));
    }

    void OnTestIterationStart(const testing::UnitTest& all, int iteration) override {
        if (iteration > 0)
            put(std::format("# iteration {}\n", iteration + 1));
        if (GTEST_FLAG_GET(shuffle))
            put(std::format("# shuffled with --gtest_random_seed={}\n", all.random_seed()));
    }

    void OnTestStart(const testing::TestInfo&) override {
        in_test_ = true;
        failed_ = false;
        skipped_ = false;
        reason_.clear();
    }

    void OnTestPartResult(const testing::TestPartResult& part) override {
        if (part.skipped()) {
            skipped_ = true;
            if (reason_.empty())
                reason_ = one_line(part.message());
            return;
        }
        if (!part.failed())
            return;
        failed_ = true;
        const char* file = part.file_name();
        put(with_prefix("# ", std::format("{}:{}: {}\n", file ? file : "(no file)",
                                          part.line_number(), part.message())));
        // A failure of a suite's or the program's own set-up or tear-down has no
        // result line; the exit code says it.
        if (!in_test_)
            put("# (outside of any test)\n");
    }

    void OnTestEnd(const testing::TestInfo& info) override {
        const testing::TestResult& result = *info.result();
        const std::string name =
            one_line(std::format("{}.{}", info.test_suite_name(), info.name()));

        in_test_ = false;
        number_++;
        for (int i = 0; i < result.test_property_count(); i++) {
            const testing::TestProperty& p = result.GetTestProperty(i);

            put(with_prefix("# ", std::format("{}: {}\n", p.key(), p.value())));
        }
        if (failed_ || result.Failed()) {
            fail_++;
            put(std::format("not ok {} {}\n", number_, name));
        } else if (skipped_ || result.Skipped()) {
            skip_++;
            put(std::format("ok {} {} # SKIP {}\n", number_, name,
                            reason_.empty() ? "no reason given" : reason_));
        } else {
            pass_++;
            put(std::format("ok {} {}\n", number_, name));
        }
    }

    void OnTestProgramEnd(const testing::UnitTest&) override {
        put(std::format("# Totals: pass:{} fail:{} xfail:0 xpass:0 skip:{} error:0\n", pass_, fail_,
                        skip_));
    }

private:
    bool in_test_ = false;
    bool failed_ = false;
    bool skipped_ = false;
    std::string reason_;
    int number_ = 0;
    int pass_ = 0;
    int fail_ = 0;
    int skip_ = 0;
};

} // namespace

void install_ktap() {
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();

    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new Ktap);
}

} // namespace selftest

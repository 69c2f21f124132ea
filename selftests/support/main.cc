// SPDX-License-Identifier: GPL-2.0-only
// main() of the test programs: GoogleTest, printed as KTAP, with a deadline for
// each test. --in=FOLDER,... runs only the tests whose source lies in one of these
// folders of selftests/.

#include "fixture.h"
#include "ktap.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <format>
#include <optional>
#include <print>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unistd.h>
#include <vector>

namespace {

void bail_out(int) {
    static const char text[] = "\nBail out! a test did not end within its deadline\n";

    std::ignore = write(STDOUT_FILENO, text, sizeof(text) - 1);
    _exit(1);
}

class Deadline : public testing::EmptyTestEventListener {
    void OnTestProgramStart(const testing::UnitTest&) override {
        struct sigaction action = {};

        action.sa_handler = bail_out;
        sigaction(SIGALRM, &action, nullptr);
    }

    void OnTestStart(const testing::TestInfo&) override { selftest::restart_deadline(); }
    void OnTestEnd(const testing::TestInfo&) override { alarm(0); }
};

bool lies_in(const testing::TestInfo& test, std::string_view folder) {
    return std::string_view(test.file()).starts_with(std::format("selftests/{}/", folder));
}

// Add the tests that lie elsewhere to the filter's negative patterns. Returns the first folder
// without tests, if any.
std::optional<std::string> keep_only(const std::vector<std::string>& folders) {
    const testing::UnitTest& all = *testing::UnitTest::GetInstance();
    std::string others;
    std::vector<bool> found(folders.size());

    for (int i = 0; i < all.total_test_suite_count(); i++) {
        const testing::TestSuite& suite = *all.GetTestSuite(i);

        for (int j = 0; j < suite.total_test_count(); j++) {
            const testing::TestInfo& test = *suite.GetTestInfo(j);
            bool wanted = false;

            for (std::size_t k = 0; k < folders.size(); k++)
                if (lies_in(test, folders[k]))
                    found[k] = wanted = true;
            if (!wanted)
                others += std::format(":{}.{}", suite.name(), test.name());
        }
    }
    if (const auto missing = std::ranges::find(found, false); missing != found.end())
        return folders[static_cast<std::size_t>(missing - found.begin())];
    std::string& filter = GTEST_FLAG_GET(filter);
    filter += filter.contains('-') || others.empty() ? others : "-" + others.substr(1);
    return std::nullopt;
}

} // namespace

void selftest::restart_deadline(std::chrono::seconds deadline) {
    // It is for what cannot be waited for with a deadline, such as a call into the kernel that does
    // not return.
    alarm(static_cast<unsigned>(deadline.count()));
}

// What throws in here is a reason to end with std::terminate()'s message.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
    testing::InitGoogleMock(&argc, argv);
    std::vector<std::string> folders;
    for (const std::string_view argument :
         std::span(argv, static_cast<std::size_t>(argc)).subspan(1)) {
        if (!argument.starts_with("--in=")) {
            std::println(stderr,
                         "{}: unknown argument '{}' (legal: --in=FOLDER,... and those of --help)",
                         program_invocation_short_name, argument);
            return 2;
        }
        // The last name may be empty, and so may the only one.
        for (std::string_view names = argument.substr(4); !names.empty();) {
            names.remove_prefix(1);
            folders.emplace_back(names.substr(0, names.find(',')));
            names.remove_prefix(folders.back().size());
        }
    }
    if (!folders.empty())
        if (const auto missing = keep_only(folders)) {
            std::println(stderr, "{}: no test in selftests/{}", program_invocation_short_name,
                         *missing);
            return 2;
        }
    selftest::transport();
    selftest::install_ktap();
    testing::UnitTest::GetInstance()->listeners().Append(new Deadline);
    return RUN_ALL_TESTS();
}

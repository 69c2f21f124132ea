// SPDX-License-Identifier: GPL-2.0-only
// main() of both test programs: GoogleTest, printed as KTAP, with a deadline for
// each test.

#include "fixture.h"
#include "ktap.h"

#include <gmock/gmock.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <print>
#include <unistd.h>

namespace {

void bail_out(int) {
    static const char text[] = "\nBail out! a test did not end within its deadline\n";
    const ssize_t written = write(STDOUT_FILENO, text, sizeof(text) - 1);

    _exit(written > 0 ? 1 : 3);
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

} // namespace

void selftest::restart_deadline() {
    // No test waits longer than a part of this; it is for what cannot be waited
    // for with a deadline, such as a call into the kernel that does not return.
    alarm(120);
}

// What throws in here is a reason to end with std::terminate()'s message.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
    testing::InitGoogleMock(&argc, argv);
    if (argc > 1) {
        std::println(stderr, "{}: unknown argument '{}' (--help lists those there are)",
                     program_invocation_short_name, argv[1]);
        return 2;
    }
    selftest::transport();
    selftest::install_ktap();
    testing::UnitTest::GetInstance()->listeners().Append(new Deadline);
    return RUN_ALL_TESTS();
}

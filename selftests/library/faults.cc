// SPDX-License-Identifier: GPL-2.0-only
// Waiting for faults in the kernel's own log, which sleeps: a plain file, as the unit tests have
// it, is always readable. The faults are lines that the test writes itself.

#include "support/fixture.h"
#include "support/result.h"

#include <dmaprobe/fault.h>

#include <cerrno>
#include <chrono>
#include <ctime>
#include <fcntl.h>
#include <format>
#include <poll.h>
#include <stop_token>
#include <string>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

namespace dp = dmaprobe;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

constexpr dp::Bdf nobody{.domain = 9, .bus = 1, .device = 2, .function = 3};
constexpr milliseconds forever = milliseconds::max();

// The processor time that this thread has used.
milliseconds used() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return std::chrono::duration_cast<milliseconds>(seconds(time.tv_sec) +
                                                    std::chrono::nanoseconds(time.tv_nsec));
}

class KernelLog : public testing::Test {
protected:
    void SetUp() override {
        log_ = Fd(open("/dev/kmsg", O_WRONLY | O_CLOEXEC));
        if (!log_)
            GTEST_SKIP() << "/dev/kmsg cannot be written to";
        auto opened = dp::FaultWatcher::open();
        ASSERT_WORKS(opened);
        watcher.emplace(std::move(*opened));
    }

    // Without its newline, readers would see a record only when the next one begins.
    void write_fault(const char* addr) {
        const std::string line =
            std::format("<4>DMAR: [DMA Read NO_PASID] Request device [{}] fault addr {} "
                        "[fault reason 0x06] PTE Read access is not set\n",
                        nobody.to_string(), addr);
        ASSERT_EQ(write(log_.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
    }

    // What poll() says of the watcher's descriptor.
    bool readable(milliseconds deadline) {
        pollfd polled{.fd = watcher->fd(), .events = POLLIN, .revents = 0};
        return poll(&polled, 1, static_cast<int>(deadline.count())) == 1;
    }

    Fd log_;
    std::optional<dp::FaultWatcher> watcher;
};

TEST_F(KernelLog, Polls) {
    const auto end = Clock::now() + seconds(20);
    bool quiet = false;
    while (!quiet && Clock::now() < end) { // others write to the log too
        EXPECT_FAILS(watcher->wait(nobody, milliseconds(0)), ETIMEDOUT);
        quiet = !readable(milliseconds(100));
    }
    EXPECT_TRUE(quiet);
    write_fault("0x1000");
    EXPECT_TRUE(readable(seconds(5)));
    const auto fault = watcher->wait(nobody, milliseconds(0));
    ASSERT_WORKS(fault);
    EXPECT_EQ(fault->iova, dp::Iova(0x1000));
}

// It sleeps until then.
TEST_F(KernelLog, StopWakesTheWait) {
    std::stop_source stop;
    const auto before = used();
    const auto began = Clock::now();
    {
        const std::jthread other([&] {
            std::this_thread::sleep_for(seconds(2));
            stop.request_stop();
        });
        EXPECT_FAILS(watcher->wait(nobody, forever, stop.get_token()), ECANCELED);
    }
    EXPECT_GE(Clock::now() - began, milliseconds(1900));
    EXPECT_LT(Clock::now() - began, seconds(20));
    EXPECT_LT(used() - before, seconds(1)) << "it did not sleep";
    write_fault("0x2000");
    ASSERT_WORKS(watcher->wait(nobody, forever, stop.get_token())) << "it was there";
}

// A token that nobody uses is no hindrance.
TEST_F(KernelLog, FaultWakesTheWait) {
    const std::stop_source stop;
    const std::jthread other([&] {
        std::this_thread::sleep_for(milliseconds(200));
        write_fault("0x3000");
    });
    const auto fault = watcher->wait(nobody, seconds(20), stop.get_token());
    ASSERT_WORKS(fault);
    EXPECT_EQ(fault->iova, dp::Iova(0x3000));
    EXPECT_FAILS(watcher->wait(nobody, milliseconds(1), stop.get_token()), ETIMEDOUT);
}

} // namespace
} // namespace selftest

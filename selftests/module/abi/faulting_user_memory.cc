// SPDX-License-Identifier: GPL-2.0-only
// Callers whose memory has faults that nobody serves: a call of theirs may wait for
// ever, but nobody else may wait for it. SET_MASK needs a lock for itself that all calls
// share, so it shows whether the stuck call holds it.

#include "support/ops.h"
#include "support/system.h"

#include <linux/userfaultfd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <functional>
#include <future>
#include <poll.h>
#include <set>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Pages at whose faults a thread stops, until release(); by userfaultfd(2).
class Unserved {
public:
    enum class Fault { any, write };

    // With `write`, the pages are there and can be read.
    Unserved(size_t pages, Fault fault) : memory_(Memory::fenced(pages * page_size())) {
        uffdio_api api = {};
        uffdio_register reg = {};

        uffd_ = Fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
        if (!uffd_) {
            error_ = errno;
            return;
        }
        api.api = UFFD_API;
        if (fault == Fault::write)
            api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
        reg.range = {memory_.address(), memory_.size()};
        reg.mode = fault == Fault::write ? UFFDIO_REGISTER_MODE_WP : UFFDIO_REGISTER_MODE_MISSING;
        if (fault == Fault::write)
            memset(memory_.data(), 0, memory_.size());
        if (ioctl(uffd_.get(), UFFDIO_API, &api) || ioctl(uffd_.get(), UFFDIO_REGISTER, &reg))
            error_ = errno;
    }

    // For `write`: from here on, writing is a fault.
    bool arm() const {
        uffdio_writeprotect protect = {};

        protect.range = {memory_.address(), memory_.size()};
        protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
        return ioctl(uffd_.get(), UFFDIO_WRITEPROTECT, &protect) == 0;
    }

    // Wait until a thread has come to a fault.
    bool hit(milliseconds timeout) const {
        pollfd poll = {.fd = uffd_.get(), .events = POLLIN, .revents = 0};
        uffd_msg message = {};

        return ::poll(&poll, 1, static_cast<int>(timeout.count())) == 1 &&
               read(uffd_.get(), &message, sizeof(message)) == sizeof(message);
    }

    // The kernel serves the faults from now on.
    void release() { EXPECT_OK(uffd_.close()); }

    int error() const { return error_; }
    std::byte* data() const { return memory_.data(); }
    uint64_t address() const { return memory_.address(); }

private:
    Memory memory_;
    Fd uffd_;
    int error_ = 0;
};

#define SKIP_UNLESS_UNSERVED(memory)                                                               \
    if ((memory).error() == ENOSYS || (memory).error() == EPERM)                                   \
        GTEST_SKIP() << "this kernel offers no userfaultfd() for faults in system calls";          \
    ASSERT_ERRNO((memory).error(), 0)

// A call that stops at a fault, and one that needs the device alone meanwhile.
// Whether the first one came to a fault; its answer is in `result`.
bool holds_up_nobody(
    const Raw& other, Unserved& memory, const std::function<int()>& call, int& result,
    const std::function<void()>& meanwhile = [] {}) {
    const uint64_t mask = other.limits().dma_mask;
    std::future<int> stuck = std::async(std::launch::async, call);
    const bool hit = memory.hit(seconds(30));

    if (hit) {
        std::future<int> alone =
            std::async(std::launch::async, [&] { return other.set_mask(mask); });

        EXPECT_EQ(alone.wait_for(seconds(30)), std::future_status::ready)
            << "a call whose memory is not there holds a lock";
        meanwhile();
        memory.release();
        const int answer = alone.get();
        EXPECT_TRUE(answer == 0 || answer == EBUSY) << strerror(answer);
    } else {
        memory.release();
    }
    result = stuck.get();
    return hit;
}

class Stuck : public DeviceTest, public testing::WithParamInterface<Op> {
protected:
    const Op& op() const { return GetParam(); }
};

// Its struct can be read but not written.
TEST_P(Stuck, Answer) {
    if (!op().answers)
        GTEST_SKIP() << "the command answers nothing";
    if (const std::string why = unsupported_reason(op(), s); !why.empty())
        GTEST_SKIP() << why;
    Live live(bdf);
    Unserved memory(1, Unserved::Fault::write);
    SKIP_UNLESS_UNSERVED(memory);
    int result = 0;

    op().sample(live, memory.data());
    set<uint32_t>(memory.data(), 0, static_cast<uint32_t>(op().size));
    ASSERT_TRUE(memory.arm());
    // What it makes is found by nobody before the caller has its id.
    const std::set<uint32_t> known = live.ids();
    const auto guess = [&] {
        for (uint32_t id = 1; op().makes && id < 64; id++) {
            if (known.contains(id))
                continue;
            SCOPED_TRACE(std::format("id {}", id));
            EXPECT_ERRNO(live.s.destroy(id), ENOENT);
            EXPECT_ERRNO(live.s.unmap(id), ENOENT);
            EXPECT_ERRNO(live.s.iova_free(id), ENOENT);
        }
    };
    EXPECT_TRUE(holds_up_nobody(
        s, memory, [&] { return submit(live.s.fd(), op().command, memory.data()); }, result, guess))
        << "it answered without writing its struct";
    EXPECT_ERRNO(result, 0) << "with its memory there, the call works";
    if (!op().makes || result)
        return;
    const auto id = get<uint32_t>(memory.data(), op().makes->offset);
    switch (op().makes->kind) {
    case Kind::mapping:
        EXPECT_OK(live.s.unmap(id));
        break;
    case Kind::iova:
        EXPECT_OK(live.s.iova_free(id));
        break;
    default:
        EXPECT_OK(live.s.destroy(id));
        break;
    }
}

// What its struct points to is not there.
TEST_P(Stuck, WhatItPointsTo) {
    if (op().pointers.empty())
        GTEST_SKIP() << "the command has no pointer";
    if (const std::string why = unsupported_reason(op(), s); !why.empty())
        GTEST_SKIP() << why;
    for (const PointerField& field : op().pointers) {
        Live live(bdf);
        Unserved memory(8, Unserved::Fault::any);
        SKIP_UNLESS_UNSERVED(memory);
        std::vector<std::byte> sample(op().size);
        int result = 0;

        op().sample(live, sample.data());
        set<uint32_t>(sample.data(), 0, static_cast<uint32_t>(op().size));
        set<uint64_t>(sample.data(), field.offset, memory.address());
        const bool hit = holds_up_nobody(
            s, memory, [&] { return submit(live.s.fd(), op().command, sample.data()); }, result);
        if (!hit && op().command == DMAPROBE_GET_DOMAIN)
            GTEST_SKIP() << "the domain has no reserved region to write";
        EXPECT_TRUE(hit);
    }
}

INSTANTIATE_TEST_SUITE_P(Ops, Stuck, testing::ValuesIn(ops()),
                         [](const auto& row) { return row.param.name; });

class StuckRun : public DeviceTest {};

// It holds up nobody in the middle of a run, either.
TEST_F(StuckRun, StructOfALaterCall) {
    for (const auto fault : {Unserved::Fault::any, Unserved::Fault::write}) {
        Live live(bdf);
        Unserved memory(1, fault);
        SKIP_UNLESS_UNSERVED(memory);
        dmaprobe_nop nop = {.size = sizeof(nop), .flags = 0};
        dmaprobe_run_op calls[3] = {};
        dmaprobe_run run = {};
        int result = 0;

        for (dmaprobe_run_op& call : calls) {
            call.cmd = DMAPROBE_NOP;
            call.arg = reinterpret_cast<uintptr_t>(&nop);
        }
        calls[1].arg = memory.address();
        if (fault == Unserved::Fault::write) {
            dmaprobe_get_limits limits = {};

            limits.size = sizeof(limits);
            memcpy(memory.data(), &limits, sizeof(limits));
            calls[1].cmd = DMAPROBE_GET_LIMITS;
            ASSERT_TRUE(memory.arm());
        }
        run.size = sizeof(run);
        run.flags = DMAPROBE_RUN_CONTINUE;
        run.nr_ops = 3;
        run.ops = reinterpret_cast<uintptr_t>(calls);
        EXPECT_TRUE(holds_up_nobody(
            s, memory, [&] { return ioctl(live.s.fd(), DMAPROBE_RUN, &run) ? errno : 0; }, result));
        EXPECT_ERRNO(result, 0);
        EXPECT_EQ(run.done, 3U);
        EXPECT_EQ(calls[0].result, 0);
        EXPECT_EQ(calls[1].result, fault == Unserved::Fault::write ? 0 : -EINVAL)
            << "a struct of zeroes has no size";
        EXPECT_EQ(calls[2].result, 0);
    }
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// io_uring as a way to the module: order, workers, cancellation, and ends of
// rings, files, processes and devices with commands in flight.

#include "support/fixture.h"
#include "support/system.h"
#include "support/uring.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <format>
#include <map>
#include <set>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

template <class T>
io_uring_sqe& put(const Uring& ring, int fd, T& op, uint64_t tag) {
    op.size = sizeof(op);
    return ring.command(fd, CommandOf<T>::value, &op, tag);
}

// Submit, and wait for `count` completions: what each tag answered, 0 or errno.
std::map<uint64_t, Errno> submit_all(const Uring& ring, unsigned count) {
    std::map<uint64_t, Errno> all;

    EXPECT_GE(ring.submit(), 0);
    for (unsigned i = 0; i < count; i++) {
        Completion c;

        if (!ring.wait(c)) {
            ADD_FAILURE() << "completion " << i << " of " << count << " did not come";
            break;
        }
        EXPECT_TRUE(all.emplace(c.tag, Errno{-c.result}).second) << c.tag << " came twice";
    }
    return all;
}

using Results = std::map<uint64_t, Errno>;

class Ring : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        ring = Uring(256);
        if (ring.error() == ENOSYS || ring.error() == EPERM)
            GTEST_SKIP() << "io_uring: " << strerror(ring.error());
        ASSERT_TRUE(ring) << strerror(ring.error());
    }

    // A buffer of one page with a mapping of it.
    void mapped(const Raw& session, Buffer& buffer, dmaprobe_map& map) const {
        ASSERT_OK(session.alloc(buffer, page_size()));
        map = {};
        map.buffer_id = buffer.id;
        map.length = page_size();
        ASSERT_OK(session(map));
    }

    // What keeps a worker busy for minutes if nobody ends it.
    static dmaprobe_bench endless(const Buffer& buffer) {
        dmaprobe_bench op = {};

        op.kind = DMAPROBE_BENCH_MAP_PAGE;
        op.buffer_id = buffer.id;
        op.count = 10'000'000;
        return op;
    }

    // EBUSY while somebody holds a mapping. By ioctl, whatever the transport: a
    // worker that is busy is not joined by another one.
    int set_mask() const {
        dmaprobe_set_mask op = {
            .size = sizeof(op), .flags = DMAPROBE_SET_MASK_STREAMING, .mask = 0xffffffff};

        return ioctl(s.fd(), DMAPROBE_SET_MASK, &op) ? errno : 0;
    }

    void expect_nothing_mapped() const {
        EXPECT_TRUE(wait_for([&] { return set_mask() == 0; }, seconds(20)));
    }

    Uring ring;
};

// --- order -----------------------------------------------------------------------

// A linked command starts when the one before it has ended, by worker or not: the
// buffer can be freed only after both unmaps.
TEST_F(Ring, LinkedCommandsRunInOrder) {
    for (int round = 0; round < 20; round++) {
        Buffer b;
        dmaprobe_map first = {};
        dmaprobe_map second = {};
        dmaprobe_sync sync = {};
        dmaprobe_unmap unmap = {};
        dmaprobe_get_stats stats = {};
        dmaprobe_unmap unmap2 = {};
        dmaprobe_destroy free = {};

        ASSERT_NO_FATAL_FAILURE(mapped(s, b, first));
        second.buffer_id = b.id;
        second.length = page_size();
        ASSERT_OK(s(second));
        sync.id = first.id;
        sync.length = 1;
        put(ring, s.fd(), sync, 1).flags = IOSQE_IO_LINK;
        unmap.id = first.id;
        put(ring, s.fd(), unmap, 2).flags = IOSQE_IO_LINK;
        put(ring, s.fd(), stats, 3).flags = IOSQE_IO_LINK; // by a worker
        unmap2.id = second.id;
        put(ring, s.fd(), unmap2, 4).flags = IOSQE_IO_LINK;
        free.id = b.id;
        put(ring, s.fd(), free, 5);
        ASSERT_EQ(submit_all(ring, 5), (Results{{1, {0}}, {2, {0}}, {3, {0}}, {4, {0}}, {5, {0}}}));
        ASSERT_EQ(stats.nr_mappings, 1u);
    }
}

TEST_F(Ring, FailureCancelsWhatIsLinked) {
    Buffer b;
    dmaprobe_map map = {};
    dmaprobe_unmap unmap = {};
    dmaprobe_destroy free = {};
    dmaprobe_nop nop = {};

    ASSERT_NO_FATAL_FAILURE(mapped(s, b, map));
    free.id = b.id;
    put(ring, s.fd(), free, 1).flags = IOSQE_IO_LINK; // EBUSY: it is mapped
    unmap.id = map.id;
    put(ring, s.fd(), unmap, 2).flags = IOSQE_IO_LINK;
    put(ring, s.fd(), nop, 3);
    EXPECT_EQ(submit_all(ring, 3), (Results{{1, {EBUSY}}, {2, {ECANCELED}}, {3, {ECANCELED}}}));
    EXPECT_OK(s.unmap(map.id));
    EXPECT_OK(s.free(b));

    // The same when the one that fails does so at once.
    dmaprobe_nop bad = {};
    bad.flags = 1;
    put(ring, s.fd(), bad, 1).flags = IOSQE_IO_LINK;
    put(ring, s.fd(), nop, 2);
    EXPECT_EQ(submit_all(ring, 2), (Results{{1, {EOPNOTSUPP}}, {2, {ECANCELED}}}));
}

// --- many ------------------------------------------------------------------------

TEST_F(Ring, ManyInFlight) {
    constexpr unsigned count = 256;
    std::vector<dmaprobe_nop> nops(count);
    std::vector<dmaprobe_buffer_alloc> allocs(count);

    for (int round = 0; round < 4; round++) {
        for (unsigned i = 0; i < count; i++) {
            if (i % 2) {
                put(ring, s.fd(), nops[i], i);
                continue;
            }
            allocs[i] = {};
            allocs[i].length = page_size();
            put(ring, s.fd(), allocs[i], i);
        }
        const Results results = submit_all(ring, count);
        ASSERT_EQ(results.size(), count);
        EXPECT_TRUE(
            std::ranges::all_of(results, [](const auto& r) { return r.second == Errno{0}; }));

        std::set<uint32_t> ids;
        for (unsigned i = 0; i < count; i += 2) {
            EXPECT_TRUE(ids.insert(allocs[i].id).second) << "an id was given twice";
            EXPECT_OK(s.free({.id = allocs[i].id}));
        }
    }
}

// Commands that need no worker, while another thread needs the device for itself: no
// answer is EAGAIN.
TEST_F(Ring, WhileOthersNeedTheDevice) {
    std::atomic<bool> stop = false;
    std::atomic<int> times = 0;
    // Several, so that one of them nearly always has the lock or waits for it.
    std::vector<std::thread> others;

    others.reserve(4);
    for (int i = 0; i < 4; i++)
        others.emplace_back([&] {
            for (; !stop; times++)
                EXPECT_ERRNO(set_mask(), 0);
        });
    const auto end = std::chrono::steady_clock::now() + seconds(20);

    while (times < 2000 && std::chrono::steady_clock::now() < end) {
        dmaprobe_nop nop = {};
        Results results;

        for (unsigned i = 0; i < 32; i++)
            put(ring, s.fd(), nop, i);
        results = submit_all(ring, 32);
        EXPECT_EQ(results.size(), 32u);
        EXPECT_TRUE(
            std::ranges::all_of(results, [](const auto& r) { return r.second == Errno{0}; }));
    }
    stop = true;
    for (std::thread& other : others)
        other.join();
}

TEST_F(Ring, RunByRing) {
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_destroy free = {};
    dmaprobe_run run = {};

    alloc.size = sizeof(alloc);
    alloc.length = page_size();
    free.size = sizeof(free);
    free.id = DMAPROBE_RUN_ID(0);
    dmaprobe_run_op ops[] = {
        {.cmd = DMAPROBE_BUFFER_ALLOC, .result = 1, .arg = reinterpret_cast<uintptr_t>(&alloc)},
        {.cmd = DMAPROBE_DESTROY, .result = 1, .arg = reinterpret_cast<uintptr_t>(&free)}};
    run.nr_ops = 2;
    run.ops = reinterpret_cast<uintptr_t>(&ops);
    put(ring, s.fd(), run, 1);
    EXPECT_EQ(submit_all(ring, 1), (Results{{1, {0}}}));
    EXPECT_EQ(run.done, 2u);
    EXPECT_EQ(ops[0].result, 0);
    EXPECT_EQ(ops[1].result, 0);
}

// --- kinds of rings --------------------------------------------------------------

TEST_F(Ring, KindsOfRings) {
    for (const unsigned flags : {unsigned{IORING_SETUP_SQPOLL}, unsigned{IORING_SETUP_COOP_TASKRUN},
                                 IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                                 unsigned{IORING_SETUP_SQE128}, unsigned{IORING_SETUP_CQE32}}) {
        const Uring other(8, flags);
        dmaprobe_nop nop = {};
        dmaprobe_buffer_alloc alloc = {};

        SCOPED_TRACE(std::format("flags {:#x}", flags));
        ASSERT_TRUE(other) << strerror(other.error());
        const int fd = s.fd();
        ASSERT_EQ(io_uring_register_files(other.get(), &fd, 1), 0);
        put(other, fd, nop, 1);
        put(other, 0, nop, 2).flags = IOSQE_FIXED_FILE;
        alloc.length = page_size();
        put(other, 0, alloc, 3).flags = IOSQE_FIXED_FILE;
        EXPECT_EQ(submit_all(other, 3), (Results{{1, {0}}, {2, {0}}, {3, {0}}}));
        EXPECT_OK(s.free({.id = alloc.id}));
    }
}

// --- what an SQE must not have ---------------------------------------------------

TEST_F(Ring, MembersThatMustBeZero) {
    using Change = void (*)(io_uring_sqe& sqe);
    static constexpr std::pair<const char*, Change> changes[] = {
        {"ioprio", [](io_uring_sqe& sqe) { sqe.ioprio = 1; }},
        {"__pad1", [](io_uring_sqe& sqe) { sqe.__pad1 = 1; }},
        {"len", [](io_uring_sqe& sqe) { sqe.len = 1; }},
        {"uring_cmd_flags: FIXED", [](io_uring_sqe& sqe) { sqe.uring_cmd_flags = 1; }},
        {"uring_cmd_flags: MULTISHOT", [](io_uring_sqe& sqe) { sqe.uring_cmd_flags = 2; }},
        {"uring_cmd_flags: unknown", [](io_uring_sqe& sqe) { sqe.uring_cmd_flags = 0x40000000; }},
        {"buf_index", [](io_uring_sqe& sqe) { sqe.buf_index = 1; }},
        {"file_index", [](io_uring_sqe& sqe) { sqe.file_index = 1; }},
        {"addr3", [](io_uring_sqe& sqe) { sqe.addr3 = 1; }},
        {"__pad2", [](io_uring_sqe& sqe) { sqe.__pad2[0] = 1; }},
    };

    // Without this a ring stops at an SQE that io_uring itself refuses.
    const Uring whole(4, IORING_SETUP_SUBMIT_ALL);
    ASSERT_TRUE(whole);
    // Linux 6.12 itself looks for the buffer that FIXED names.
    const Memory memory = Memory::fenced(page_size());
    const iovec fixed = {.iov_base = memory.data(), .iov_len = memory.size()};
    ASSERT_EQ(io_uring_register_buffers(whole.get(), &fixed, 1), 0);
    for (const auto& [name, change] : changes) {
        dmaprobe_nop nop = {};
        dmaprobe_buffer_alloc alloc = {};

        SCOPED_TRACE(name);
        change(put(whole, s.fd(), nop, 1));
        alloc.length = page_size();
        change(put(whole, s.fd(), alloc, 2));
        EXPECT_EQ(submit_all(whole, 2), (Results{{1, {EINVAL}}, {2, {EINVAL}}}));
        EXPECT_EQ(alloc.id, 0u);
    }

    // The second half of a large SQE, at its ends.
    const Uring large(4, IORING_SETUP_SQE128);
    ASSERT_TRUE(large);
    for (const size_t at : {sizeof(io_uring_sqe), 2 * sizeof(io_uring_sqe) - 1}) {
        dmaprobe_nop nop = {};

        reinterpret_cast<std::byte*>(&put(large, s.fd(), nop, 1))[at] = std::byte{1};
        EXPECT_EQ(submit_all(large, 1), (Results{{1, {EINVAL}}})) << "byte " << at;
    }
}

// --- cancellation and ends -------------------------------------------------------

TEST_F(Ring, CancelWhatAWorkerIsAt) {
    Buffer b;

    ASSERT_OK(s.alloc(b, page_size()));
    dmaprobe_bench bench = endless(b);
    put(ring, s.fd(), bench, 1);
    ASSERT_EQ(ring.submit(), 1);
    std::this_thread::sleep_for(milliseconds(100));
    ring.cancel(1, 2);
    Results results = submit_all(ring, 2);
    EXPECT_TRUE(results[1] == Errno{EINTR} || results[1] == Errno{ECANCELED})
        << testing::PrintToString(results[1]);
    EXPECT_TRUE(results[2] == Errno{0} || results[2] == Errno{EALREADY})
        << testing::PrintToString(results[2]);
    EXPECT_OK(s.free(b));
}

TEST_F(Ring, CancelARun) {
    Buffer b;

    ASSERT_OK(s.alloc(b, page_size()));
    dmaprobe_bench bench = endless(b);
    bench.size = sizeof(bench);
    std::vector<dmaprobe_run_op> ops(
        100, {.cmd = DMAPROBE_BENCH, .result = 1, .arg = reinterpret_cast<uintptr_t>(&bench)});
    dmaprobe_run run = {};
    run.flags = DMAPROBE_RUN_CONTINUE;
    run.nr_ops = static_cast<uint32_t>(ops.size());
    run.ops = reinterpret_cast<uintptr_t>(ops.data());
    put(ring, s.fd(), run, 1);
    ASSERT_EQ(ring.submit(), 1);
    std::this_thread::sleep_for(milliseconds(100));
    ring.cancel(1, 2);
    Results results = submit_all(ring, 2);
    if (results[1] == Errno{0}) {
        EXPECT_EQ(run.done, 1u);
        EXPECT_ERRNO(-ops[0].result, EINTR);
        EXPECT_ERRNO(-ops[1].result, ECANCELED);
    } else {
        EXPECT_EQ(results[1], Errno{ECANCELED});
    }
    EXPECT_OK(s.free(b));
}

// What is done page by page looks for the cancellation between them.
TEST_F(Ring, CancelACopy) {
    constexpr size_t length = size_t{64} << 20;
    const Memory memory = Memory::fenced(length);
    bool interrupted = false;
    Buffer b;

    ASSERT_OK(s.alloc(b, length, DMAPROBE_BUFFER_KIND_SCATTERED));
    const auto end = std::chrono::steady_clock::now() + seconds(60);
    for (int i = 0; std::chrono::steady_clock::now() < end && !interrupted; i++) {
        dmaprobe_copy copy = {};

        copy.id = b.id;
        copy.dir = DMAPROBE_COPY_READ;
        copy.length = length;
        copy.addr = memory.address();
        put(ring, s.fd(), copy, 1);
        ASSERT_EQ(ring.submit(), 1);
        std::this_thread::sleep_for(milliseconds(1 + i % 20));
        ring.cancel(1, 2);
        Results results = submit_all(ring, 2);
        interrupted = results[1] == Errno{EINTR};
        EXPECT_TRUE(interrupted || results[1] == Errno{ECANCELED} || results[1] == Errno{0})
            << testing::PrintToString(results[1]);
    }
    EXPECT_TRUE(interrupted) << "a copy of 64 MiB ends before it can be cancelled";
    EXPECT_OK(s.free(b));
}

TEST_F(Ring, RingEndsWithCommandsInFlight) {
    Buffer b;

    ASSERT_OK(s.alloc(b, page_size()));
    dmaprobe_bench bench[4] = {endless(b), endless(b), endless(b), endless(b)};
    for (dmaprobe_bench& op : bench)
        put(ring, s.fd(), op, 1);
    ASSERT_EQ(ring.submit(), 4);
    std::this_thread::sleep_for(milliseconds(50));
    ring = Uring();
    // A bench holds the buffer while it is at work.
    EXPECT_TRUE(wait_for([&] { return s.free(b) == 0; }, seconds(20)));
}

TEST_F(Ring, ProcessIsKilledWithCommandsInFlight) {
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        const Raw mine = Raw::open(bdf);
        const Uring my_ring(8);
        Buffer b;
        dmaprobe_map map = {};

        if (!mine || !my_ring || mine.alloc(b, page_size()))
            _exit(1);
        map.buffer_id = b.id;
        map.length = page_size();
        if (mine(map))
            _exit(2);
        dmaprobe_bench bench[4] = {endless(b), endless(b), endless(b), endless(b)};
        for (dmaprobe_bench& op : bench)
            put(my_ring, mine.fd(), op, 1);
        if (my_ring.submit() != 4)
            _exit(3);
        for (;;)
            pause();
    }
    int status = 0;
    EXPECT_TRUE(wait_for([&] { return set_mask() == EBUSY; }, seconds(20)))
        << "the child did not begin";
    std::this_thread::sleep_for(milliseconds(100));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    ASSERT_TRUE(wait_for_child(child, seconds(20), status));
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    expect_nothing_mapped();
}

// A command in flight holds the file: the session ends when it has ended.
TEST_F(Ring, FileIsClosedWithCommandsInFlight) {
    Raw other = Raw::open(bdf);
    Buffer b;
    dmaprobe_map map = {};

    ASSERT_TRUE(other);
    ASSERT_NO_FATAL_FAILURE(mapped(other, b, map));
    dmaprobe_bench bench = endless(b);
    put(ring, other.fd(), bench, 1);
    ASSERT_EQ(ring.submit(), 1);
    EXPECT_OK(other.close());
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_ERRNO(set_mask(), EBUSY) << "the session ended under its command";
    ring.cancel(1, 2);
    Results results = submit_all(ring, 2);
    EXPECT_TRUE(results[1] == Errno{EINTR} || results[1] == Errno{ECANCELED})
        << testing::PrintToString(results[1]);
    expect_nothing_mapped();
}

TEST_F(Ring, DeviceGoesWithCommandsInFlight) {
    KeepDriver keep(bdf);
    Buffer b;
    dmaprobe_nop nop = {};
    dmaprobe_get_stats stats = {};

    ASSERT_OK(s.alloc(b, page_size()));
    dmaprobe_bench bench[2] = {endless(b), endless(b)};
    put(ring, s.fd(), bench[0], 1);
    put(ring, s.fd(), bench[1], 2);
    ASSERT_EQ(ring.submit(), 2);
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_OK(unbind_driver(bdf));
    put(ring, s.fd(), nop, 3);
    put(ring, s.fd(), stats, 4);
    ring.command(s.fd(), _IO(DMAPROBE_IOC_MAGIC, 255), &nop, 5);
    EXPECT_EQ(submit_all(ring, 5),
              (Results{{1, {ENODEV}}, {2, {ENODEV}}, {3, {ENODEV}}, {4, {ENODEV}}, {5, {ENOTTY}}}));
    EXPECT_OK(s.close());
    ring = Uring();
    EXPECT_TRUE(keep.restore());
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// DMAPROBE_RUN: many calls in one, ids of what earlier calls made, and the commands
// that come with it.

#include "support/fixture.h"
#include "support/system.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <deque>
#include <format>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Calls to be made in one run. Each add() answers the id by which later calls name
// what it makes.
class Calls {
public:
    template <class T>
    uint32_t add(T& op) {
        op.size = sizeof(op);
        return add_raw(CommandOf<T>::value, &op);
    }

    uint32_t add_raw(unsigned long command, const void* op) {
        ops.push_back({.cmd = static_cast<uint32_t>(command),
                       .result = 0x5a5a5a,
                       .arg = reinterpret_cast<uintptr_t>(op)});
        return DMAPROBE_RUN_ID(static_cast<uint32_t>(ops.size() - 1));
    }

    int run(int fd, uint32_t flags = 0) {
        dmaprobe_run run = {};

        run.flags = flags;
        run.nr_ops = static_cast<uint32_t>(ops.size());
        run.ops = reinterpret_cast<uintptr_t>(ops.data());
        const int err = call(fd, run);
        done = run.done;
        return err;
    }

    std::vector<Errno> results() const {
        std::vector<Errno> all;

        all.reserve(ops.size());
        for (const dmaprobe_run_op& op : ops)
            all.push_back({-op.result});
        return all;
    }

    std::vector<dmaprobe_run_op> ops;
    uint32_t done = 0;
};

std::vector<Errno> errnos(std::initializer_list<int> values) {
    std::vector<Errno> all;

    for (const int value : values)
        all.push_back({value});
    return all;
}

class Run : public DeviceTest {
protected:
    dmaprobe_get_stats stats() const {
        dmaprobe_get_stats op = {};

        EXPECT_OK(s(op));
        return op;
    }

    void expect_nothing_left() const {
        const dmaprobe_get_stats now = stats();

        EXPECT_EQ(now.nr_buffers, 0u);
        EXPECT_EQ(now.nr_mappings, 0u);
        EXPECT_EQ(now.nr_iovas, 0u);
        EXPECT_EQ(now.charged, 0u);
    }
};

// --- what comes with it -----------------------------------------------------

class Stats : public Run {};

TEST_F(Stats, CountsWhatTheSessionHolds) {
    Raw other = Raw::open(bdf);
    Buffer a;
    Buffer b;
    dmaprobe_map map = {};

    expect_nothing_left();
    ASSERT_OK(s.alloc(a, page_size()));
    ASSERT_OK(s.alloc(b, 3 * page_size(), DMAPROBE_BUFFER_KIND_SCATTERED));
    map.buffer_id = a.id;
    map.length = a.length;
    ASSERT_OK(s(map));
    EXPECT_EQ(stats().nr_buffers, 2u);
    EXPECT_EQ(stats().nr_mappings, 1u);
    EXPECT_EQ(stats().nr_iovas, 0u);
    EXPECT_EQ(stats().nr_allocs, 0u);
    EXPECT_EQ(stats().nr_pools, 0u);
    EXPECT_EQ(stats().nr_blocks, 0u);
    EXPECT_EQ(stats().charged, 4 * page_size());
    EXPECT_EQ(stats().pinned, 0u);

    dmaprobe_get_stats theirs = {};
    ASSERT_OK(other(theirs));
    EXPECT_EQ(theirs.nr_buffers, 0u) << "of another session";

    dmaprobe_iova_alloc iova = {};
    if (s.iova_alloc(iova, page_size()) == 0) {
        EXPECT_EQ(stats().nr_iovas, 1u);
        EXPECT_OK(s.iova_free(iova.id));
    }
    EXPECT_OK(s.unmap(map.id));
    EXPECT_OK(s.free(a));
    EXPECT_OK(s.free(b));
    expect_nothing_left();
}

class Bench : public Run {};

TEST_F(Bench, Values) {
    Buffer b;
    Buffer other;
    dmaprobe_bench op = {};

    ASSERT_OK(s.alloc(b, page_size()));
    op.count = 1000;
    op.ns = ~uint64_t{0};
    ASSERT_OK(s(op));
    EXPECT_LT(op.ns, 1'000'000'000u);
    op.kind = DMAPROBE_BENCH_MAP_PAGE;
    op.buffer_id = b.id;
    ASSERT_OK(s(op));
    EXPECT_NE(op.ns, 0u);
    op.count = 0;
    EXPECT_ERRNO(s(op), EINVAL) << "no round";
    op.count = 10'000'001;
    EXPECT_ERRNO(s(op), EINVAL) << "too many rounds";
    op.count = ~uint64_t{0};
    EXPECT_ERRNO(s(op), EINVAL);
    op.count = 1;
    op.kind = DMAPROBE_BENCH_NOP;
    EXPECT_ERRNO(s(op), EINVAL) << "a buffer that is not used";
    EXPECT_OK(s.free(b)) << "the loop left something mapped";
}

void on_alarm(int) {}

// A signal to one thread, again and again until it is to stop.
class Pester {
public:
    explicit Pester(int signal)
        : target_(pthread_self()), thread_([this, signal] {
              while (!stop_) {
                  std::this_thread::sleep_for(milliseconds(20));
                  pthread_kill(target_, signal);
              }
          }) {}
    Pester(const Pester&) = delete;
    Pester& operator=(const Pester&) = delete;
    ~Pester() {
        stop_ = true;
        thread_.join();
    }

private:
    std::atomic<bool> stop_ = false;
    pthread_t target_;
    std::thread thread_;
};

TEST_F(Bench, EndsWithASignal) {
    Buffer b;
    dmaprobe_bench op = {.size = sizeof(op),
                         .flags = 0,
                         .kind = DMAPROBE_BENCH_MAP_PAGE,
                         .buffer_id = 0,
                         .count = 10'000'000,
                         .ns = 0};
    struct sigaction action = {};

    ASSERT_OK(s.alloc(b, page_size()));
    op.buffer_id = b.id;
    action.sa_handler = on_alarm;
    ASSERT_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
    {
        const Pester pester(SIGUSR1);

        // A worker of a ring has no signals: by ioctl, whatever the transport.
        EXPECT_EQ(ioctl(s.fd(), DMAPROBE_BENCH, &op), -1);
    }
    EXPECT_ERRNO(errno, EINTR);
    EXPECT_OK(s.free(b)) << "the loop left something mapped";
}

// --- ids of earlier calls -----------------------------------------------------

TEST_F(Run, MapSyncUnmapFree) {
    Calls c;
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_map map = {};
    dmaprobe_sync sync = {};
    dmaprobe_unmap unmap = {};
    dmaprobe_destroy free = {};

    alloc.length = page_size();
    map.buffer_id = c.add(alloc);
    map.length = page_size();
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    sync.id = c.add(map);
    sync.length = page_size();
    c.add(sync);
    unmap.id = sync.id;
    c.add(unmap);
    free.id = map.buffer_id;
    c.add(free);
    ASSERT_OK(c.run(s.fd()));
    EXPECT_EQ(c.results(), errnos({0, 0, 0, 0, 0}));
    EXPECT_EQ(c.done, 5u);
    EXPECT_NE(alloc.id, 0u);
    EXPECT_NE(map.id, 0u);
    EXPECT_NE(map.dma_addr, 0u);
    expect_nothing_left();
}

TEST_F(Run, WholeLifeOfAnIova) {
    if (const auto why = s.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << *why;
    if (!s.translated())
        GTEST_SKIP() << "no IOMMU translates for the device";

    const uint64_t length = s.granule();
    Calls c;
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_iova_alloc iova = {};
    dmaprobe_iova_link link = {};
    dmaprobe_iova_sync sync = {};
    dmaprobe_get_iova_state state = {};
    dmaprobe_translate translate = {};
    dmaprobe_extent extent = {};
    dmaprobe_iova_unlink unlink = {};
    dmaprobe_iova_free free_iova = {};
    dmaprobe_destroy free = {};

    alloc.length = std::max<uint64_t>(length, page_size());
    const uint32_t buffer = c.add(alloc);
    iova.buffer_id = buffer;
    iova.length = length;
    const uint32_t space = c.add(iova);
    link.id = space;
    link.buffer_id = buffer;
    link.length = length;
    c.add(link);
    sync.id = space;
    sync.length = length;
    c.add(sync);
    state.id = space;
    c.add(state);
    // An address that it does not know beforehand: any, the hint is what counts.
    translate.iova = 0x1000;
    translate.length = 1;
    translate.buffer_id = buffer;
    translate.nr_extents = 1;
    translate.extents = reinterpret_cast<uintptr_t>(&extent);
    c.add(translate);
    unlink.id = space;
    unlink.length = length;
    c.add(unlink);
    free_iova.id = space;
    c.add(free_iova);
    free.id = buffer;
    c.add(free);
    ASSERT_OK(c.run(s.fd()));
    EXPECT_EQ(c.results(), errnos({0, 0, 0, 0, 0, 0, 0, 0, 0}));
    EXPECT_EQ(state.linked, length);
    EXPECT_EQ(state.nr_links, 1u);
    expect_nothing_left();
}

TEST_F(Run, DestroyAnIova) {
    if (const auto why = s.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << *why;
    if (!s.translated())
        GTEST_SKIP() << "no IOMMU translates for the device";
    Calls c;
    dmaprobe_iova_alloc iova = {};
    dmaprobe_iova_destroy destroy = {};

    iova.length = page_size();
    destroy.id = c.add(iova);
    c.add(destroy);
    c.add(destroy);
    ASSERT_OK(c.run(s.fd()));
    EXPECT_EQ(c.results(), errnos({0, 0, ENOENT}));
    expect_nothing_left();
}

// Ids that name nothing: of a call that made nothing, that failed, of its own, of a
// later one, of one beyond the run.
TEST_F(Run, IdsThatNameNothing) {
    Calls c;
    dmaprobe_nop nop = {};
    dmaprobe_buffer_alloc bad = {};
    dmaprobe_buffer_alloc later = {};

    c.add(nop);
    c.add(bad); // no length
    std::deque<dmaprobe_destroy> frees;
    for (const uint32_t n : {0u, 1u, 4u, 7u, 1000u, DMAPROBE_RUN_MAX + 0u, 0x7fffffffu}) {
        frees.push_back({.size = 0, .flags = 0, .id = DMAPROBE_RUN_ID(n), .__reserved = 0});
        c.add(frees.back());
    }
    later.length = page_size();
    c.add(later); // is number 9
    ASSERT_OK(c.run(s.fd(), DMAPROBE_RUN_CONTINUE));
    EXPECT_EQ(c.results(),
              errnos({0, EINVAL, ENOENT, ENOENT, ENOENT, ENOENT, ENOENT, ENOENT, ENOENT, 0}));
    EXPECT_EQ(c.done, 10u);
    EXPECT_EQ(stats().nr_buffers, 1u);
    // And outside of the run.
    EXPECT_ERRNO(s.free({.id = DMAPROBE_RUN_ID(9)}), ENOENT);
    EXPECT_OK(s.free({.id = later.id}));
}

// A reference to what is gone again, and one of another kind.
TEST_F(Run, IdsOfAnotherKindAndGone) {
    Calls c;
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_unmap unmap = {};
    dmaprobe_destroy free = {};

    alloc.length = page_size();
    free.id = unmap.id = c.add(alloc);
    c.add(unmap);
    c.add(free);
    c.add(free);
    ASSERT_OK(c.run(s.fd(), DMAPROBE_RUN_CONTINUE));
    EXPECT_EQ(c.results(), errnos({0, ENOENT, 0, ENOENT}));
    expect_nothing_left();
}

// --- stop or go on --------------------------------------------------------------

TEST_F(Run, StopsAtTheFirstFailure) {
    Calls c;
    dmaprobe_nop nop = {};
    dmaprobe_nop bad = {};
    dmaprobe_buffer_alloc never = {};

    c.add(nop);
    bad.flags = 1;
    c.add(bad);
    c.add(nop);
    never.length = page_size();
    c.add(never);
    ASSERT_OK(c.run(s.fd()));
    EXPECT_EQ(c.results(), errnos({0, EOPNOTSUPP, ECANCELED, ECANCELED}));
    EXPECT_EQ(c.done, 2u);
    EXPECT_EQ(never.id, 0u);
    expect_nothing_left();
}

TEST_F(Run, GoesOnWhenAsked) {
    Calls c;
    dmaprobe_nop nop = {};
    dmaprobe_nop bad = {};

    bad.flags = 1;
    c.add(bad);
    c.add(nop);
    c.add(bad);
    c.add(nop);
    ASSERT_OK(c.run(s.fd(), DMAPROBE_RUN_CONTINUE));
    EXPECT_EQ(c.results(), errnos({EOPNOTSUPP, 0, EOPNOTSUPP, 0}));
    EXPECT_EQ(c.done, 4u);
}

// At every place of a long run, also where what is read at a time ends.
TEST_F(Run, StopsAnywhere) {
    dmaprobe_nop nop = {};
    dmaprobe_nop bad = {};

    bad.size = sizeof(bad);
    bad.flags = 1;
    for (uint32_t at = 0; at < 100; at++) {
        Calls c;

        for (uint32_t i = 0; i < 100; i++)
            c.add(nop);
        c.ops[at].arg = reinterpret_cast<uintptr_t>(&bad);
        ASSERT_OK(c.run(s.fd()));
        ASSERT_EQ(c.done, at + 1);
        for (uint32_t i = 0; i < 100; i++)
            ASSERT_ERRNO(-c.ops[i].result, i < at    ? 0
                                           : i == at ? EOPNOTSUPP
                                                     : ECANCELED)
                << "failure at " << at << ", call " << i;
    }
}

// --- what cannot be read or written --------------------------------------------

TEST_F(Run, NumberOfCalls) {
    std::vector<dmaprobe_run_op> ops(DMAPROBE_RUN_MAX + 1);
    dmaprobe_nop nop = {.size = sizeof(nop), .flags = 0};
    dmaprobe_run run = {};

    for (dmaprobe_run_op& op : ops)
        op = {.cmd = DMAPROBE_NOP, .result = 1, .arg = reinterpret_cast<uintptr_t>(&nop)};
    run.ops = reinterpret_cast<uintptr_t>(ops.data());
    for (const uint32_t nr : {0u, DMAPROBE_RUN_MAX + 1u, 0x10000000u, 0xffffffffu}) {
        run.nr_ops = nr;
        EXPECT_ERRNO(s(run), EINVAL) << nr;
    }
    EXPECT_EQ(ops[0].result, 1) << "a run that failed wrote a result";
    run.nr_ops = DMAPROBE_RUN_MAX;
    ASSERT_OK(s(run));
    EXPECT_EQ(run.done, uint32_t{DMAPROBE_RUN_MAX});
    EXPECT_TRUE(std::all_of(ops.begin(), ops.end() - 1,
                            [](const dmaprobe_run_op& op) { return op.result == 0; }));
    EXPECT_EQ(ops.back().result, 1);
}

// Where results cannot be written, nothing is done.
TEST_F(Run, ReadOnlyCalls) {
    const Memory memory = Memory::fenced(2 * page_size());
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_run run = {};

    alloc.size = sizeof(alloc);
    alloc.length = page_size();
    const auto nr = static_cast<uint32_t>(memory.size() / sizeof(dmaprobe_run_op));
    for (uint32_t i = 0; i < nr; i++)
        reinterpret_cast<dmaprobe_run_op*>(memory.data())[i] = {
            .cmd = DMAPROBE_BUFFER_ALLOC, .result = 0, .arg = reinterpret_cast<uintptr_t>(&alloc)};
    ASSERT_TRUE(memory.protect(PROT_READ));
    run.ops = memory.address();
    for (const uint32_t n : {1u, 2u, nr}) {
        run.nr_ops = n;
        EXPECT_ERRNO(s(run), EFAULT);
    }
    // The last one is behind the fence.
    ASSERT_TRUE(memory.protect(PROT_READ | PROT_WRITE));
    run.nr_ops = nr + 1;
    EXPECT_ERRNO(s(run), EFAULT);
    EXPECT_EQ(alloc.id, 0u);
    expect_nothing_left();
}

TEST_F(Run, BadArguments) {
    const Memory memory = Memory::fenced(page_size());
    Calls c;
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_nop nop = {};

    c.add_raw(DMAPROBE_NOP, nullptr);
    c.add_raw(DMAPROBE_NOP, memory.data() + memory.size());
    c.add_raw(DMAPROBE_BUFFER_ALLOC, memory.data() + memory.size() - 8);
    // Readable, but its answer cannot be written: it must not stay.
    alloc.size = sizeof(alloc);
    alloc.length = page_size();
    memcpy(memory.data(), &alloc, sizeof(alloc));
    auto* const size = reinterpret_cast<uint32_t*>(memory.data() + memory.size() - 8);
    *size = sizeof(alloc);
    ASSERT_TRUE(memory.protect(PROT_READ));
    c.add_raw(DMAPROBE_BUFFER_ALLOC, memory.data());
    c.add_raw(_IO(DMAPROBE_IOC_MAGIC, 255), &nop);
    c.add_raw(_IO(0x3b, 0), &nop);
    c.add_raw(0, &nop);
    c.add(nop);
    ASSERT_OK(c.run(s.fd(), DMAPROBE_RUN_CONTINUE));
    EXPECT_EQ(c.results(), errnos({EFAULT, EFAULT, EFAULT, EFAULT, ENOTTY, ENOTTY, ENOTTY, 0}));
    expect_nothing_left();
}

TEST_F(Run, RunInARun) {
    Calls inner;
    Calls c;
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_nop nop = {};

    alloc.length = page_size();
    inner.add(alloc);
    dmaprobe_run run = {};
    run.nr_ops = 1;
    run.ops = reinterpret_cast<uintptr_t>(inner.ops.data());
    c.add(run);
    c.add(nop);
    ASSERT_OK(c.run(s.fd(), DMAPROBE_RUN_CONTINUE));
    EXPECT_EQ(c.results(), errnos({EINVAL, 0}));
    EXPECT_EQ(inner.ops[0].result, 0x5a5a5a);
    expect_nothing_left();
}

// --- commands that need the device for themselves, or for long ------------------

TEST_F(Run, ExclusiveCommandsBetweenOthers) {
    Calls c;
    dmaprobe_nop nop = {};
    dmaprobe_set_mask mask = {};
    dmaprobe_get_limits limits = {};
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_map map = {};
    dmaprobe_unmap unmap = {};
    dmaprobe_destroy free = {};

    c.add(nop);
    mask.flags = DMAPROBE_SET_MASK_STREAMING;
    mask.mask = 0xffffffff;
    c.add(mask);
    c.add(limits);
    alloc.length = page_size();
    free.id = map.buffer_id = c.add(alloc);
    map.length = page_size();
    unmap.id = c.add(map);
    c.add(mask); // EBUSY: something is mapped
    c.add(unmap);
    c.add(mask);
    c.add(free);
    ASSERT_OK(c.run(s.fd(), DMAPROBE_RUN_CONTINUE));
    EXPECT_EQ(c.results(), errnos({0, 0, 0, 0, 0, EBUSY, 0, 0, 0}));
    EXPECT_EQ(limits.dma_mask, 0xffffffffu);
    expect_nothing_left();
}

TEST_F(Run, BenchInARun) {
    Calls c;
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_bench bench = {};
    dmaprobe_nop nop = {};
    dmaprobe_get_stats stats = {};

    c.add(nop);
    alloc.length = page_size();
    bench.buffer_id = c.add(alloc);
    bench.kind = DMAPROBE_BENCH_MAP_PAGE;
    bench.count = 3000;
    c.add(bench);
    c.add(stats);
    ASSERT_OK(c.run(s.fd()));
    EXPECT_EQ(c.results(), errnos({0, 0, 0, 0}));
    EXPECT_EQ(stats.nr_buffers, 1u);
}

TEST_F(Run, TenThousandCalls) {
    constexpr uint32_t rounds = 2500;
    uint32_t made = 0;

    for (uint32_t first = 0; first < rounds; first += DMAPROBE_RUN_MAX / 4) {
        Calls c;
        const uint32_t here = std::min<uint32_t>(rounds - first, DMAPROBE_RUN_MAX / 4);
        std::vector<dmaprobe_buffer_alloc> allocs(here);
        std::vector<dmaprobe_map> maps(here);
        std::vector<dmaprobe_unmap> unmaps(here);
        std::vector<dmaprobe_destroy> frees(here);

        for (uint32_t i = 0; i < here; i++) {
            allocs[i].length = page_size();
            frees[i].id = maps[i].buffer_id = c.add(allocs[i]);
            maps[i].length = page_size();
            unmaps[i].id = c.add(maps[i]);
            c.add(unmaps[i]);
            c.add(frees[i]);
        }
        ASSERT_OK(c.run(s.fd()));
        ASSERT_EQ(c.done, c.ops.size());
        EXPECT_TRUE(std::ranges::all_of(c.ops, [](const auto& op) { return op.result == 0; }));
        made += c.done;
    }
    EXPECT_EQ(made, 4 * rounds);
    expect_nothing_left();
}

// Two threads run in one session while a third needs the device for itself.
TEST_F(Run, WhileOthersNeedTheDevice) {
    std::atomic<bool> stop = false;
    std::vector<std::thread> threads;

    threads.reserve(2);
    for (int t = 0; t < 2; t++)
        threads.emplace_back([&] {
            while (!stop) {
                Calls c;
                std::vector<dmaprobe_nop> nops(200);
                dmaprobe_buffer_alloc alloc = {};
                dmaprobe_destroy free = {};

                for (dmaprobe_nop& nop : nops)
                    c.add(nop);
                alloc.length = page_size();
                free.id = c.add(alloc);
                c.add(free);
                EXPECT_OK(c.run(s.fd()));
                EXPECT_EQ(c.done, c.ops.size());
            }
        });
    for (int i = 0; i < 100; i++)
        EXPECT_OK(s.set_mask(i % 2 ? 0xffffffff : 0xfffffff));
    stop = true;
    for (std::thread& thread : threads)
        thread.join();
    expect_nothing_left();
}

// --- the end of process and device -----------------------------------------------

// A child that runs for long, until it is killed.
TEST_F(Run, KilledInTheMiddle) {
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        const Raw mine = Raw::open(bdf);
        Calls c;
        dmaprobe_buffer_alloc alloc = {};
        dmaprobe_bench bench = {};

        alloc.length = page_size();
        bench.buffer_id = c.add(alloc);
        bench.kind = DMAPROBE_BENCH_MAP_PAGE;
        bench.count = 10'000'000;
        for (int i = 0; i < 1000; i++)
            c.add(bench);
        c.run(mine.fd(), DMAPROBE_RUN_CONTINUE);
        _exit(1);
    }
    int status = 0;
    std::this_thread::sleep_for(milliseconds(300));
    ASSERT_EQ(kill(child, SIGKILL), 0);
    ASSERT_TRUE(wait_for_child(child, seconds(20), status));
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    // Nothing of it is left: masks can be set, which mappings would forbid.
    EXPECT_TRUE(wait_for([&] { return s.set_mask(0xffffffff) == 0; }, seconds(20)))
        << "a ring's worker may hold the file for longer";
}

// The device goes away in the middle: that is the result of each call from then on.
TEST_F(Run, DeviceGoesInTheMiddle) {
    KeepDriver keep(bdf);
    Calls c;
    dmaprobe_nop nop = {};
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_bench bench = {};

    alloc.length = page_size();
    c.add(nop);
    bench.buffer_id = c.add(alloc);
    bench.kind = DMAPROBE_BENCH_MAP_PAGE;
    bench.count = 10'000'000;
    c.add(bench);
    c.add(nop);
    c.add_raw(_IO(DMAPROBE_IOC_MAGIC, 255), &nop);
    std::thread unbind([&] {
        EXPECT_TRUE(wait_for(
            [&] {
                dmaprobe_get_stats stats = {};
                stats.size = sizeof(stats);
                return ioctl(s.fd(), DMAPROBE_GET_STATS, &stats) == 0 && stats.nr_buffers == 1;
            },
            seconds(20)))
            << "the run does not begin";
        EXPECT_OK(unbind_driver(bdf));
    });
    EXPECT_OK(c.run(s.fd(), DMAPROBE_RUN_CONTINUE));
    unbind.join();
    EXPECT_EQ(c.results(), errnos({0, 0, ENODEV, ENODEV, ENOTTY}));

    // And when it is gone before.
    EXPECT_OK(c.run(s.fd()));
    EXPECT_EQ(c.results(), errnos({ENODEV, ECANCELED, ECANCELED, ECANCELED, ECANCELED}));
    EXPECT_OK(s.close());
    EXPECT_TRUE(keep.restore());
}

} // namespace
} // namespace selftest

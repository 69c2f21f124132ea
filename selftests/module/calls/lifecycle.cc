// SPDX-License-Identifier: GPL-2.0-only
// Sessions, processes and drivers that come and go while things are mapped.

#include "support/fixture.h"
#include "support/ops.h"
#include "support/system.h"
#include "support/unbind.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::seconds;

// Addresses that a session has mapped, in memory that a child can share.
struct Ranges {
    struct Range {
        uint64_t iova;
        uint64_t length;
    };

    std::array<Range, 16> range;
    size_t count;

    void add(uint64_t iova, uint64_t length) { range.at(count++) = {iova, length}; }
};

class Lifecycle : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        has_iova = iommu && !s.missing(DMAPROBE_FEATURE_DMA_IOVA);
        void* at = mmap(nullptr, sizeof(*ranges), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        ASSERT_NE(at, MAP_FAILED);
        shared = Memory(at, sizeof(*ranges));
        ranges = static_cast<Ranges*>(at);
    }

    // One of everything, all of it live; 0 or the errno of what failed.
    int fill(const Raw& session, Buffer& contiguous) const {
        const uint64_t page = page_size();
        Buffer scattered;

        if (const int err = session.alloc(contiguous, 8 * page))
            return err;
        if (const int err = session.alloc(scattered, 8 * page, DMAPROBE_BUFFER_KIND_SCATTERED))
            return err;
        for (const uint32_t dir :
             {DMAPROBE_DIR_BIDIRECTIONAL, DMAPROBE_DIR_TO_DEVICE, DMAPROBE_DIR_FROM_DEVICE}) {
            dmaprobe_map map = {};

            map.kind = DMAPROBE_MAP_KIND_PAGE;
            map.dir = dir;
            map.buffer_id = contiguous.id;
            map.buffer_offset = page;
            map.length = 3 * page;
            if (const int err = session(map))
                return err;
            ranges->add(map.dma_addr, map.length);
        }
        if (const int err = fill_lists(session, scattered))
            return err;
        if (!has_iova)
            return 0;
        // One with a hole, one full, one empty.
        dmaprobe_iova_alloc io = {};
        for (int i = 0; i < 3; i++) {
            if (const int err = session.iova_alloc(io, 8 * page))
                return err;
            ranges->add(io.addr, io.length);
            for (uint64_t at = 0; i < 2 && at < 8; at++) {
                if (i == 0 && at == 3)
                    continue;
                if (const int err = session.link(io.id, at * page, scattered, at * page, page))
                    return err;
            }
        }
        return 0;
    }

    // A list, and part of the device's first BAR where it can be mapped.
    int fill_lists(const Raw& session, const Buffer& pages) const {
        std::vector<dmaprobe_segment> segments;
        std::vector<dmaprobe_sg_entry> entries;
        dmaprobe_map_resource bar = {};
        dmaprobe_map_sg list = {};

        entries.reserve(pages.length / page_size());
        for (uint64_t at = 0; at < pages.length; at += page_size())
            entries.push_back({at, page_size(), pages.id, 0});
        if (const int err = session.map_sg(list, entries))
            return err;
        if (const int err = session.segments(segments, list.id))
            return err;
        ranges->add(segments[0].dma_addr, segments[0].length);
        bar.length = page_size();
        const int err = session(bar);
        ranges->add(bar.dma_addr, err ? 1 : bar.length);
        return err == ENXIO || err == EIO ? 0 : err;
    }

    void expect_live(size_t expected) const {
        ASSERT_EQ(ranges->count, expected);
        EXPECT_ERRNO(s.set_mask(0xffffffff), EBUSY);
        if (!iommu)
            return;
        for (size_t i = 0; i < 3; i++) {
            std::vector<Extent> got;

            ASSERT_OK(s.translate(got, ranges->range[i].iova, ranges->range[i].length));
            ASSERT_FALSE(got.empty());
            EXPECT_NE(got[0].kind, uint32_t{DMAPROBE_EXTENT_HOLE});
        }
    }

    // Nothing of what a session had is left in the page tables or in the way.
    void expect_gone() const {
        for (size_t i = 0; iommu && i < ranges->count; i++)
            expect_hole(ranges->range[i].iova, ranges->range[i].length);
        EXPECT_OK(s.set_mask(0xffffffff));
    }

    size_t expected_ranges() const { return has_iova ? 8 : 5; }

    bool has_iova = false;
    Memory shared;
    Ranges* ranges = nullptr;
};

TEST_F(Lifecycle, CloseWithAllLive) {
    Raw other = Raw::open(bdf);
    Buffer b;

    ASSERT_TRUE(other);
    ASSERT_OK(fill(other, b));
    expect_live(expected_ranges());
    ASSERT_OK(other.close());
    expect_gone();
}

// A map of the memory keeps the file open, and with it the session, until it is
// gone too.
TEST_F(Lifecycle, UnmapOfTheMemoryEndsAClosedSession) {
    Raw other = Raw::open(bdf);
    Buffer b;

    ASSERT_TRUE(other);
    ASSERT_OK(fill(other, b));
    Memory m = other.mmap(b);
    ASSERT_TRUE(m);
    memset(m.data(), 0x77, m.size());
    ASSERT_OK(other.close());
    EXPECT_TRUE(std::ranges::all_of(m.bytes(), [](std::byte x) { return x == std::byte{0x77}; }));
    m.unmap();
    expect_gone();
}

TEST_F(Lifecycle, KilledProcess) {
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        Raw mine = Raw::open(bdf);
        Buffer b;

        if (!mine || fill(mine, b))
            _exit(1);
        const Memory m = mine.mmap(b);
        if (!m)
            _exit(2);
        memset(m.data(), 0x11, m.size());
        raise(SIGSTOP);
        _exit(3);
    }
    int status = 0;
    const bool stopped = wait_for(
        [&] { return waitpid(child, &status, WNOHANG | WUNTRACED) == child; }, seconds(20));
    const bool ready = stopped && WIFSTOPPED(status);
    EXPECT_TRUE(ready) << "the child did not get everything: status " << status;
    if (ready)
        expect_live(expected_ranges());
    kill(child, SIGKILL);
    if (!stopped || ready) {
        ASSERT_TRUE(wait_for_child(child, seconds(20), status)) << "the child does not end";
    }
    expect_gone();
}

// A session belongs to the file: it ends with its last descriptor.
TEST_F(Lifecycle, SessionInAChild) {
    Raw other = Raw::open(bdf);
    Buffer b;

    ASSERT_TRUE(other);
    ASSERT_OK(fill(other, b));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        raise(SIGSTOP);
        _exit(other.free(b) == EBUSY ? 0 : 1);
    }
    int status = 0;
    ASSERT_TRUE(wait_for([&] { return waitpid(child, &status, WNOHANG | WUNTRACED) == child; },
                         seconds(20)));
    ASSERT_OK(other.close());
    expect_live(expected_ranges());
    kill(child, SIGCONT);
    ASSERT_TRUE(wait_for_child(child, seconds(20), status));
    EXPECT_EQ(status, 0) << "the session did not work in the child";
    expect_gone();
}

TEST_F(Lifecycle, ManySessions) {
    for (int i = 0; i < 50; i++) {
        Raw other = Raw::open(bdf);
        Buffer b;

        ASSERT_TRUE(other);
        ranges->count = 0;
        ASSERT_OK(fill(other, b));
        ASSERT_OK(other.close());
    }
    expect_gone();
}

TEST_F(Lifecycle, SessionsAreSeparate) {
    const uint64_t page = page_size();
    Raw other = Raw::open(bdf);
    Buffer mine;
    Buffer theirs;
    dmaprobe_map map = {};

    ASSERT_TRUE(other);
    ASSERT_OK(s.alloc(mine, page));
    ASSERT_OK(other.alloc(theirs, 2 * page));
    EXPECT_EQ(mine.id, theirs.id) << "the test wants the same id in both sessions";
    Memory m1 = s.mmap(mine);
    Memory m2 = other.mmap(theirs);
    ASSERT_TRUE(m1 && m2);
    memset(m1.data(), 1, m1.size());
    EXPECT_EQ(m2.data()[0], std::byte{0});
    map.buffer_id = mine.id;
    map.length = page;
    ASSERT_OK(s(map));
    m2.unmap();
    EXPECT_OK(other.free(theirs)) << "held by another session's mapping";
    EXPECT_ERRNO(other.unmap(map.id), ENOENT);
    EXPECT_ERRNO(other.set_mask(0xffffffff), EBUSY) << "the mask is the device's";
    ASSERT_OK(other.close());
    if (iommu)
        expect_leads_to(map.dma_addr, page, mine, 0);
    EXPECT_OK(s.unmap(map.id));
}

TEST_F(Lifecycle, MasksComeBackWithTheLastClose) {
    const dmaprobe_get_limits bound = s.limits();
    Raw other = Raw::open(bdf);

    ASSERT_TRUE(other);
    ASSERT_OK(s.set_mask(0xfffffff, DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT));
    EXPECT_EQ(other.limits().dma_mask, 0xfffffffu) << "the mask is the device's";
    ASSERT_OK(s.close());
    EXPECT_EQ(other.limits().dma_mask, 0xfffffffu) << "a session is left";
    EXPECT_EQ(other.limits().coherent_dma_mask, 0xfffffffu);
    ASSERT_OK(other.close());
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    EXPECT_EQ(s.limits().dma_mask, bound.dma_mask);
    EXPECT_EQ(s.limits().coherent_dma_mask, bound.coherent_dma_mask);
}

// --- the driver goes away --------------------------------------------------

class Unbind : public Unbinding<Lifecycle> {};

TEST_F(Unbind, WithAllLive) {
    const uint64_t page = page_size();
    Raw other = Raw::open(bdf);
    Buffer b;
    Buffer b2;

    ASSERT_TRUE(other);
    ASSERT_OK(fill(s, b));
    ASSERT_OK(fill(other, b2));
    Memory m = s.mmap(b);
    ASSERT_TRUE(m);
    memset(m.data(), 0x42, m.size());

    ASSERT_OK(unbind_driver(bdf));
    EXPECT_EQ(driver_of(bdf), "");
    EXPECT_TRUE(wait_for([&] { return !exists(node_path(bdf)); }, seconds(5)))
        << "the node is still there";

    for (const Raw* gone : {&s, &other}) {
        dmaprobe_get_info info = {};
        dmaprobe_get_limits limits = {};
        dmaprobe_get_domain domain = {};
        dmaprobe_enable enable = {};
        dmaprobe_map map = {};
        dmaprobe_sync sync = {};
        dmaprobe_iova_alloc iova = {};
        dmaprobe_get_iova_state state = {};
        std::vector<Extent> extents;
        Buffer next;

        EXPECT_ERRNO((*gone)(info), ENODEV);
        EXPECT_ERRNO((*gone)(limits), ENODEV);
        EXPECT_ERRNO((*gone)(domain), ENODEV);
        EXPECT_ERRNO(gone->set_mask(0xffffffff), ENODEV);
        for (const uint32_t on : {1u, 0u}) {
            enable.enable = on;
            EXPECT_ERRNO((*gone)(enable), ENODEV);
        }
        EXPECT_ERRNO(gone->alloc(next, page), ENODEV);
        EXPECT_ERRNO(gone->free(b), ENODEV);
        map.buffer_id = b.id;
        map.length = page;
        EXPECT_ERRNO((*gone)(map), ENODEV);
        for (uint32_t id = 1; id < 10; id++) {
            EXPECT_ERRNO(gone->unmap(id), ENODEV);
            sync.id = id;
            sync.length = 1;
            EXPECT_ERRNO((*gone)(sync), ENODEV);
            EXPECT_ERRNO(gone->iova_free(id), ENODEV);
            EXPECT_ERRNO(gone->link(id, 0, b, 0, page), ENODEV);
            EXPECT_ERRNO(gone->iova_sync(id, 0, page), ENODEV);
            EXPECT_ERRNO(gone->unlink(id, 0, page), ENODEV);
            EXPECT_ERRNO(gone->iova_destroy(id, page), ENODEV);
            state.id = id;
            EXPECT_ERRNO((*gone)(state), ENODEV);
        }
        EXPECT_ERRNO(gone->iova_alloc(iova, page), ENODEV);
        EXPECT_ERRNO(gone->translate(extents, 0x1000, page), ENODEV);
        EXPECT_FALSE(gone->mmap(b));
        EXPECT_ERRNO(errno, ENODEV);
        // What is no command is none without a device, too.
        EXPECT_ERRNO(submit(gone->fd(), _IO(DMAPROBE_IOC_MAGIC, 255), &info), ENOTTY);
    }

    EXPECT_TRUE(std::ranges::all_of(m.bytes(), [](std::byte x) { return x == std::byte{0x42}; }))
        << "the program's memory changed";
    memset(m.data(), 0x43, m.size());
    EXPECT_OK(other.close());
    EXPECT_OK(s.close());
    m.unmap();

    ASSERT_NO_FATAL_FAILURE(come_back());
    expect_gone();
    ranges->count = 0;
    EXPECT_OK(fill(s, b)) << "the new session does not work";
}

// Calls that worked before, of every command: each finds out by itself that the device is gone.
TEST_F(Unbind, EveryCommand) {
    Live live(bdf);
    std::vector<std::pair<const Op*, std::vector<std::byte>>> calls;

    for (const Op& op : ops()) {
        // A run reports it for each of its calls.
        if (op.command == DMAPROBE_RUN || !unsupported_reason(op, s).empty())
            continue;
        std::vector<std::byte>& call = calls.emplace_back(&op, op.size).second;
        op.sample(live, call.data());
        set<uint32_t>(call.data(), 0, static_cast<uint32_t>(op.size));
    }
    ASSERT_GT(calls.size(), 20u);
    ASSERT_OK(unbind_driver(bdf));
    for (auto& [op, call] : calls)
        EXPECT_ERRNO(submit(live.s.fd(), op->command, call.data()), ENODEV) << op->name;
    EXPECT_OK(live.s.close());
    EXPECT_OK(s.close());
    ASSERT_NO_FATAL_FAILURE(come_back());
}

// The old session is still open when the device comes back, and is none of it.
TEST_F(Unbind, OldSessionStaysDead) {
    Buffer b;

    ASSERT_OK(fill(s, b));
    ASSERT_OK(unbind_driver(bdf));
    ASSERT_OK(probe_driver(bdf));
    ASSERT_EQ(driver_of(bdf), driver_name);
    Raw fresh = Raw::open(bdf);
    ASSERT_TRUE(fresh) << strerror(fresh.error());
    dmaprobe_get_info info = {};
    EXPECT_ERRNO(s(info), ENODEV);
    EXPECT_OK(fresh(info));
    EXPECT_OK(s.close());
    EXPECT_OK(fresh(info)) << "the old session's close took the new one along";
    EXPECT_OK(fresh.set_mask(0xffffffff));
}

TEST_F(Unbind, AgainAndAgain) {
    for (int i = 0; i < 10; i++) {
        Buffer b;

        SCOPED_TRACE(std::format("round {}", i));
        ranges->count = 0;
        ASSERT_OK(fill(s, b));
        ASSERT_OK(unbind_driver(bdf));
        ASSERT_NO_FATAL_FAILURE(come_back());
    }
}

// While other threads are in the middle of calls.
TEST_F(Unbind, WithCallsInFlight) {
    std::atomic<bool> stop = false;
    std::atomic<int> odd = 0;
    std::vector<std::thread> threads;
    Buffer b;

    ASSERT_OK(s.alloc(b, 8 * page_size()));
    threads.reserve(3);
    for (int i = 0; i < 3; i++) {
        threads.emplace_back([&] {
            while (!stop) {
                dmaprobe_map map = {};

                map.kind = DMAPROBE_MAP_KIND_PAGE;
                map.buffer_id = b.id;
                map.length = page_size();
                int err = s(map);
                if (err && err != ENODEV)
                    odd = err;
                if (!err) {
                    err = s.unmap(map.id);
                    if (err && err != ENODEV)
                        odd = err;
                }
            }
        });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_OK(unbind_driver(bdf));
    stop = true;
    for (std::thread& thread : threads)
        thread.join();
    EXPECT_ERRNO(odd.load(), 0);
}

TEST_F(Unbind, ModuleStaysWhileASessionIsOpen) {
    if (!exists("/sys/module/dmaprobe/initstate"))
        GTEST_SKIP() << "dmaprobe is built into the kernel";
    EXPECT_ERRNO(remove_module(driver_name), EAGAIN) << "removed while in use";
    EXPECT_TRUE(module_loaded());
    dmaprobe_get_info info = {};
    EXPECT_OK(s(info));
    // Nor while a session is open whose device is gone.
    ASSERT_OK(unbind_driver(bdf));
    EXPECT_ERRNO(remove_module(driver_name), EAGAIN) << "removed while in use";
    EXPECT_ERRNO(s(info), ENODEV);
}

TEST_F(Unbind, ModuleComesBack) {
    if (!exists("/sys/module/dmaprobe/initstate"))
        GTEST_SKIP() << "dmaprobe is built into the kernel";
    ASSERT_OK(s.close());
    int err = 0;
    // Whoever looked at the node, such as udev, may still have it open.
    EXPECT_TRUE(wait_for([&] { return (err = remove_module(driver_name)) == 0; }, seconds(5)));
    ASSERT_ERRNO(err, 0);
    EXPECT_FALSE(exists(node_path(bdf)));
    ASSERT_TRUE(load_module());
    ASSERT_TRUE(wait_for([&] { return exists(node_path(bdf)); }, seconds(5)))
        << "the device was not bound again";
    s = Raw::open(bdf);
    ASSERT_TRUE(s) << strerror(s.error());
}

// --- threads ----------------------------------------------------------------

// Several threads use the same ids at once: every call works, or does not find
// the object, or finds it in use.
TEST_F(Lifecycle, ThreadsOnTheSameIds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
    const uint64_t page = page_size();
    std::atomic<uint32_t> last = 1;
    std::atomic<uint64_t> good = 0;
    std::vector<std::thread> threads;
    std::vector<std::atomic<int>> odd(8);
    Buffer b;

    ASSERT_OK(s.alloc(b, 16 * page));
    const auto allowed = [](int err) { return err == 0 || err == ENOENT || err == EBUSY; };
    threads.reserve(4);
    for (unsigned t = 0; t < 4; t++) {
        threads.emplace_back([&, t] {
            for (unsigned i = t; std::chrono::steady_clock::now() < end; i++) {
                const uint32_t id = 1 + (last + i) % 8;
                dmaprobe_map map = {};
                dmaprobe_sync sync = {};
                Buffer temporary;

                map.kind = DMAPROBE_MAP_KIND_PAGE;
                map.buffer_id = b.id;
                map.length = page;
                int err = s(map);
                if (err)
                    odd[0] = err;
                else
                    last = map.id;
                sync.id = id;
                sync.target = i % 2;
                sync.length = page;
                err = s(sync);
                if (!allowed(err))
                    odd[1] = err;
                err = s.unmap(id);
                if (!allowed(err))
                    odd[2] = err;
                good += err == 0;
                err = s.unmap(map.id);
                if (!allowed(err))
                    odd[3] = err;
                std::vector<dmaprobe_segment> segments;
                const int asked = s.segments(segments, id);
                if (!allowed(asked) && asked != EPROTO) // another one by now
                    odd[1] = asked;
                if (i % 8 == 0) {
                    const dmaprobe_sg_entry entries[] = {{0, page / 2, b.id, 0},
                                                         {page / 2, page / 2, b.id, 0}};
                    dmaprobe_map_sg list = {};

                    err = s.map_sg(list, entries);
                    if (err)
                        odd[0] = err;
                    else
                        last = list.id;
                }
                if (i % 16)
                    continue;
                // A buffer that others may free and map meanwhile.
                if (s.alloc(temporary, page) == 0) {
                    map.buffer_id = temporary.id;
                    err = s(map);
                    if (!allowed(err))
                        odd[4] = err;
                    if (!err && !allowed(s.unmap(map.id)))
                        odd[5] = 1;
                    if (!allowed(s.free(temporary)))
                        odd[6] = 1;
                }
                std::vector<Extent> extents;
                if (iommu && s.translate(extents, map.dma_addr, page))
                    odd[7] = 1;
            }
        });
    }
    for (std::thread& thread : threads)
        thread.join();
    for (size_t i = 0; i < odd.size(); i++)
        EXPECT_ERRNO(odd[i].load(), 0) << "call " << i;
    EXPECT_GT(good.load(), 0u);
}

class LifecycleIova : public IovaTest {};

TEST_F(LifecycleIova, ThreadsOnOneSpace) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
    const uint64_t g = granule;
    std::vector<std::thread> threads;
    std::vector<std::atomic<int>> odd(4);
    dmaprobe_iova_alloc io = {};
    Buffer b;

    ASSERT_OK(s.alloc(b, 8 * g));
    ASSERT_OK(s.iova_alloc(io, 8 * g));
    threads.reserve(4);
    for (unsigned t = 0; t < 4; t++) {
        threads.emplace_back([&, t] {
            for (unsigned i = t; std::chrono::steady_clock::now() < end; i++) {
                const uint64_t at = i * 5 % 8 * g;

                int err = s.link(io.id, at, b, at, g);
                if (err && err != EEXIST && err != EBUSY)
                    odd[0] = err;
                err = s.iova_sync(io.id, at, g);
                if (err && err != ENXIO && err != EBUSY)
                    odd[1] = err;
                err = s.unlink(io.id, (i * 3 + t) % 8 * g, g);
                if (err && err != ENXIO && err != EBUSY)
                    odd[2] = err;
                err = s.iova_free(io.id + 1);
                if (err != ENOENT)
                    odd[3] = err;
            }
        });
    }
    for (std::thread& thread : threads)
        thread.join();
    for (size_t i = 0; i < odd.size(); i++)
        EXPECT_ERRNO(odd[i].load(), 0) << "call " << i;

    // The record and the page tables agree after all that.
    uint32_t links = 0;
    for (uint64_t at = 0; at < 8 * g; at += g) {
        std::vector<Extent> got;

        ASSERT_OK(s.translate(got, io.addr + at, g));
        ASSERT_EQ(got.size(), 1u);
        if (got[0].kind == DMAPROBE_EXTENT_HOLE) {
            EXPECT_ERRNO(s.unlink(io.id, at, g), ENXIO);
            continue;
        }
        EXPECT_EQ(got[0].buffer_id, b.id);
        EXPECT_EQ(got[0].buffer_offset, at);
        EXPECT_OK(s.iova_sync(io.id, at, g));
        links++;
    }
    dmaprobe_get_iova_state state = {};
    state.id = io.id;
    ASSERT_OK(s(state));
    EXPECT_EQ(state.nr_links, links);
    EXPECT_EQ(state.linked, links * g);
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// The boundary: what is charged. All that is taken counts, for as long as it is taken: of
// memory by its pages, of objects by the group's memory, of addresses by their number.

#include "boundary.h"

#include "support/alloc.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <fstream>
#include <functional>
#include <list>
#include <sstream>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <tuple>
#include <unistd.h>

#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#define MAP_HUGE_1GB (30 << 26)
#endif

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr uint64_t mib = uint64_t{1} << 20;
constexpr uint64_t huge = 2 * mib;

class BoundaryCharge : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        page = page_size();
    }

    // While one user asks in many threads for what is refused, another one has what it asks for,
    // each time. @refused: whether it was, once more.
    void expect_nothing_missed(const std::function<bool(const Raw&)>& refused,
                               const std::function<int(const Raw&)>& ask) const {
        constexpr int many = 32;
        const OpenNode node(bdf);
        std::array<int, 2> ends{};
        int had = 0, missed = 0;

        ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
        const Fd out(ends[0]);
        Fd in(ends[1]);
        const pid_t greedy = fork();
        ASSERT_GE(greedy, 0);
        if (greedy == 0) {
            const auto ask_on = [&] {
                const Raw mine = Raw::open(bdf);

                while (refused(mine))
                    std::ignore = write(in.get(), "x", 1); // until the pipe is full
                _exit(1);
            };

            if (setresuid(some_user, some_user, some_user) || fcntl(in.get(), F_SETFL, O_NONBLOCK))
                _exit(1);
            for (int i = 0; i < many; i++)
                std::thread(ask_on).detach();
            pause();
        }
        in.close();
        char byte = 0;
        EXPECT_EQ(read(out.get(), &byte, 1), 1);
        as_user(another_user, [&] {
            const Raw mine = Raw::open(bdf);
            const auto end = steady_clock::now() + seconds(2);

            ASSERT_TRUE(mine);
            while (steady_clock::now() < end)
                (ask(mine) ? missed : had)++;
        });
        kill(greedy, SIGKILL);
        int status = 0;
        EXPECT_TRUE(wait_for_child(greedy, seconds(20), status));
        EXPECT_TRUE(WIFSIGNALED(status)) << "what it asked for was not refused";
        RecordProperty("had", had);
        EXPECT_GT(had, 0);
        EXPECT_EQ(missed, 0) << "of " << had + missed;
    }

    uint64_t page = 0;
};

// --- what is mmapped ---------------------------------------------------------------

// It is there as long as somebody sees it, and charged as long as it is there.
TEST_F(BoundaryCharge, MmappedMemoryStays) {
    const std::array kinds = {DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ALLOC_KIND_NONCOHERENT,
                              DMAPROBE_ALLOC_KIND_PAGES, DMAPROBE_ALLOC_KIND_NONCONTIGUOUS};
    struct Seen {
        uint32_t id;
        Memory memory;
    };
    std::vector<Seen> seen;
    dmaprobe_export out = {};
    Allocation a;
    Buffer b;

    for (const uint32_t kind : {DMAPROBE_BUFFER_KIND_CONTIGUOUS, DMAPROBE_BUFFER_KIND_SCATTERED}) {
        ASSERT_OK(s.alloc(b, 4 * page, kind));
        seen.push_back({b.id, s.mmap(b)});
    }
    for (const uint32_t kind : kinds) {
        ASSERT_OK(allocate(s, a, {"", kind}, 4 * page));
        seen.push_back({a.id, map_allocation(s, a)});
    }
    // Through a dma-buf, the last one again.
    ASSERT_OK(allocate(s, a, {"", DMAPROBE_ALLOC_KIND_PAGES}, 4 * page));
    out.id = a.id;
    ASSERT_OK(s(out));
    Fd exported(out.fd);
    void* at = mmap(nullptr, 4 * page, PROT_READ, MAP_SHARED, exported.get(), 0);
    ASSERT_NE(at, MAP_FAILED);
    seen.push_back({a.id, Memory(at, 4 * page)});
    exported.close();

    const uint64_t charged = s.stats().charged;
    EXPECT_EQ(charged, 4 * page * seen.size());
    for (Seen& one : seen) {
        ASSERT_TRUE(one.memory);
        EXPECT_ERRNO(s.destroy(one.id), EBUSY);
        EXPECT_EQ(s.stats().charged, charged);
        // A part is as good as the whole.
        ASSERT_NE(mmap(one.memory.data(), 3 * page, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
                  MAP_FAILED);
        EXPECT_ERRNO(s.destroy(one.id), EBUSY);
    }
    uint64_t left = charged;
    for (Seen& one : seen) {
        one.memory.unmap();
        // What ends with the last descriptor of a dma-buf does so in its own time.
        EXPECT_TRUE(wait_for([&] { return s.destroy(one.id) == 0; }, seconds(5)));
        left -= 4 * page;
        EXPECT_EQ(s.stats().charged, left);
    }
}

// By mmapping and destroying, nobody holds more than their limit.
TEST_F(BoundaryCharge, NoMoreThanTheLimitByMmap) {
    const LockedMemory limit(8 * mib);
    const OpenNode node(bdf);

    as_user(some_user, [&] {
        const Raw mine = Raw::open(bdf);
        std::vector<Memory> memory;
        uint64_t held = 0;
        int err = 0;

        ASSERT_TRUE(mine);
        for (int i = 0; i < 60 && !err; i++) {
            Buffer b;

            err = mine.alloc(b, mib);
            if (err)
                break;
            held += mib;
            memory.push_back(mine.mmap(b));
            ASSERT_TRUE(memory.back());
            EXPECT_ERRNO(mine.free(b), EBUSY);
        }
        EXPECT_ERRNO(err, ENOMEM);
        EXPECT_EQ(held, 8 * mib);
        EXPECT_EQ(mine.stats().charged, held);
    });
}

// RLIMIT_MEMLOCK counts by real uid, of which one person may have many (/etc/subuid).
TEST_F(BoundaryCharge, ManyUidsShareTheDevicesLimit) {
    const OpenNode node(bdf);
    const LockedMemory limit(8 * mib);
    const Setting most("/sys/module/dmaprobe/parameters/device_max_mib", "4");
    Raw one;
    Buffer b;

    ASSERT_OK(most.error());
    as_user(some_user, [&] {
        one = Raw::open(bdf);
        ASSERT_TRUE(one);
        ASSERT_OK(one.alloc(b, 3 * mib, DMAPROBE_BUFFER_KIND_SCATTERED));
    });
    as_user(another_user, [&] {
        const Raw two = Raw::open(bdf);

        ASSERT_TRUE(two);
        ASSERT_ERRNO(two.alloc(b, 2 * mib, DMAPROBE_BUFFER_KIND_SCATTERED), ENOMEM);
        EXPECT_EQ(two.stats().charged, 0u);
        ASSERT_OK(two.alloc(b, mib, DMAPROBE_BUFFER_KIND_SCATTERED));
        ASSERT_ERRNO(two.alloc(b, page, DMAPROBE_BUFFER_KIND_SCATTERED), ENOMEM);
    });
    // Root's sessions are counted by themselves, and what has ended no longer counts.
    ASSERT_OK(s.alloc(b, 4 * mib, DMAPROBE_BUFFER_KIND_SCATTERED));
    one.close();
    as_user(another_user, [&] {
        const Raw two = Raw::open(bdf);

        ASSERT_TRUE(two);
        ASSERT_OK(two.alloc(b, 4 * mib, DMAPROBE_BUFFER_KIND_SCATTERED));
    });
}

// What RLIMIT_MEMLOCK refuses one user takes nothing of what is left for others, not for a moment.
TEST_F(BoundaryCharge, WhatIsRefusedIsNotMissed) {
    const LockedMemory enough(8 * mib);

    expect_nothing_missed(
        [&](const Raw& greedy) {
            static const LockedMemory nothing(0); // of this process, which is killed
            Buffer b;

            return greedy.alloc(b, 1024 * mib, DMAPROBE_BUFFER_KIND_SCATTERED) == ENOMEM;
        },
        [&](const Raw& mine) {
            Buffer b;
            const int err = mine.alloc(b, page, DMAPROBE_BUFFER_KIND_SCATTERED);

            return err ? err : mine.free(b);
        });
}

// --- what is taken -----------------------------------------------------------------

uint64_t power_of_two(uint64_t length) {
    uint64_t taken = page_size();

    while (taken < length)
        taken *= 2;
    return taken;
}

// Odd lengths are charged as the kernel takes them: a power of two where they are contiguous.
TEST_F(BoundaryCharge, OddLengthsOfAllocations) {
    // Noncontiguous memory is one segment.
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 0x80000000));
    for (const AllocWay& way : alloc_ways) {
        const bool by_page = iommu && (way.kind == DMAPROBE_ALLOC_KIND_NONCONTIGUOUS ||
                                       (way.kind == DMAPROBE_ALLOC_KIND_COHERENT &&
                                        !(way.attrs & DMAPROBE_ATTR_FORCE_CONTIGUOUS)));

        for (const uint64_t length : {uint64_t{1}, page + 1, 3 * page, mib + page, 3 * mib}) {
            const uint64_t pages = (length + page - 1) / page * page;
            Allocation a;

            SCOPED_TRACE(std::format("{} of {:#x}", way.name, length));
            const int err = allocate(s, a, way, length);
            if (err == EOPNOTSUPP || err == ENOMEM)
                continue;
            ASSERT_OK(err);
            EXPECT_EQ(s.stats().charged, by_page ? pages : power_of_two(length));
            EXPECT_OK(release(s, a));
            EXPECT_EQ(s.stats().charged, 0u);
        }
    }
}

// The machine's free memory. MemFree lacks what the kernel keeps for each CPU, which on a small
// machine can be more than what these tests take.
int64_t free_memory() {
    std::istringstream lines(read_text("/proc/zoneinfo"));
    int64_t pages = 0;

    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string key;
        int64_t value = 0;

        if (words >> key >> value && (key == "nr_free_pages" || key == "count:"))
            pages += value;
    }
    EXPECT_GT(pages, 0) << "/proc/zoneinfo";
    return pages * static_cast<int64_t>(page_size());
}

// And it is no more than what is charged that is missing from the machine's free memory.
TEST_F(BoundaryCharge, FreeMemoryShrinksByWhatIsCharged) {
    // Of what else goes on; KASAN has a shadow of an eighth of what is mapped into the kernel.
    const auto slack = static_cast<int64_t>((exists("/sys/kernel/debug/kmemleak") ? 10 : 4) * mib);
    struct Kind {
        const char* name;
        std::function<int(uint64_t length)> make;
    };
    std::list<Kind> kinds;

    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 0x80000000));
    for (const AllocWay& way : alloc_ways)
        kinds.push_back({way.name, [&way, this](uint64_t length) {
                             Allocation a;

                             return allocate(s, a, way, length);
                         }});
    for (const uint32_t kind : {DMAPROBE_BUFFER_KIND_CONTIGUOUS, DMAPROBE_BUFFER_KIND_SCATTERED})
        kinds.push_back({"buffer", [kind, this](uint64_t length) {
                             Buffer b;

                             return s.alloc(b, length, kind);
                         }});
    for (const Kind& kind : kinds) {
        const int64_t before = free_memory();
        int made = 0;

        SCOPED_TRACE(kind.name);
        while (made < 16 && kind.make(mib + page) == 0)
            made++;
        const auto charged = static_cast<int64_t>(s.stats().charged);
        const int64_t taken = before - free_memory();
        EXPECT_LE(taken, charged + slack) << made << " of them";
        ASSERT_OK(s.close());
        s = Raw::open(bdf);
        ASSERT_TRUE(s);
        ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 0x80000000));
    }
}

// Small objects from kmalloc() have pages of their own, which count.
TEST_F(BoundaryCharge, KmallocBuffers) {
    for (const uint64_t length : {uint64_t{8}, page, 3 * page, uint64_t{65536}}) {
        const int64_t before = free_memory();
        std::vector<Buffer> buffers(64);

        for (Buffer& b : buffers)
            ASSERT_OK(s.alloc(b, length, DMAPROBE_BUFFER_KIND_KMALLOC));
        const auto charged = static_cast<int64_t>(s.stats().charged);
        const int64_t taken = before - free_memory();
        EXPECT_GE(charged, static_cast<int64_t>(64 * std::max(length, page)));
        EXPECT_LE(taken, charged + static_cast<int64_t>(2 * mib)) << length;
        for (const Buffer& b : buffers)
            EXPECT_OK(s.free(b));
        EXPECT_EQ(s.stats().charged, 0u);
    }
}

// --- what the module needs for it --------------------------------------------------

// A group of processes, of which the test is one until this ends. What it makes the kernel
// allocate is charged to the group.
class OwnGroup {
public:
    OwnGroup() {
        std::array<char, 32> name = {"/tmp/dmaprobe-charge-XXXXXX"};

        std::filesystem::create_directories("/tmp");
        if (!mkdtemp(name.data()))
            return;
        mounted_ = name.data();
        if (mount("none", mounted_.c_str(), "cgroup2", 0, nullptr))
            return;
        write_text(mounted_ + "/cgroup.subtree_control", "+memory");
        path_ = std::format("{}/charge-{}", mounted_, getpid());
        if (mkdir(path_.c_str(), 0755) || !exists(path_ + "/memory.stat") ||
            write_text(path_ + "/cgroup.procs", "0"))
            path_.clear();
    }
    OwnGroup(const OwnGroup&) = delete;
    OwnGroup& operator=(const OwnGroup&) = delete;
    ~OwnGroup() {
        write_text(mounted_ + "/cgroup.procs", "0");
        if (!path_.empty())
            rmdir(path_.c_str());
        umount(mounted_.c_str());
        rmdir(mounted_.c_str());
    }

    explicit operator bool() const { return !path_.empty(); }

    // 0 or errno.
    int limit(uint64_t bytes) const {
        return write_text(path_ + "/memory.max", std::to_string(bytes));
    }
    // A line of memory.stat, in bytes, or another file's.
    int64_t stat(std::string_view name, const char* file = "/memory.stat") const {
        std::istringstream lines(read_text(path_ + file));
        std::string key;
        int64_t value = 0;

        while (lines >> key >> value)
            if (key == name)
                return value;
        return -1;
    }
    int64_t current() const { return std::atoll(read_text(path_ + "/memory.current").c_str()); }

private:
    std::string mounted_;
    std::string path_;
};

// The structs of 100,000 objects are charged to who makes them, and so is the table of ids,
// which stays large when one in each part of it stays.
TEST_F(BoundaryCharge, ObjectsAndTheirTable) {
    const OwnGroup group;
    std::vector<uint32_t> ids;
    size_t made = 0;
    Buffer b;

    if (!group || group.stat("slab_unreclaimable") < 0)
        GTEST_SKIP() << "no cgroup2 with a memory controller";
    if (s.bounces())
        GTEST_SKIP() << "the kernel bounces what is mapped, and has no room for so much";
    const Raw mine = Raw::open(bdf);
    ASSERT_OK(mine.alloc(b, page));
    ids.reserve(110'000);
    // The first call has the program's own pages in it.
    ASSERT_OK(map_often(mine, b, 4096, nullptr, &ids));
    const int64_t structs = group.stat("slab_unreclaimable");
    const int64_t tables = group.stat("slab_reclaimable");
    const int64_t current = group.current();
    ASSERT_OK(map_often(mine, b, 100'000, &made, &ids));
    const int64_t structs_more = group.stat("slab_unreclaimable") - structs;
    const int64_t tables_more = group.stat("slab_reclaimable") - tables;
    const int64_t more = group.current() - current;
    const auto many = static_cast<int64_t>(made);

    RecordProperty("objects", static_cast<int>(many));
    RecordProperty("bytes_of_structs_per_object", static_cast<int>(structs_more / many));
    RecordProperty("bytes_of_tables_per_object", static_cast<int>(tables_more / many));
    RecordProperty("bytes_per_object", static_cast<int>(more / many));
    // A mapping has a few pointers and an address; a node of the table, 64 slots.
    EXPECT_GE(structs_more, many * 64);
    EXPECT_GE(tables_more, many * 8);
    EXPECT_GE(more, structs_more / 10 * 9);

    restart_deadline();
    for (const uint32_t id : ids) {
        if (id % 64) {
            ASSERT_OK(mine.unmap(id));
        }
    }
    // The structs go in RCU's time.
    EXPECT_TRUE(
        wait_for([&] { return group.stat("slab_unreclaimable") - structs < structs_more / 10; },
                 seconds(20)));
    EXPECT_GE(group.stat("slab_reclaimable") - tables, many * 8)
        << "the table is there, and nobody pays for it";
}

// What a dma-buf keeps of an allocation whose session has ended is charged to who holds it.
TEST_F(BoundaryCharge, ShellsOfAllocations) {
    constexpr int many = 64;
    constexpr uint64_t length = 8 * mib;
    const OwnGroup group;
    std::vector<Fd> shells(many);

    if (!group || group.stat("slab_unreclaimable") < 0)
        GTEST_SKIP() << "no cgroup2 with a memory controller";
    const int64_t current = group.current();
    for (Fd& shell : shells) {
        const Raw mine = Raw::open(bdf);
        Allocation a;

        const int err = allocate(mine, a, {"", DMAPROBE_ALLOC_KIND_COHERENT}, length);
        if (err == ENOMEM)
            GTEST_SKIP() << "no memory for an allocation of 8 MiB";
        ASSERT_OK(err);
        dmaprobe_export op = {};

        op.id = a.id;
        const int exported = mine(op);
        if (exported == ENXIO)
            GTEST_SKIP() << "the kernel does not know the allocation's pages";
        ASSERT_OK(exported);
        shell = Fd(op.fd);
    }
    // A pointer for each page.
    EXPECT_GE(group.current() - current,
              static_cast<int64_t>(many * length / page * sizeof(void*) * 9 / 10));
}

// What fits, but not with all that the module needs for it, is refused. Nobody is killed to
// make room.
TEST_F(BoundaryCharge, NobodyIsKilledForIt) {
    // What the caller was doing. The call that fits leaves so little room that the caller's next
    // page fault may be its end, which the module has no part in.
    enum Stage { entering, calling, refused, fits };
    constexpr size_t size = sizeof(std::atomic<Stage>);
    void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    int status = 0;

    ASSERT_NE(at, MAP_FAILED);
    const Memory memory(at, size);
    auto& stage = *new (at) std::atomic<Stage>(entering);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const OwnGroup group;
        const Raw mine = Raw::open(bdf);
        constexpr uint64_t most = 16 * mib;
        const uint64_t step = 2 * page;
        Buffer first; // so that the code of a call that succeeds is there

        if (!group)
            _exit(10);
        if (!mine || mine.alloc(first, page, DMAPROBE_BUFFER_KIND_SCATTERED) || mine.free(first) ||
            group.limit(most))
            _exit(11);
        int err = ENOMEM;
        for (uint64_t length = most; err == ENOMEM && length > most / 2; length -= step) {
            Buffer b;

            stage = calling;
            err = mine.alloc(b, length, DMAPROBE_BUFFER_KIND_SCATTERED);
            stage = err ? refused : fits;
            if (err == 0 && mine.free(b))
                _exit(12);
        }
        group.limit(most * 2);
        _exit(err ? 13 : 0);
    }
    ASSERT_TRUE(wait_for_child(child, seconds(60), status));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 10)
        GTEST_SKIP() << "no cgroup2 with a memory controller";
    EXPECT_EQ(stage, fits);
    if (!WIFSIGNALED(status)) {
        EXPECT_EQ(status, 0) << "step " << WEXITSTATUS(status);
    } else {
        EXPECT_EQ(WTERMSIG(status), SIGKILL);
    }
}

// --- pins --------------------------------------------------------------------------

// A page counts its users, 1024 for each pin, and the kernel warns when that overflows.
TEST_F(BoundaryCharge, PinsOfOnePage) {
    constexpr uint64_t most = uint64_t{1} << 21;
    constexpr size_t views = 32'000; // VMAs, of which a process has 65530
    const Fd file(memfd_create("page", MFD_CLOEXEC));
    const auto end = steady_clock::now() + seconds(20);
    std::vector<Raw> sessions;
    uint64_t pins = 0;
    KernelLog log;
    int err = 0;

    ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(page)), 0);
    // One page, at one address after the other.
    void* at =
        mmap(nullptr, views * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    const Memory memory(at, views * page);
    for (size_t i = 0; i < views; i++) {
        if (steady_clock::now() >= end)
            GTEST_SKIP() << std::format("this machine maps a page {} times in 20 s, not {}", i,
                                        views);
        ASSERT_NE(mmap(memory.data() + i * page, page, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_FIXED | MAP_POPULATE, file.get(), 0),
                  MAP_FAILED)
            << i;
    }
    while (!err && pins < most + 2 * views) {
        Buffer b;

        if (steady_clock::now() >= end)
            GTEST_SKIP() << std::format("this machine pins {} times in 20 s, not {}", pins, most);
        restart_deadline();
        if (sessions.empty() || sessions.back().stats().charged > 900 * mib)
            sessions.push_back(Raw::open(bdf));
        err = sessions.back().pin(b, memory.data(), memory.size());
        if (!err)
            pins += views;
    }
    RecordProperty("pins", static_cast<int>(pins));
    EXPECT_ERRNO(err, ENOMEM);
    EXPECT_LT(pins, most);
    // What was refused is not charged, and others can pin.
    Buffer own;
    const Memory other = Memory::fenced(page);
    EXPECT_OK(s.pin(own, other.data(), page));
    EXPECT_EQ(s.stats().pinned, page);
    sessions.clear();
    EXPECT_EQ(log.news(), "");
}

// --- huge pages --------------------------------------------------------------------

// The bytes of anonymous memory at an address that are in huge pages.
uint64_t in_huge_pages(const std::byte* at) {
    std::ifstream in("/proc/self/smaps");
    std::string line;
    bool here = false;

    while (std::getline(in, line)) {
        unsigned long start = 0;
        unsigned long end = 0;
        unsigned long kib = 0;

        if (sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2)
            here =
                start <= reinterpret_cast<uintptr_t>(at) && reinterpret_cast<uintptr_t>(at) < end;
        if (here && sscanf(line.c_str(), "AnonHugePages: %lu kB", &kib) == 1)
            return kib * 1024;
    }
    return 0;
}

// A huge page that lies side by side with itself is pinned several times.
TEST_F(BoundaryCharge, SideBySideWithItself) {
    constexpr uint64_t length = 2 * mib;
    const Setting one("/proc/sys/vm/nr_hugepages", "1");
    const Fd file(memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | MAP_HUGE_2MB));
    void* at =
        mmap(nullptr, 4 * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    Buffer b;

    if (one.error() || !file || ftruncate(file.get(), length))
        GTEST_SKIP() << "no huge page of 2 MiB to be had";
    ASSERT_NE(at, MAP_FAILED);
    const Memory memory(at, 4 * length);
    std::byte* start = memory.data() + (length - memory.address() % length) % length;
    for (size_t i = 0; i < 3; i++)
        if (mmap(start + i * length, length, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_POPULATE, file.get(), 0) == MAP_FAILED)
            GTEST_SKIP() << "no huge page of 2 MiB to be had";
    ASSERT_OK(s.pin(b, start, 3 * length));
    EXPECT_EQ(s.stats().charged, 3 * length);
    EXPECT_OK(s.free(b));
    EXPECT_EQ(s.stats().charged, 0u);
}

class BoundaryHuge : public BoundaryCharge {
protected:
    void SetUp() override {
        BoundaryCharge::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!exists("/sys/kernel/mm/transparent_hugepage/enabled"))
            GTEST_SKIP() << "this kernel has no transparent huge pages";
        enabled.emplace("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
    }

    // Memory in huge pages, aligned, or none.
    static std::byte* make(Memory& memory, size_t pages) {
        void* at = mmap(nullptr, (pages + 1) * huge, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (at == MAP_FAILED)
            return nullptr;
        memory = Memory(at, (pages + 1) * huge);
        std::byte* start = memory.data() + (huge - memory.address() % huge) % huge;
        if (madvise(start, pages * huge, MADV_HUGEPAGE))
            return nullptr;
        memset(start, 1, pages * huge);
        return in_huge_pages(start) >= pages * huge ? start : nullptr;
    }

    std::optional<Setting> enabled;
};

// Who pins a part keeps the whole.
TEST_F(BoundaryHuge, APinOfAPartIsChargedTheWhole) {
    struct Case {
        uint64_t offset;
        uint64_t length;
        uint64_t charged;
    };
    Memory memory;
    const std::byte* start = make(memory, 2);

    if (!start)
        GTEST_SKIP() << "there are no huge pages to be had";
    for (const Case& c :
         {Case{0, page, huge}, Case{huge - page, page, huge}, Case{8, 16, huge},
          Case{0, huge, huge}, Case{huge - page, 2 * page, 2 * huge}, Case{0, 2 * huge, 2 * huge},
          Case{huge / 2, huge, 2 * huge}, Case{huge / 2, huge / 2 * 3, 2 * huge}}) {
        Buffer b;

        SCOPED_TRACE(std::format("{:#x} bytes at {:#x}", c.length, c.offset));
        ASSERT_OK(s.pin(b, start + c.offset, c.length));
        EXPECT_EQ(s.stats().charged, c.charged);
        EXPECT_EQ(s.stats().pinned, (c.offset % page + c.length + page - 1) / page * page);
        EXPECT_OK(s.free(b));
        EXPECT_EQ(s.stats().charged, 0u);
    }
}

// Those of hugetlbfs, which can be larger than what is pinned at a time.
TEST_F(BoundaryHuge, HugeTlbPages) {
    struct Size {
        uint64_t bytes;
        int flag;
    };
    bool any = false;

    for (const Size& size : {Size{huge, MAP_HUGE_2MB}, Size{512 * huge, MAP_HUGE_1GB}}) {
        const Setting pages(
            std::format("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", size.bytes / 1024),
            "1");
        void* at = mmap(nullptr, size.bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | size.flag, -1, 0);

        if (at == MAP_FAILED)
            continue;
        any = true;
        const Memory memory(at, size.bytes);
        for (const uint64_t length : {page, size.bytes / 2 - 3 * page, size.bytes - 3 * page}) {
            Buffer b;

            SCOPED_TRACE(std::format("{:#x} of {:#x} bytes", length, size.bytes));
            EXPECT_OK(s.pin(b, memory.data() + 3 * page, length));
            EXPECT_EQ(s.stats().charged, size.bytes);
            EXPECT_OK(s.free(b));
            EXPECT_EQ(s.stats().charged, 0u);
        }
    }
    if (!any)
        GTEST_SKIP() << "there is no page of hugetlbfs to be had";
}

// A page of each of many huge pages, whose rest the program gives back.
TEST_F(BoundaryHuge, NoMoreThanTheLimitByPins) {
    const LockedMemory limit(8 * mib);
    const OpenNode node(bdf);
    bool none = false;

    as_user(some_user, [&] {
        const Raw mine = Raw::open(bdf);
        int pins = 0;
        int err = 0;

        ASSERT_TRUE(mine);
        for (; pins < 120; pins++) {
            Memory memory;
            Buffer b;
            const std::byte* start = make(memory, 1);

            if (!start) {
                none = true;
                return;
            }
            err = mine.pin(b, start, page);
            if (err)
                break;
        }
        EXPECT_ERRNO(err, ENOMEM);
        EXPECT_EQ(pins, 4);
        EXPECT_EQ(mine.stats().charged, 8 * mib);
    });
    if (none)
        GTEST_SKIP() << "there are no huge pages to be had";
}

// Reading the entries can stall, in a fault, for as long as the caller likes.
TEST_F(BoundaryCharge, ListsBeforeTheyAreRead) {
    const LockedMemory limit(mib);
    const OpenNode node(bdf);

    as_user(some_user, [&] {
        const Raw mine = Raw::open(bdf);
        dmaprobe_map_sg list = {};

        ASSERT_TRUE(mine);
        list.kind = DMAPROBE_MAP_SG_KIND_LIST;
        list.nr_entries = 1;
        list.entries = 8;
        EXPECT_ERRNO(mine(list), EFAULT);
        list.nr_entries = DMAPROBE_MAP_SG_MAX;
        EXPECT_ERRNO(mine(list), ENOMEM);
    });
}

// --- addresses ---------------------------------------------------------------------

class BoundaryAddresses : public BoundaryCharge {
protected:
    static constexpr unsigned most = 24;

    void SetUp() override {
        BoundaryCharge::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        parameter.emplace("/sys/module/dmaprobe/parameters/device_max_addresses",
                          std::to_string(most));
        ASSERT_OK(parameter->error());
        has_iova = iommu && !s.missing(DMAPROBE_FEATURE_DMA_IOVA);
    }

    static int map(const Raw& session, const Buffer& b, uint32_t& id) {
        dmaprobe_map op = {};

        op.kind = DMAPROBE_MAP_KIND_PAGE;
        op.buffer_id = b.id;
        op.length = page_size();
        const int err = session(op);
        if (!err)
            id = op.id;
        return err;
    }

    // How many more there can be.
    static unsigned room(const Raw& session, const Buffer& b) {
        std::vector<uint32_t> ids;
        uint32_t id = 0;
        int err = 0;

        while ((err = map(session, b, id)) == 0 && ids.size() < size_t{10} * most)
            ids.push_back(id);
        EXPECT_ERRNO(err, ENOSPC);
        for (const uint32_t one : ids)
            EXPECT_OK(session.unmap(one));
        return static_cast<unsigned>(ids.size());
    }

    std::optional<Setting> parameter;
    bool has_iova = false;
};

// Lists of more than there may be are refused, and take nothing of others meanwhile.
TEST_F(BoundaryAddresses, WhatIsRefusedIsNotMissed) {
    parameter.reset();
    const Setting one("/sys/module/dmaprobe/parameters/device_max_addresses", "1");

    expect_nothing_missed(
        [&](const Raw& greedy) {
            constexpr size_t lists = 1000;
            thread_local std::vector<dmaprobe_map_sg> made(lists);
            thread_local std::vector<dmaprobe_run_op> ops(lists);
            dmaprobe_sg_entry entries[2] = {};
            dmaprobe_run run = {};
            Buffer b;

            if (greedy.alloc(b, page))
                return false;
            for (dmaprobe_sg_entry& entry : entries) {
                entry.buffer_id = b.id;
                entry.length = 64;
            }
            for (size_t i = 0; i < lists; i++) {
                made[i].size = sizeof(made[i]);
                made[i].nr_entries = 2;
                made[i].entries = reinterpret_cast<uintptr_t>(entries);
                ops[i] = {.cmd = DMAPROBE_MAP_SG,
                          .result = 0,
                          .arg = reinterpret_cast<uintptr_t>(&made[i])};
            }
            run.nr_ops = lists;
            run.ops = reinterpret_cast<uintptr_t>(ops.data());
            run.flags = DMAPROBE_RUN_CONTINUE;
            const int err = greedy(run);
            return err == 0 && greedy.free(b) == 0 &&
                   std::ranges::all_of(ops, [](const auto& op) { return op.result == -ENOSPC; });
        },
        [&, b = Buffer{}](const Raw& mine) mutable {
            uint32_t id = 0;

            if (b.id == 0) {
                EXPECT_OK(mine.alloc(b, page));
            }
            const int err = map(mine, b, id);
            EXPECT_OK(err ? 0 : mine.unmap(id));
            return err;
        });
}

// Each kind of address is one, in whichever session, and until it is gone.
TEST_F(BoundaryAddresses, AreCounted) {
    const OpenNode node(bdf);

    as_user(some_user, [&] {
        const Raw one = Raw::open(bdf);
        Raw two = Raw::open(bdf);
        std::vector<uint32_t> ids;
        Buffer b;
        Buffer b2;
        unsigned left = most;

        ASSERT_TRUE(one && two);
        ASSERT_OK(one.alloc(b, 4 * page));
        ASSERT_OK(two.alloc(b2, page));
        EXPECT_EQ(room(one, b), left) << "a buffer is no address";
        for (int i = 0; i < 3; i++) {
            uint32_t id = 0;

            ASSERT_OK(map(two, b2, id));
            ids.push_back(id);
            left--;
            EXPECT_EQ(room(one, b), left);
        }
        for (uint32_t kind = 0; kind < 4; kind++) {
            Allocation a;

            ASSERT_OK(allocate(two, a, {"", kind}, page));
            left--;
            EXPECT_EQ(room(one, b), left);
        }
        dmaprobe_iova_alloc space = {};
        if (has_iova) {
            ASSERT_OK(one.iova_alloc(space, 8 * page));
            left--;
            for (uint64_t at = 0; at < 4 * page; at += page) {
                ASSERT_OK(one.link(space.id, at, b, at, page));
                left--;
                EXPECT_EQ(room(one, b), left) << "a link";
                EXPECT_EQ(room(two, b2), left) << "in the other session";
            }
            // Full, in every way.
            for (uint32_t id = 0; map(two, b2, id) == 0;)
                ids.push_back(id);
            dmaprobe_iova_alloc more = {};
            EXPECT_ERRNO(one.link(space.id, 4 * page, b, 0, page), ENOSPC);
            EXPECT_ERRNO(one.iova_alloc(more, page), ENOSPC);
            EXPECT_ERRNO(one.iova_alloc(more, page, DMAPROBE_IOVA_ALLOC_TRY), ENOSPC);
            dmaprobe_bench bench = {};
            bench.kind = DMAPROBE_BENCH_MAP_PAGE;
            bench.buffer_id = b.id;
            bench.count = 1;
            EXPECT_ERRNO(one(bench), ENOSPC);
            // Taken away, one by one and together.
            EXPECT_OK(one.unlink(space.id, 3 * page, page));
            EXPECT_EQ(room(one, b), 1u);
            EXPECT_OK(one.iova_destroy(space.id, 3 * page));
            EXPECT_EQ(room(one, b), 5u);
        }
        // With the session goes what it had.
        EXPECT_OK(two.close());
        EXPECT_EQ(room(one, b), most);
    });
}

// An imported dma-buf may be mapped, and remembered, piece by piece.
TEST_F(BoundaryAddresses, OfAnImportAreItsPieces) {
    const OpenNode node(bdf);

    as_user(some_user, [&] {
        const Raw mine = Raw::open(bdf);
        std::vector<Buffer> holes(128);
        dmaprobe_export exported = {};
        dmaprobe_map_dmabuf imported = {};
        Allocation a;
        Buffer b;

        ASSERT_TRUE(mine);
        ASSERT_OK(mine.alloc(b, page));
        for (Buffer& hole : holes)
            ASSERT_OK(mine.alloc(hole, page));
        for (size_t i = 0; i < holes.size(); i += 2)
            ASSERT_OK(mine.free(holes[i]));
        ASSERT_OK(allocate(mine, a,
                           {"", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_ALLOC_SINGLE_PAGES},
                           8 * page));
        exported.id = a.id;
        const int err = mine(exported);
        if (err == ENXIO)
            GTEST_SKIP() << "the kernel does not know the allocation's pages";
        ASSERT_OK(err);
        const Fd fd(exported.fd);
        const unsigned before = room(mine, b);
        imported.fd = fd.get();
        const int mapped = mine(imported);
        if (mapped == EIO)
            GTEST_SKIP() << "the device does not reach the memory by itself";
        ASSERT_OK(mapped);
        RecordProperty("pieces", static_cast<int>(a.nr_entries));
        EXPECT_EQ(room(mine, b), before - a.nr_entries);
    });
}

TEST_F(BoundaryAddresses, RootHasAsManyAsItLikes) {
    const OpenNode node(bdf);
    Buffer b;

    ASSERT_OK(s.alloc(b, page));
    EXPECT_OK(map_often(s, b, size_t{10} * most));
    // And takes none away from others.
    as_user(some_user, [&] {
        const Raw mine = Raw::open(bdf);
        Buffer own;

        ASSERT_TRUE(mine);
        ASSERT_OK(mine.alloc(own, page));
        EXPECT_EQ(room(mine, own), most);
    });
}

} // namespace
} // namespace selftest

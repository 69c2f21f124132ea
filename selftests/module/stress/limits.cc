// SPDX-License-Identifier: GPL-2.0-only
// Too much of everything: of IOVA space, memory, objects, and numbers. It is answered
// with an errno, soon; others can work meanwhile; and in the end all is there again.

#include "support/alloc.h"
#include "support/fixture.h"
#include "support/system.h"
#include "support/unbind.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <format>
#include <limits>
#include <set>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <type_traits>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// Emulated machines on busy hosts are slow: what is asked for is that it ends.
constexpr seconds soon(60);

// Another user, who maps, translates and unmaps in a session of their own, and keeps the
// longest wait.
class Bystander {
public:
    explicit Bystander(const std::string& bdf) : s_(Raw::open(bdf)), thread_([this] { work(); }) {}
    Bystander(const Bystander&) = delete;
    Bystander& operator=(const Bystander&) = delete;
    ~Bystander() { stop(); }

    milliseconds stop() {
        stop_ = true;
        if (thread_.joinable())
            thread_.join();
        return duration_cast<milliseconds>(longest_);
    }
    uint64_t rounds() const { return rounds_; }
    int error() const { return error_; }

private:
    void work() {
        const bool iommu = s_ && s_.translated();
        Buffer b;

        error_ = s_ ? s_.alloc(b, page_size()) : s_.error();
        while (!stop_ && !error_) {
            const auto began = steady_clock::now();
            dmaprobe_map map = {};

            map.kind = DMAPROBE_MAP_KIND_PAGE;
            map.buffer_id = b.id;
            map.length = page_size();
            int err = s_(map);
            if (!err) {
                std::vector<Extent> extents;

                if (iommu)
                    err = s_.translate(extents, map.dma_addr, page_size());
                if (const int last = s_.unmap(map.id))
                    err = last;
                ++rounds_;
            }
            // Others may have used up the space.
            if (err && err != ENOMEM)
                error_ = err;
            longest_ = std::max(longest_, steady_clock::now() - began);
        }
    }

    Raw s_;
    std::atomic<bool> stop_ = false;
    std::atomic<uint64_t> rounds_ = 0;
    std::atomic<int> error_ = 0;
    steady_clock::duration longest_ = {};
    std::thread thread_;
};

class LimitsTest : public Unbinding<DeviceTest> {
protected:
    void SetUp() override {
        Unbinding<DeviceTest>::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        page = page_size();
        has_iova = iommu && !s.missing(DMAPROBE_FEATURE_DMA_IOVA);
    }

    void expect_served(Bystander& other) {
        const milliseconds longest = other.stop();

        EXPECT_ERRNO(other.error(), 0);
        EXPECT_GT(other.rounds(), 0u);
        EXPECT_LT(longest, soon);
        RecordProperty("bystander_ms", static_cast<int>(longest.count()));
    }

    void expect_clean() {
        dmaprobe_get_stats op = {};

        ASSERT_OK(s(op));
        EXPECT_EQ(op.charged, 0u);
        EXPECT_EQ(op.pinned, 0u);
        EXPECT_EQ(op.nr_buffers + op.nr_mappings + op.nr_iovas + op.nr_allocs + op.nr_pools +
                      op.nr_blocks,
                  0u);
        EXPECT_TRUE(wait_for([&] { return s.set_mask(0xffffffff) == 0; }, seconds(10)));
    }

    uint64_t page = 0;
    bool has_iova = false;
};

// --- numbers ----------------------------------------------------------------------

// One member after the other is set to values that are too large, all others being right.
class Numbers : public LimitsTest {
protected:
    // From @refused_from on, every value must be refused; below, it may be fine.
    template <class T, class M>
    void expect_refused(const char* name, const T& right, M T::* member,
                        uint64_t refused_from = 1) {
        using Value = std::make_unsigned_t<M>;
        const uint64_t top = std::numeric_limits<Value>::max();
        std::set<uint64_t> values = {top,         top - 1,        top & ~(page - 1), top / 2,
                                     top / 2 + 1, top - page + 2, top / 4 + 1};

        if (sizeof(M) == 8)
            values.insert({0xffffffff, 0x100000000, 0xfffff000, uint64_t{1} << 40,
                           uint64_t{1} << 52, ~uint64_t{0} / page, ~uint64_t{0} / 24 + 1});
        for (const uint64_t value : values) {
            const auto began = steady_clock::now();
            T op = right;

            op.*member = static_cast<M>(value);
            const int err = s(op);
            const auto took = steady_clock::now() - began;
            SCOPED_TRACE(std::format("{}.{} = {:#x}", CommandOf<T>::name, name, value));
            EXPECT_LT(took, soon);
            if (value >= refused_from) {
                EXPECT_NE(err, 0);
            }
            // None of what has another meaning.
            for (const int other : {ENOTTY, ENODEV, EAGAIN, EINTR, EPROTO, ENOSYS})
                EXPECT_NE(err, other);
        }
    }
};

#define EXPECT_REFUSED(op, member, ...)                                                            \
    expect_refused(#member, op, &decltype(op)::member __VA_OPT__(, ) __VA_ARGS__)

TEST_F(Numbers, TooLarge) {
    constexpr uint64_t never = ~uint64_t{0};
    Bystander other(bdf);
    std::vector<std::byte> bytes(page);
    Buffer b;
    Allocation a;

    ASSERT_OK(s.alloc(b, 4 * page));
    ASSERT_OK(allocate(s, a, alloc_ways[0], page));

    dmaprobe_get_domain domain = {};
    domain.nr_regions = 64;
    domain.regions = reinterpret_cast<uintptr_t>(bytes.data());
    if (s.domain().nr_regions > 0)
        EXPECT_REFUSED(domain, regions);
    dmaprobe_enable enable = {};
    EXPECT_REFUSED(enable, enable);

    dmaprobe_buffer_alloc buffer = {};
    buffer.length = page;
    EXPECT_REFUSED(buffer, length);
    EXPECT_REFUSED(buffer, order);
    EXPECT_REFUSED(buffer, kind);
    buffer.kind = DMAPROBE_BUFFER_KIND_SCATTERED;
    EXPECT_REFUSED(buffer, length);
    EXPECT_REFUSED(buffer, order);
    buffer.kind = DMAPROBE_BUFFER_KIND_KMALLOC;
    EXPECT_REFUSED(buffer, length);
    EXPECT_REFUSED(buffer, offset);
    buffer.flags = DMAPROBE_BUFFER_ALLOC_NODE;
    EXPECT_REFUSED(buffer, node);
    dmaprobe_destroy destroy = {};
    EXPECT_REFUSED(destroy, id);
    dmaprobe_buffer_pin pin = {};
    pin.addr = reinterpret_cast<uintptr_t>(bytes.data());
    pin.length = 1;
    EXPECT_REFUSED(pin, addr, uint64_t{1} << 57);
    EXPECT_REFUSED(pin, length);

    dmaprobe_map map = {};
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    map.length = page;
    EXPECT_REFUSED(map, length);
    EXPECT_REFUSED(map, buffer_offset);
    EXPECT_REFUSED(map, buffer_id);
    EXPECT_REFUSED(map, kind);
    EXPECT_REFUSED(map, dir);
    EXPECT_REFUSED(map, attrs);
    ASSERT_OK(s(map));
    dmaprobe_sync sync = {};
    sync.id = map.id;
    sync.length = 1;
    EXPECT_REFUSED(sync, id);
    EXPECT_REFUSED(sync, target);
    EXPECT_REFUSED(sync, offset);
    EXPECT_REFUSED(sync, length);
    dmaprobe_get_segments segments = {};
    segments.id = map.id;
    segments.segments = reinterpret_cast<uintptr_t>(bytes.data());
    EXPECT_REFUSED(segments, id);
    EXPECT_REFUSED(segments, nr_segments, never); // room for more than there are
    segments.nr_segments = 1;
    EXPECT_REFUSED(segments, segments, uint64_t{1} << 57);
    dmaprobe_unmap unmap = {};
    unmap.id = map.id;
    EXPECT_REFUSED(unmap, attrs);
    EXPECT_REFUSED(unmap, id);
    EXPECT_OK(s.unmap(map.id));

    dmaprobe_sg_entry entry = {0, page, b.id, 0};
    dmaprobe_map_sg list = {};
    list.entries = reinterpret_cast<uintptr_t>(&entry);
    list.nr_entries = 1;
    EXPECT_REFUSED(list, nr_entries);
    EXPECT_REFUSED(list, entries);
    EXPECT_REFUSED(list, kind);
    EXPECT_REFUSED(list, dir);
    EXPECT_REFUSED(list, attrs);
    for (const uint64_t value : {never, never - page + 1, never / 2 + 1, uint64_t{1} << 32}) {
        entry = {value, page, b.id, 0};
        EXPECT_ERRNO(s(list), EINVAL);
        entry = {0, value, b.id, 0};
        EXPECT_ERRNO(s(list), EINVAL);
        entry = {0, page, static_cast<uint32_t>(value | 0x80000000), 0};
        EXPECT_ERRNO(s(list), ENOENT);
    }
    dmaprobe_map_resource bar = {};
    bar.length = page;
    EXPECT_REFUSED(bar, bar);
    EXPECT_REFUSED(bar, offset);
    EXPECT_REFUSED(bar, length);
    EXPECT_REFUSED(bar, dir);
    EXPECT_REFUSED(bar, attrs);
    dmaprobe_map_dmabuf import = {};
    EXPECT_REFUSED(import, fd);
    EXPECT_REFUSED(import, dir);

    dmaprobe_translate translate = {};
    std::array<dmaprobe_extent, 4> extents{};
    translate.length = page;
    translate.nr_extents = extents.size();
    translate.extents = reinterpret_cast<uintptr_t>(extents.data());
    EXPECT_REFUSED(translate, length, (uint64_t{4} << 30) + 1);
    // All but the last page is a range, though nothing can be there.
    EXPECT_REFUSED(translate, iova, never - page + 2);
    EXPECT_REFUSED(translate, buffer_id, never);
    EXPECT_REFUSED(translate, nr_extents, never);
    if (iommu)
        EXPECT_REFUSED(translate, extents, uint64_t{1} << 57);

    if (has_iova) {
        dmaprobe_iova_alloc space = {};
        space.length = page;
        EXPECT_REFUSED(space, length, uint64_t{1} << 57);
        EXPECT_REFUSED(space, buffer_id);
        ASSERT_OK(s.iova_alloc(space, 4 * page));
        dmaprobe_iova_link link = {};
        link.id = space.id;
        link.buffer_id = b.id;
        link.length = page;
        EXPECT_REFUSED(link, id);
        EXPECT_REFUSED(link, buffer_id);
        EXPECT_REFUSED(link, dir);
        EXPECT_REFUSED(link, bar);
        EXPECT_REFUSED(link, buffer_offset);
        EXPECT_REFUSED(link, offset);
        EXPECT_REFUSED(link, length);
        EXPECT_REFUSED(link, attrs);
        ASSERT_OK(s.link(space.id, 0, b, 0, page));
        dmaprobe_iova_sync iova_sync = {};
        iova_sync.id = space.id;
        iova_sync.length = page;
        EXPECT_REFUSED(iova_sync, id);
        EXPECT_REFUSED(iova_sync, offset);
        EXPECT_REFUSED(iova_sync, length);
        dmaprobe_iova_unlink unlink = {};
        unlink.id = space.id;
        unlink.length = page;
        EXPECT_REFUSED(unlink, id);
        EXPECT_REFUSED(unlink, dir);
        EXPECT_REFUSED(unlink, offset);
        EXPECT_REFUSED(unlink, length);
        EXPECT_REFUSED(unlink, attrs);
        dmaprobe_iova_destroy iova_destroy = {};
        iova_destroy.id = space.id;
        EXPECT_REFUSED(iova_destroy, id);
        EXPECT_REFUSED(iova_destroy, dir);
        EXPECT_REFUSED(iova_destroy, mapped_len);
        EXPECT_REFUSED(iova_destroy, attrs);
        dmaprobe_get_iova_state state = {};
        EXPECT_REFUSED(state, id);
        dmaprobe_iova_free iova_free = {};
        EXPECT_REFUSED(iova_free, id);
    }

    dmaprobe_alloc alloc = {};
    alloc.length = page;
    EXPECT_REFUSED(alloc, kind);
    EXPECT_REFUSED(alloc, dir);
    EXPECT_REFUSED(alloc, attrs);
    for (const uint32_t kind : {DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ALLOC_KIND_NONCOHERENT,
                                DMAPROBE_ALLOC_KIND_PAGES, DMAPROBE_ALLOC_KIND_NONCONTIGUOUS}) {
        alloc.kind = kind;
        EXPECT_REFUSED(alloc, length);
    }
    dmaprobe_get_sgtable table = {};
    table.id = a.id;
    table.entries = reinterpret_cast<uintptr_t>(bytes.data());
    EXPECT_REFUSED(table, id);
    EXPECT_REFUSED(table, nr_entries, never);
    dmaprobe_export out = {};
    EXPECT_REFUSED(out, id);
    dmaprobe_copy copy = {};
    copy.id = a.id;
    copy.length = 1;
    copy.addr = reinterpret_cast<uintptr_t>(bytes.data());
    EXPECT_REFUSED(copy, id);
    EXPECT_REFUSED(copy, dir);
    EXPECT_REFUSED(copy, offset);
    EXPECT_REFUSED(copy, length);
    EXPECT_REFUSED(copy, addr, uint64_t{1} << 57);

    dmaprobe_pool_create pool = {};
    pool.block_size = 64;
    EXPECT_REFUSED(pool, block_size);
    EXPECT_REFUSED(pool, align);
    EXPECT_REFUSED(pool, boundary);
    dmaprobe_pool_alloc take = {};
    EXPECT_REFUSED(take, pool_id);

    std::array<dmaprobe_run_op, 2> ops{};
    dmaprobe_run run = {};
    run.nr_ops = 1;
    run.ops = reinterpret_cast<uintptr_t>(ops.data());
    EXPECT_REFUSED(run, nr_ops);
    EXPECT_REFUSED(run, ops);
    dmaprobe_bench bench = {};
    bench.kind = DMAPROBE_BENCH_MAP_PAGE;
    bench.buffer_id = b.id;
    bench.count = 1;
    EXPECT_REFUSED(bench, kind);
    EXPECT_REFUSED(bench, buffer_id);
    EXPECT_REFUSED(bench, count);

    // mmap() takes numbers as well.
    for (const uint64_t offset :
         {never & ~(page - 1), (never / 2) & ~(page - 1), uint64_t{b.id} << 32 | 0xfffff000,
          b.mmap_offset + 4 * page, uint64_t{0x7fffffff} << 32}) {
        EXPECT_EQ(mmap(nullptr, page, PROT_READ, MAP_SHARED, s.fd(), static_cast<off_t>(offset)),
                  MAP_FAILED);
    }
    for (const uint64_t length : {uint64_t{1} << 40, uint64_t{1} << 32, 5 * page})
        EXPECT_EQ(mmap(nullptr, length, PROT_READ, MAP_SHARED | MAP_NORESERVE, s.fd(),
                       static_cast<off_t>(b.mmap_offset)),
                  MAP_FAILED);

    expect_served(other);
    ASSERT_OK(s.close());
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    expect_clean();
}

// --- IOVA space -------------------------------------------------------------------

// Several sessions use up what a mask of 24 bits leaves, in pieces of several sizes.
TEST_F(LimitsTest, IovaSpace) {
    if (!has_iova)
        GTEST_SKIP() << "no IOVA spaces here";
    ASSERT_OK(s.set_mask(0xffffff, DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT));
    uint64_t first_round = 0;
    for (int round = 0; round < 3; round++) {
        uint64_t got = 0;
        {
            Bystander other(bdf);
            std::vector<Raw> sessions;

            for (int i = 0; i < 3; i++) {
                sessions.push_back(Raw::open(bdf));
                ASSERT_TRUE(sessions.back());
            }
            // Down to the last page: no room for a larger piece, then none for a smaller.
            for (const uint64_t length : {1024 * page, 64 * page, 8 * page, page}) {
                for (;;) {
                    dmaprobe_iova_alloc op = {};
                    const int err = sessions[got / page % 3].iova_alloc(op, length);

                    if (err) {
                        EXPECT_ERRNO(err, ENOSPC);
                        break;
                    }
                    EXPECT_LE(op.addr + op.length, 0x1000000u);
                    got += length;
                    ASSERT_LE(got, 0x1000000u);
                }
            }
            Buffer b;
            Allocation a;
            dmaprobe_map map = {};
            ASSERT_OK(s.alloc(b, 16 * page));
            map.kind = DMAPROBE_MAP_KIND_PAGE;
            map.buffer_id = b.id;
            map.length = 16 * page;
            EXPECT_ERRNO(s(map), ENOMEM);
            EXPECT_ERRNO(allocate(s, a, alloc_ways[0], 16 * page), ENOMEM);
            ASSERT_OK(s.free(b));
            // The bystander may find nothing now, and is then answered so.
            other.stop();
            EXPECT_ERRNO(other.error(), 0);
        }
        if (round == 0)
            first_round = got;
        // A lazy domain has not given all back yet; the bystander has a page or none.
        if (s.domain().type == DMAPROBE_DOMAIN_DMA) {
            EXPECT_NEAR(static_cast<double>(got), static_cast<double>(first_round),
                        static_cast<double>(16 * page));
        }
    }
    EXPECT_GT(first_round, 0x400000u);
    ASSERT_OK(s.close());
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    expect_clean();
}

// --- memory -----------------------------------------------------------------------

// A group of processes with a limit of its own for memory, below the kernel's root group.
class MemoryGroup {
public:
    MemoryGroup() {
        std::array<char, 32> name = {"/tmp/dmaprobe-cgroup-XXXXXX"};

        std::filesystem::create_directories("/tmp");
        if (!mkdtemp(name.data()))
            return;
        mounted_ = name.data();
        if (mount("none", mounted_.c_str(), "cgroup2", 0, nullptr))
            return;
        write_text(mounted_ + "/cgroup.subtree_control", "+memory");
        path_ = std::format("{}/dmaprobe-{}", mounted_, getpid());
        if (mkdir(path_.c_str(), 0755) || !exists(path_ + "/memory.max"))
            path_.clear();
    }
    MemoryGroup(const MemoryGroup&) = delete;
    MemoryGroup& operator=(const MemoryGroup&) = delete;
    ~MemoryGroup() {
        // It can be that the last process is not quite gone.
        wait_for([&] { return path_.empty() || rmdir(path_.c_str()) == 0; }, seconds(5));
        umount(mounted_.c_str());
        rmdir(mounted_.c_str());
    }

    explicit operator bool() const { return !path_.empty(); }
    std::string file(std::string_view name) const { return std::format("{}/{}", path_, name); }

private:
    std::string mounted_;
    std::string path_;
};

// More than there is, where "there" is a group of processes: nobody is killed to make room.
TEST_F(LimitsTest, MoreMemoryThanThereIs) {
    constexpr uint64_t mib = 1 << 20;
    const MemoryGroup group;

    if (!group)
        GTEST_SKIP() << "no cgroup2 with a memory controller";
    ASSERT_OK(write_text(group.file("memory.max"), std::to_string(16 * mib)));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        if (write_text(group.file("cgroup.procs"), std::to_string(getpid())))
            _exit(10);
        Raw mine = Raw::open(bdf);
        Buffer b;

        if (!mine)
            _exit(11);
        if (mine.alloc(b, 32 * mib, DMAPROBE_BUFFER_KIND_SCATTERED) != ENOMEM)
            _exit(12);
        _exit(0);
    }
    // Not in the group: whoever is there while it is full may be killed for their own requests.
    Bystander other(bdf);
    int status = -1;
    ASSERT_TRUE(wait_for_child(child, seconds(90), status)) << "the child does not end";
    expect_served(other);
    EXPECT_EQ(status, 0) << "exit code " << WEXITSTATUS(status);
    EXPECT_NE(read_text(group.file("memory.events")).find("oom_kill 0"), std::string::npos)
        << "somebody was killed to make room";
    expect_clean();
}

// Of each session: what one has does not count for another. By all kinds of memory.
TEST_F(LimitsTest, MemoryOfASession) {
    const std::string parameter = "/sys/module/dmaprobe/parameters/session_max_mib";
    const std::string had = read_text(parameter);
    constexpr uint64_t mib = 1 << 20;

    if (had.empty())
        GTEST_SKIP() << "no " << parameter;
    ASSERT_OK(write_text(parameter, "4"));
    for (int round = 0; round < 3; round++) {
        Raw one = Raw::open(bdf);
        const Memory own = Memory::fenced(2 * mib);
        Buffer b;
        Buffer pinned;
        Allocation a;

        EXPECT_OK(one.alloc(b, mib));
        EXPECT_OK(one.pin(pinned, own.data(), 2 * mib));
        // Where it is contiguous, a power of two of pages is charged.
        EXPECT_OK(allocate(one, a, alloc_ways[0], mib / 2));
        EXPECT_OK(one.alloc(b, mib / 2 - page, DMAPROBE_BUFFER_KIND_SCATTERED));
        EXPECT_ERRNO(one.alloc(b, 2 * page), ENOMEM);
        EXPECT_ERRNO(one.pin(b, own.data() + 1, page), ENOMEM);
        EXPECT_ERRNO(allocate(one, a, alloc_ways[0], mib), ENOMEM);
        EXPECT_OK(one.alloc(b, page)) << "the last page";
        EXPECT_EQ(one.stats().charged, 4 * mib);
        EXPECT_OK(s.alloc(b, mib)) << "another session";
        EXPECT_OK(s.free(b));
        EXPECT_OK(one.free(pinned));
        EXPECT_OK(one.alloc(b, mib));
        EXPECT_OK(one.close());
    }
    EXPECT_OK(write_text(parameter, had));
    expect_clean();
}

// What is refused to several threads at once is not charged in the end.
TEST_F(LimitsTest, RefusalsAtTheSameTime) {
    const auto end = steady_clock::now() + milliseconds(600);
    std::atomic<int> odd = 0;
    std::vector<std::thread> threads;
    dmaprobe_get_stats stats = {};
    Buffer one;

    if (read_text("/sys/module/dmaprobe/parameters/session_max_mib") != "1024")
        GTEST_SKIP() << "a session may have more, or less, than 1 GiB";
    ASSERT_OK(s.alloc(one, page));
    threads.reserve(4);
    for (int t = 0; t < 4; t++) {
        threads.emplace_back([&] {
            while (steady_clock::now() < end) {
                Buffer b;

                if (const int err = s.alloc(b, 1 << 30, DMAPROBE_BUFFER_KIND_SCATTERED);
                    err != ENOMEM)
                    odd = err ? err : EPROTO;
            }
        });
    }
    for (std::thread& thread : threads)
        thread.join();
    EXPECT_ERRNO(odd.load(), 0);
    ASSERT_OK(s(stats));
    EXPECT_EQ(stats.charged, page);
    ASSERT_OK(s.free(one));
    expect_clean();
}

// --- objects ----------------------------------------------------------------------

// As many objects as a program cares to make. Their end takes its time, but not the
// machine's: others work on.
TEST_F(LimitsTest, ManyObjects) {
    constexpr size_t many = 30'000;
    Bystander other(bdf);
    Raw owner = Raw::open(bdf);
    std::vector<dmaprobe_map> maps(4096);
    std::vector<dmaprobe_run_op> ops(maps.size());
    std::set<uint32_t> ids;
    size_t made = 0;
    Buffer b;

    ASSERT_TRUE(owner);
    ASSERT_OK(owner.alloc(b, page));
    while (made < many) {
        dmaprobe_run run = {};

        restart_deadline();
        for (size_t i = 0; i < maps.size(); i++) {
            maps[i] = {};
            maps[i].size = sizeof(maps[i]);
            maps[i].kind = DMAPROBE_MAP_KIND_PAGE;
            maps[i].buffer_id = b.id;
            maps[i].length = 64;
            ops[i].cmd = DMAPROBE_MAP;
            ops[i].arg = reinterpret_cast<uintptr_t>(&maps[i]);
        }
        run.nr_ops = static_cast<uint32_t>(ops.size());
        run.ops = reinterpret_cast<uintptr_t>(ops.data());
        ASSERT_OK(owner(run));
        for (size_t i = 0; i < run.done; i++) {
            ASSERT_OK(-ops[i].result);
            EXPECT_TRUE(ids.insert(maps[i].id).second) << "an id twice";
        }
        made += run.done;
    }
    EXPECT_EQ(owner.stats().nr_mappings, made);
    EXPECT_ERRNO(s.set_mask(0xffffffff), EBUSY);
    restart_deadline();
    const auto began = steady_clock::now();
    ASSERT_OK(owner.close());
    RecordProperty(
        "close_ms",
        static_cast<int>(duration_cast<milliseconds>(steady_clock::now() - began).count()));
    expect_served(other);
    expect_clean();
}

// As many sessions as there are descriptors, each with something of its own.
TEST_F(LimitsTest, ManySessions) {
    Bystander other(bdf);
    std::vector<Raw> sessions;
    int err = 0;

    for (;;) {
        Raw next = Raw::open(bdf);
        Buffer b;
        dmaprobe_map map = {};

        if (!next) {
            err = next.error();
            break;
        }
        ASSERT_OK(next.alloc(b, page));
        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.buffer_id = b.id;
        map.length = page;
        ASSERT_OK(next(map));
        sessions.push_back(std::move(next));
        if (sessions.size() > 4000)
            break;
    }
    EXPECT_GT(sessions.size(), 200u);
    EXPECT_TRUE(err == 0 || err == EMFILE) << err;
    sessions.clear();
    expect_served(other);
    expect_clean();
}

} // namespace
} // namespace selftest

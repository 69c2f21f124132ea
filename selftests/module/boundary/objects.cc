// SPDX-License-Identifier: GPL-2.0-only
// The boundary: objects that others see too early or too late. dma-bufs that end in parts,
// ids that nobody was given, fences that nobody signals.

#include "boundary.h"

#include "support/alloc.h"
#include "support/ops.h"
#include "support/unbind.h"

#include <linux/dma-buf.h>
#include <linux/udmabuf.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <list>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// --- dma-bufs that end in parts ----------------------------------------------------

// A dma-buf lives as long as its dentry, and the dentry longer than the file when somebody
// has the path open. The slot of a file that is gone is somebody else's file soon.
class BoundaryExport : public Unbinding<DeviceTest> {
protected:
    void SetUp() override {
        Unbinding<DeviceTest>::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        bytes = pattern_of(4 * page_size(), 11);
        ASSERT_OK(allocate(s, a, {"", DMAPROBE_ALLOC_KIND_PAGES}, bytes.size()));
        ASSERT_OK(copy_in(s, a.id, 0, bytes));
    }

    Fd export_again() const {
        dmaprobe_export op = {};

        op.id = a.id;
        EXPECT_OK(s(op));
        return Fd(op.fd);
    }

    static Fd path_of(const Fd& file) {
        Fd path(open(std::format("/proc/self/fd/{}", file.get()).c_str(), O_PATH | O_CLOEXEC));

        EXPECT_TRUE(path) << strerror(errno);
        return path;
    }

    // Files of others, which take the slots of those that have gone.
    static std::vector<Fd> other_files() {
        std::vector<Fd> files;

        for (int i = 0; i < 24; i++) {
            files.emplace_back(memfd_create("somebody-else", MFD_CLOEXEC));
            EXPECT_EQ(write(files.back().get(), "theirs", 6), 6);
        }
        return files;
    }

    static void expect_untouched(const std::vector<Fd>& files) {
        for (const Fd& file : files) {
            std::array<char, 7> text{};

            EXPECT_EQ(pread(file.get(), text.data(), 6, 0), 6);
            EXPECT_STREQ(text.data(), "theirs");
        }
    }

    void expect_is_the_allocation(const Fd& fd) const {
        std::error_code none;
        const fs::path name = fs::read_symlink(std::format("/proc/self/fd/{}", fd.get()), none);
        void* at = mmap(nullptr, bytes.size(), PROT_READ, MAP_SHARED, fd.get(), 0);

        EXPECT_TRUE(name.string().starts_with("/dmabuf:")) << name;
        ASSERT_NE(at, MAP_FAILED) << strerror(errno);
        EXPECT_EQ(memcmp(at, bytes.data(), bytes.size()), 0);
        munmap(at, bytes.size());
    }

    Allocation a;
    std::vector<std::byte> bytes;
};

TEST_F(BoundaryExport, FileEndsBeforeItsPath) {
    for (int round = 0; round < 40 && !HasFailure(); round++) {
        Fd fd = export_again();
        Fd path = path_of(fd);

        ASSERT_OK(fd.close());
        const std::vector<Fd> theirs = other_files();
        EXPECT_ERRNO(release(s, a), EBUSY) << "the dma-buf is still there";
        Fd again = export_again();
        expect_is_the_allocation(again);
        // The other one ends, in the other order.
        ASSERT_OK(round % 2 ? path.close() : again.close());
        const Fd third = export_again();
        expect_is_the_allocation(third);
        expect_untouched(theirs);
    }
    EXPECT_TRUE(wait_for([&] { return release(s, a) == 0; }, seconds(5))) << "held for good";
}

TEST_F(BoundaryExport, PathEndsBeforeItsFile) {
    for (int round = 0; round < 40 && !HasFailure(); round++) {
        Fd fd = export_again();

        ASSERT_OK(path_of(fd).close());
        Fd again = export_again();
        ASSERT_OK(fd.close());
        const std::vector<Fd> theirs = other_files();
        const Fd third = export_again();
        expect_is_the_allocation(again);
        expect_is_the_allocation(third);
        expect_untouched(theirs);
    }
    EXPECT_TRUE(wait_for([&] { return release(s, a) == 0; }, seconds(5))) << "held for good";
}

// Ends of both in any order, while others export and open files.
TEST_F(BoundaryExport, EndsWhileOthersExport) {
    const auto end = steady_clock::now() + milliseconds(600);
    {
        std::list<std::jthread> threads;

        for (int t = 0; t < 3; t++) {
            threads.emplace_back([&, t] {
                for (int i = 0; steady_clock::now() < end && !HasFailure(); i++) {
                    Fd fd = export_again();
                    Fd path = path_of(fd);

                    if ((i + t) % 2)
                        fd.close();
                    else
                        path.close();
                    if (t == 0)
                        expect_untouched(other_files());
                    else
                        expect_is_the_allocation(export_again());
                }
            });
        }
    }
    EXPECT_TRUE(wait_for([&] { return release(s, a) == 0; }, seconds(5))) << "held for good";
}

// The session ends with a path open whose file has gone, and takes the memory from the
// dma-bufs that have one.
TEST_F(BoundaryExport, SessionEndsWithAPathOpen) {
    const Raw importer = Raw::open(bdf);
    Fd gone = export_again();
    Fd path = path_of(gone);
    const Fd stays = export_again();
    dmaprobe_map_dmabuf import = {};

    ASSERT_TRUE(importer);
    void* at = mmap(nullptr, bytes.size(), PROT_READ, MAP_SHARED, stays.get(), 0);
    ASSERT_NE(at, MAP_FAILED);
    const Memory memory(at, bytes.size());
    import.fd = stays.get();
    const int imported = importer(import);
    ASSERT_OK(gone.close());
    const std::vector<Fd> theirs = other_files();
    ASSERT_OK(s.close());
    EXPECT_TRUE(gives_sigbus(memory.data()));
    if (!imported) {
        std::vector<dmaprobe_segment> left;

        EXPECT_OK(importer.segments(left, import.id));
        EXPECT_EQ(left.size(), 0u);
        EXPECT_OK(importer.unmap(import.id));
    }
    expect_untouched(theirs);
    EXPECT_OK(path.close());
    expect_untouched(theirs);
}

TEST_F(BoundaryExport, DeviceGoesWithAPathOpen) {
    Fd gone = export_again();
    Fd path = path_of(gone);
    Fd stays = export_again();

    void* at = mmap(nullptr, bytes.size(), PROT_READ, MAP_SHARED, stays.get(), 0);
    ASSERT_NE(at, MAP_FAILED);
    Memory memory(at, bytes.size());
    ASSERT_OK(gone.close());
    const std::vector<Fd> theirs = other_files();
    ASSERT_OK(unbind_driver(bdf));
    EXPECT_TRUE(gives_sigbus(memory.data()));
    expect_untouched(theirs);
    EXPECT_OK(s.close());
    memory.unmap();
    EXPECT_OK(stays.close());
    // What runs when the path ends is the module's.
    if (exists("/sys/module/dmaprobe/initstate")) {
        EXPECT_ERRNO(remove_module(driver_name), EAGAIN);
        EXPECT_OK(path.close());
        int err = 0;
        EXPECT_TRUE(wait_for([&] { return (err = remove_module(driver_name)) == 0; }, seconds(5)))
            << strerrorname_np(err);
        ASSERT_TRUE(load_module());
    }
    expect_untouched(theirs);
    if (driver_of(bdf).empty()) {
        ASSERT_OK(probe_driver(bdf));
    }
    EXPECT_TRUE(wait_for([&] { return exists(node_path(bdf)); }, seconds(5)));
}

// --- mmaps that go from two sides --------------------------------------------------

class BoundaryViews : public DeviceTest {};

// A program unmaps a dma-buf while its session ends, which unmaps it too. Until Linux 6.16, x86
// kernels look up in the page tables which frames a VMA has reserved, and warn when the other side
// was faster.
TEST_F(BoundaryViews, GoByMunmapAndByTheSessionsEndAtOnce) {
    constexpr size_t count = 512;
    const size_t page = page_size();
    KernelLog log;

    for (int round = 0; round < 48; round++) {
        const AllocWay way = {
            "", std::array{DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ALLOC_KIND_PAGES}.at(round / 24)};
        Raw mine = Raw::open(bdf);
        Allocation a;
        dmaprobe_export op = {};
        std::atomic<bool> go = false;

        ASSERT_OK(allocate(mine, a, way, page));
        op.id = a.id;
        ASSERT_OK(mine(op));
        const Fd dmabuf(op.fd);
        void* room = mmap(nullptr, count * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ASSERT_NE(room, MAP_FAILED);
        for (size_t i = 0; i < count; i++) {
            ASSERT_NE(mmap(static_cast<std::byte*>(room) + i * page, page, PROT_READ,
                           MAP_SHARED | MAP_FIXED, dmabuf.get(), 0),
                      MAP_FAILED)
                << strerror(errno);
        }
        const std::jthread unmapper([&] {
            while (!go)
                std::this_thread::yield();
            munmap(room, count * page);
        });
        // One overtakes the other, in another place each time.
        go = round % 2 == 1;
        const auto until = steady_clock::now() + std::chrono::microseconds(50 * (round % 24));
        while (steady_clock::now() < until)
            std::this_thread::yield();
        go = true;
        EXPECT_OK(mine.close());
    }
    EXPECT_EQ(log.news(), "");
}

// --- answers that cannot be written ------------------------------------------------

// One page, seen twice: the test fills it in by one address and gives the module the
// other one, by which it cannot be written.
class ReadOnlyStruct {
public:
    ReadOnlyStruct() {
        const Fd file(memfd_create("struct", MFD_CLOEXEC));

        EXPECT_EQ(ftruncate(file.get(), static_cast<off_t>(page_size())), 0);
        writable_ = map(file, PROT_READ | PROT_WRITE);
        readable_ = map(file, PROT_READ);
    }
    std::byte* fill() const { return writable_.data(); }
    void* give() const { return readable_.data(); }

private:
    static Memory map(const Fd& file, int prot) {
        void* at = mmap(nullptr, page_size(), prot, MAP_SHARED, file.get(), 0);

        return at == MAP_FAILED ? Memory{} : Memory{at, page_size()};
    }

    Memory writable_;
    Memory readable_;
};

std::vector<Op> makers() {
    std::vector<Op> all;

    for (const Op& op : ops())
        if (op.makes || op.command == DMAPROBE_EXPORT)
            all.push_back(op);
    return all;
}

class BoundaryUnanswered : public DeviceTest, public testing::WithParamInterface<Op> {
protected:
    // A call that works, and where to put another id in it.
    struct Guess {
        const Op* op;
        std::vector<std::byte> bytes;
        size_t id;
    };

    static std::vector<Guess> all_guesses(Live& live) {
        std::vector<Guess> guesses;

        for (const Op& op : ops()) {
            if (!unsupported_reason(op, live.s).empty())
                continue;
            for (const IdField& field : op.ids) {
                Guess guess = {&op, std::vector<std::byte>(op.size), field.offset};

                op.sample(live, guess.bytes.data());
                guesses.push_back(std::move(guess));
            }
        }
        return guesses;
    }

    // Each kind that the command can make.
    static void choose_kind(const Op& op, std::byte* bytes, unsigned n) {
        if (op.command == DMAPROBE_ALLOC)
            set<uint32_t>(bytes, offsetof(dmaprobe_alloc, kind), n % 4);
        if (op.command == DMAPROBE_BUFFER_ALLOC)
            set<uint32_t>(bytes, offsetof(dmaprobe_buffer_alloc, kind), n % 3);
        if (op.command == DMAPROBE_MAP)
            set<uint32_t>(bytes, offsetof(dmaprobe_map, kind), n % 2);
        if (op.command == DMAPROBE_MAP_SG)
            set<uint32_t>(bytes, offsetof(dmaprobe_map_sg, kind), n % 2);
    }

    static std::array<uint32_t, 6> counts(const dmaprobe_get_stats& stats) {
        return {stats.nr_buffers, stats.nr_mappings, stats.nr_iovas,
                stats.nr_allocs,  stats.nr_pools,    stats.nr_blocks};
    }

    // All commands by one id, and mmap(). What does not answer ENOENT, in words.
    static std::string try_id(const Raw& s, const std::vector<Guess>& guesses, uint32_t id) {
        for (const Guess& guess : guesses) {
            std::vector<std::byte> bytes = guess.bytes;

            set(bytes.data(), guess.id, id);
            if (const int err = submit(s.fd(), guess.op->command, bytes.data()); err != ENOENT)
                return std::format("{} of id {}: {}", guess.op->name, id,
                                   err ? strerrorname_np(err) : "success");
        }
        const dmaprobe_sg_entry entry = {
            .offset = 0, .length = page_size(), .buffer_id = id, .__reserved = 0};
        dmaprobe_map_sg list = {};
        if (const int err = s.map_sg(list, {&entry, 1}); err != ENOENT)
            return std::format("map_sg of id {}: {}", id, strerrorname_np(err));
        void* at = mmap(nullptr, page_size(), PROT_READ, MAP_SHARED, s.fd(),
                        static_cast<off_t>(uint64_t{id} << 32));
        if (at != MAP_FAILED || errno != ENOENT)
            return std::format("mmap of id {}", id);
        return "";
    }
};

// Threads try all commands by every id that the call in the middle can have: they find
// nothing, and the maker is answered that its struct cannot be written.
TEST_P(BoundaryUnanswered, IsFoundByNobody) {
    const Op& op = GetParam();
    const ReadOnlyStruct memory;
    Live live(bdf);
    std::atomic<bool> stop = false;
    std::atomic<uint64_t> sweeps = 0;
    uint64_t calls = 0;

    if (const std::string lacking = unsupported_reason(op, s); !lacking.empty())
        GTEST_SKIP() << lacking;
    if (!iommu) {
        Live trial(bdf);

        op.sample(trial, memory.fill());
        if (submit(trial.s.fd(), op.command, memory.fill()) == EIO)
            GTEST_SKIP() << "the device cannot reach what is mapped";
    }
    const std::vector<Guess> guesses = all_guesses(live);
    ASSERT_GE(guesses.size(), 10u);
    op.sample(live, memory.fill());
    const std::set<uint32_t> known = live.ids();
    const dmaprobe_get_stats before = live.s.stats();
    const auto open_files = [] {
        return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
    };
    const auto files = open_files();
    {
        std::list<std::jthread> threads;
        const auto end = steady_clock::now() + milliseconds(250);

        for (uint32_t t = 0; t < 3; t++) {
            threads.emplace_back([&] {
                while (!stop && !HasFailure()) {
                    for (uint32_t id = 1; id <= 64 && !stop; id++) {
                        if (known.contains(id))
                            continue;
                        EXPECT_EQ(try_id(live.s, guesses, id), "");
                        EXPECT_EQ(counts(live.s.stats()), counts(before)) << "counted";
                    }
                    sweeps++;
                }
            });
        }
        for (; (steady_clock::now() < end || sweeps < 3) && !HasFailure(); calls++) {
            choose_kind(op, memory.fill(), static_cast<unsigned>(calls));
            EXPECT_ERRNO(submit(live.s.fd(), op.command, memory.give()), EFAULT);
        }
        stop = true;
    }
    RecordProperty("unanswered", static_cast<int>(calls));
    const dmaprobe_get_stats after = live.s.stats();
    EXPECT_EQ(counts(after), counts(before));
    EXPECT_EQ(after.pinned, before.pinned);
    // A pool keeps the pages that it needed at most.
    if (op.command != DMAPROBE_POOL_ALLOC) {
        EXPECT_EQ(after.charged, before.charged);
    }
    EXPECT_EQ(open_files(), files) << "descriptors are left";
    EXPECT_OK(submit(live.s.fd(), op.command, memory.fill())) << "with an answer";
    if (op.command == DMAPROBE_EXPORT)
        ::close(get<int32_t>(memory.fill(), offsetof(dmaprobe_export, fd)));
    EXPECT_OK(live.s.close());
    EXPECT_TRUE(wait_for([&] { return s.set_mask(0xffffffff) == 0; }, seconds(5)))
        << "an address is left";
}

INSTANTIATE_TEST_SUITE_P(All, BoundaryUnanswered, testing::ValuesIn(makers()),
                         [](const auto& op) { return op.param.name; });

// --- fences ------------------------------------------------------------------------

// What an exporter's driver waits for, others must not. Programs can put a fence on a
// dma-buf only as one of its readers or writers, and nobody who maps waits for those; the
// kind that a moving exporter sets, and that importers wait for, takes a GPU's driver.
class BoundaryFence : public Unbinding<DeviceTest> {
protected:
    static constexpr seconds soon{5};

    // The ABI of drivers/dma-buf/sw_sync.c, which has no header.
    struct CreateFence {
        uint32_t value;
        std::array<char, 32> name;
        int32_t fence;
    };
    static constexpr const char* sw_sync = "/sys/kernel/debug/sync/sw_sync";
};

TEST_F(BoundaryFence, NobodyWaitsForOneOfADmaBuf) {
    const Fd timeline(open(sw_sync, O_RDWR | O_CLOEXEC));
    const Fd driver(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
    const Fd file(memfd_create("udmabuf", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    CreateFence create = {.value = 1, .name = {"never"}, .fence = -1};
    udmabuf_create make = {};
    dma_buf_import_sync_file give = {};

    if (!timeline)
        GTEST_SKIP() << "no " << sw_sync << " (CONFIG_SW_SYNC): nothing makes a fence";
    if (!driver)
        GTEST_SKIP() << "no /dev/udmabuf";
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates for the device";
    ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(page_size())), 0);
    ASSERT_EQ(fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
    make.memfd = static_cast<uint32_t>(file.get());
    make.flags = UDMABUF_FLAGS_CLOEXEC;
    make.size = page_size();
    const Fd dmabuf(ioctl(driver.get(), UDMABUF_CREATE, &make));
    ASSERT_TRUE(dmabuf) << strerror(errno);
    ASSERT_EQ(ioctl(timeline.get(), _IOWR('W', 0, CreateFence), &create), 0) << strerror(errno);
    const Fd fence(create.fence);
    give.flags = DMA_BUF_SYNC_RW;
    give.fd = fence.get();
    ASSERT_EQ(ioctl(dmabuf.get(), DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &give), 0) << strerror(errno);

    dmaprobe_map_dmabuf map = {};
    map.fd = dmabuf.get();
    EXPECT_LT(time_of([&] { EXPECT_OK(s(map)); }), soon);
    EXPECT_LT(time_of([&] { EXPECT_OK(s.unmap(map.id)); }), soon);
    EXPECT_OK(s(map));
    EXPECT_LT(time_of([&] { EXPECT_OK(unbind_driver(bdf)); }), soon);
    EXPECT_OK(s.close());
    ASSERT_NO_FATAL_FAILURE(come_back());
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// dma-bufs: those of others imported, allocations exported, and taken away again.

#include "support/alloc.h"
#include "support/system.h"
#include "support/unbind.h"

#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>

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
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Import {
    uint32_t id = 0;
    uint32_t nr_segments = 0;
    uint64_t length = 0;
};

int import_dmabuf(const Raw& session, int fd, Import& out,
                  uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL) {
    dmaprobe_map_dmabuf op = {};

    op.fd = fd;
    op.dir = dir;
    const int err = session(op);
    if (!err)
        out = {.id = op.id, .nr_segments = op.nr_segments, .length = op.length};
    return err;
}

int export_dmabuf(const Raw& session, const Allocation& a, Fd& out) {
    dmaprobe_export op = {};

    op.id = a.id;
    const int err = session(op);
    if (!err)
        out = Fd(op.fd);
    return err;
}

Memory map_fd(const Fd& fd, uint64_t length, uint64_t offset = 0) {
    void* at = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(),
                    static_cast<off_t>(offset));

    return at == MAP_FAILED ? Memory{} : Memory{at, length};
}

// 0 or errno.
int sync_dmabuf(const Fd& fd, uint64_t flags) {
    dma_buf_sync op = {};

    op.flags = flags | DMA_BUF_SYNC_RW;
    return ioctl(fd.get(), DMA_BUF_IOCTL_SYNC, &op) < 0 ? errno : 0;
}

// A dma-buf of shared memory, or why there is none. @memory sees its bytes.
Fd make_udmabuf(uint64_t length, Memory& memory, std::string& why) {
    const Fd driver(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
    const Fd file(memfd_create("dmaprobe", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    udmabuf_create op = {};

    if (!driver) {
        why = "no /dev/udmabuf";
        return {};
    }
    if (!file || ftruncate(file.get(), static_cast<off_t>(length)) ||
        fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK)) {
        why = "no memfd";
        return {};
    }
    memory = map_fd(file, length);
    op.memfd = static_cast<uint32_t>(file.get());
    op.flags = UDMABUF_FLAGS_CLOEXEC;
    op.size = length;
    Fd made(ioctl(driver.get(), UDMABUF_CREATE, &op));
    if (!made)
        why = std::format("UDMABUF_CREATE: {}", strerror(errno));
    return made;
}

Fd make_heap_dmabuf(uint64_t length, std::string& why, uint32_t mode = O_RDWR) {
    const Fd heap(open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC));
    dma_heap_allocation_data op = {};

    if (!heap) {
        why = "no /dev/dma_heap/system";
        return {};
    }
    op.len = length;
    op.fd_flags = mode | O_CLOEXEC;
    if (ioctl(heap.get(), DMA_HEAP_IOCTL_ALLOC, &op) < 0) {
        why = std::format("DMA_HEAP_IOCTL_ALLOC: {}", strerror(errno));
        return {};
    }
    return Fd(static_cast<int>(op.fd));
}

class DmaBuf : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        iommu = s.translated();
        const dmaprobe_get_limits limits = s.limits();
        if (!iommu && limits.dma_mask >= limits.required_mask &&
            limits.max_mapping_size != UINT64_MAX)
            GTEST_SKIP() << "the kernel bounces all memory, and nobody synchronises a dma-buf's";
        // Longer pieces come from the system heap than a PCI device takes by default.
        dmaprobe_set_segments op = {};
        op.flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE;
        op.max_segment_size = 0x80000000;
        ASSERT_OK(s(op));
    }

    // What is not exported here is mapped for a device that reaches all memory.
    std::string unreached() const {
        const dmaprobe_get_limits limits = s.limits();

        return iommu || limits.dma_mask >= limits.required_mask
                   ? ""
                   : "no IOMMU translates, and the device cannot reach all memory by itself";
    }

    // Through its segments the device copies the first page to the last one.
    void move_first_page_to_last(const Raw& session, const Import& imported, Rig& rig) const {
        std::vector<dmaprobe_segment> segs;
        uint64_t first = 0;
        uint64_t last = 0;
        uint64_t sum = 0;

        ASSERT_OK(segments(session, imported.id, segs));
        ASSERT_EQ(segs.size(), imported.nr_segments);
        ASSERT_FALSE(segs.empty());
        for (const dmaprobe_segment& seg : segs)
            sum += seg.length;
        EXPECT_EQ(sum, imported.length);
        first = segs.front().dma_addr;
        last = segs.back().dma_addr + segs.back().length - page_size();
        ASSERT_TRUE(rig.move(last, first, page_size()));
    }

    void expect_no_segments(const Raw& session, const Import& imported) const {
        std::vector<dmaprobe_segment> segs(1);

        ASSERT_OK(segments(session, imported.id, segs));
        EXPECT_TRUE(segs.empty());
    }

    bool iommu = false;
};

TEST_F(DmaBuf, SharedMemoryOfUdmabuf) {
    const uint64_t page = page_size(), length = 8 * page;
    Rig rig(bdf);
    std::string why;
    Memory m;
    Fd fd = make_udmabuf(length, m, why);
    Import imported;

    if (!fd)
        GTEST_SKIP() << why;
    if (!rig)
        GTEST_SKIP() << rig.why();
    if (const std::string lacking = unreached(); !lacking.empty()) {
        EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported), EIO);
        GTEST_SKIP() << lacking;
    }
    ASSERT_TRUE(m);
    ASSERT_OK(import_dmabuf(s, fd.get(), imported));
    EXPECT_EQ(imported.length, length);
    ASSERT_OK(fd.close());
    const auto bytes = pattern_of(page, 6);
    std::ranges::copy(bytes, m.data());
    move_first_page_to_last(s, imported, rig);
    EXPECT_EQ(memcmp(m.data() + length - page, bytes.data(), page), 0);
    EXPECT_TRUE(std::all_of(m.data() + page, m.data() + length - page,
                            [](std::byte b) { return b == std::byte{}; }));
    EXPECT_OK(s.unmap(imported.id));
    EXPECT_ERRNO(s.unmap(imported.id), ENOENT);
}

TEST_F(DmaBuf, MemoryOfTheSystemHeap) {
    const uint64_t page = page_size(), length = uint64_t{3} << 20;
    Rig rig(bdf);
    std::string why;
    Fd fd = make_heap_dmabuf(length, why);
    Import imported;

    if (!fd)
        GTEST_SKIP() << why;
    if (!rig)
        GTEST_SKIP() << rig.why();
    if (const std::string lacking = unreached(); !lacking.empty()) {
        EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported), EIO);
        GTEST_SKIP() << lacking;
    }
    Memory m = map_fd(fd, length);
    ASSERT_TRUE(m);
    ASSERT_OK(import_dmabuf(s, fd.get(), imported));
    const auto bytes = pattern_of(page, 7);
    ASSERT_OK(sync_dmabuf(fd, DMA_BUF_SYNC_START));
    std::ranges::copy(bytes, m.data());
    ASSERT_OK(sync_dmabuf(fd, DMA_BUF_SYNC_END));
    move_first_page_to_last(s, imported, rig);
    ASSERT_OK(sync_dmabuf(fd, DMA_BUF_SYNC_START));
    EXPECT_EQ(memcmp(m.data() + length - page, bytes.data(), page), 0);
    ASSERT_OK(sync_dmabuf(fd, DMA_BUF_SYNC_END));
    if (iommu) {
        std::vector<dmaprobe_segment> segs;
        std::vector<Extent> extents;

        ASSERT_OK(segments(s, imported.id, segs));
        ASSERT_OK(s.translate(extents, segs[0].dma_addr, segs[0].length));
        for (const Extent& extent : extents)
            EXPECT_EQ(extent.kind, uint32_t{DMAPROBE_EXTENT_FOREIGN});
        ASSERT_OK(s.unmap(imported.id));
        expect_hole(segs[0].dma_addr, segs[0].length);
    }
}

// A descriptor for reading lets the device read. Before Linux 6.17, attaching to another driver's
// dma-buf maps it at once, and for both directions, so that the device could write as well.
TEST_F(DmaBuf, ReadOnlyDescriptor) {
    const int reachable = unreached().empty() ? 0 : EIO;
    const int to_device = kernel_is_at_least(6, 17) ? reachable : EACCES;
    std::string why;
    const Fd fd = make_heap_dmabuf(page_size(), why, O_RDONLY);
    Import imported;

    if (!fd)
        GTEST_SKIP() << why;
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported, DMAPROBE_DIR_BIDIRECTIONAL), EACCES);
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported, DMAPROBE_DIR_FROM_DEVICE), EACCES);
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported, DMAPROBE_DIR_TO_DEVICE), to_device);
}

// Revoking an allocation takes it away from all who import it, so these are not too many.
TEST_F(DmaBuf, SoManyImports) {
    Allocation a;
    Import imported;
    Fd fd;

    ASSERT_OK(
        allocate(s, a, {.name = "coherent", .kind = DMAPROBE_ALLOC_KIND_COHERENT}, page_size()));
    ASSERT_OK(export_dmabuf(s, a, fd));
    const int first = import_dmabuf(s, fd.get(), imported);
    if (first == EIO)
        GTEST_SKIP() << "the device does not reach the memory by itself";
    ASSERT_OK(first);
    for (int i = 1; i < 1024; i++)
        ASSERT_OK(import_dmabuf(s, fd.get(), imported)) << i;
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported), ENOMEM);
    ASSERT_OK(s.unmap(imported.id));
    EXPECT_OK(import_dmabuf(s, fd.get(), imported));
}

// Revoking the allocation goes through them all.
TEST_F(DmaBuf, SoManyExports) {
    constexpr int most = 1024;
    const rlimit enough = {.rlim_cur = most + 256, .rlim_max = most + 256};
    std::vector<Fd> files(most);
    rlimit had = {};
    Allocation a;
    Fd fd;

    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &had), 0);
    if (had.rlim_cur < enough.rlim_cur) {
        ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &enough), 0);
    }
    ASSERT_OK(
        allocate(s, a, {.name = "coherent", .kind = DMAPROBE_ALLOC_KIND_COHERENT}, page_size()));
    for (Fd& file : files)
        ASSERT_OK(export_dmabuf(s, a, file));
    EXPECT_ERRNO(export_dmabuf(s, a, fd), ENOMEM);
    files.pop_back();
    EXPECT_OK(export_dmabuf(s, a, fd));
    files.clear();
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &had), 0);
}

// An exporter makes what pieces it likes.
TEST_F(DmaBuf, LongerThanASegment) {
    const uint64_t page = page_size();
    std::string why;
    const Fd fd = make_heap_dmabuf(4 * page, why);
    Import imported;

    if (!fd)
        GTEST_SKIP() << why;
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(4 * page - 1)));
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported), EINVAL);
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY,
                             0x80000000, 2 * page - 1));
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported), EINVAL);
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY,
                             static_cast<uint32_t>(4 * page), 4 * page - 1));
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported), unreached().empty() ? 0 : EIO);
}

TEST_F(DmaBuf, BadImports) {
    const Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
    Allocation a;
    Import imported;
    Fd fd;

    EXPECT_ERRNO(import_dmabuf(s, -1, imported), EBADF);
    EXPECT_ERRNO(import_dmabuf(s, 0x7fffffff, imported), EBADF);
    EXPECT_ERRNO(import_dmabuf(s, null.get(), imported), EINVAL);
    EXPECT_ERRNO(import_dmabuf(s, s.fd(), imported), EINVAL);
    ASSERT_OK(allocate(s, a, alloc_ways[0], page_size()));
    ASSERT_OK(export_dmabuf(s, a, fd));
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), imported, 3), EINVAL);
    for (const uint32_t dir :
         {DMAPROBE_DIR_BIDIRECTIONAL, DMAPROBE_DIR_TO_DEVICE, DMAPROBE_DIR_FROM_DEVICE}) {
        EXPECT_OK(import_dmabuf(s, fd.get(), imported, dir));
        EXPECT_ERRNO(s.set_mask(0xffffffff), EBUSY);
        dmaprobe_sync sync = {};
        sync.id = imported.id;
        sync.length = page_size();
        EXPECT_ERRNO(s(sync), EOPNOTSUPP);
        EXPECT_OK(s.unmap(imported.id));
    }
}

// Each call makes a dma-buf of its own, and each of them holds the allocation.
TEST_F(DmaBuf, EachExportIsANewOne) {
    Allocation a;
    Allocation b;
    Fd one;
    Fd two;
    Fd other;
    struct stat st1 = {};
    struct stat st2 = {};
    struct stat st3 = {};

    ASSERT_OK(allocate(s, a, alloc_ways[0], page_size()));
    ASSERT_OK(allocate(s, b, alloc_ways[0], page_size()));
    ASSERT_OK(export_dmabuf(s, a, one));
    ASSERT_OK(export_dmabuf(s, a, two));
    ASSERT_OK(export_dmabuf(s, b, other));
    EXPECT_NE(one.get(), two.get());
    EXPECT_EQ(fcntl(one.get(), F_GETFD), FD_CLOEXEC);
    ASSERT_EQ(fstat(one.get(), &st1), 0);
    ASSERT_EQ(fstat(two.get(), &st2), 0);
    ASSERT_EQ(fstat(other.get(), &st3), 0);
    EXPECT_NE(st1.st_ino, st2.st_ino) << "of the same allocation";
    EXPECT_NE(st1.st_ino, st3.st_ino);
    {
        // Both lead to the same bytes.
        const Memory m1 = map_fd(one, page_size());
        const Memory m2 = map_fd(two, page_size());
        ASSERT_TRUE(m1 && m2);
        m1.data()[7] = std::byte{0x42};
        EXPECT_EQ(m2.data()[7], std::byte{0x42});
    }
    ASSERT_OK(one.close());
    EXPECT_ERRNO(release(s, a), EBUSY) << "the second one is left";
    ASSERT_OK(two.close());
    ASSERT_OK(export_dmabuf(s, a, one));
    EXPECT_ERRNO(release(s, a), EBUSY);
    ASSERT_OK(one.close());
    EXPECT_OK(release(s, a));
    EXPECT_ERRNO(release(s, b), EBUSY);
    ASSERT_OK(other.close());
    EXPECT_OK(release(s, b));
}

// An answer that cannot be written leaves no descriptor behind.
TEST_F(DmaBuf, ExportToAReadOnlyStruct) {
    Memory room = Memory::fenced(page_size());
    Allocation a;

    const auto count = [] {
        return std::ranges::distance(std::filesystem::directory_iterator("/proc/self/fd"));
    };
    ASSERT_TRUE(room);
    ASSERT_OK(allocate(s, a, alloc_ways[0], page_size()));
    auto* op = reinterpret_cast<dmaprobe_export*>(room.data());
    op->size = sizeof(*op);
    op->id = a.id;
    ASSERT_TRUE(room.protect(PROT_READ));
    const auto before = count();
    EXPECT_ERRNO(submit(s.fd(), DMAPROBE_EXPORT, op), EFAULT);
    EXPECT_EQ(count(), before);
    EXPECT_OK(release(s, a));
}

class DmaBufWays : public DmaBuf, public testing::WithParamInterface<AllocWay> {};

INSTANTIATE_TEST_SUITE_P(DmaBuf, DmaBufWays, testing::ValuesIn(alloc_ways),
                         [](const auto& row) { return row.param.name; });

TEST_P(DmaBufWays, ExportIsMmapped) {
    const uint64_t page = page_size();
    Allocation a;
    Fd fd;

    ASSERT_OK(allocate(s, a, GetParam(), 4 * page - 8));
    ASSERT_OK(export_dmabuf(s, a, fd));
    Memory mine = map_allocation(s, a);
    Memory all = map_fd(fd, 4 * page);
    Memory tail = map_fd(fd, page, 3 * page);
    ASSERT_TRUE(mine && all && tail);
    const auto bytes = pattern_of(4 * page, 8);
    std::ranges::copy(bytes, mine.data());
    EXPECT_EQ(memcmp(all.data(), bytes.data(), bytes.size()), 0);
    EXPECT_EQ(memcmp(tail.data(), bytes.data() + 3 * page, page), 0);
    EXPECT_OK(sync_dmabuf(fd, DMA_BUF_SYNC_START));
    EXPECT_OK(sync_dmabuf(fd, DMA_BUF_SYNC_END));
    EXPECT_FALSE(map_fd(fd, 5 * page));
    EXPECT_ERRNO(errno, EINVAL);
    EXPECT_FALSE(map_fd(fd, page, 4 * page));
    EXPECT_EQ(mmap(nullptr, page, PROT_READ, MAP_PRIVATE, fd.get(), 0), MAP_FAILED);
    EXPECT_ERRNO(errno, EINVAL);

    ASSERT_OK(fd.close());
    mine.unmap();
    EXPECT_ERRNO(release(s, a), EBUSY) << "the dma-buf is mmapped";
    all.unmap();
    EXPECT_ERRNO(release(s, a), EBUSY) << "the dma-buf is mmapped";
    tail.unmap();
    EXPECT_OK(release(s, a));
}

TEST_P(DmaBufWays, ExportIsImported) {
    const uint64_t page = page_size(), length = 8 * page;
    Rig rig(bdf);
    Raw other = Raw::open(bdf);
    Allocation a;

    ASSERT_TRUE(other);
    if (!rig)
        GTEST_SKIP() << rig.why();
    ASSERT_OK(allocate(s, a, GetParam(), length));
    Memory m = map_allocation(s, a);
    ASSERT_TRUE(m);
    for (const Raw* importer : {&s, &other}) {
        const auto bytes = pattern_of(page, importer == &s ? 9 : 10);
        Import imported;
        Fd fd;

        ASSERT_OK(export_dmabuf(s, a, fd));
        ASSERT_OK(import_dmabuf(*importer, fd.get(), imported));
        ASSERT_OK(fd.close());
        EXPECT_EQ(imported.length, length);
        memset(m.data(), 0, length);
        std::ranges::copy(bytes, m.data());
        ASSERT_OK(sync_all(s, a, DMAPROBE_SYNC_FOR_DEVICE));
        move_first_page_to_last(*importer, imported, rig);
        ASSERT_OK(sync_all(s, a, DMAPROBE_SYNC_FOR_CPU));
        EXPECT_EQ(memcmp(m.data() + length - page, bytes.data(), page), 0);
        EXPECT_ERRNO(release(s, a), EBUSY) << "an import is left";
        ASSERT_OK(importer->unmap(imported.id));
    }
    m.unmap();
    EXPECT_OK(release(s, a));
}

// Segments are as short as the importing device wants them.
TEST_F(DmaBuf, SegmentsKeepTheDevicesLimits) {
    const uint64_t page = page_size();
    dmaprobe_set_segments limits = {};
    std::vector<dmaprobe_segment> segs;
    Allocation a;
    Import imported;
    Fd fd;

    limits.flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY;
    limits.max_segment_size = static_cast<uint32_t>(3 * page);
    limits.segment_boundary_mask = 4 * page - 1;
    ASSERT_OK(s(limits));
    ASSERT_OK(allocate(s, a, {"", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_FORCE_CONTIGUOUS},
                       16 * page));
    ASSERT_OK(export_dmabuf(s, a, fd));
    ASSERT_OK(import_dmabuf(s, fd.get(), imported));
    ASSERT_OK(segments(s, imported.id, segs));
    EXPECT_GE(segs.size(), 6u);
    for (const dmaprobe_segment& seg : segs) {
        EXPECT_LE(seg.length, 3 * page);
        EXPECT_EQ(seg.dma_addr / (4 * page), (seg.dma_addr + seg.length - 1) / (4 * page));
    }
}

TEST_P(DmaBufWays, ClosingTheSessionTakesItAway) {
    const uint64_t page = page_size();
    Raw exporter = Raw::open(bdf);
    std::vector<dmaprobe_segment> segs;
    Allocation a;
    Import one;
    Import two;
    Fd fd;

    ASSERT_TRUE(exporter);
    ASSERT_OK(allocate(exporter, a, GetParam(), 4 * page));
    ASSERT_OK(export_dmabuf(exporter, a, fd));
    Memory m = map_fd(fd, 4 * page);
    ASSERT_TRUE(m);
    m.data()[0] = std::byte{1};
    ASSERT_OK(import_dmabuf(s, fd.get(), one));
    ASSERT_OK(import_dmabuf(s, fd.get(), two, DMAPROBE_DIR_TO_DEVICE));
    ASSERT_OK(segments(s, one.id, segs));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        std::ignore = exporter.close();
        raise(SIGSTOP);
        _exit(gives_sigbus(m.data()) ? 0 : 1);
    }
    int status = 0;
    ASSERT_TRUE(wait_for([&] { return waitpid(child, &status, WNOHANG | WUNTRACED) == child; },
                         seconds(20)));

    ASSERT_OK(exporter.close());
    for (uint64_t at = 0; at < m.size(); at += page)
        EXPECT_TRUE(gives_sigbus(m.data() + at)) << at;
    kill(child, SIGCONT);
    ASSERT_TRUE(wait_for_child(child, seconds(20), status));
    EXPECT_EQ(status, 0) << "in the child";
    for (const Import& imported : {one, two})
        expect_no_segments(s, imported);
    if (iommu) {
        for (const dmaprobe_segment& seg : segs)
            expect_hole(seg.dma_addr, seg.length);
        expect_hole(a.dma_addr, a.length);
    }
    // An empty shell.
    Import again;
    EXPECT_ERRNO(import_dmabuf(s, fd.get(), again), ENODEV);
    EXPECT_FALSE(map_fd(fd, page));
    EXPECT_ERRNO(errno, ENODEV);
    EXPECT_ERRNO(sync_dmabuf(fd, DMA_BUF_SYNC_START), ENODEV);
    EXPECT_OK(s.unmap(one.id));
    EXPECT_OK(fd.close());
    EXPECT_OK(s.unmap(two.id));
    EXPECT_OK(s.set_mask(0xffffffff));
}

// Nobody keeps anybody alive: sessions that map each other's, and their own, memory
// end when their descriptors are closed.
TEST_F(DmaBuf, NoCycles) {
    const std::string users = "/sys/module/dmaprobe/refcnt";
    const uint64_t page = page_size();
    const std::string before = read_text(users);

    for (int i = 0; i < 10; i++) {
        std::array<Raw, 2> both = {Raw::open(bdf), Raw::open(bdf)};
        std::array<Allocation, 2> a;
        std::array<Fd, 2> fds;
        std::vector<Import> imports;

        ASSERT_TRUE(both[0] && both[1]);
        for (size_t n = 0; n < 2; n++) {
            ASSERT_OK(allocate(both.at(n), a.at(n), alloc_ways.at(n), 4 * page));
            ASSERT_OK(export_dmabuf(both.at(n), a.at(n), fds.at(n)));
        }
        for (const Raw& session : both)
            for (const Fd& fd : fds) {
                imports.emplace_back();
                ASSERT_OK(import_dmabuf(session, fd.get(), imports.back()));
            }
        for (Fd& fd : fds)
            ASSERT_OK(fd.close());
        EXPECT_ERRNO(s.set_mask(0xffffffff), EBUSY);
        ASSERT_OK(both[0].close());
        expect_no_segments(both[1], imports[2]);
        ASSERT_OK(both[1].close());
        EXPECT_OK(s.set_mask(0xffffffff));
        if (iommu)
            for (const Allocation& each : a)
                expect_hole(each.dma_addr, each.length);
    }
    if (!before.empty()) {
        EXPECT_EQ(read_text(users), before) << "something still uses the module";
    }
}

TEST_F(DmaBuf, KilledProcess) {
    const std::string users = "/sys/module/dmaprobe/refcnt";
    const std::string before = read_text(users);
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        const Raw one = Raw::open(bdf);
        const Raw two = Raw::open(bdf);
        Allocation a;
        Import imported;
        Fd fd;

        if (!one || !two || allocate(one, a, alloc_ways[0], 4 * page_size()) ||
            export_dmabuf(one, a, fd) || import_dmabuf(one, fd.get(), imported) ||
            import_dmabuf(two, fd.get(), imported))
            _exit(1);
        const Memory m = map_fd(fd, page_size());
        if (!m)
            _exit(2);
        raise(SIGSTOP);
        _exit(3);
    }
    int status = 0;
    ASSERT_TRUE(wait_for([&] { return waitpid(child, &status, WNOHANG | WUNTRACED) == child; },
                         seconds(20)));
    EXPECT_TRUE(WIFSTOPPED(status)) << "the child did not get everything: status " << status;
    kill(child, SIGKILL);
    if (WIFSTOPPED(status)) {
        ASSERT_TRUE(wait_for_child(child, seconds(20), status)) << "the child does not end";
    }
    EXPECT_OK(s.set_mask(0xffffffff));
    if (!before.empty()) {
        EXPECT_EQ(read_text(users), before) << "something still uses the module";
    }
}

// Threads that mmap and import while the memory is taken away.
TEST_F(DmaBuf, TakenAwayWhileItIsBeingUsed) {
    const uint64_t page = page_size();

    for (int round = 0; round < 20; round++) {
        std::optional<Raw> exporter = Raw::open(bdf);
        std::atomic<bool> gone = false;
        std::atomic<int> alive = 0;
        std::atomic<int> odd = 0;
        std::atomic<int> done = 0;
        std::vector<std::thread> threads;
        Allocation a;
        Fd fd;

        SCOPED_TRACE(std::format("round {}", round));
        threads.reserve(3);
        ASSERT_TRUE(*exporter);
        ASSERT_OK(allocate(*exporter, a, alloc_ways[static_cast<size_t>(round) % 12], 8 * page));
        ASSERT_OK(export_dmabuf(*exporter, a, fd));
        for (int nr = 0; nr < 2; nr++) {
            threads.emplace_back([&] {
                std::vector<Memory> mine;

                while (!gone) {
                    Memory m = map_fd(fd, 8 * page);

                    if (!m && errno != ENODEV)
                        odd = errno;
                    if (!m)
                        continue;
                    done++;
                    if (mine.size() > 8)
                        mine.erase(mine.begin());
                    mine.push_back(std::move(m));
                }
                for (const Memory& m : mine)
                    alive += !gives_sigbus(m.data());
            });
        }
        threads.emplace_back([&] {
            Import imported;

            while (!gone) {
                const int err = import_dmabuf(s, fd.get(), imported);

                if (err && err != ENODEV)
                    odd = err;
                if (!err && s.unmap(imported.id))
                    odd = EDOM;
            }
        });
        EXPECT_TRUE(wait_for([&] { return done > 0 || odd != 0; }, seconds(20)));
        std::this_thread::sleep_for(milliseconds(10 + 2 * round));
        EXPECT_OK(exporter->close());
        gone = true;
        for (std::thread& thread : threads)
            thread.join();
        EXPECT_EQ(alive, 0) << "still mapped after the close";
        EXPECT_ERRNO(odd.load(), 0);
        EXPECT_GT(done, 0);
        EXPECT_OK(s.set_mask(0xffffffff));
        if (HasFailure())
            return;
    }
}

// --- devices that go away ------------------------------------------------------

class DmaBufUnbind : public Unbinding<DmaBuf> {};

TEST_F(DmaBufUnbind, MemoryGoesWithTheDevice) {
    const uint64_t page = page_size();
    Raw other = Raw::open(bdf);
    std::vector<Memory> maps;
    std::vector<Fd> fds;

    ASSERT_TRUE(other);
    for (const AllocWay& way : alloc_ways) {
        Allocation a;
        Import imported;

        SCOPED_TRACE(way.name);
        ASSERT_OK(allocate(s, a, way, 4 * page));
        fds.emplace_back();
        ASSERT_OK(export_dmabuf(s, a, fds.back()));
        ASSERT_OK(import_dmabuf(s, fds.back().get(), imported));
        ASSERT_OK(import_dmabuf(other, fds.back().get(), imported));
        maps.push_back(map_fd(fds.back(), 4 * page));
        ASSERT_TRUE(maps.back());
    }
    ASSERT_OK(unbind_driver(bdf));
    for (const Memory& m : maps)
        EXPECT_TRUE(gives_sigbus(m.data() + 2 * page));
    for (const Fd& fd : fds) {
        EXPECT_FALSE(map_fd(fd, page));
        EXPECT_ERRNO(errno, ENODEV);
        EXPECT_ERRNO(sync_dmabuf(fd, DMA_BUF_SYNC_END), ENODEV);
    }
    EXPECT_OK(other.close());
    EXPECT_OK(s.close());
    // The dma-bufs outlive the session, as nothing.
    ASSERT_NO_FATAL_FAILURE(come_back());
    Import again;
    for (const Fd& fd : fds)
        EXPECT_ERRNO(import_dmabuf(s, fd.get(), again), ENODEV);
    EXPECT_OK(s.set_mask(0xffffffff));
}

// What one device exports another one maps, until either goes away.
TEST_F(DmaBufUnbind, BetweenTwoDevices) {
    const std::string second = env("DMAPROBE_BDF2");
    const uint64_t page = page_size();

    if (second.empty())
        GTEST_SKIP() << "DMAPROBE_BDF2 names no second device";
    const KeepDriver keep_second(second);
    if (driver_of(second) != driver_name) {
        std::ignore = unbind_driver(second);
        ASSERT_OK(write_text(pci_path(second) + "/driver_override", driver_name));
        ASSERT_OK(probe_driver(second));
    }
    for (const bool exporter_goes : {true, false}) {
        Raw other = Raw::open(second);
        Allocation a;
        Allocation b;
        Import imported;
        Import back;
        Fd fd;
        Fd fd2;

        SCOPED_TRACE(exporter_goes ? "the exporter goes" : "the importer goes");
        ASSERT_TRUE(other);
        ASSERT_OK(allocate(s, a, alloc_ways[0], 4 * page));
        ASSERT_OK(allocate(other, b, alloc_ways[0], 4 * page));
        ASSERT_OK(export_dmabuf(s, a, fd));
        ASSERT_OK(export_dmabuf(other, b, fd2));
        ASSERT_OK(import_dmabuf(other, fd.get(), imported));
        ASSERT_OK(import_dmabuf(s, fd2.get(), back));
        ASSERT_OK(unbind_driver(exporter_goes ? bdf : second));
        if (exporter_goes) {
            expect_no_segments(other, imported);
            EXPECT_OK(other.unmap(imported.id));
        } else {
            expect_no_segments(s, back);
            EXPECT_ERRNO(release(s, a), EBUSY) << "the descriptor is left";
            ASSERT_OK(fd.close());
            EXPECT_OK(release(s, a));
        }
        EXPECT_OK(other.close());
        EXPECT_OK(s.close());
        ASSERT_OK(probe_driver(exporter_goes ? bdf : second));
        s = Raw::open(bdf);
        ASSERT_TRUE(s);
    }
}

} // namespace
} // namespace selftest

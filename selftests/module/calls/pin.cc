// SPDX-License-Identifier: GPL-2.0-only
// Pinned user memory: what can be pinned, how long it stays, and that it goes.

#include "support/fixture.h"
#include "support/system.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::seconds;

constexpr uint64_t gib = uint64_t{1} << 30;

Memory anonymous(size_t length, int prot = PROT_READ | PROT_WRITE) {
    void* at = mmap(nullptr, length, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return at == MAP_FAILED ? Memory{} : Memory{at, length};
}

Memory shared(int fd, size_t length, int prot = PROT_READ | PROT_WRITE) {
    void* at = mmap(nullptr, length, prot, MAP_SHARED, fd, 0);

    return at == MAP_FAILED ? Memory{} : Memory{at, length};
}

Fd memfd(size_t length) {
    Fd fd(memfd_create("pin", MFD_CLOEXEC));

    if (fd && ftruncate(fd.get(), static_cast<off_t>(length)))
        return {};
    return fd;
}

bool drop_ipc_lock() {
    __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, 2> data{};

    if (syscall(SYS_capget, &header, data.data()))
        return false;
    for (auto* set : {&data[0].effective, &data[0].permitted})
        *set &= ~(1u << CAP_IPC_LOCK);
    return syscall(SYS_capset, &header, data.data()) == 0;
}

// Puts a file of /proc or /sys back that offers a choice, "one [two] three", or a number.
class KeepSetting {
public:
    explicit KeepSetting(const char* path) : path_(path), had_(read_text(path)) {
        if (const auto open = had_.find('['), end = had_.find(']');
            open != std::string::npos && end != std::string::npos)
            had_ = had_.substr(open + 1, end - open - 1);
    }
    KeepSetting(const KeepSetting&) = delete;
    KeepSetting& operator=(const KeepSetting&) = delete;
    ~KeepSetting() {
        if (!had_.empty())
            write_text(path_, had_);
    }

    const std::string& had() const { return had_; }

private:
    const char* path_;
    std::string had_;
};

class Pin : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        before = pinned_pages();
        iommu = s.translated();
        page = page_size();
    }

    // Whatever a test did, nothing stays pinned once its session is closed.
    void TearDown() override {
        if (!s)
            return;
        EXPECT_OK(s.close());
        expect_pinned(0);
    }

    void expect_pinned(int64_t pages) const {
        EXPECT_TRUE(wait_for([&] { return pinned_pages() - before == pages; }, seconds(2)))
            << pinned_pages() - before << " pages are pinned, not " << pages;
    }

    int map(dmaprobe_map& op, const Buffer& b, uint64_t offset, uint64_t length,
            uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL,
            uint32_t kind = DMAPROBE_MAP_KIND_PAGE) const {
        op = {};
        op.kind = kind;
        op.dir = dir;
        op.buffer_id = b.id;
        op.buffer_offset = offset;
        op.length = length;
        return s(op);
    }

    // Map the buffer page by page, and see each lead to its place. @skew is where in
    // its page the buffer begins.
    void expect_usable(const Buffer& b, uint64_t skew,
                       uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL) const {
        for (uint64_t at = 0; at < b.length;) {
            const uint64_t n = std::min(b.length - at, page - (skew + at) % page);
            dmaprobe_map m = {};

            SCOPED_TRACE(std::format("bytes {} to {}", at, at + n));
            ASSERT_OK(map(m, b, at, n, dir));
            EXPECT_EQ(m.dma_addr % s.granule(), (skew + at) % s.granule());
            if (iommu)
                expect_leads_to(m.dma_addr, n, b, at);
            ASSERT_OK(s.unmap(m.id));
            at += n;
        }
    }

    int64_t before = 0;
    uint64_t page = 0;
    bool iommu = false;
};

TEST_F(Pin, AnonymousMemoryAtAnyByte) {
    Memory m = anonymous(4 * page);

    ASSERT_TRUE(m);
    const std::pair<uint64_t, uint64_t> ranges[] = {
        {0, 4 * page},     {0, 1},        {1, 1},       {page - 1, 2},
        {100, 2 * page},   {3, page - 3}, {page, page}, {7, 4 * page - 7},
        {4 * page - 1, 1},
    };
    for (const auto& [offset, length] : ranges) {
        SCOPED_TRACE(std::format("{} bytes from {} on", length, offset));
        const uint64_t pages = (offset % page + length + page - 1) / page;
        Buffer b;
        dmaprobe_map op = {};

        ASSERT_OK(s.pin(b, m.data() + offset, length));
        EXPECT_NE(b.id, 0u);
        expect_pinned(static_cast<int64_t>(pages));
        expect_usable(b, offset % page);
        EXPECT_ERRNO(map(op, b, 0, length + 1), EINVAL) << "beyond the end";
        EXPECT_ERRNO(map(op, b, length, 1), EINVAL) << "behind the end";
        EXPECT_OK(s.free(b));
        expect_pinned(0);
    }
}

TEST_F(Pin, EveryMapKind) {
    Memory m = anonymous(page);
    Buffer b;

    ASSERT_TRUE(m);
    ASSERT_OK(s.pin(b, m.data() + 5, 1000));
    for (const uint32_t kind :
         {DMAPROBE_MAP_KIND_SINGLE, DMAPROBE_MAP_KIND_PAGE, DMAPROBE_MAP_KIND_PHYS}) {
        dmaprobe_map op = {};

        if (kind == DMAPROBE_MAP_KIND_PHYS && s.missing(DMAPROBE_FEATURE_MAP_PHYS))
            continue;
        SCOPED_TRACE(std::format("kind {}", kind));
        ASSERT_OK(map(op, b, 0, 1000, DMAPROBE_DIR_BIDIRECTIONAL, kind));
        if (iommu) {
            expect_leads_to(op.dma_addr, 1000, b, 0);
            // The rest of the page is the program's, but not of this buffer.
            expect_extents({{.iova = op.dma_addr - 5, .length = 5, .kind = DMAPROBE_EXTENT_FOREIGN},
                            {.iova = op.dma_addr,
                             .length = 1000,
                             .kind = DMAPROBE_EXTENT_BUFFER,
                             .buffer_id = b.id},
                            {.iova = op.dma_addr + 1000,
                             .length = s.granule() - 1005,
                             .kind = DMAPROBE_EXTENT_FOREIGN}},
                           op.dma_addr - 5, s.granule());
        }
        EXPECT_ERRNO(s.free(b), EBUSY);
        ASSERT_OK(s.unmap(op.id));
    }
    EXPECT_OK(s.free(b));
}

// The page that is mapped is the one that the program sees.
TEST_F(Pin, PhysicalPageIsTheProgramsOwn) {
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates: physical addresses are not known";
    const Fd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    if (!pagemap)
        GTEST_SKIP() << "no /proc/self/pagemap";
    Memory m = anonymous(4 * page);
    Buffer b;

    ASSERT_TRUE(m);
    ASSERT_OK(s.pin(b, m.data(), m.size()));
    for (uint64_t i = 0; i < 4; i++) {
        dmaprobe_map op = {};
        dmaprobe_extent extent = {};
        dmaprobe_translate t = {};
        uint64_t entry = 0;

        ASSERT_OK(map(op, b, i * page, page));
        t.flags = DMAPROBE_TRANSLATE_PHYS;
        t.iova = op.dma_addr;
        t.length = page;
        t.nr_extents = 1;
        t.extents = reinterpret_cast<uintptr_t>(&extent);
        ASSERT_OK(s(t));
        ASSERT_EQ(pread(pagemap.get(), &entry, sizeof(entry),
                        static_cast<off_t>((m.address() / page + i) * sizeof(entry))),
                  ssize_t{sizeof(entry)});
        EXPECT_EQ(extent.phys / page, entry & ((uint64_t{1} << 55) - 1));
    }
}

TEST_F(Pin, NeitherMmappedNorCopied) {
    Memory m = anonymous(page);
    std::array<std::byte, 8> bytes = {};
    Buffer b;
    Buffer other;

    ASSERT_TRUE(m);
    ASSERT_OK(s.pin(b, m.data(), page));
    ASSERT_OK(s.alloc(other, page));
    EXPECT_ERRNO(s.copy(b.id, DMAPROBE_COPY_READ, 0, bytes), EOPNOTSUPP);
    EXPECT_ERRNO(s.copy(b.id, DMAPROBE_COPY_WRITE, 0, bytes), EOPNOTSUPP);
    b.mmap_offset = other.mmap_offset / other.id * b.id;
    EXPECT_FALSE(s.mmap(b));
    EXPECT_ERRNO(errno, EINVAL);
}

TEST_F(Pin, BadMemory) {
    Memory m = Memory::fenced(4 * page);
    Memory none = anonymous(page, PROT_NONE);
    Buffer b;
    // NOLINTBEGIN(performance-no-int-to-ptr): addresses of nobody's
    const auto* high = reinterpret_cast<void*>(~uintptr_t{0xfff});
    const auto* kernel = reinterpret_cast<void*>(uintptr_t{0xffff888000000000});
    const auto* hole = reinterpret_cast<void*>(uintptr_t{0x0000800000000000} - 2 * page);
    // NOLINTEND(performance-no-int-to-ptr)

    ASSERT_TRUE(m && none);
    EXPECT_ERRNO(s.pin(b, m.data(), 0), EINVAL);
    EXPECT_ERRNO(s.pin(b, m.data(), gib + 1), EINVAL);
    EXPECT_ERRNO(s.pin(b, m.data(), ~uint64_t{0}), EINVAL);
    EXPECT_ERRNO(s.pin(b, nullptr, 1), EFAULT);
    EXPECT_ERRNO(s.pin(b, high, page), EFAULT);
    EXPECT_ERRNO(s.pin(b, high, 2 * page), EFAULT) << "around the end";
    EXPECT_ERRNO(s.pin(b, kernel, page), EFAULT);
    EXPECT_ERRNO(s.pin(b, hole, 4 * page), EFAULT) << "from the program into the hole";
    EXPECT_ERRNO(s.pin(b, none.data(), page), EFAULT);
    EXPECT_ERRNO(s.pin(b, none.data(), page, DMAPROBE_BUFFER_PIN_READ_ONLY), EFAULT);
    // All but the last page is there.
    EXPECT_ERRNO(s.pin(b, m.data(), 5 * page), EFAULT);
    EXPECT_ERRNO(s.pin(b, m.data() + 1, 4 * page), EFAULT);
    expect_pinned(0);
    EXPECT_OK(s.pin(b, m.data(), 4 * page));
}

TEST_F(Pin, ReadOnlyMemory) {
    Memory m = anonymous(2 * page);
    Buffer b;
    dmaprobe_map op = {};

    ASSERT_TRUE(m);
    memset(m.data(), 0x5a, m.size());
    ASSERT_TRUE(m.protect(PROT_READ));
    EXPECT_ERRNO(s.pin(b, m.data(), m.size()), EFAULT);
    expect_pinned(0);
    ASSERT_OK(s.pin(b, m.data(), m.size(), DMAPROBE_BUFFER_PIN_READ_ONLY));
    EXPECT_ERRNO(map(op, b, 0, page, DMAPROBE_DIR_BIDIRECTIONAL), EACCES);
    EXPECT_ERRNO(map(op, b, 0, page, DMAPROBE_DIR_FROM_DEVICE), EACCES);
    expect_usable(b, 0, DMAPROBE_DIR_TO_DEVICE);
    if (s.missing(DMAPROBE_FEATURE_DMA_IOVA) || !iommu)
        return;
    dmaprobe_iova_alloc space = {};
    ASSERT_OK(s.iova_alloc(space, page));
    EXPECT_ERRNO(s.link(space.id, 0, b, 0, page, DMAPROBE_DIR_BIDIRECTIONAL), EACCES);
    EXPECT_ERRNO(s.link(space.id, 0, b, 0, page, DMAPROBE_DIR_FROM_DEVICE), EACCES);
    EXPECT_OK(s.link(space.id, 0, b, 0, page, DMAPROBE_DIR_TO_DEVICE));
}

// A page that was never touched gets memory of its own, not the zero page.
TEST_F(Pin, UntouchedMemoryForReading) {
    Memory m = anonymous(2 * page);
    Buffer b;

    ASSERT_TRUE(m);
    ASSERT_OK(s.pin(b, m.data(), m.size(), DMAPROBE_BUFFER_PIN_READ_ONLY));
    expect_pinned(2);
    expect_usable(b, 0, DMAPROBE_DIR_TO_DEVICE);
}

// A program's own text: private, so what is pinned is a copy.
TEST_F(Pin, PrivateFileForReading) {
    const Fd self(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));

    ASSERT_TRUE(self);
    void* at = mmap(nullptr, page, PROT_READ, MAP_PRIVATE, self.get(), 0);
    ASSERT_NE(at, MAP_FAILED);
    Memory m(at, page);
    Buffer b;
    EXPECT_ERRNO(s.pin(b, m.data(), page), EFAULT);
    ASSERT_OK(s.pin(b, m.data(), page, DMAPROBE_BUFFER_PIN_READ_ONLY));
    expect_usable(b, 0, DMAPROBE_DIR_TO_DEVICE);
}

// Neither unmapping nor truncating takes pinned memory away.
TEST_F(Pin, SharedMemoryStays) {
    const size_t length = 4 * page;
    Fd fd = memfd(length);
    ASSERT_TRUE(fd);
    Memory m = shared(fd.get(), length);
    Buffer b;
    dmaprobe_map op = {};

    ASSERT_TRUE(m);
    ASSERT_OK(s.pin(b, m.data(), length));
    expect_pinned(4);
    expect_usable(b, 0);
    ASSERT_OK(map(op, b, page, page));
    m.unmap();
    if (iommu)
        expect_leads_to(op.dma_addr, page, b, page);
    ASSERT_EQ(ftruncate(fd.get(), 0), 0);
    if (iommu)
        expect_leads_to(op.dma_addr, page, b, page);
    ASSERT_OK(fd.close());
    expect_usable(b, 0);
    expect_pinned(4);
}

// The program's mapping goes and comes back: it is other memory now.
TEST_F(Pin, AnonymousMemoryStaysWhenUnmapped) {
    Memory m = anonymous(2 * page);
    Buffer b;
    dmaprobe_map op = {};

    ASSERT_TRUE(m);
    void* at = m.data();
    ASSERT_OK(s.pin(b, at, 2 * page));
    ASSERT_OK(map(op, b, 0, page));
    m.unmap();
    ASSERT_EQ(
        mmap(at, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
        at);
    Memory again(at, 2 * page);
    memset(again.data(), 0xff, again.size());
    if (iommu)
        expect_leads_to(op.dma_addr, page, b, 0);
    Buffer second;
    ASSERT_OK(s.pin(second, at, 2 * page));
    expect_pinned(4);
    expect_usable(second, 0);
    if (iommu)
        expect_leads_to(op.dma_addr, page, b, 0);
}

TEST_F(Pin, HugePages) {
    constexpr size_t huge = size_t{2} << 20;
    const char* const path = "/proc/sys/vm/nr_hugepages";
    const KeepSetting number(path);

    if (number.had().empty())
        GTEST_SKIP() << "this kernel has no hugetlb pages";
    if (write_text(path, std::to_string(std::stoul(number.had()) + 2)))
        GTEST_SKIP() << "hugetlb pages cannot be reserved";
    void* at = mmap(nullptr, huge, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);
    if (at == MAP_FAILED)
        GTEST_SKIP() << "no hugetlb page of 2 MiB to be had: " << strerror(errno);

    Memory m(at, huge);
    Buffer b;
    dmaprobe_map op = {};
    ASSERT_OK(s.pin(b, m.data(), huge));
    expect_pinned(512);
    ASSERT_OK(map(op, b, 0, huge)) << "a huge page is contiguous";
    if (iommu)
        expect_leads_to(op.dma_addr, huge, b, 0);
    m.unmap();
    ASSERT_OK(s.unmap(op.id));
    ASSERT_OK(map(op, b, 4097, huge - 5000));
    if (iommu)
        expect_leads_to(op.dma_addr, huge - 5000, b, 4097);
    ASSERT_OK(s.unmap(op.id));
    EXPECT_EQ(s.stats().charged, huge);
    ASSERT_OK(s.free(b));
    expect_pinned(0);
    EXPECT_EQ(s.stats().charged, 0u);
}

// A pin of any of its pages keeps a huge page, so all of it is charged: once for pages
// that follow one another, and again for each other pin.
TEST_F(Pin, PartOfAHugePage) {
    constexpr size_t huge = size_t{2} << 20;
    const char* const path = "/proc/sys/vm/nr_hugepages";
    const KeepSetting number(path);

    if (number.had().empty())
        GTEST_SKIP() << "this kernel has no hugetlb pages";
    if (write_text(path, std::to_string(std::stoul(number.had()) + 2)))
        GTEST_SKIP() << "hugetlb pages cannot be reserved";
    void* at = mmap(nullptr, 2 * huge, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);
    if (at == MAP_FAILED)
        GTEST_SKIP() << "no two hugetlb pages of 2 MiB to be had: " << strerror(errno);

    const Memory m(at, 2 * huge);
    const auto charge = [&](uint64_t offset, uint64_t length, uint64_t want) {
        Buffer b;

        SCOPED_TRACE(std::format("{:#x} bytes from {:#x} on", length, offset));
        ASSERT_OK(s.pin(b, m.data() + offset, length));
        EXPECT_EQ(s.stats().charged, want);
        // One page may be pinned by one byte of it.
        EXPECT_EQ(s.stats().pinned, (offset % page + length + page - 1) / page * page);
        ASSERT_OK(s.free(b));
        EXPECT_EQ(s.stats().charged, 0u);
    };

    charge(0, 1, huge);
    charge(3 * page + 5, 2 * page, huge);
    charge(huge - 1, 1, huge);
    charge(huge - 1, 2, 2 * huge);
    charge(0, 2 * huge, 2 * huge);
    Buffer first;
    Buffer second;
    ASSERT_OK(s.pin(first, m.data(), page));
    ASSERT_OK(s.pin(second, m.data(), page));
    EXPECT_EQ(s.stats().charged, 2 * huge) << "the same page, in two buffers";
    ASSERT_OK(s.free(first));
    EXPECT_EQ(s.stats().charged, huge);
    ASSERT_OK(s.free(second));
}

TEST_F(Pin, TransparentHugePages) {
    constexpr size_t huge = size_t{2} << 20;
    // Small machines have them switched off.
    const char* const path = "/sys/kernel/mm/transparent_hugepage/enabled";
    const KeepSetting enabled(path);
    Memory m = anonymous(2 * huge);
    Buffer b;
    dmaprobe_map op = {};

    ASSERT_TRUE(m);
    if (write_text(path, "madvise") || madvise(m.data(), m.size(), MADV_HUGEPAGE))
        GTEST_SKIP() << "this kernel has no transparent huge pages";
    memset(m.data(), 1, m.size());
    std::byte* start = m.data() + (huge - m.address() % huge) % huge;
    ASSERT_OK(s.pin(b, start + 3, huge - 3));
    expect_pinned(512);
    if (map(op, b, 0, huge - 3) == EINVAL)
        GTEST_SKIP() << "the kernel gave no huge page";
    if (iommu)
        expect_leads_to(op.dma_addr, huge - 3, b, 0);
    // Part of it is unmapped: the rest is still pinned as it is.
    ASSERT_EQ(munmap(start + huge / 2, huge / 4), 0);
    if (iommu)
        expect_leads_to(op.dma_addr, huge - 3, b, 0);
}

// One page at many places, in one buffer and in several.
TEST_F(Pin, SamePageManyTimes) {
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates: nothing to look up";
    Fd fd = memfd(page);
    ASSERT_TRUE(fd);
    Memory m = anonymous(3 * page);
    ASSERT_TRUE(m);
    for (size_t i = 0; i < 3; i++)
        ASSERT_NE(mmap(m.data() + i * page, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                       fd.get(), 0),
                  MAP_FAILED);
    Buffer b;
    Buffer part;
    dmaprobe_map op = {};
    // The first place is not whole, so that the second one has to be found as well.
    ASSERT_OK(s.pin(b, m.data() + 100, 3 * page - 200));
    expect_pinned(3);
    ASSERT_OK(map(op, b, page, 64));
    const uint64_t start = op.dma_addr - 100;
    const auto lead = [&](uint64_t at, uint64_t length, uint32_t id, uint64_t offset) {
        return Extent{.iova = start + at,
                      .length = length,
                      .kind = DMAPROBE_EXTENT_BUFFER,
                      .buffer_id = id,
                      .buffer_offset = offset};
    };
    std::vector<Extent> got;
    ASSERT_OK(s.translate(got, start, page));
    uint64_t covered = 0;
    for (const Extent& e : got) {
        EXPECT_EQ(e.kind, uint32_t{DMAPROBE_EXTENT_BUFFER});
        EXPECT_EQ(e.buffer_id, b.id);
        EXPECT_EQ((e.buffer_offset + 100) % page, (e.iova - start) % page);
        covered += e.length;
    }
    EXPECT_EQ(covered, page);
    // The first place is reported where it is whole.
    expect_extents({lead(100, 64, b.id, 0)}, start + 100, 64);

    // Another buffer with the same page; the one that is asked for goes first.
    ASSERT_OK(s.pin(part, m.data() + page + 8, 512));
    dmaprobe_extent extent = {};
    dmaprobe_translate t = {};
    t.iova = start + 100;
    t.length = 64;
    t.buffer_id = part.id;
    t.nr_extents = 1;
    t.extents = reinterpret_cast<uintptr_t>(&extent);
    ASSERT_OK(s(t));
    EXPECT_EQ(extent.buffer_id, part.id);
    EXPECT_EQ(extent.buffer_offset, 92u);
    ASSERT_OK(s.unmap(op.id));
    EXPECT_OK(s.free(b));
    EXPECT_OK(s.free(part));
}

// Two halves of one page are two buffers, and each begins in the middle.
TEST_F(Pin, NeighboursInOnePage) {
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates: nothing to look up";
    Memory m = anonymous(page);
    Buffer first;
    Buffer second;
    dmaprobe_map op = {};

    ASSERT_TRUE(m);
    ASSERT_OK(s.pin(first, m.data() + 256, 256));
    ASSERT_OK(s.pin(second, m.data() + 1024, 512));
    ASSERT_OK(map(op, second, 0, 512));
    const uint64_t start = op.dma_addr - 1024;
    expect_extents(
        {{.iova = start, .length = 256, .kind = DMAPROBE_EXTENT_FOREIGN},
         {.iova = start + 256,
          .length = 256,
          .kind = DMAPROBE_EXTENT_BUFFER,
          .buffer_id = first.id},
         {.iova = start + 512, .length = 512, .kind = DMAPROBE_EXTENT_FOREIGN},
         {.iova = start + 1024,
          .length = 512,
          .kind = DMAPROBE_EXTENT_BUFFER,
          .buffer_id = second.id},
         {.iova = start + 1536, .length = s.granule() - 1536, .kind = DMAPROBE_EXTENT_FOREIGN}},
        start, s.granule());
}

// A buffer's own memory, of this session and of another that is closed meanwhile.
TEST_F(Pin, MemoryOfABuffer) {
    for (const uint32_t kind : {DMAPROBE_BUFFER_KIND_CONTIGUOUS, DMAPROBE_BUFFER_KIND_SCATTERED}) {
        SCOPED_TRACE(std::format("kind {}", kind));
        Raw other = Raw::open(bdf);
        Buffer theirs;
        Buffer own;
        Buffer b;
        Buffer second;

        ASSERT_TRUE(other);
        ASSERT_OK(other.alloc(theirs, 2 * page, kind));
        ASSERT_OK(s.alloc(own, 2 * page, kind));
        Memory m = other.mmap(theirs);
        Memory o = s.mmap(own);
        ASSERT_TRUE(m && o);
        ASSERT_OK(s.pin(b, m.data(), m.size()));
        ASSERT_OK(s.pin(second, o.data(), o.size()));
        expect_pinned(4);
        m.unmap();
        o.unmap();
        EXPECT_OK(s.free(own)) << "the pin holds pages, not the buffer";
        EXPECT_OK(other.free(theirs));
        ASSERT_OK(other.close());
        expect_usable(b, 0);
        expect_usable(second, 0);
        EXPECT_OK(s.free(b));
        EXPECT_OK(s.free(second));
        expect_pinned(0);
    }
}

// What is not made of pages cannot be pinned.
TEST_F(Pin, RegistersAreNoMemory) {
    const Fd bar(open((pci_path(bdf) + "/resource0").c_str(), O_RDWR | O_CLOEXEC | O_SYNC));

    if (!bar)
        GTEST_SKIP() << "no BAR 0 to map: " << strerror(errno);
    Memory m = shared(bar.get(), page);
    if (!m)
        GTEST_SKIP() << "BAR 0 cannot be mapped: " << strerror(errno);
    Buffer b;
    EXPECT_ERRNO(s.pin(b, m.data(), page), EFAULT);
    EXPECT_ERRNO(s.pin(b, m.data(), page, DMAPROBE_BUFFER_PIN_READ_ONLY), EFAULT);
}

// More than one batch, and a fault in the last one.
TEST_F(Pin, ManyPages) {
    const size_t pages = 2000;
    Memory m = Memory::fenced(pages * page);
    Buffer b;

    ASSERT_TRUE(m);
    ASSERT_TRUE(madvise(m.data(), m.size(), MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
    ASSERT_OK(s.pin(b, m.data() + 1, pages * page - 2));
    expect_pinned(pages);
    dmaprobe_map op = {};
    for (const uint64_t at : {uint64_t{0}, 511 * page, 512 * page, (pages - 1) * page - 1}) {
        ASSERT_OK(map(op, b, at, 1));
        if (iommu)
            expect_leads_to(op.dma_addr, 1, b, at);
        ASSERT_OK(s.unmap(op.id));
    }
    EXPECT_OK(s.free(b));
    expect_pinned(0);
    EXPECT_ERRNO(s.pin(b, m.data(), pages * page + 1), EFAULT);
    expect_pinned(0);
}

// Each session can pin what it may have, and no page more.
TEST_F(Pin, BeyondTheSessionsLimit) {
    Memory m = anonymous(page);
    void* at = mmap(nullptr, gib, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    Buffer first;
    Buffer b;

    ASSERT_NE(at, MAP_FAILED);
    Memory large(at, gib);
    ASSERT_TRUE(m);
    ASSERT_OK(s.pin(first, m.data(), 1));
    EXPECT_ERRNO(s.pin(b, large.data(), gib), ENOMEM);
    expect_pinned(1);
}

// Without CAP_IPC_LOCK the pages of the range count, all of them, each time.
TEST_F(Pin, BeyondTheMemlockLimit) {
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        const rlimit limit = {8 * page, 8 * page};
        Memory m = Memory::fenced(16 * page);
        Buffer first;
        Buffer more;

        if (!m || setrlimit(RLIMIT_MEMLOCK, &limit) || !drop_ipc_lock())
            _exit(1);
        for (int i = 0; i < 20; i++) {
            const Raw one = Raw::open(bdf);

            if (!one)
                _exit(2);
            if (one.pin(more, m.data(), 8 * page + 1) != ENOMEM)
                _exit(3);
            if (one.pin(more, m.data() + page - 1, 7 * page + 2) != ENOMEM)
                _exit(4);
            // What fails for another reason gives back what it charged.
            if (one.pin(more, m.data() + 12 * page, 8 * page) != EFAULT)
                _exit(5);
            if (one.pin(first, m.data(), 6 * page))
                _exit(6);
            if (one.pin(more, m.data(), 3 * page) != ENOMEM)
                _exit(7);
            if (one.pin(more, m.data(), 2 * page))
                _exit(8);
            if (one.alloc(more, page) != ENOMEM)
                _exit(9);
            if (one.free(first) || one.pin(first, m.data() + 1, 6 * page - 1))
                _exit(10);
        }
        _exit(0);
    }
    int status = -1;
    ASSERT_TRUE(wait_for_child(child, seconds(30), status)) << "the child did not end";
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << "a step of the child did not come out as it must";
    expect_pinned(0);
}

// A program is killed with memory pinned and mapped.
TEST_F(Pin, KilledWithPinnedMemory) {
    int ready[2];

    ASSERT_EQ(pipe(ready), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const Raw own = Raw::open(bdf);
        Memory m = anonymous(64 * page);
        Buffer b;
        dmaprobe_map op = {};

        if (!own || !m || own.pin(b, m.data(), m.size()))
            _exit(1);
        op.kind = DMAPROBE_MAP_KIND_PAGE;
        op.buffer_id = b.id;
        op.length = page;
        if (own(op) || write(ready[1], "x", 1) != 1)
            _exit(2);
        for (;;)
            pause();
    }
    char c = 0;
    ::close(ready[1]);
    const bool is_ready = read(ready[0], &c, 1) == 1;
    ::close(ready[0]);
    if (is_ready)
        expect_pinned(64);
    kill(child, SIGKILL);
    int status = -1;
    ASSERT_TRUE(wait_for_child(child, seconds(10), status)) << "the child did not end";
    EXPECT_TRUE(is_ready) << "the child did not pin";
    expect_pinned(0);
}

// Killed at any moment of a call, in the middle of it most of the time.
TEST_F(Pin, KilledWhilePinning) {
    const size_t length = size_t{64} << 20;
    Memory m = anonymous(length);

    ASSERT_TRUE(m);
    for (int round = 0; round < 10; round++) {
        const pid_t child = fork();

        ASSERT_GE(child, 0);
        if (child == 0) {
            const Raw own = Raw::open(bdf);
            Buffer b;

            while (own && own.pin(b, m.data(), length) == 0 && own.free(b) == 0)
                ;
            _exit(1);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20 + 13 * round));
        kill(child, SIGKILL);
        int status = -1;
        ASSERT_TRUE(wait_for_child(child, seconds(20), status)) << "the child did not end";
        EXPECT_TRUE(WIFSIGNALED(status)) << "the child could not pin";
        expect_pinned(0);
    }
}

// A child's copy is a copy: the parent keeps what was pinned.
TEST_F(Pin, ForkAfterwards) {
    Memory m = anonymous(page);
    Buffer b;
    dmaprobe_map op = {};

    ASSERT_TRUE(m);
    memset(m.data(), 0x31, page);
    ASSERT_OK(s.pin(b, m.data(), page));
    ASSERT_OK(map(op, b, 0, page));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const bool same = m.data()[0] == std::byte{0x31};

        memset(m.data(), 0x32, page);
        _exit(same ? 0 : 1);
    }
    // Written by the parent while the child shares what was not pinned.
    m.data()[1] = std::byte{0x33};
    int status = -1;
    ASSERT_TRUE(wait_for_child(child, seconds(10), status)) << "the child did not end";
    EXPECT_EQ(status, 0) << "the child saw other bytes";
    EXPECT_EQ(m.data()[0], std::byte{0x31});
    // The same page, pinned again: the two pins lead to one.
    Buffer again;
    ASSERT_OK(s.pin(again, m.data(), page));
    if (!iommu)
        return;
    dmaprobe_extent extent = {};
    dmaprobe_translate t = {};
    t.iova = op.dma_addr;
    t.length = page;
    t.buffer_id = again.id;
    t.nr_extents = 1;
    t.extents = reinterpret_cast<uintptr_t>(&extent);
    ASSERT_OK(s(t));
    EXPECT_EQ(extent.buffer_id, again.id) << "the parent's page is another one now";
}

} // namespace
} // namespace selftest

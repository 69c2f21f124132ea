// SPDX-License-Identifier: GPL-2.0-only
// Buffers: allocation, limits, memory that programs map.

#include "support/fixture.h"
#include "support/system.h"
#include "support/unbind.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <format>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace selftest {
namespace {

constexpr uint64_t gib = uint64_t{1} << 30;

std::string kind_name(uint32_t kind) {
    return kind == DMAPROBE_BUFFER_KIND_CONTIGUOUS ? "contiguous" : "scattered";
}

class Buffers : public DeviceTest {};

bool drop_capability(unsigned capability) {
    __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, 2> data{};

    if (syscall(SYS_capget, &header, data.data()))
        return false;
    for (auto* set : {&data[capability / 32].effective, &data[capability / 32].permitted})
        *set &= ~(1u << capability % 32);
    return syscall(SYS_capset, &header, data.data()) == 0;
}

class BufferKinds : public DeviceTest, public testing::WithParamInterface<uint32_t> {
protected:
    uint32_t kind() const { return GetParam(); }

    // mmap() that must fail; the errno it fails with.
    int mmap_errno(size_t length, int prot, int flags, uint64_t offset) const {
        void* at = mmap(nullptr, length, prot, flags, s.fd(), static_cast<off_t>(offset));

        if (at == MAP_FAILED)
            return errno;
        munmap(at, length);
        return 0;
    }
};

INSTANTIATE_TEST_SUITE_P(Kind, BufferKinds,
                         testing::Values(DMAPROBE_BUFFER_KIND_CONTIGUOUS,
                                         DMAPROBE_BUFFER_KIND_SCATTERED),
                         [](const auto& row) { return kind_name(row.param); });

TEST_P(BufferKinds, SizesAreZeroedAndMapped) {
    const size_t page = page_size();

    for (const size_t pages : {1, 2, 3, 5, 64, 1024}) {
        SCOPED_TRACE(std::format("{} pages", pages));
        Buffer b;

        ASSERT_OK(s.alloc(b, pages * page, kind()));
        EXPECT_NE(b.id, 0u);
        Memory m = s.mmap(b);
        ASSERT_TRUE(m) << strerror(errno);
        EXPECT_TRUE(std::ranges::all_of(m.bytes(), [](std::byte x) { return x == std::byte{0}; }));
        // Dirty it, so that the next buffer gets memory which was not zero.
        memset(m.data(), 0xa5, m.size());
        m.unmap();
        EXPECT_OK(s.free(b));
    }
}

TEST_P(BufferKinds, BadLengths) {
    const size_t page = page_size();

    for (const uint64_t length :
         {uint64_t{0}, uint64_t{1}, uint64_t{page - 1}, uint64_t{page + 1}, gib + 1, gib + page,
          ~uint64_t{0}, ~uint64_t{0} - page + 1, uint64_t{1} << 63, uint64_t{1} << 32}) {
        Buffer b;

        EXPECT_ERRNO(s.alloc(b, length, kind()), EINVAL) << std::format("length {:#x}", length);
    }
}

TEST_F(Buffers, ContiguousBufferBeyondTheLargestOrder) {
    Buffer b;

    EXPECT_ERRNO(s.alloc(b, gib, DMAPROBE_BUFFER_KIND_CONTIGUOUS), EINVAL);
}

// More than a session may have: refused, and the session still works.
TEST_F(Buffers, BuffersBeyondTheSessionsLimit) {
    Buffer first;
    Buffer b;

    ASSERT_OK(s.alloc(first, page_size(), DMAPROBE_BUFFER_KIND_SCATTERED));
    EXPECT_ERRNO(s.alloc(b, gib, DMAPROBE_BUFFER_KIND_SCATTERED), ENOMEM);
    EXPECT_OK(s.alloc(b, page_size(), DMAPROBE_BUFFER_KIND_SCATTERED));
}

// Without CAP_IPC_LOCK, RLIMIT_MEMLOCK bounds what a user's sessions hold together,
// and what is freed or closed is given back.
TEST_F(Buffers, BeyondTheMemlockLimit) {
    const uint64_t page = page_size();
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        const rlimit limit = {8 * page, 8 * page};
        Buffer first;
        Buffer more;

        if (setrlimit(RLIMIT_MEMLOCK, &limit) || !drop_capability(CAP_IPC_LOCK))
            _exit(1);
        for (int i = 0; i < 20; i++) {
            const Raw one = Raw::open(bdf);
            const Raw two = Raw::open(bdf);

            if (!one || !two)
                _exit(2);
            if (one.alloc(first, 6 * page))
                _exit(3);
            if (one.alloc(more, 3 * page) != ENOMEM)
                _exit(4);
            if (two.alloc(more, 3 * page, DMAPROBE_BUFFER_KIND_SCATTERED) != ENOMEM)
                _exit(5);
            if (two.alloc(more, 2 * page))
                _exit(6);
            if (one.free(first) || two.alloc(first, 6 * page))
                _exit(7);
        }
        _exit(0);
    }
    int status = -1;
    ASSERT_TRUE(wait_for([&] { return waitpid(child, &status, WNOHANG) == child; },
                         std::chrono::seconds(20)))
        << "the child did not end";
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << "a step of the child did not come out as it must";
    Buffer b;
    EXPECT_OK(s.alloc(b, 64 * page)) << "this session has the capability";
}

TEST_P(BufferKinds, TwoMapsSeeTheSameBytes) {
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page_size(), kind()));
    Memory m1 = s.mmap(b);
    Memory m2 = s.mmap(b);
    ASSERT_TRUE(m1 && m2);
    for (size_t i = 0; i < m1.size(); i++)
        m1.data()[i] = static_cast<std::byte>(i * 7 + i / page_size());
    EXPECT_TRUE(std::ranges::equal(m1.bytes(), m2.bytes()));
}

TEST_P(BufferKinds, MapFromAnOffset) {
    const size_t page = page_size();
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page, kind()));
    Memory all = s.mmap(b);
    ASSERT_TRUE(all);
    for (size_t i = 0; i < 4; i++)
        memset(all.data() + i * page, static_cast<int>('a' + i), page);
    for (size_t first = 0; first < 4; first++) {
        Memory part = s.mmap({.id = b.id,
                              .length = (4 - first) * page,
                              .mmap_offset = b.mmap_offset + first * page});

        ASSERT_TRUE(part) << "from page " << first << ": " << strerror(errno);
        EXPECT_TRUE(std::ranges::equal(part.bytes(), all.bytes().subspan(first * page)));
    }
}

TEST_P(BufferKinds, BadMaps) {
    const size_t page = page_size();
    const int rw = PROT_READ | PROT_WRITE;
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page, kind()));
    EXPECT_ERRNO(mmap_errno(4 * page, rw, MAP_SHARED, b.mmap_offset), 0);
    EXPECT_ERRNO(mmap_errno(4 * page, PROT_READ, MAP_SHARED, b.mmap_offset), 0);
    EXPECT_ERRNO(mmap_errno(4 * page, rw, MAP_PRIVATE, b.mmap_offset), EINVAL) << "private";
    EXPECT_ERRNO(mmap_errno(4 * page, PROT_READ, MAP_PRIVATE, b.mmap_offset), EINVAL)
        << "private, read-only";
    EXPECT_ERRNO(mmap_errno(5 * page, rw, MAP_SHARED, b.mmap_offset), EINVAL)
        << "longer than the buffer";
    EXPECT_ERRNO(mmap_errno(4 * page, rw, MAP_SHARED, b.mmap_offset + page), EINVAL)
        << "ends beyond the buffer";
    EXPECT_ERRNO(mmap_errno(page, rw, MAP_SHARED, b.mmap_offset + 4 * page), EINVAL)
        << "starts at the end";
    ASSERT_OK(s.free(b));
    EXPECT_ERRNO(mmap_errno(page, rw, MAP_SHARED, b.mmap_offset), ENOENT) << "freed";
}

TEST_F(Buffers, MapOfWhatIsNoBuffer) {
    const size_t page = page_size();
    Buffer b;
    dmaprobe_map map = {};

    ASSERT_OK(s.alloc(b, page));
    map.buffer_id = b.id;
    map.length = page;
    ASSERT_OK(s(map));
    ASSERT_NE(map.id, b.id);
    // The distance of two buffers' offsets is that of their ids.
    Buffer other;
    ASSERT_OK(s.alloc(other, page));
    const uint64_t step = (other.mmap_offset - b.mmap_offset) / (other.id - b.id);
    for (const uint64_t offset : {uint64_t{0}, b.mmap_offset + (map.id - b.id) * step,
                                  b.mmap_offset + (0x70000000 - b.id) * step}) {
        void* at = mmap(nullptr, page, PROT_READ, MAP_SHARED, s.fd(), static_cast<off_t>(offset));

        EXPECT_EQ(at, MAP_FAILED) << std::format("offset {:#x}", offset);
        if (at == MAP_FAILED)
            EXPECT_ERRNO(errno, ENOENT) << std::format("offset {:#x}", offset);
        else
            munmap(at, page);
    }
}

// A buffer that is mmapped cannot be destroyed, whatever part of it is left, wherever that
// was moved, and whichever process has it.
TEST_P(BufferKinds, DestroyWhileMmapped) {
    const size_t page = page_size();
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page, kind()));
    {
        Memory m = s.mmap(b);
        ASSERT_TRUE(m);
        m.data()[0] = std::byte{0x5a};
        EXPECT_ERRNO(s.free(b), EBUSY);
        // Part of it goes, the rest is moved.
        ASSERT_EQ(munmap(m.data() + page, page), 0);
        EXPECT_ERRNO(s.free(b), EBUSY);
        Memory place = Memory::fenced(page);
        ASSERT_TRUE(place);
        ASSERT_EQ(mremap(m.data(), page, page, MREMAP_MAYMOVE | MREMAP_FIXED, place.data()),
                  place.data());
        EXPECT_EQ(place.data()[0], std::byte{0x5a});
        ASSERT_EQ(munmap(m.data() + 2 * page, 2 * page), 0);
        EXPECT_ERRNO(s.free(b), EBUSY) << "the page that was moved is left";
        EXPECT_EQ(place.data()[0], std::byte{0x5a}) << "a refused call took the memory";
    }

    // A child's copy counts as well.
    Memory m = s.mmap(b);
    ASSERT_TRUE(m);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        raise(SIGSTOP);
        _exit(m.data()[0] == std::byte{0x5a} ? 0 : 1);
    }
    int status = 0;
    ASSERT_TRUE(wait_for([&] { return waitpid(child, &status, WNOHANG | WUNTRACED) == child; },
                         std::chrono::seconds(20)));
    m.unmap();
    EXPECT_ERRNO(s.free(b), EBUSY) << "the child has it mapped";
    kill(child, SIGCONT);
    ASSERT_TRUE(wait_for_child(child, std::chrono::seconds(20), status));
    EXPECT_EQ(status, 0);
    EXPECT_OK(s.free(b));
    EXPECT_ERRNO(s.free(b), ENOENT) << "destroyed twice";
}

// Memory stays where it is when the file is closed and nothing else holds it.
TEST_P(BufferKinds, MemoryOutlivesTheFileDescriptor) {
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page_size(), kind()));
    Memory m = s.mmap(b);
    ASSERT_TRUE(m);
    memset(m.data(), 0x5a, m.size());
    ASSERT_OK(s.close());
    EXPECT_TRUE(std::ranges::all_of(m.bytes(), [](std::byte x) { return x == std::byte{0x5a}; }));
}

TEST_P(BufferKinds, FreeWhileMappedForDma) {
    Buffer b;

    ASSERT_OK(s.alloc(b, 2 * page_size(), kind()));
    dmaprobe_map first = {};
    first.buffer_id = b.id;
    first.length = page_size();
    ASSERT_OK(s(first));
    dmaprobe_map second = {};
    second.buffer_id = b.id;
    second.buffer_offset = page_size();
    second.length = 1;
    ASSERT_OK(s(second));
    EXPECT_ERRNO(s.free(b), EBUSY);
    ASSERT_OK(s.unmap(first.id));
    EXPECT_ERRNO(s.free(b), EBUSY) << "one of two mappings is left";
    ASSERT_OK(s.unmap(second.id));
    EXPECT_OK(s.free(b));
    EXPECT_ERRNO(s.free(b), ENOENT) << "freed twice";
}

// What is mmapped stays when the device goes, and stays charged until it is unmapped.
class BuffersUnbind : public Unbinding<Buffers> {};

TEST_F(BuffersUnbind, MmappedMemoryStaysAndIsCharged) {
    const uint64_t page = page_size();

    ASSERT_OK(s.close());
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const rlimit limit = {8 * page, 8 * page};
        Buffer more;
        Buffer b;

        if (setrlimit(RLIMIT_MEMLOCK, &limit) || !drop_capability(CAP_IPC_LOCK))
            _exit(1);
        for (const bool unbound : {false, true}) {
            Raw one = Raw::open(bdf);

            if (!one || one.alloc(b, 6 * page))
                _exit(2);
            Memory m = one.mmap(b);
            if (!m)
                _exit(3);
            memset(m.data(), 0x5a, m.size());
            if (unbound && (unbind_driver(bdf) || probe_driver(bdf)))
                _exit(4);
            // It is the file that the mapping holds, and that the session's charge.
            if (one.close())
                _exit(5);
            const Raw two = Raw::open(bdf);
            if (!two || two.alloc(more, 3 * page) != ENOMEM)
                _exit(6);
            if (!std::ranges::all_of(m.bytes(), [](std::byte x) { return x == std::byte{0x5a}; }))
                _exit(7);
            memset(m.data(), 0x11, m.size());
            m.unmap();
            if (two.alloc(more, 8 * page))
                _exit(8);
        }
        _exit(0);
    }
    int status = -1;
    ASSERT_TRUE(wait_for_child(child, std::chrono::seconds(30), status)) << "the child did not end";
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << "a step of the child did not come out as it must";
}

// No page of a scattered buffer is followed by its physical neighbour, so that
// no range across two of its pages is contiguous.
TEST_F(Buffers, ScatteredBuffersAreScattered) {
    const size_t page = page_size();
    const size_t pages = 64;
    Buffer b;

    ASSERT_OK(s.alloc(b, pages * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    for (size_t i = 0; i + 1 < pages; i++) {
        dmaprobe_map map = {};

        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.buffer_id = b.id;
        map.buffer_offset = (i + 1) * page - 1;
        map.length = 2;
        EXPECT_ERRNO(s(map), EINVAL) << "across the end of page " << i;
    }
    if (!s.translated())
        GTEST_SKIP() << "no IOMMU translates: physical addresses cannot be compared";

    std::vector<uint64_t> phys;
    for (size_t i = 0; i < pages; i++) {
        dmaprobe_map map = {};
        dmaprobe_extent extent = {};
        dmaprobe_translate op = {};

        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.buffer_id = b.id;
        map.buffer_offset = i * page;
        map.length = page;
        ASSERT_OK(s(map));
        op.flags = DMAPROBE_TRANSLATE_PHYS;
        op.iova = map.dma_addr;
        op.length = page;
        op.nr_extents = 1;
        op.extents = reinterpret_cast<uintptr_t>(&extent);
        ASSERT_OK(s(op));
        ASSERT_EQ(extent.buffer_offset, i * page);
        phys.push_back(extent.phys);
    }
    for (size_t i = 0; i + 1 < pages; i++)
        EXPECT_NE(phys[i] + page, phys[i + 1]) << "pages " << i << " and " << i + 1;
    std::ranges::sort(phys);
    EXPECT_EQ(std::ranges::adjacent_find(phys), phys.end()) << "a page is there twice";
}

TEST_F(Buffers, ContiguousBuffersAreContiguous) {
    if (!s.translated())
        GTEST_SKIP() << "no IOMMU translates: physical addresses are not known";
    const size_t length = 64 * page_size();
    Buffer b;
    dmaprobe_map map = {};
    uint64_t first = 0;

    ASSERT_OK(s.alloc(b, length));
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    map.length = length;
    ASSERT_OK(s(map));
    for (size_t at = 0; at < length; at += page_size()) {
        dmaprobe_extent extent = {};
        dmaprobe_translate op = {};

        op.flags = DMAPROBE_TRANSLATE_PHYS;
        op.iova = map.dma_addr + at;
        op.length = page_size();
        op.nr_extents = 1;
        op.extents = reinterpret_cast<uintptr_t>(&extent);
        ASSERT_OK(s(op));
        if (!at)
            first = extent.phys;
        EXPECT_EQ(extent.phys, first + at);
    }
}

// A child sees what its parent wrote, and the other way round.
TEST_P(BufferKinds, ForkedChildSeesTheSame) {
    Buffer b;

    ASSERT_OK(s.alloc(b, 2 * page_size(), kind()));
    Memory m = s.mmap(b);
    ASSERT_TRUE(m);
    memset(m.data(), 0x31, m.size());
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const bool same =
            std::ranges::all_of(m.bytes(), [](std::byte x) { return x == std::byte{0x31}; });

        memset(m.data(), 0x32, m.size());
        _exit(same ? 0 : 1);
    }
    int status = -1;
    ASSERT_TRUE(wait_for([&] { return waitpid(child, &status, WNOHANG) == child; },
                         std::chrono::seconds(10)))
        << "the child did not end";
    EXPECT_EQ(status, 0) << "the child saw other bytes";
    EXPECT_TRUE(std::ranges::all_of(m.bytes(), [](std::byte x) { return x == std::byte{0x32}; }));
}

// --- the layouts ------------------------------------------------------------

constexpr uint32_t map_kinds[] = {DMAPROBE_MAP_KIND_SINGLE, DMAPROBE_MAP_KIND_PAGE,
                                  DMAPROBE_MAP_KIND_PHYS};

std::vector<std::byte> pattern(size_t length, size_t seed) {
    std::vector<std::byte> bytes(length);

    for (size_t i = 0; i < length; i++)
        bytes[i] = static_cast<std::byte>((i * 131 + i / 251 + seed * 17 + 1) & 0xff);
    return bytes;
}

class BufferLayouts : public DeviceTest {
protected:
    int alloc(Buffer& out, dmaprobe_buffer_alloc op) const {
        const int err = s(op);

        if (!err)
            out = {.id = op.id, .length = op.length, .mmap_offset = op.mmap_offset};
        return err;
    }

    int alloc(Buffer& out, uint32_t kind, uint64_t length, uint32_t order, uint64_t offset) const {
        dmaprobe_buffer_alloc op = {};

        op.kind = kind;
        op.length = length;
        op.order = order;
        op.offset = offset;
        return alloc(out, op);
    }

    int map(dmaprobe_map& op, const Buffer& b, uint64_t offset, uint64_t length,
            uint32_t kind = DMAPROBE_MAP_KIND_PAGE) const {
        op = {};
        op.kind = kind;
        op.buffer_id = b.id;
        op.buffer_offset = offset;
        op.length = length;
        return s(op);
    }

    // The one extent that a range is, with its physical address.
    dmaprobe_extent extent_of(uint64_t iova, uint64_t length) const {
        dmaprobe_extent extent = {};
        dmaprobe_translate op = {};

        op.flags = DMAPROBE_TRANSLATE_PHYS;
        op.iova = iova;
        op.length = length;
        op.nr_extents = 1;
        op.extents = reinterpret_cast<uintptr_t>(&extent);
        EXPECT_OK(s(op));
        EXPECT_EQ(op.translated, length) << "more than one extent";
        return extent;
    }

    bool offered(uint32_t kind) const {
        return kind != DMAPROBE_MAP_KIND_PHYS || !s.missing(DMAPROBE_FEATURE_MAP_PHYS);
    }
};

// Pieces are contiguous and aligned to their size, and no piece follows another.
TEST_F(BufferLayouts, ScatteredPieces) {
    for (const uint32_t order : {1, 2, 5, 9}) {
        const uint64_t piece = page_size() << order;
        const uint64_t n = 3;
        uint64_t before = 0;
        Buffer b;
        dmaprobe_map m = {};

        SCOPED_TRACE(std::format("order {}", order));
        ASSERT_OK(alloc(b, DMAPROBE_BUFFER_KIND_SCATTERED, n * piece, order, 0));
        for (uint64_t i = 0; i < n; i++) {
            SCOPED_TRACE(std::format("piece {}", i));
            for (const uint32_t kind : map_kinds) {
                if (!offered(kind))
                    continue;
                ASSERT_OK(map(m, b, i * piece, piece, kind));
                if (iommu)
                    expect_leads_to(m.dma_addr, piece, b, i * piece);
                ASSERT_OK(s.unmap(m.id));
            }
            if (iommu) {
                ASSERT_OK(map(m, b, i * piece, piece));
                const uint64_t phys = extent_of(m.dma_addr, piece).phys;
                EXPECT_EQ(phys % piece, 0u);
                if (i) {
                    EXPECT_NE(before + piece, phys) << "follows the one before";
                }
                before = phys;
                ASSERT_OK(s.unmap(m.id));
            }
            if (i + 1 < n) {
                EXPECT_ERRNO(map(m, b, (i + 1) * piece - 1, 2), EINVAL) << "into the next piece";
            }
        }
        EXPECT_ERRNO(map(m, b, 0, n * piece), EINVAL) << "all of them";

        // One range to the program.
        Memory memory = s.mmap(b);
        ASSERT_TRUE(memory);
        const auto bytes = pattern(b.length, order);
        std::ranges::copy(bytes, memory.data());
        std::vector<std::byte> read(b.length);
        EXPECT_OK(s.copy(b.id, DMAPROBE_COPY_READ, 0, read));
        EXPECT_TRUE(read == bytes);
        memory.unmap();
        EXPECT_OK(s.free(b));
    }
}

TEST_F(BufferLayouts, BadOrders) {
    const uint64_t page = page_size();
    Buffer b;

    for (const uint32_t order : {11u, 31u, 32u, 63u, 64u, 0x80000000u, 0xffffffffu})
        EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_SCATTERED, gib, order, 0), EINVAL) << order;
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_SCATTERED, 3 * page, 1, 0), EINVAL)
        << "not a multiple of the pieces' size";
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_SCATTERED, page, 9, 0), EINVAL)
        << "less than a piece";
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_CONTIGUOUS, 2 * page, 1, 0), EINVAL);
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, 2 * page, 1, 0), EINVAL);
}

// The bytes of its pages around a kmalloc buffer are not the buffer's.
TEST_F(BufferLayouts, KmallocAnywhereInItsPage) {
    const uint64_t page = page_size();

    for (const uint64_t offset : {uint64_t{0}, uint64_t{8}, uint64_t{1000}, page - 8})
        for (const uint64_t length : {uint64_t{1}, uint64_t{7}, page, page + 1, uint64_t{65536}})
            for (const uint32_t kind : map_kinds) {
                if (!offered(kind))
                    continue;
                SCOPED_TRACE(
                    std::format("offset {}, length {}, map kind {}", offset, length, kind));
                Buffer b;
                dmaprobe_map m = {};

                ASSERT_OK(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, length, 0, offset));
                EXPECT_EQ(b.mmap_offset, 0u);
                ASSERT_OK(map(m, b, 0, length, kind));
                if (iommu) {
                    const uint64_t head = offset % granule;
                    const uint64_t start = m.dma_addr - head;
                    const uint64_t tail = (granule - (head + length) % granule) % granule;
                    std::vector<Extent> want;

                    EXPECT_EQ(m.dma_addr % granule, head);
                    if (head)
                        want.push_back(
                            {.iova = start, .length = head, .kind = DMAPROBE_EXTENT_FOREIGN});
                    want.push_back({.iova = m.dma_addr,
                                    .length = length,
                                    .kind = DMAPROBE_EXTENT_BUFFER,
                                    .buffer_id = b.id});
                    if (tail)
                        want.push_back({.iova = m.dma_addr + length,
                                        .length = tail,
                                        .kind = DMAPROBE_EXTENT_FOREIGN});
                    expect_extents(want, start, head + length + tail);
                    if (length > 3)
                        expect_leads_to(m.dma_addr + 3, length - 3, b, 3);
                }
                EXPECT_ERRNO(map(m, b, 0, length + 1), EINVAL);
                EXPECT_ERRNO(map(m, b, length, 1), EINVAL);
                EXPECT_ERRNO(s.free(b), EBUSY);
            }
}

TEST_F(BufferLayouts, KmallocBytes) {
    const uint64_t page = page_size();

    for (const uint64_t offset : {uint64_t{0}, uint64_t{24}, page - 8}) {
        SCOPED_TRACE(std::format("offset {}", offset));
        const uint64_t length = 2 * page + 100;
        const auto bytes = pattern(length, offset);
        Buffer b;

        ASSERT_OK(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, length, 0, offset));
        std::vector<std::byte> read(length, std::byte{0xff});
        ASSERT_OK(s.copy(b.id, DMAPROBE_COPY_READ, 0, read));
        EXPECT_TRUE(std::ranges::all_of(read, [](std::byte x) { return x == std::byte{0}; }));
        auto write = bytes;
        ASSERT_OK(s.copy(b.id, DMAPROBE_COPY_WRITE, 0, write));
        ASSERT_OK(s.copy(b.id, DMAPROBE_COPY_READ, 0, read));
        EXPECT_TRUE(read == bytes);
    }
}

TEST_F(BufferLayouts, KmallocLimits) {
    const uint64_t page = page_size();
    Buffer b;

    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, 0, 0, 0), EINVAL);
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, 65537, 0, 0), EINVAL);
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, ~uint64_t{0}, 0, 8), EINVAL);
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, 1, 0, 4), EINVAL)
        << "offset no multiple of 8";
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, 1, 0, page), EINVAL) << "offset of a page";
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, 1, 0, ~uint64_t{7}), EINVAL);
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_CONTIGUOUS, page, 0, 8), EINVAL);
    EXPECT_ERRNO(alloc(b, DMAPROBE_BUFFER_KIND_SCATTERED, page, 0, 8), EINVAL);

    // By the offset that other kinds have, as none was given.
    Buffer other;
    ASSERT_OK(s.alloc(other, page));
    ASSERT_OK(alloc(b, DMAPROBE_BUFFER_KIND_KMALLOC, page, 0, 0));
    const auto at = static_cast<off_t>(other.mmap_offset / other.id * b.id);
    EXPECT_EQ(mmap(nullptr, page, PROT_READ, MAP_SHARED, s.fd(), at), MAP_FAILED);
    EXPECT_ERRNO(errno, EINVAL);
}

TEST_F(BufferLayouts, Nodes) {
    for (const uint32_t kind : {DMAPROBE_BUFFER_KIND_CONTIGUOUS, DMAPROBE_BUFFER_KIND_SCATTERED,
                                DMAPROBE_BUFFER_KIND_KMALLOC}) {
        SCOPED_TRACE(std::format("kind {}", kind));
        dmaprobe_buffer_alloc op = {};
        Buffer b;

        op.kind = kind;
        op.length = page_size();
        op.flags = DMAPROBE_BUFFER_ALLOC_NODE;
        EXPECT_OK(alloc(b, op));
        for (const uint32_t node : {63u, 1023u, 1024u, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
            op.node = node;
            EXPECT_ERRNO(alloc(b, op), EINVAL) << "node " << node;
        }
        op.flags = 0;
        op.node = 1;
        EXPECT_ERRNO(alloc(b, op), EINVAL) << "a node without the flag";
    }
}

// The memory is of the node that was asked for, on each that the machine has.
TEST_F(BufferLayouts, MemoryIsOfItsNode) {
    unsigned nodes = 0;

    for (uint32_t node = 0; node < 64; node++) {
        if (!exists(std::format("/sys/devices/system/node/node{}/meminfo", node)))
            continue;
        for (const uint32_t kind :
             {DMAPROBE_BUFFER_KIND_CONTIGUOUS, DMAPROBE_BUFFER_KIND_SCATTERED}) {
            SCOPED_TRACE(std::format("node {}, kind {}", node, kind));
            dmaprobe_buffer_alloc op = {};
            Buffer b;

            op.kind = kind;
            op.length = 16 * page_size();
            op.flags = DMAPROBE_BUFFER_ALLOC_NODE;
            op.node = node;
            ASSERT_OK(alloc(b, op));
            Memory m = s.mmap(b);
            ASSERT_TRUE(m);
            for (size_t i = 0; i < 16; i++) {
                void* at = m.data() + i * page_size();
                int status = -1;

                // Without nodes to move to, this says where the page is.
                if (syscall(SYS_move_pages, 0, 1ul, &at, nullptr, &status, 0))
                    GTEST_SKIP() << "move_pages(): " << strerror(errno);
                EXPECT_EQ(status, static_cast<int>(node));
            }
        }
        nodes++;
    }
    if (!nodes)
        GTEST_SKIP() << "the kernel knows no nodes";
    RecordProperty("nodes", std::to_string(nodes));
}

// --- DMAPROBE_COPY ----------------------------------------------------------

TEST_P(BufferKinds, CopyAndMmapSeeTheSame) {
    const size_t page = page_size();
    const auto bytes = pattern(4 * page, kind());
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page, kind()));
    Memory m = s.mmap(b);
    ASSERT_TRUE(m);
    const std::pair<size_t, size_t> ranges[] = {{0, 4 * page}, {0, 1},        {4 * page - 1, 1},
                                                {page - 1, 2}, {3, 3 * page}, {2 * page, page}};
    for (const auto& [offset, length] : ranges) {
        SCOPED_TRACE(std::format("{} bytes from {} on", length, offset));
        std::vector<std::byte> want(4 * page);
        std::vector<std::byte> part(bytes.begin() + static_cast<ptrdiff_t>(offset),
                                    bytes.begin() + static_cast<ptrdiff_t>(offset + length));

        memset(m.data(), 0, m.size());
        EXPECT_OK(s.copy(b.id, DMAPROBE_COPY_WRITE, offset, part));
        std::ranges::copy(part, want.begin() + static_cast<ptrdiff_t>(offset));
        EXPECT_TRUE(std::ranges::equal(m.bytes(), want));
        std::vector<std::byte> read(length);
        EXPECT_OK(s.copy(b.id, DMAPROBE_COPY_READ, offset, read));
        EXPECT_TRUE(read == part);
    }
}

TEST_P(BufferKinds, BadCopies) {
    const size_t page = page_size();
    Memory user = Memory::fenced(2 * page);
    Buffer b;

    ASSERT_TRUE(user);
    ASSERT_OK(s.alloc(b, 2 * page, kind()));
    for (const uint32_t dir : {DMAPROBE_COPY_READ, DMAPROBE_COPY_WRITE}) {
        const auto copy = [&](uint64_t offset, uint64_t length, uint64_t addr) {
            dmaprobe_copy op = {};

            op.id = b.id;
            op.dir = dir;
            op.offset = offset;
            op.length = length;
            op.addr = addr;
            return s(op);
        };

        EXPECT_OK(copy(0, 2 * page, user.address()));
        EXPECT_ERRNO(copy(0, 0, user.address()), EINVAL) << "nothing";
        EXPECT_ERRNO(copy(0, 2 * page + 1, user.address()), EINVAL) << "too long";
        EXPECT_ERRNO(copy(1, 2 * page, user.address()), EINVAL) << "ends behind";
        EXPECT_ERRNO(copy(2 * page, 1, user.address()), EINVAL) << "starts behind";
        EXPECT_ERRNO(copy(~uint64_t{0}, 2, user.address()), EINVAL) << "overflow";
        EXPECT_ERRNO(copy(0, page + 1, user.address() + page), EFAULT) << "into the fence";
        EXPECT_ERRNO(copy(0, 1, ~uint64_t{0xfff}), EFAULT) << "the kernel's";
    }
}
} // namespace
} // namespace selftest

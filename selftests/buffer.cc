// SPDX-License-Identifier: GPL-2.0-only
// Buffers: allocation, limits, memory that programs map.

#include "fixture.h"

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
    return kind == DMAPROBE_BUFFER_CONTIGUOUS ? "contiguous" : "scattered";
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
                         testing::Values(DMAPROBE_BUFFER_CONTIGUOUS, DMAPROBE_BUFFER_SCATTERED),
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

    EXPECT_ERRNO(s.alloc(b, gib, DMAPROBE_BUFFER_CONTIGUOUS), EINVAL);
}

// More than a session may have: refused, and the session still works.
TEST_F(Buffers, BuffersBeyondTheSessionsLimit) {
    Buffer first;
    Buffer b;

    ASSERT_OK(s.alloc(first, page_size(), DMAPROBE_BUFFER_SCATTERED));
    EXPECT_ERRNO(s.alloc(b, gib, DMAPROBE_BUFFER_SCATTERED), ENOMEM);
    EXPECT_OK(s.alloc(b, page_size(), DMAPROBE_BUFFER_SCATTERED));
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
            if (two.alloc(more, 3 * page, DMAPROBE_BUFFER_SCATTERED) != ENOMEM)
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

// The program's memory outlives the buffer, and is nobody else's meanwhile.
TEST_P(BufferKinds, MemoryOutlivesTheBuffer) {
    const size_t page = page_size();
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page, kind()));
    Memory m = s.mmap(b);
    ASSERT_TRUE(m);
    memset(m.data(), 0x5a, m.size());
    ASSERT_OK(s.free(b));
    for (int i = 0; i < 16; i++) {
        Buffer next;

        ASSERT_OK(s.alloc(next, 4 * page, kind()));
        Memory n = s.mmap(next);
        ASSERT_TRUE(n);
        EXPECT_EQ(n.data()[0], std::byte{0});
        memset(n.data(), 0xff, n.size());
    }
    EXPECT_TRUE(std::ranges::all_of(m.bytes(), [](std::byte x) { return x == std::byte{0x5a}; }));
    memset(m.data(), 0x11, m.size());
    EXPECT_EQ(m.data()[m.size() - 1], std::byte{0x11});
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

// No page of a scattered buffer is followed by its physical neighbour, so that
// no range across two of its pages is contiguous.
TEST_F(Buffers, ScatteredBuffersAreScattered) {
    const size_t page = page_size();
    const size_t pages = 64;
    Buffer b;

    ASSERT_OK(s.alloc(b, pages * page, DMAPROBE_BUFFER_SCATTERED));
    for (size_t i = 0; i + 1 < pages; i++) {
        dmaprobe_map map = {};

        map.kind = DMAPROBE_MAP_PAGE;
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

        map.kind = DMAPROBE_MAP_PAGE;
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
        GTEST_SKIP() << "no IOMMU translates: physical addresses cannot be told";
    const size_t length = 64 * page_size();
    Buffer b;
    dmaprobe_map map = {};
    uint64_t first = 0;

    ASSERT_OK(s.alloc(b, length));
    map.kind = DMAPROBE_MAP_PAGE;
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

} // namespace
} // namespace selftest

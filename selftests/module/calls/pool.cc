// SPDX-License-Identifier: GPL-2.0-only
// Pools of small blocks.

#include "support/alloc.h"
#include "support/system.h"

#include <linux/capability.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <format>
#include <ostream>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::seconds;

struct Block {
    uint32_t id = 0;
    uint64_t dma_addr = 0;
};

int create(const Raw& session, uint32_t& id, uint64_t block_size, uint64_t align = 0,
           uint64_t boundary = 0) {
    dmaprobe_pool_create op = {};

    op.block_size = block_size;
    op.align = align;
    op.boundary = boundary;
    const int err = session(op);
    id = op.id;
    return err;
}

int take(const Raw& session, uint32_t pool, Block& out) {
    dmaprobe_pool_alloc op = {};

    op.pool_id = pool;
    const int err = session(op);
    out = {.id = op.id, .dma_addr = op.dma_addr};
    return err;
}

int give(const Raw& session, const Block& block) {
    return session.destroy(block.id);
}

class Pool : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (!IsSkipped() && !HasFatalFailure())
            iommu = s.translated();
    }

    bool iommu = false;
};

struct Shape {
    uint64_t block_size;
    uint64_t align;
    uint64_t boundary;
};

void PrintTo(const Shape& shape, std::ostream* out) {
    *out << std::format("{} bytes, aligned to {}, boundary {}", shape.block_size, shape.align,
                        shape.boundary);
}

class PoolShapes : public Pool, public testing::WithParamInterface<Shape> {};

TEST_P(PoolShapes, BlocksKeepTheirBounds) {
    const auto [size, align, boundary] = GetParam();
    // Some pages of blocks, and never too many.
    const size_t count = std::clamp<size_t>(4 * page_size() / size, 4, 200);
    std::vector<Block> blocks(count);
    std::vector<std::byte> got(size);
    uint32_t pool = 0;

    ASSERT_OK(create(s, pool, size, align, boundary));
    for (size_t i = 0; i < count; i++) {
        Block& b = blocks[i];
        std::vector<dmaprobe_segment> segs;

        ASSERT_OK(take(s, pool, b));
        if (align) {
            EXPECT_EQ(b.dma_addr % align, 0u) << std::format("{:#x}", b.dma_addr);
        }
        if (boundary) {
            EXPECT_EQ(b.dma_addr / boundary, (b.dma_addr + size - 1) / boundary)
                << std::format("{:#x}", b.dma_addr);
        }
        EXPECT_LE(b.dma_addr + size - 1, s.limits().coherent_dma_mask);
        ASSERT_OK(segments(s, b.id, segs));
        ASSERT_EQ(segs.size(), 1u);
        EXPECT_EQ(segs[0].dma_addr, b.dma_addr);
        EXPECT_EQ(segs[0].length, size);
        ASSERT_OK(copy_out(s, b.id, 0, got));
        EXPECT_TRUE(std::ranges::all_of(got, [](std::byte x) { return x == std::byte{}; }));
        ASSERT_OK(copy_in(s, b.id, 0, pattern_of(size, i)));
    }
    // No two share a byte: by their addresses, and by what was written.
    std::vector<Block> sorted = blocks;
    std::ranges::sort(sorted, {}, &Block::dma_addr);
    for (size_t i = 1; i < count; i++)
        EXPECT_GE(sorted[i].dma_addr, sorted[i - 1].dma_addr + size);
    for (size_t i = 0; i < count; i++) {
        ASSERT_OK(copy_out(s, blocks[i].id, 0, got));
        EXPECT_EQ(got, pattern_of(size, i));
        if (iommu) {
            std::vector<Extent> extents;

            ASSERT_OK(s.translate(extents, blocks[i].dma_addr, size));
            for (const Extent& extent : extents)
                EXPECT_EQ(extent.kind, uint32_t{DMAPROBE_EXTENT_FOREIGN});
        }
    }
    EXPECT_ERRNO(s.destroy(pool), EBUSY);
    // What comes back is zeroed for the next one.
    for (size_t i = 0; i < count; i += 2)
        ASSERT_OK(give(s, blocks[i]));
    for (size_t i = 0; i < count; i += 2) {
        ASSERT_OK(take(s, pool, blocks[i]));
        ASSERT_OK(copy_out(s, blocks[i].id, 0, got));
        EXPECT_TRUE(std::ranges::all_of(got, [](std::byte x) { return x == std::byte{}; }));
    }
    for (size_t i = 1; i < count; i += 2) {
        ASSERT_OK(copy_out(s, blocks[i].id, 0, got));
        EXPECT_EQ(got, pattern_of(size, i));
    }
    for (const Block& b : blocks)
        ASSERT_OK(give(s, b));
    EXPECT_OK(s.destroy(pool));
    if (iommu)
        expect_hole(blocks[0].dma_addr, 1);
}

INSTANTIATE_TEST_SUITE_P(
    Pool, PoolShapes,
    testing::Values(Shape{1, 0, 0}, Shape{16, 1, 0}, Shape{24, 8, 0}, Shape{24, 32, 0},
                    Shape{100, 4, 128}, Shape{100, 4, 256}, Shape{1000, 16, 1024}, Shape{1, 16, 16},
                    Shape{1, 4096, 4096}, Shape{2048, 2048, 4096}, Shape{4096, 4096, 4096},
                    Shape{5000, 8, 8192}, Shape{64, 8192, 0}, Shape{65536, 65536, 65536},
                    Shape{48, 16, 1 << 20}, Shape{1 << 20, 1 << 20, 1 << 20}),
    [](const auto& row) {
        return std::format("{}_{}_{}", row.param.block_size, row.param.align, row.param.boundary);
    });

TEST_F(Pool, Values) {
    constexpr uint64_t mib = 1 << 20;
    uint32_t id = 0;

    for (const uint64_t size : {uint64_t{0}, mib + 1, uint64_t{1} << 32, ~uint64_t{0}})
        EXPECT_ERRNO(create(s, id, size), EINVAL);
    for (const uint64_t align : {uint64_t{3}, uint64_t{12}, mib + 1, 2 * mib, uint64_t{1} << 63})
        EXPECT_ERRNO(create(s, id, 64, align), EINVAL);
    for (const uint64_t boundary :
         {uint64_t{1}, uint64_t{32}, uint64_t{63}, uint64_t{96}, 2 * mib, ~uint64_t{0}})
        EXPECT_ERRNO(create(s, id, 64, 0, boundary), EINVAL);
    // What a block takes up is what counts.
    EXPECT_ERRNO(create(s, id, 1, 0, 8), EINVAL);
    EXPECT_ERRNO(create(s, id, 64, 128, 64), EINVAL);
    EXPECT_ERRNO(create(s, id, 65, 64, 64), EINVAL);
    EXPECT_OK(create(s, id, 64, 64, 64));
    EXPECT_OK(s.destroy(id));
    EXPECT_ERRNO(s.destroy(id), ENOENT);
}

TEST_F(Pool, CopyRanges) {
    std::array<std::byte, 16> bytes{};
    uint32_t pool = 0;
    Block b;

    ASSERT_OK(create(s, pool, 10));
    ASSERT_OK(take(s, pool, b));
    EXPECT_OK(copy_in(s, b.id, 0, std::span(bytes).first(10)));
    EXPECT_OK(copy_in(s, b.id, 9, std::span(bytes).first(1)));
    EXPECT_ERRNO(copy_in(s, b.id, 10, std::span(bytes).first(1)), EINVAL);
    EXPECT_ERRNO(copy_in(s, b.id, 0, std::span(bytes).first(11)), EINVAL) << "the next block's";
    EXPECT_ERRNO(copy_out(s, b.id, 0, std::span(bytes).first(11)), EINVAL);
    EXPECT_ERRNO(copy_out(s, pool, 0, std::span(bytes).first(1)), ENOENT);
    EXPECT_ERRNO(s.unmap(b.id), ENOENT);
    EXPECT_ERRNO(s.unmap(pool), ENOENT);
    EXPECT_ERRNO(s.iova_free(b.id), ENOENT);
    EXPECT_ERRNO(s.destroy(pool), EBUSY) << "a pool with a block";
    dmaprobe_sync sync = {};
    sync.id = b.id;
    sync.length = 1;
    EXPECT_NE(s(sync), 0);
    Allocation as_one{.length = 10, .mmap_offset = uint64_t{b.id} << 32};
    EXPECT_FALSE(map_allocation(s, as_one));
}

TEST_F(Pool, DeviceReadsAndWritesBlocks) {
    Rig rig(bdf);
    uint32_t pool = 0;
    Block from;
    Block to;
    std::vector<std::byte> got(256);

    if (!rig)
        GTEST_SKIP() << rig.why();
    ASSERT_OK(create(s, pool, 256, 256));
    ASSERT_OK(take(s, pool, from));
    ASSERT_OK(take(s, pool, to));
    const auto bytes = pattern_of(256, 4);
    ASSERT_OK(copy_in(s, from.id, 0, bytes));
    ASSERT_TRUE(rig.move(to.dma_addr, from.dma_addr, 256));
    ASSERT_OK(copy_out(s, to.id, 0, got));
    EXPECT_EQ(got, bytes);
}

TEST_F(Pool, MaskIsHonoured) {
    const uint64_t mask = 0xffffff;
    uint32_t pool = 0;
    Block b;

    if (const int err = s.set_mask(mask, DMAPROBE_SET_MASK_COHERENT)) {
        EXPECT_ERRNO(err, EIO);
        EXPECT_FALSE(iommu);
        GTEST_SKIP() << "the platform does not serve a mask of 24 bits";
    }
    ASSERT_OK(create(s, pool, 512));
    EXPECT_ERRNO(s.set_mask(0xffffffff, DMAPROBE_SET_MASK_COHERENT), EBUSY);
    for (int i = 0; i < 20; i++) {
        ASSERT_OK(take(s, pool, b));
        EXPECT_LE(b.dma_addr + 511, mask);
    }
}

// The pages are charged that hold the blocks, and stay charged until the pool goes.
TEST_F(Pool, BeyondTheMemlockLimit) {
    const uint64_t page = page_size();
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        const rlimit limit = {4 * page, 4 * page};

        if (setrlimit(RLIMIT_MEMLOCK, &limit) || !give_up_capability(CAP_IPC_LOCK))
            _exit(1);
        for (int round = 0; round < 5; round++) {
            const Raw one = Raw::open(bdf);
            std::array<Block, 16> blocks{};
            Allocation a;
            Block b;
            uint32_t pool = 0;

            if (!one || create(one, pool, page / 4))
                _exit(2);
            for (Block& each : blocks)
                if (take(one, pool, each))
                    _exit(3);
            if (take(one, pool, b) != ENOMEM)
                _exit(4);
            for (const Block& each : blocks)
                if (give(one, each))
                    _exit(5);
            if (allocate(one, a, alloc_ways[0], page) != ENOMEM)
                _exit(6);
            for (Block& each : blocks)
                if (take(one, pool, each))
                    _exit(7);
            for (const Block& each : blocks)
                if (give(one, each))
                    _exit(8);
            if (one.destroy(pool) || allocate(one, a, alloc_ways[0], 4 * page))
                _exit(9);
        }
        _exit(0);
    }
    int status = -1;
    ASSERT_TRUE(wait_for_child(child, seconds(30), status)) << "the child did not end";
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << "a step of the child did not come out as it must";
}

// The kernel lists a device's pools in sysfs, for all sessions together.
TEST_F(Pool, ListedWhileThereIsOne) {
    const std::string list = pci_path(bdf) + "/pools";
    Raw other = Raw::open(bdf);
    uint32_t mine = 0;
    uint32_t theirs = 0;

    ASSERT_TRUE(other);
    EXPECT_FALSE(exists(list));
    ASSERT_OK(create(s, mine, 64));
    ASSERT_OK(create(other, theirs, 64));
    EXPECT_NE(read_text(list).find("dmaprobe"), std::string::npos);
    ASSERT_OK(s.destroy(mine));
    EXPECT_NE(read_text(list).find("dmaprobe"), std::string::npos);
    ASSERT_OK(other.close());
    EXPECT_FALSE(exists(list));
}

TEST_F(Pool, GoneWithTheSession) {
    Raw other = Raw::open(bdf);
    std::vector<Block> blocks(300);
    uint32_t pool = 0;

    ASSERT_TRUE(other);
    ASSERT_OK(create(other, pool, 100));
    for (Block& b : blocks)
        ASSERT_OK(take(other, pool, b));
    EXPECT_ERRNO(s.set_mask(0xffffffff), EBUSY);
    ASSERT_OK(other.close());
    EXPECT_OK(s.set_mask(0xffffffff));
    if (iommu)
        for (const Block& b : blocks)
            expect_hole(b.dma_addr, 100);
}

TEST_F(Pool, GoneWithTheDevice) {
    KeepDriver keep(bdf);
    std::vector<Block> blocks(300);
    uint32_t pool = 0;

    ASSERT_OK(create(s, pool, 100));
    for (Block& b : blocks)
        ASSERT_OK(take(s, pool, b));
    ASSERT_OK(unbind_driver(bdf));
    EXPECT_ERRNO(give(s, blocks[0]), ENODEV);
    EXPECT_ERRNO(take(s, pool, blocks[0]), ENODEV);
    EXPECT_ERRNO(s.destroy(pool), ENODEV);
    EXPECT_OK(s.close());
    EXPECT_TRUE(keep.restore());
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    EXPECT_OK(s.set_mask(0xffffffff));
    EXPECT_OK(s.close());
}

} // namespace
} // namespace selftest

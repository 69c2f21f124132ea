// SPDX-License-Identifier: GPL-2.0-only
// The boundary: addresses. What a list maps beside its entries, how much memory page tables
// take, spaces that are full, fragmented, or none.

#include "boundary.h"

#include "support/arena.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <format>
#include <iterator>

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr uint64_t mib = uint64_t{1} << 20;
constexpr uint64_t gib = uint64_t{1} << 30;

// --- lists that are padded ---------------------------------------------------------

// To keep a segment boundary, the kernel lengthens the entry before: it maps the memory
// that lies behind it.
class BoundaryLists : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!iommu)
            GTEST_SKIP() << "no IOMMU translates for the device";
        // Without dma_iova_*(), the module has memory of its own mapped there (kmod/limits.c).
        ASSERT_OK(s.translate(before, 4 * gib - top, top));
        std::erase_if(before, [](const Extent& e) { return e.kind != DMAPROBE_EXTENT_FOREIGN; });
    }

    static dmaprobe_sg_entry entry(const Buffer& b, uint64_t offset, uint64_t length) {
        return {.offset = offset, .length = length, .buffer_id = b.id, .__reserved = 0};
    }

    // How an extent is cut may change, what it covers may not.
    bool was_there(const Extent& found) const {
        uint64_t at = found.iova;

        for (const Extent& e : before)
            if (e.iova <= at && at < e.iova + e.length)
                at = e.iova + e.length;
        return at >= found.iova + found.length;
    }

    // Where the list is mapped, and some space on both sides: nothing is there but its buffers,
    // and what was there before.
    void expect_only(uint32_t list, const std::vector<uint32_t>& buffers) const {
        std::vector<dmaprobe_segment> segments;
        std::vector<Extent> extents;
        uint64_t low = UINT64_MAX;
        uint64_t high = 0;

        ASSERT_OK(s.segments(segments, list));
        for (const dmaprobe_segment& segment : segments) {
            low = std::min<uint64_t>(low, segment.dma_addr);
            high = std::max<uint64_t>(high, segment.dma_addr + segment.length);
        }
        low -= std::min(low, 4 * mib);
        ASSERT_OK(s.translate(extents, low, high - low + 8 * mib));
        for (const Extent& e : extents) {
            EXPECT_TRUE(e.kind != DMAPROBE_EXTENT_FOREIGN || was_there(e))
                << testing::PrintToString(e);
            if (e.kind == DMAPROBE_EXTENT_BUFFER) {
                EXPECT_TRUE(std::ranges::contains(buffers, e.buffer_id))
                    << testing::PrintToString(e);
            }
        }
    }

    static constexpr uint64_t top = 64 * mib; // addresses are given from 4 GiB down
    std::vector<Extent> before;               // to what else the device can get, in order
};

TEST_F(BoundaryLists, PaddingStaysInTheBuffer) {
    constexpr uint64_t length = 4 * mib;
    Buffer page;
    Buffer small;
    Buffer tail;
    Buffer large;

    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY,
                             length, length - 1));
    ASSERT_OK(s.alloc(page, page_size()));
    ASSERT_OK(s.alloc(small, length / 2));
    if (s.alloc(tail, length) || s.alloc(large, length))
        GTEST_SKIP() << "no 4 MiB of contiguous memory are left";
    for (const uint32_t kind : {DMAPROBE_MAP_SG_KIND_LIST, DMAPROBE_MAP_SG_KIND_TABLE}) {
        for (const dmaprobe_sg_entry& first :
             {entry(page, 0, page_size()), entry(page, 8, 8), entry(small, 0, page_size()),
              entry(tail, page_size(), page_size()),
              entry(tail, length - page_size(), page_size())}) {
            const std::array entries = {first, entry(large, 0, length)};
            dmaprobe_map_sg list = {};

            EXPECT_ERRNO(s.map_sg(list, entries, kind), EINVAL)
                << first.buffer_id << "+" << first.offset;
            EXPECT_EQ(s.stats().nr_mappings, 0u);
        }
        // This one goes on for as long as it takes.
        const std::array entries = {entry(tail, 0, page_size()), entry(large, 0, length)};
        std::vector<dmaprobe_segment> segments;
        dmaprobe_map_sg list = {};

        ASSERT_OK(s.map_sg(list, entries, kind));
        ASSERT_OK(s.segments(segments, list.id));
        ASSERT_EQ(segments.size(), 2u);
        EXPECT_EQ(segments[1].dma_addr, segments[0].dma_addr + length);
        expect_leads_to(segments[0].dma_addr, length, tail, 0);
        expect_leads_to(segments[1].dma_addr, length, large, 0);
        expect_only(list.id, {tail.id, large.id});
        EXPECT_OK(s.unmap(list.id));
    }
}

// Lists at random, for devices at random: nothing but their own buffers is mapped.
TEST_F(BoundaryLists, NothingButTheBuffers) {
    const uint64_t page = page_size();
    Dice dice(8);
    int mapped = 0;
    int refused = 0;

    for (const uint64_t boundary : {page, 16 * page, mib, 4 * mib, uint64_t{1} << 32}) {
        for (const uint64_t most : {page, 16 * page, mib, 4 * mib}) {
            std::array<Buffer, 4> buffers;
            std::vector<uint32_t> ids;

            SCOPED_TRACE(std::format("boundary {:#x}, segments of {:#x}", boundary, most));
            ASSERT_OK(
                s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY,
                               static_cast<uint32_t>(most), boundary - 1));
            ASSERT_OK(s.alloc(buffers[0], page));
            ASSERT_OK(s.alloc(buffers[1], mib));
            ASSERT_OK(scattered(s, buffers[2], 2 * mib, 16 * page));
            ASSERT_OK(s.alloc(buffers[3], 9 * page));
            std::ranges::transform(buffers, std::back_inserter(ids), &Buffer::id);
            for (int i = 0; i < 12; i++) {
                std::vector<dmaprobe_sg_entry> entries;
                dmaprobe_map_sg list = {};

                for (unsigned n = 1 + dice(24); n; n--) {
                    const Buffer& b = buffers[dice(buffers.size())];
                    const uint64_t unit = dice(3) ? page : 8;
                    const uint64_t offset = dice(static_cast<unsigned>(b.length / unit)) * unit;
                    const uint64_t longest = std::min(b.length - offset, most);

                    entries.push_back(
                        entry(b, offset, (1 + dice(static_cast<unsigned>(longest / unit))) * unit));
                }
                const int err = s.map_sg(list, entries, dice(2));
                if (err) {
                    EXPECT_ERRNO(err, EINVAL);
                    refused++;
                    continue;
                }
                mapped++;
                expect_only(list.id, ids);
                EXPECT_OK(s.unmap(list.id));
            }
            for (const Buffer& b : buffers)
                EXPECT_OK(s.free(b));
        }
    }
    RecordProperty("mapped", mapped);
    RecordProperty("refused", refused);
    EXPECT_GT(mapped, 20);
    EXPECT_GT(refused, 20);
}

// What a list may be like is for the privileged to say.
TEST_F(BoundaryLists, SegmentsNeedAPrivilege) {
    const OpenNode node(bdf);

    as_user(some_user, [&] {
        const Raw mine = Raw::open(bdf);
        dmaprobe_map_sg list = {};
        Buffer b;

        ASSERT_TRUE(mine);
        for (const uint32_t flags : {DMAPROBE_SET_SEGMENTS_MAX_SIZE, DMAPROBE_SET_SEGMENTS_BOUNDARY,
                                     DMAPROBE_SET_SEGMENTS_MIN_ALIGN}) {
            const bool size = flags == DMAPROBE_SET_SEGMENTS_MAX_SIZE;
            const bool boundary = flags == DMAPROBE_SET_SEGMENTS_BOUNDARY;

            EXPECT_ERRNO(mine.set_segments(flags, size ? 4 * mib : 0, boundary ? 4 * mib - 1 : 0),
                         EPERM);
        }
        // Nor by a list that is longer than a boundary could ever be far.
        ASSERT_OK(mine.alloc(b, 16 * page_size()));
        const std::vector<dmaprobe_sg_entry> entries(16385, entry(b, 0, b.length));
        EXPECT_ERRNO(mine.map_sg(list, entries), EINVAL) << "more than 1 GiB";
    });
}

// --- the memory of page tables -----------------------------------------------------

class BoundaryTableMemory : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!iommu)
            GTEST_SKIP() << "no IOMMU translates for the device";
        if (meminfo("SecPageTables") < 0)
            GTEST_SKIP() << "no SecPageTables in /proc/meminfo";
        ASSERT_OK(s.close()); // of root; what it may do is not what this is about
    }

    // The kernel keeps tables that one unmap did not cover, whatever becomes of the
    // session; all of a space of 32 bits take 8 MiB and a few pages.
    static constexpr int64_t most = 9 * mib;
};

// A page linked and unlinked at every 2 MiB.
TEST_F(BoundaryTableMemory, SparseLinks) {
    const LockedMemory limit(8 * mib);
    const OpenNode node(bdf);
    const int64_t before = meminfo("SecPageTables");
    int links = 0;

    if (Raw::open(bdf).missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << "no dma_iova_*() here";
    for (int round = 0; round < 3; round++) {
        as_user(some_user, [&] {
            const Raw mine = Raw::open(bdf);
            std::vector<dmaprobe_iova_alloc> spaces;
            Buffer b;

            ASSERT_TRUE(mine);
            for (const unsigned bits : {64, 48, 33})
                EXPECT_ERRNO(mine.set_mask(bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1),
                             EPERM);
            ASSERT_OK(mine.set_mask(0xffffffff));
            ASSERT_OK(mine.alloc(b, page_size()));
            dmaprobe_iova_alloc space = {};
            EXPECT_ERRNO(mine.iova_alloc(space, 2 * gib), EPERM);
            for (uint64_t length = gib; length >= 2 * mib; length /= 2)
                while (mine.iova_alloc(space, length) == 0)
                    spaces.push_back(space); // of all that there is
            for (const dmaprobe_iova_alloc& one : spaces) {
                for (uint64_t at = 0; at < one.length; at += 2 * mib) {
                    ASSERT_OK(mine.link(one.id, at, b, 0, page_size()));
                    ASSERT_OK(mine.unlink(one.id, at, page_size()));
                    links++;
                }
            }
        });
        const int64_t taken = meminfo("SecPageTables") - before;
        EXPECT_LE(taken, most) << "round " << round;
        RecordProperty(std::format("KiB_after_round_{}", round), static_cast<int>(taken / 1024));
    }
    EXPECT_GT(links, 500);
}

// Large lists of one small buffer, as many as there is room for.
TEST_F(BoundaryTableMemory, LargeLists) {
    const LockedMemory limit(8 * mib);
    const OpenNode node(bdf);
    const int64_t before = meminfo("SecPageTables");

    for (int round = 0; round < 2; round++) {
        as_user(some_user, [&] {
            const Raw mine = Raw::open(bdf);
            int lists = 0;
            Buffer b;

            ASSERT_TRUE(mine);
            ASSERT_OK(mine.alloc(b, 16 * page_size()));
            // Each takes 240 MiB of addresses, and no large pages.
            const std::vector<dmaprobe_sg_entry> entries(4096, {.offset = page_size(),
                                                                .length = 15 * page_size(),
                                                                .buffer_id = b.id,
                                                                .__reserved = 0});
            int err = 0;
            while (!err && lists < 32) {
                dmaprobe_map_sg list = {};

                err = mine.map_sg(list, entries, DMAPROBE_MAP_SG_KIND_TABLE);
                lists += !err;
            }
            EXPECT_ERRNO(err, ENOMEM) << "there is no end of it";
            EXPECT_GT(lists, 0);
            EXPECT_LE(meminfo("SecPageTables") - before, most);
        });
        const int64_t left = meminfo("SecPageTables") - before;
        EXPECT_LE(left, most);
        RecordProperty(std::format("KiB_left_of_round_{}", round), static_cast<int>(left / 1024));
    }
}

// --- an IOVA space that is none ----------------------------------------------------

class BoundaryTry : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        ASSERT_OK(s.alloc(b, page_size()));
    }

    void expect_is_none(const dmaprobe_iova_alloc& space) const {
        dmaprobe_get_iova_state state = {};

        EXPECT_NE(space.id, 0u);
        EXPECT_EQ(space.addr, 0u);
        state.id = space.id;
        EXPECT_OK(s(state));
        EXPECT_EQ(state.use, 0u);
        EXPECT_EQ(state.addr, 0u);
        EXPECT_EQ(state.length, 0u);
        EXPECT_EQ(state.linked, 0u);
        EXPECT_EQ(s.stats().nr_iovas, 1u + others);
        EXPECT_ERRNO(s.link(space.id, 0, b, 0, page_size()), EOPNOTSUPP);
        EXPECT_ERRNO(s.iova_sync(space.id, 0, page_size()), EOPNOTSUPP);
        EXPECT_ERRNO(s.unlink(space.id, 0, page_size()), EOPNOTSUPP);
        EXPECT_ERRNO(s.iova_destroy(space.id, 0), EOPNOTSUPP);
        EXPECT_OK(s.iova_free(space.id));
        EXPECT_ERRNO(s.iova_free(space.id), ENOENT);
        EXPECT_ERRNO(s(state), ENOENT);
        EXPECT_EQ(s.stats().nr_iovas, others);
    }

    Buffer b;
    uint32_t others = 0; // spaces there are already
};

TEST_F(BoundaryTry, WithoutTranslation) {
    if (iommu)
        GTEST_SKIP() << "an IOMMU translates for the device";
    dmaprobe_iova_alloc space = {};

    EXPECT_ERRNO(s.iova_alloc(space, page_size()), EOPNOTSUPP);
    ASSERT_OK(s.iova_alloc(space, page_size(), DMAPROBE_IOVA_ALLOC_TRY));
    expect_is_none(space);
    // Never freed, it goes with the session.
    ASSERT_OK(s.iova_alloc(space, page_size(), DMAPROBE_IOVA_ALLOC_TRY));
    ASSERT_OK(s.close());
    s = Raw::open(bdf);
    EXPECT_OK(s.set_mask(0xffffffff));
}

TEST_F(BoundaryTry, WithoutSpace) {
    if (!iommu || s.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << "no dma_iova_*() here";
    dmaprobe_iova_alloc space = {};
    dmaprobe_map map = {};
    int err = 0;

    ASSERT_OK(s.set_mask(0xfffffff));
    for (uint64_t length = 128 * mib; length >= page_size(); length /= 2)
        while ((err = s.iova_alloc(space, length)) == 0)
            others++;
    ASSERT_ERRNO(err, ENOSPC);
    EXPECT_ERRNO(map_range(s, map, b, page_size()), ENOMEM);
    ASSERT_OK(s.iova_alloc(space, page_size(), DMAPROBE_IOVA_ALLOC_TRY));
    expect_is_none(space);
    // With a space, the flag is of no consequence.
    ASSERT_OK(s.close());
    s = Raw::open(bdf);
    ASSERT_OK(s.alloc(b, page_size()));
    ASSERT_OK(s.iova_alloc(space, page_size(), DMAPROBE_IOVA_ALLOC_TRY));
    EXPECT_NE(space.addr, 0u);
    EXPECT_OK(s.link(space.id, 0, b, 0, page_size()));
    EXPECT_OK(s.iova_destroy(space.id, page_size()));
}

// --- searches ----------------------------------------------------------------------

// An unprivileged user fragments the space of addresses as much as they may. The kernel's
// search through it takes a lock that the whole machine can wait for.
TEST(BoundarySearch, OfAFragmentedSpace) {
    const std::string bdf = env("DMAPROBE_BDF");
    if (bdf.empty())
        GTEST_SKIP() << "no device: DMAPROBE_BDF is not set";
    const OpenNode node(bdf);
    std::string skip;
    milliseconds longest{};
    size_t spaces = 0;
    const auto end = steady_clock::now() + seconds(30);

    as_user(some_user, [&] {
        const Raw mine = Raw::open(bdf);
        std::vector<dmaprobe_iova_alloc> made(DMAPROBE_RUN_MAX);
        std::vector<dmaprobe_run_op> ops(made.size());
        std::vector<uint32_t> ids;
        int err = 0;

        ASSERT_TRUE(mine);
        if (!mine.translated() || mine.missing(DMAPROBE_FEATURE_DMA_IOVA)) {
            skip = "no dma_iova_*() here";
            return;
        }
        while (!err && ids.size() < 200'000) {
            dmaprobe_run run = {};

            if (steady_clock::now() >= end) {
                skip = std::format("in 30 s, this machine makes no more than {}", ids.size());
                return;
            }
            for (size_t i = 0; i < made.size(); i++) {
                made[i] = {};
                made[i].size = sizeof(made[i]);
                made[i].length = page_size();
                ops[i] = {.cmd = DMAPROBE_IOVA_ALLOC,
                          .result = 0,
                          .arg = reinterpret_cast<uintptr_t>(&made[i])};
            }
            run.nr_ops = static_cast<uint32_t>(ops.size());
            run.ops = reinterpret_cast<uintptr_t>(ops.data());
            ASSERT_OK(mine(run));
            for (size_t i = 0; i < run.done && !err; i++) {
                err = -ops[i].result;
                if (!err)
                    ids.push_back(made[i].id);
            }
        }
        EXPECT_ERRNO(err, ENOSPC) << "there is no end of it";
        spaces = ids.size();
        for (size_t i = 0; i < ids.size(); i += 2)
            ASSERT_OK(mine.iova_free(ids[i]));
        for (int i = 0; i < 20; i++) {
            dmaprobe_iova_alloc op = {};

            longest = std::max(longest,
                               time_of([&] { EXPECT_OK(mine.iova_alloc(op, 2 * page_size())); }));
        }
    });
    if (!skip.empty())
        GTEST_SKIP() << skip;
    testing::Test::RecordProperty("spaces", static_cast<int>(spaces));
    testing::Test::RecordProperty("longest_ms", static_cast<int>(longest.count()));
    EXPECT_LT(longest, seconds(checkers ? 30 : 2));
}

} // namespace
} // namespace selftest

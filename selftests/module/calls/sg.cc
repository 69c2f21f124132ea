// SPDX-License-Identifier: GPL-2.0-only
// Scatter-gather lists: what the kernel merges, what a list may contain, and the
// limits of the device that lists obey.

#include "support/fixture.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <format>
#include <set>

namespace selftest {
namespace {

using Entry = dmaprobe_sg_entry;
using Segment = dmaprobe_segment;

Entry entry(const Buffer& b, uint64_t offset, uint64_t length) {
    return {.offset = offset, .length = length, .buffer_id = b.id, .__reserved = 0};
}

// What is mapped, byte after byte: ranges of buffers.
struct Piece {
    uint32_t buffer_id;
    uint64_t offset;
    uint64_t length;

    bool operator==(const Piece&) const = default;
};

void PrintTo(const Piece& piece, std::ostream* out) {
    *out << std::format("{}+{:#x}..{:#x}", piece.buffer_id, piece.offset,
                        piece.offset + piece.length);
}

void append(std::vector<Piece>& to, const Piece& piece) {
    if (!to.empty() && to.back().buffer_id == piece.buffer_id &&
        to.back().offset + to.back().length == piece.offset)
        to.back().length += piece.length;
    else
        to.push_back(piece);
}

class Sg : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        iommu = s.translated();
        page = page_size();
    }

    // One entry for each page of a buffer.
    std::vector<Entry> pages_of(const Buffer& b) const {
        std::vector<Entry> entries;

        for (uint64_t at = 0; at < b.length; at += page)
            entries.push_back(entry(b, at, page));
        return entries;
    }

    // The segments have the entries' bytes, in order and nothing else.
    void expect_maps(const std::vector<Segment>& segments,
                     const std::vector<Entry>& entries) const {
        std::vector<Piece> want;
        std::vector<Piece> got;
        uint64_t given = 0;
        uint64_t mapped = 0;

        for (const Entry& e : entries) {
            given += e.length;
            append(want, {e.buffer_id, e.offset, e.length});
        }
        for (const Segment& segment : segments)
            mapped += segment.length;
        EXPECT_EQ(mapped, given) << "bytes were lost or added";
        EXPECT_LE(segments.size(), entries.size());
        if (!iommu)
            return;
        for (const Segment& segment : segments) {
            std::vector<Extent> extents;

            ASSERT_OK(s.translate(extents, segment.dma_addr, segment.length));
            for (const Extent& e : extents) {
                ASSERT_EQ(e.kind, uint32_t{DMAPROBE_EXTENT_BUFFER}) << testing::PrintToString(e);
                append(got, {e.buffer_id, e.buffer_offset, e.length});
            }
        }
        EXPECT_EQ(got, want);
    }

    // What the device says of itself holds for each segment.
    void expect_limits(const std::vector<Segment>& segments) const {
        const dmaprobe_get_limits limits = s.limits();

        for (const Segment& seg : segments) {
            const uint64_t last = seg.dma_addr + seg.length - 1;

            SCOPED_TRACE(std::format("segment {:#x}+{:#x}", seg.dma_addr, seg.length));
            EXPECT_NE(seg.length, 0u);
            EXPECT_LE(seg.length, limits.max_segment_size);
            EXPECT_EQ((seg.dma_addr ^ last) & ~limits.segment_boundary_mask, 0u)
                << "crosses a segment boundary";
            EXPECT_GE(last, seg.dma_addr);
            EXPECT_LE(last, limits.dma_mask);
        }
    }

    // Map, look at everything, unmap. The segments that it had.
    std::vector<Segment> round(const std::vector<Entry>& entries,
                               uint32_t kind = DMAPROBE_MAP_SG_KIND_LIST,
                               uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL) const {
        std::vector<Segment> segments;
        dmaprobe_map_sg map = {};

        const int err = s.map_sg(map, entries, kind, dir);
        EXPECT_OK(err);
        if (err)
            return segments;
        EXPECT_NE(map.id, 0u);
        EXPECT_LE(map.need_sync, 1u);
        EXPECT_OK(s.segments(segments, map.id));
        EXPECT_EQ(segments.size(), map.nr_segments);
        expect_maps(segments, entries);
        expect_limits(segments);
        if (!iommu) {
            EXPECT_EQ(segments.size(), entries.size()) << "merged without an IOMMU";
        }
        EXPECT_OK(s.unmap(map.id));
        EXPECT_ERRNO(s.unmap(map.id), ENOENT) << "unmapped twice";
        EXPECT_ERRNO(s.segments(segments_, map.id), ENOENT);
        if (iommu)
            for (const Segment& segment : segments)
                expect_hole(segment.dma_addr, segment.length);
        return segments;
    }

    int sync(uint32_t id, uint64_t offset, uint64_t length,
             uint32_t target = DMAPROBE_SYNC_FOR_CPU) const {
        dmaprobe_sync op = {};

        op.id = id;
        op.target = target;
        op.offset = offset;
        op.length = length;
        return s(op);
    }

    bool iommu = false;
    uint64_t page = 0;

private:
    mutable std::vector<Segment> segments_;
};

class SgKinds : public Sg, public testing::WithParamInterface<uint32_t> {};

INSTANTIATE_TEST_SUITE_P(All, SgKinds,
                         testing::Values(uint32_t{DMAPROBE_MAP_SG_KIND_LIST},
                                         uint32_t{DMAPROBE_MAP_SG_KIND_TABLE}),
                         [](const auto& row) { return row.param ? "table" : "list"; });

TEST_P(SgKinds, EveryDirection) {
    Buffer scattered;
    Buffer whole;

    ASSERT_OK(s.alloc(scattered, 8 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    ASSERT_OK(s.alloc(whole, 8 * page));
    std::vector<Entry> entries = pages_of(scattered);
    entries.push_back(entry(whole, 100, 3 * page));
    entries.push_back(entry(whole, 0, 1));
    for (const uint32_t dir :
         {DMAPROBE_DIR_BIDIRECTIONAL, DMAPROBE_DIR_TO_DEVICE, DMAPROBE_DIR_FROM_DEVICE}) {
        SCOPED_TRACE(std::format("direction {}", dir));
        round(entries, GetParam(), dir);
    }
    EXPECT_OK(s.free(scattered));
    EXPECT_OK(s.free(whole));
}

// Pages that lie anywhere become a few segments, as long as the device takes.
TEST_P(SgKinds, MergesUpToTheLongestSegment) {
    const uint64_t n = 64;
    Buffer b;

    ASSERT_OK(s.alloc(b, n * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    const std::vector<Entry> entries = pages_of(b);
    for (const uint64_t pages : {uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{16}, n, 2 * n}) {
        SCOPED_TRACE(std::format("longest segment: {} pages", pages));
        ASSERT_OK(
            s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(pages * page)));
        ASSERT_EQ(s.limits().max_segment_size, pages * page);
        const std::vector<Segment> segments = round(entries, GetParam());
        if (iommu) {
            EXPECT_EQ(segments.size(), (n + pages - 1) / pages);
        }
        RecordProperty(std::format("segments_of_{}_pages", pages), std::to_string(segments.size()));
    }
    // Not a multiple of the page: what fits is whole pages.
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(3 * page - 1)));
    for (const Segment& segment : round(entries, GetParam()))
        EXPECT_LE(segment.length, 2 * page);
}

TEST_P(SgKinds, MergesUpToTheBoundary) {
    const uint64_t n = 64;
    Buffer b;

    ASSERT_OK(s.alloc(b, n * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    const std::vector<Entry> entries = pages_of(b);
    for (const uint64_t pages : {uint64_t{1}, uint64_t{2}, uint64_t{8}, n}) {
        SCOPED_TRACE(std::format("boundary: {} pages", pages));
        ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY,
                                 static_cast<uint32_t>(n * page), pages * page - 1));
        ASSERT_EQ(s.limits().segment_boundary_mask, pages * page - 1);
        const std::vector<Segment> segments = round(entries, GetParam());
        if (iommu) {
            EXPECT_EQ(segments.size(), n / pages);
        }
    }
    // Entries of odd sizes: padding keeps each of them between two boundaries.
    Buffer whole;
    ASSERT_OK(s.alloc(whole, 16 * page));
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_BOUNDARY, 0, 8 * page - 1));
    std::vector<Entry> odd;
    for (const uint64_t length : {3, 4, 2, 5, 1, 3})
        odd.push_back(entry(whole, 0, length * page));
    if (iommu) {
        round(odd, GetParam());
    }
}

// An entry that starts or ends inside a granule cannot have a neighbour there.
TEST_P(SgKinds, UnalignedMiddlesAreNotMerged) {
    if (s.granule() != page)
        GTEST_SKIP() << "the granule is not the page size";
    Buffer b;

    ASSERT_OK(s.alloc(b, 8 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    const Entry full[] = {entry(b, 0, page), entry(b, page, page), entry(b, 2 * page, page)};
    struct {
        std::vector<Entry> entries;
        size_t segments;
    } cases[] = {
        {{full[0], full[1], full[2]}, 1},
        // It starts late, ends early, both.
        {{full[0], entry(b, page + 512, page - 512), full[2]}, 2},
        {{full[0], entry(b, page, page - 512), full[2]}, 2},
        {{full[0], entry(b, page + 512, 512), full[2]}, 3},
        // The ends of the list may be anything.
        {{entry(b, 100, page - 100), full[1], entry(b, 2 * page, 7)}, 1},
    };
    for (const auto& c : cases) {
        const std::vector<Segment> segments = round(c.entries, GetParam());

        if (iommu) {
            EXPECT_EQ(segments.size(), c.segments);
        }
        ASSERT_FALSE(segments.empty());
        if (s.bounces())
            continue;
        EXPECT_EQ(segments[0].dma_addr % page, c.entries[0].offset % page)
            << "does not lie in its granule as the memory does";
    }
}

TEST_P(SgKinds, SameMemoryMoreThanOnce) {
    Buffer b;
    Buffer other;

    ASSERT_OK(s.alloc(b, 4 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    ASSERT_OK(s.alloc(other, page));
    const std::vector<Entry> entries = {entry(b, 0, page),     entry(b, 0, page),
                                        entry(other, 0, page), entry(b, page, page),
                                        entry(other, 0, page), entry(b, 0, page)};
    round(entries, GetParam());
    EXPECT_OK(s.free(b)) << "the list holds a buffer more often than it lets go of it";
    EXPECT_OK(s.free(other));
}

TEST_P(SgKinds, BuffersAreHeld) {
    Buffer b[3];
    std::vector<Entry> entries;
    dmaprobe_map_sg map = {};

    for (Buffer& one : b) {
        ASSERT_OK(s.alloc(one, page));
        entries.push_back(entry(one, 0, page));
    }
    ASSERT_OK(s.map_sg(map, entries, GetParam()));
    for (const Buffer& one : b)
        EXPECT_ERRNO(s.free(one), EBUSY);
    ASSERT_OK(s.unmap(map.id));
    for (const Buffer& one : b)
        EXPECT_OK(s.free(one));
}

TEST_P(SgKinds, LongestList) {
    const uint64_t pages = 64;
    Buffer b;

    if (s.bounces())
        GTEST_SKIP() << "so much cannot be bounced";
    ASSERT_OK(s.set_mask(0xffffffff));
    ASSERT_OK(s.alloc(b, pages * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    std::vector<Entry> entries;
    entries.reserve(DMAPROBE_MAP_SG_MAX + 1);
    for (uint64_t i = 0; i < DMAPROBE_MAP_SG_MAX; i++)
        entries.push_back(entry(b, i * 7 % pages * page, page));
    const std::vector<Segment> segments = round(entries, GetParam());
    EXPECT_FALSE(segments.empty());

    dmaprobe_map_sg map = {};
    entries.push_back(entry(b, 0, page));
    EXPECT_ERRNO(s.map_sg(map, entries, GetParam()), EINVAL) << "one too many";
    EXPECT_ERRNO(s.map_sg(map, {}, GetParam()), EINVAL) << "none";
    EXPECT_OK(s.free(b));
}

// 1 GiB, of memory that is there only once. What counts is the granules that an entry
// touches.
TEST_P(SgKinds, LongestInBytes) {
    const uint64_t length = uint64_t{2} << 20;
    dmaprobe_map_sg map = {};
    Buffer b;

    if (s.bounces())
        GTEST_SKIP() << "so much cannot be bounced";
    if (s.alloc(b, length))
        GTEST_SKIP() << "no contiguous memory of 2 MiB";
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(length)));
    for (const Entry& each : {entry(b, 0, length), entry(b, 1, length - 2)}) {
        std::vector<Entry> entries(512, each);

        SCOPED_TRACE(std::format("entries of {:#x} bytes", each.length));
        // An IOMMU may not have a range of addresses as long as that.
        const int err = s.map_sg(map, entries, GetParam());
        EXPECT_TRUE(err == 0 || (iommu && (err == ENOMEM || err == EIO))) << err;
        if (!err) {
            EXPECT_OK(s.unmap(map.id));
        }
        // Without an IOMMU there are no granules: bytes are all that counts.
        if (!iommu && each.offset)
            continue;
        entries.push_back(entry(b, 0, 1));
        EXPECT_ERRNO(s.map_sg(map, entries, GetParam()), EINVAL);
    }
    EXPECT_OK(s.free(b));
}

// To keep a segment boundary the kernel lengthens the mapping of the entry before: that is
// legal when the buffer goes on there, and the device reaches nothing else.
TEST_P(SgKinds, PaddingIsTheBuffersOwn) {
    if (s.granule() != page)
        GTEST_SKIP() << "the granule is not the page size";
    Buffer tight;
    Buffer roomy;
    Buffer scattered;
    Buffer whole;

    ASSERT_OK(s.alloc(tight, 3 * page));
    ASSERT_OK(s.alloc(roomy, 4 * page));
    ASSERT_OK(s.alloc(scattered, 4 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    ASSERT_OK(s.alloc(whole, 8 * page));
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY,
                             static_cast<uint32_t>(8 * page), 4 * page - 1));
    const Entry next = entry(whole, 0, 2 * page);
    const struct {
        const char* what;
        std::vector<Entry> entries;
        bool padded_with_others;
    } cases[] = {
        {"the buffer ends with the entry", {entry(tight, 0, 3 * page), next}, true},
        {"it goes on for a page", {entry(roomy, 0, 3 * page), next}, false},
        {"it goes on for less than is needed",
         {entry(whole, 0, page), entry(roomy, 2 * page, page), entry(whole, 0, 3 * page)},
         true},
        {"its next page lies elsewhere",
         {entry(scattered, 0, page), entry(scattered, page, page), entry(scattered, 2 * page, page),
          next},
         true},
        {"its tail in the granule is its own as well",
         {entry(roomy, 0, 2 * page + 100), next},
         false},
        {"nothing is padded: it fits", {entry(tight, 0, 3 * page), entry(whole, 0, page)}, false},
        {"nothing is padded: it is at the boundary",
         {entry(tight, 0, 3 * page), entry(tight, 0, page), next},
         false},
        {"only the second boundary is kept by padding",
         {entry(roomy, 0, 4 * page), entry(tight, 0, 3 * page), next},
         true},
    };
    for (const auto& c : cases) {
        dmaprobe_map_sg map = {};

        SCOPED_TRACE(c.what);
        if (iommu && c.padded_with_others) {
            EXPECT_ERRNO(s.map_sg(map, c.entries, GetParam()), EINVAL);
        } else if (iommu) {
            round(c.entries, GetParam());
        } else if (const int err = s.map_sg(map, c.entries, GetParam())) {
            // The memory's own addresses; they may cross a boundary.
            EXPECT_ERRNO(err, EINVAL);
        } else {
            EXPECT_OK(s.unmap(map.id));
        }
    }
    for (const Buffer& b : {tight, roomy, scattered, whole})
        EXPECT_OK(s.free(b)) << "a refused list holds a buffer";
}

TEST_P(SgKinds, BadEntries) {
    dmaprobe_map single = {};
    Raw other = Raw::open(bdf);
    Buffer foreign[4];
    Buffer b;
    Buffer whole;
    Buffer gone;

    ASSERT_TRUE(other);
    // One whose id this session does not have.
    for (Buffer& one : foreign)
        ASSERT_OK(other.alloc(one, page));
    ASSERT_OK(s.alloc(b, 4 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    ASSERT_OK(s.alloc(whole, 32 * page));
    ASSERT_OK(s.alloc(gone, page));
    ASSERT_OK(s.free(gone));
    single.kind = DMAPROBE_MAP_KIND_PAGE;
    single.buffer_id = whole.id;
    single.length = page;
    ASSERT_OK(s(single));
    const uint64_t longest = s.limits().max_segment_size;
    ASSERT_LT(longest, whole.length);

    const Entry good = entry(b, 0, page);
    Entry reserved = good;
    reserved.__reserved = 1;
    const struct {
        const char* what;
        Entry bad;
        int err;
    } cases[] = {
        {"no buffer", {.offset = 0, .length = page, .buffer_id = 0, .__reserved = 0}, ENOENT},
        {"a buffer that is gone", entry(gone, 0, page), ENOENT},
        {"another session's buffer", entry(foreign[3], 0, page), ENOENT},
        {"a mapping", entry({.id = single.id}, 0, page), ENOENT},
        {"an id of a run", entry({.id = DMAPROBE_RUN_ID(0)}, 0, page), ENOENT},
        {"reserved", reserved, EINVAL},
        {"no length", entry(b, 0, 0), EINVAL},
        {"behind the buffer", entry(b, 4 * page, 1), EINVAL},
        {"beyond the buffer", entry(b, 4 * page - 1, 2), EINVAL},
        {"beyond a contiguous buffer", entry(whole, 31 * page, page + 1), EINVAL},
        {"offset wraps", entry(b, ~uint64_t{0}, 2), EINVAL},
        {"length wraps", entry(b, 2, ~uint64_t{0}), EINVAL},
        {"32 bits of a length", entry(b, 0, (uint64_t{1} << 32) + page), EINVAL},
        {"not contiguous", entry(b, page - 1, 2), EINVAL},
        {"longer than a segment", entry(whole, 0, longest + 1), EINVAL},
    };
    for (const auto& c : cases) {
        for (size_t at = 0; at < 3; at++) {
            std::vector<Entry> entries(3, good);
            dmaprobe_map_sg map = {};

            SCOPED_TRACE(std::format("{}, entry {}", c.what, at));
            entries[at] = c.bad;
            EXPECT_ERRNO(s.map_sg(map, entries, GetParam()), c.err);
            EXPECT_EQ(map.id, 0u);
        }
    }
    round({good, entry(whole, 0, longest), good}, GetParam());
    EXPECT_OK(s.free(b)) << "a refused list holds a buffer";
    ASSERT_OK(s.unmap(single.id));
    EXPECT_OK(s.free(whole));
    EXPECT_OK(s.set_mask(s.limits().dma_mask)) << "a refused list is mapped";
}

// An entry that is longer than what fits between two boundaries, or that would
// begin too late in its granule to fit.
TEST_P(SgKinds, EntriesAcrossTheBoundary) {
    const uint64_t boundary = 4 * page;
    dmaprobe_map_sg map = {};
    Buffer b;

    ASSERT_OK(s.alloc(b, 16 * page));
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_BOUNDARY, 0, boundary - 1));
    EXPECT_ERRNO(s.map_sg(map, {{entry(b, 0, boundary + 1)}}, GetParam()), EINVAL);
    EXPECT_ERRNO(s.map_sg(map, {{entry(b, 1, boundary)}}, GetParam()), EINVAL);
    // A buffer of 16 pages is aligned to them.
    round({entry(b, 0, boundary), entry(b, boundary + 1, boundary - 1)}, GetParam());
    // Across a boundary of the memory: a translated address is another one.
    const std::vector<Entry> across = {entry(b, boundary - page, 2 * page)};
    if (iommu) {
        round(across, GetParam());
    } else {
        EXPECT_ERRNO(s.map_sg(map, across, GetParam()), EINVAL);
    }
    EXPECT_OK(s.free(b));
}

TEST_P(SgKinds, SyncsOnlyTheWhole) {
    dmaprobe_map_sg map = {};
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    ASSERT_OK(s.map_sg(map, pages_of(b), GetParam()));
    for (const uint32_t target : {DMAPROBE_SYNC_FOR_CPU, DMAPROBE_SYNC_FOR_DEVICE}) {
        SCOPED_TRACE(std::format("target {}", target));
        EXPECT_OK(sync(map.id, 0, 4 * page, target));
        EXPECT_ERRNO(sync(map.id, 0, 4 * page - 1, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, 0, 4 * page + 1, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, 1, 4 * page, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, page, 3 * page, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, 0, 0, target), EINVAL);
    }
    EXPECT_ERRNO(sync(map.id, 0, 4 * page, 2), EINVAL);
    EXPECT_OK(s.unmap(map.id));
}

// Where memory is bounced, a sync is a copy that can be seen. `swiotlb=force`
// without a translating IOMMU makes it so.
TEST_P(SgKinds, SyncAndUnmapCopyWhatIsBounced) {
    Buffer b;

    if (!s.bounces())
        GTEST_SKIP() << "the memory is not bounced";
    ASSERT_OK(s.alloc(b, 4 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    const Memory memory = s.mmap(b);
    ASSERT_TRUE(memory);
    const auto fill = [&](int value) { memset(memory.data(), value, memory.size()); };
    const auto holds = [&](int value) {
        return std::ranges::all_of(memory.bytes(),
                                   [&](std::byte x) { return x == std::byte(value); });
    };
    for (const uint64_t attrs : {0, int{DMAPROBE_ATTR_SKIP_CPU_SYNC}}) {
        dmaprobe_map_sg map = {};

        SCOPED_TRACE(std::format("attrs {:#x}", attrs));
        fill(1);
        ASSERT_OK(s.map_sg(map, pages_of(b), GetParam(), DMAPROBE_DIR_BIDIRECTIONAL, attrs));
        fill(2);
        ASSERT_OK(sync(map.id, 0, 4 * page, DMAPROBE_SYNC_FOR_CPU));
        EXPECT_TRUE(holds(1)) << "the bounced bytes did not come back";
        fill(3);
        ASSERT_OK(sync(map.id, 0, 4 * page, DMAPROBE_SYNC_FOR_DEVICE));
        fill(4);
        ASSERT_OK(sync(map.id, 0, 4 * page, DMAPROBE_SYNC_FOR_CPU));
        EXPECT_TRUE(holds(3)) << "the program's bytes did not go out";
        fill(5);
        ASSERT_OK(s.unmap(map.id, attrs));
        EXPECT_TRUE(holds(attrs ? 5 : 3)) << "unmapping forgot the attributes";
    }
}

TEST_P(SgKinds, SegmentsWithLittleRoom) {
    std::vector<Segment> all;
    dmaprobe_map_sg map = {};
    Buffer b;

    ASSERT_OK(s.alloc(b, 8 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(page)));
    ASSERT_OK(s.map_sg(map, pages_of(b), GetParam()));
    ASSERT_EQ(map.nr_segments, 8u);
    ASSERT_OK(s.segments(all, map.id));
    for (uint32_t room = 0; room <= 9; room++) {
        const Segment untouched = {.dma_addr = 1, .length = 2};
        std::vector<Segment> some(10, untouched);
        dmaprobe_get_segments op = {};

        SCOPED_TRACE(std::format("room for {}", room));
        op.id = map.id;
        op.nr_segments = room;
        op.segments = reinterpret_cast<uintptr_t>(some.data());
        ASSERT_OK(s(op));
        EXPECT_EQ(op.nr_segments, 8u);
        for (uint32_t i = 0; i < 10; i++) {
            const Segment& want = i < std::min(room, 8u) ? all[i] : untouched;

            EXPECT_EQ(some[i].dma_addr, want.dma_addr) << i;
            EXPECT_EQ(some[i].length, want.length) << i;
        }
    }
    // A buffer has no segments.
    EXPECT_ERRNO(s.segments(all, b.id), ENOENT);
    EXPECT_OK(s.unmap(map.id));
}

TEST_F(Sg, OneMappingIsOneSegment) {
    std::vector<Segment> segments;
    dmaprobe_map map = {};
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page));
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    map.buffer_offset = 10;
    map.length = 2 * page;
    ASSERT_OK(s(map));
    ASSERT_OK(s.segments(segments, map.id));
    ASSERT_EQ(segments.size(), 1u);
    EXPECT_EQ(segments[0].dma_addr, map.dma_addr);
    EXPECT_EQ(segments[0].length, map.length);
    EXPECT_OK(s.unmap(map.id));
}

// Lists that live together never share an address.
TEST_F(Sg, LiveListsDoNotOverlap) {
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates: an address is the memory's own";
    std::set<uint64_t> granules;
    Buffer b;

    ASSERT_OK(s.alloc(b, 16 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    for (int i = 0; i < 50; i++) {
        std::vector<Segment> segments;
        dmaprobe_map_sg map = {};

        ASSERT_OK(s.map_sg(map, pages_of(b),
                           i % 2 ? DMAPROBE_MAP_SG_KIND_TABLE : DMAPROBE_MAP_SG_KIND_LIST));
        ASSERT_OK(s.segments(segments, map.id));
        for (const Segment& segment : segments)
            for (uint64_t at = 0; at < segment.length; at += page)
                EXPECT_TRUE(granules.insert((segment.dma_addr + at) / page).second);
    }
    // Closing takes all of them down; the next session has the memory again.
    EXPECT_OK(s.close());
}

class SegmentLimits : public Sg {};

TEST_F(SegmentLimits, Values) {
    const uint32_t size = DMAPROBE_SET_SEGMENTS_MAX_SIZE;
    const uint32_t boundary = DMAPROBE_SET_SEGMENTS_BOUNDARY;
    const uint32_t align = DMAPROBE_SET_SEGMENTS_MIN_ALIGN;
    const dmaprobe_get_limits before = s.limits();
    const auto longest = static_cast<uint32_t>(page);

    EXPECT_ERRNO(s.set_segments(0, 0), EINVAL) << "no flag";
    for (const uint32_t bad : {uint32_t{0}, uint32_t{1}, longest - 1})
        EXPECT_ERRNO(s.set_segments(size, bad), EINVAL) << bad;
    for (const uint64_t bad :
         {uint64_t{0}, page / 2 - 1, page, page - 2, page + 1, ~(page - 1), ~uint64_t{1}})
        EXPECT_ERRNO(s.set_segments(boundary, 0, bad), EINVAL) << bad;
    for (const uint32_t bad : {2u, 5u, 0xfffu, 0x800u, 0xffffffffu})
        EXPECT_ERRNO(s.set_segments(align, 0, 0, bad), EINVAL) << bad;
    // A value without its flag.
    EXPECT_ERRNO(s.set_segments(boundary | align, longest, page - 1, 0), EINVAL);
    EXPECT_ERRNO(s.set_segments(size | align, longest, page - 1, 0), EINVAL);
    EXPECT_ERRNO(s.set_segments(size | boundary, longest, page - 1, 1), EINVAL);
    EXPECT_EQ(memcmp(&before, &static_cast<const dmaprobe_get_limits&>(s.limits()), sizeof(before)),
              0)
        << "a refused call changed something";

    EXPECT_OK(s.set_segments(size | boundary | align, longest, page - 1, 0x7ff));
    EXPECT_EQ(s.limits().max_segment_size, longest);
    EXPECT_EQ(s.limits().segment_boundary_mask, page - 1);
    EXPECT_EQ(s.limits().min_align_mask, 0x7ffu);
    EXPECT_OK(s.set_segments(size, 0xffffffff));
    EXPECT_OK(s.set_segments(boundary, 0, ~uint64_t{0}));
    EXPECT_OK(s.set_segments(align, 0, 0, 0));
    EXPECT_EQ(s.limits().max_segment_size, 0xffffffffu);
    EXPECT_EQ(s.limits().segment_boundary_mask, ~uint64_t{0});
    EXPECT_EQ(s.limits().min_align_mask, 0u);
}

TEST_F(SegmentLimits, AreFixedWhileMapped) {
    Raw other = Raw::open(bdf);
    dmaprobe_map_sg map = {};
    Buffer b;

    ASSERT_TRUE(other);
    ASSERT_OK(s.alloc(b, page));
    ASSERT_OK(s.map_sg(map, {{entry(b, 0, page)}}));
    EXPECT_ERRNO(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 1 << 20), EBUSY);
    EXPECT_ERRNO(other.set_segments(DMAPROBE_SET_SEGMENTS_BOUNDARY, 0, 0xffff), EBUSY);
    EXPECT_ERRNO(other.set_mask(0xfffffff), EBUSY);
    EXPECT_OK(s.unmap(map.id));
    EXPECT_OK(other.set_segments(DMAPROBE_SET_SEGMENTS_BOUNDARY, 0, 0xffff));
    EXPECT_EQ(s.limits().segment_boundary_mask, 0xffffu);
}

TEST_F(SegmentLimits, AreTheDevicesAndPutBack) {
    const dmaprobe_get_limits before = s.limits();
    Raw other = Raw::open(bdf);

    ASSERT_TRUE(other);
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY |
                                 DMAPROBE_SET_SEGMENTS_MIN_ALIGN,
                             1 << 20, 0xfffff, 0x1ff));
    EXPECT_OK(s.close());
    EXPECT_EQ(other.limits().max_segment_size, 1u << 20) << "another session is still open";
    EXPECT_EQ(other.limits().min_align_mask, 0x1ffu);
    EXPECT_OK(other.close());

    Raw again = Raw::open(bdf);
    ASSERT_TRUE(again);
    EXPECT_EQ(again.limits().max_segment_size, before.max_segment_size);
    EXPECT_EQ(again.limits().segment_boundary_mask, before.segment_boundary_mask);
    EXPECT_EQ(again.limits().min_align_mask, before.min_align_mask);
}

// A bounced address keeps the bits that the device asked for. What the boundary
// leaves no room for is refused before the kernel complains of a full pool.
TEST_F(SegmentLimits, HoldForWhatIsBounced) {
    dmaprobe_map map = {};
    Buffer b;

    if (!s.bounces())
        GTEST_SKIP() << "the memory is not bounced";
    ASSERT_OK(s.alloc(b, 256 * page));
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MIN_ALIGN | DMAPROBE_SET_SEGMENTS_BOUNDARY, 0,
                             0xfff, 0x7ff));
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    for (const uint64_t offset : {0, 1, 0x123, 0x7ff, 0x800, 0xabc}) {
        map.buffer_offset = offset;
        map.length = 0x100;
        ASSERT_OK(s(map));
        EXPECT_EQ(map.dma_addr & 0x7ff, offset & 0x7ff);
        EXPECT_EQ((map.dma_addr ^ (map.dma_addr + 0xff)) & ~uint64_t{0xfff}, 0u)
            << "crosses the boundary";
        EXPECT_OK(s.unmap(map.id));
    }
    map.buffer_offset = 0;
    map.length = 0x1001;
    EXPECT_ERRNO(s(map), EIO);
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_BOUNDARY, 0, 0xffffffff));
    EXPECT_OK(s(map));
    EXPECT_OK(s.unmap(map.id));
    map.length = s.limits().max_mapping_size + 1;
    ASSERT_LE(map.length, b.length);
    EXPECT_ERRNO(s(map), EIO);
    EXPECT_OK(s.free(b));
}

} // namespace
} // namespace selftest

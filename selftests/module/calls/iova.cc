// SPDX-License-Identifier: GPL-2.0-only
// IOVA spaces: what dma_iova_*() allows and what the module must refuse.

#include "support/fixture.h"

#include <algorithm>
#include <cerrno>
#include <format>
#include <numeric>
#include <random>

namespace selftest {
namespace {

constexpr uint32_t bidirectional = DMAPROBE_DIR_BIDIRECTIONAL;
constexpr uint32_t to_device = DMAPROBE_DIR_TO_DEVICE;
constexpr uint32_t from_device = DMAPROBE_DIR_FROM_DEVICE;

class Iova : public IovaTest {
protected:
    void SetUp() override {
        IovaTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        // The memory's own pages must be able to hold granules of this size.
        ASSERT_LE(granule, page_size());
        g = granule;
        ASSERT_OK(s.alloc(b, 64 * g, DMAPROBE_BUFFER_KIND_CONTIGUOUS));
    }

    // A space of this many granules.
    void space(uint64_t granules) { ASSERT_OK(s.iova_alloc(io, granules * g)); }

    // A space whose start lies in its granule as the buffer's offset does.
    void space_for(uint64_t buffer_offset, uint64_t length) {
        io = {};
        io.buffer_id = b.id;
        io.buffer_offset = buffer_offset;
        io.length = length;
        ASSERT_OK(s(io));
    }

    int link(uint64_t offset, uint64_t buffer_offset, uint64_t length,
             uint32_t dir = bidirectional) const {
        return s.link(io.id, offset, b, buffer_offset, length, dir);
    }

    dmaprobe_get_iova_state state() const {
        dmaprobe_get_iova_state op = {};

        op.id = io.id;
        EXPECT_OK(s(op));
        return op;
    }

    void expect_state(uint64_t linked, uint32_t links) const {
        const dmaprobe_get_iova_state st = state();

        EXPECT_EQ(st.use, 1u);
        EXPECT_EQ(st.addr, io.addr);
        EXPECT_EQ(st.length, io.length);
        EXPECT_EQ(st.linked, linked);
        EXPECT_EQ(st.nr_links, links);
        EXPECT_EQ(st.bounced, 0u);
    }

    // Addresses of the whole space, granules of its ends in full.
    uint64_t first() const { return io.addr / g * g; }
    uint64_t span() const { return (io.addr + io.length + g - 1) / g * g - first(); }

    uint64_t g = 0;
    Buffer b;
    dmaprobe_iova_alloc io = {};
};

TEST_F(Iova, Alloc) {
    for (const uint64_t length : {uint64_t{1}, g - 1, g, g + 1, 2 * g, 3 * g, 5 * g, 64 * g,
                                  1000 * g, uint64_t{2} << 20, uint64_t{16} << 20}) {
        SCOPED_TRACE(std::format("length {:#x}", length));
        ASSERT_OK(s.iova_alloc(io, length));
        EXPECT_NE(io.id, 0u);
        EXPECT_NE(io.addr, 0u);
        EXPECT_EQ(io.addr % g, 0u);
        EXPECT_LE(io.addr + length - 1, s.limits().dma_mask);
        EXPECT_GE(io.addr + length - 1, io.addr);
        expect_state(0, 0);
        expect_hole(io.addr, length);
        ASSERT_OK(s.iova_free(io.id));
        EXPECT_ERRNO(s.iova_free(io.id), ENOENT) << "freed twice";
    }
}

TEST_F(Iova, AllocForABuffersOffset) {
    for (const uint64_t offset :
         {uint64_t{0}, uint64_t{1}, uint64_t{8}, g / 2, g - 1, g + 5, 64 * g - 1}) {
        SCOPED_TRACE(std::format("buffer offset {:#x}", offset));
        space_for(offset, 3 * g);
        EXPECT_EQ(io.addr % g, offset % g);
        expect_state(0, 0);
        EXPECT_OK(s.iova_free(io.id));
    }
}

TEST_F(Iova, BadAllocs) {
    dmaprobe_iova_alloc op = {};

    EXPECT_ERRNO(s(op), EINVAL) << "no length";
    op = {};
    op.length = g;
    op.buffer_offset = 1;
    EXPECT_ERRNO(s(op), EINVAL) << "an offset without a buffer";
    op = {};
    op.length = g;
    op.buffer_id = b.id;
    op.buffer_offset = b.length;
    EXPECT_ERRNO(s(op), EINVAL) << "an offset at the buffer's end";
    for (const uint64_t length :
         {~uint64_t{0}, uint64_t{1} << 63, ~uint64_t{0} - g + 1, (uint64_t{1} << 62) + 1})
        for (const uint32_t flags : {uint32_t{0}, uint32_t{DMAPROBE_IOVA_ALLOC_TRY}})
            EXPECT_ERRNO(s.iova_alloc(op, length, flags), EINVAL)
                << std::format("length {:#x}, flags {}", length, flags);
    // The space is as large as the mask at most, and that ends below 2^57.
    for (const uint64_t length : {uint64_t{1} << 60, uint64_t{1} << 62})
        EXPECT_ERRNO(s.iova_alloc(op, length), ENOSPC);
    EXPECT_OK(s.set_mask(0xffffffff)) << "a refused space holds the mask";
}

// An object for dma_iova_try_alloc()'s "no": nothing can be done with it but look and free.
class IovaTry : public DeviceTest {
protected:
    void expect_no_space(const dmaprobe_iova_alloc& io) const {
        const uint64_t page = page_size();
        dmaprobe_get_iova_state state = {};
        Buffer b;

        EXPECT_NE(io.id, 0u);
        EXPECT_EQ(io.addr, 0u);
        EXPECT_EQ(s.stats().nr_iovas, 1u);
        state.id = io.id;
        state.use = 7;
        state.addr = 7;
        ASSERT_OK(s(state));
        EXPECT_EQ(state.use, 0u);
        EXPECT_EQ(state.addr, 0u);
        EXPECT_EQ(state.linked, 0u);
        EXPECT_EQ(state.nr_links, 0u);
        EXPECT_EQ(state.bounced, 0u);
        ASSERT_OK(s.alloc(b, page));
        EXPECT_ERRNO(s.link(io.id, 0, b, 0, page), EOPNOTSUPP);
        EXPECT_ERRNO(s.iova_sync(io.id, 0, page), EOPNOTSUPP);
        EXPECT_ERRNO(s.unlink(io.id, 0, page), EOPNOTSUPP);
        EXPECT_ERRNO(s.iova_destroy(io.id, 0), EOPNOTSUPP);
        EXPECT_ERRNO(s.iova_destroy(io.id, page), EOPNOTSUPP);
        EXPECT_ERRNO(s.destroy(io.id), ENOENT);
        EXPECT_ERRNO(s.unmap(io.id), ENOENT);
        EXPECT_OK(s.free(b)) << "a refused link holds the buffer";
        EXPECT_OK(s.iova_free(io.id));
        EXPECT_ERRNO(s.iova_free(io.id), ENOENT);
        EXPECT_EQ(s.stats().nr_iovas, 0u);
    }
};

TEST_F(IovaTry, SpaceThatThereIs) {
    dmaprobe_iova_alloc io = {};

    if (const auto why = s.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << *why;
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates for the device";
    ASSERT_OK(s.iova_alloc(io, 2 * granule, DMAPROBE_IOVA_ALLOC_TRY));
    EXPECT_NE(io.addr, 0u);
    dmaprobe_get_iova_state state = {};
    state.id = io.id;
    ASSERT_OK(s(state));
    EXPECT_EQ(state.use, 1u);
    EXPECT_EQ(state.addr, io.addr);
    Buffer b;
    ASSERT_OK(s.alloc(b, page_size()));
    ASSERT_OK(s.link(io.id, 0, b, 0, granule));
    ASSERT_OK(s.iova_destroy(io.id, granule));
}

TEST_F(IovaTry, SpaceThatThereIsNot) {
    dmaprobe_iova_alloc io = {};

    // The kernel has no such call, nothing translates, or the mask is exhausted.
    const bool some = iommu && !s.missing(DMAPROBE_FEATURE_DMA_IOVA);
    ASSERT_OK(s.iova_alloc(io, some ? uint64_t{1} << 60 : page_size(), DMAPROBE_IOVA_ALLOC_TRY));
    expect_no_space(io);
    // As many as one likes, and they end with their session.
    for (int i = 0; i < 100; i++)
        ASSERT_OK(s.iova_alloc(io, uint64_t{1} << 60, DMAPROBE_IOVA_ALLOC_TRY));
    ASSERT_OK(s.close());
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    EXPECT_OK(s.set_mask(0xffffffff));
}

// One call links, syncs, unlinks or destroys a gigabyte at most.
TEST_F(Iova, LongestRange) {
    const uint64_t most = DMAPROBE_IOVA_RANGE_MAX;

    EXPECT_EQ(most, uint64_t{1} << 30);
    ASSERT_OK(s.set_mask(~uint64_t{0}));
    if (const int err = s.iova_alloc(io, 2 * most)) {
        EXPECT_ERRNO(err, ENOSPC);
        GTEST_SKIP() << "the IOMMU has no 2 GiB of addresses left";
    }
    ASSERT_OK(link(0, 0, g));
    for (const uint64_t length : {most + 1, most + g, 2 * most}) {
        SCOPED_TRACE(std::format("length {:#x}", length));
        EXPECT_ERRNO(link(g, 0, length), EINVAL);
        EXPECT_ERRNO(s.iova_sync(io.id, 0, length), EINVAL);
        EXPECT_ERRNO(s.unlink(io.id, 0, length), EINVAL);
        EXPECT_ERRNO(s.iova_destroy(io.id, length), EINVAL);
    }
    // As long as may be, they find that it is not linked so far.
    EXPECT_ERRNO(s.iova_sync(io.id, 0, most), ENXIO);
    EXPECT_ERRNO(s.unlink(io.id, 0, most), ENXIO);
    EXPECT_ERRNO(s.iova_destroy(io.id, most), ENXIO);
    expect_state(g, 1);
    // A link beyond the first gigabyte is as good as any.
    ASSERT_OK(link(most + 3 * g, 5 * g, g));
    ASSERT_OK(s.iova_sync(io.id, most + 3 * g, g));
    expect_leads_to(io.addr + most + 3 * g, g, b, 5 * g);
    ASSERT_OK(s.unlink(io.id, most + 3 * g, g));
    ASSERT_OK(s.iova_destroy(io.id, g));
}

TEST_F(Iova, MaskIsHonoured) {
    const uint64_t limit = uint64_t{256} << 20;
    std::vector<dmaprobe_iova_alloc> spaces;

    ASSERT_OK(s.set_mask(limit - 1));
    for (uint64_t i = 0; i < 32; i++) {
        ASSERT_OK(s.iova_alloc(io, (1 + i * 7) * g));
        EXPECT_LE(io.addr + io.length, limit);
        spaces.push_back(io);
    }
    EXPECT_ERRNO(s.set_mask(limit - 1), EBUSY) << "a live space does not hold the mask";
    std::ranges::sort(spaces, {}, &dmaprobe_iova_alloc::addr);
    for (size_t i = 0; i + 1 < spaces.size(); i++)
        EXPECT_LE(spaces[i].addr + spaces[i].length, spaces[i + 1].addr);
    for (const dmaprobe_iova_alloc& one : spaces)
        EXPECT_OK(s.iova_free(one.id));
    EXPECT_OK(s.set_mask(0xffffffff));
}

TEST_F(Iova, ExhaustedMask) {
    const uint64_t limit = uint64_t{256} << 20;
    const uint64_t length = uint64_t{16} << 20;
    std::vector<uint32_t> ids;
    int err = 0;

    ASSERT_OK(s.set_mask(limit - 1));
    while (ids.size() <= limit / length) {
        err = s.iova_alloc(io, length);
        if (err)
            break;
        EXPECT_LE(io.addr + length, limit);
        ids.push_back(io.id);
    }
    EXPECT_ERRNO(err, ENOSPC);
    ASSERT_FALSE(ids.empty());
    ASSERT_OK(s.iova_free(ids.back()));
    ids.pop_back();
    EXPECT_TRUE(wait_for([&] { return s.iova_alloc(io, length) == 0; }, std::chrono::seconds(5)))
        << "space that was given back cannot be had again";
    ASSERT_OK(s.iova_free(io.id));
    for (const uint32_t id : ids)
        EXPECT_OK(s.iova_free(id));
}

// What is linked is contiguous to the device, however the memory lies.
TEST_F(Iova, ScatteredPagesBecomeOneRange) {
    Buffer pages;

    ASSERT_OK(s.alloc(pages, 16 * page_size(), DMAPROBE_BUFFER_KIND_SCATTERED));
    ASSERT_OK(s.iova_alloc(io, pages.length));
    for (uint64_t at = 0; at < pages.length; at += page_size()) {
        ASSERT_OK(s.link(io.id, at, pages, at, page_size()));
        expect_leads_to(io.addr, at + page_size(), pages, 0);
        if (at + page_size() < pages.length)
            expect_hole(io.addr + at + page_size(), pages.length - at - page_size());
    }
    expect_state(pages.length, 16);
    ASSERT_OK(s.iova_sync(io.id, 0, pages.length));
    expect_leads_to(io.addr, pages.length, pages, 0);
    ASSERT_OK(s.iova_destroy(io.id, pages.length));
    expect_hole(io.addr, pages.length);
    EXPECT_OK(s.free(pages));
}

// Any order of calls is fine, and what is linked where shows at every step.
TEST_F(Iova, LinksInAnyOrder) {
    const uint64_t n = 8;
    std::vector<uint64_t> order(n);
    std::vector<bool> linked(n);
    std::mt19937 random(2);
    uint32_t links = 0;

    std::ranges::iota(order, 0);
    std::ranges::shuffle(order, random);
    space(n);

    // Memory in reverse, so that no two neighbours make one extent.
    const auto expected = [&] {
        std::vector<Extent> want;

        for (uint64_t i = 0; i < n; i++) {
            Extent e = {.iova = io.addr + i * g, .length = g};

            if (linked[i]) {
                e.kind = DMAPROBE_EXTENT_BUFFER;
                e.buffer_id = b.id;
                e.buffer_offset = (2 * n - i) * g;
            } else if (!want.empty() && want.back().kind == DMAPROBE_EXTENT_HOLE) {
                want.back().length += g;
                continue;
            }
            want.push_back(e);
        }
        return want;
    };

    for (const uint64_t i : order) {
        SCOPED_TRACE(std::format("link {}", i));
        ASSERT_OK(link(i * g, (2 * n - i) * g, g));
        linked[i] = true;
        links++;
        expect_state(links * g, links);
        expect_extents(expected(), io.addr, n * g);
        ASSERT_OK(s.iova_sync(io.id, i * g, g));
    }
    std::ranges::shuffle(order, random);
    for (const uint64_t i : order) {
        SCOPED_TRACE(std::format("unlink {}", i));
        ASSERT_OK(s.unlink(io.id, i * g, g));
        linked[i] = false;
        links--;
        expect_state(links * g, links);
        expect_extents(expected(), io.addr, n * g);
    }
    EXPECT_OK(s.iova_free(io.id));
}

TEST_F(Iova, LinkValues) {
    space(8);
    EXPECT_ERRNO(link(0, 0, 0), EINVAL) << "no length";
    // Beyond the space.
    EXPECT_ERRNO(link(0, 0, 8 * g + 1), EINVAL);
    EXPECT_ERRNO(link(0, 0, 9 * g), EINVAL);
    EXPECT_ERRNO(link(7 * g, 0, 2 * g), EINVAL);
    EXPECT_ERRNO(link(8 * g, 0, g), EINVAL);
    EXPECT_ERRNO(link(uint64_t{1} << 40, 0, g), EINVAL);
    EXPECT_ERRNO(link(~uint64_t{0} - g + 1, 0, g), EINVAL) << "wraps";
    EXPECT_ERRNO(link(~uint64_t{0} / g * g, 0, 2 * g), EINVAL) << "wraps";
    // Beyond the buffer.
    EXPECT_ERRNO(link(0, 64 * g, g), EINVAL);
    EXPECT_ERRNO(link(0, 63 * g, 2 * g), EINVAL);
    EXPECT_ERRNO(link(0, ~uint64_t{0} - g + 1, g), EINVAL) << "wraps";
    EXPECT_ERRNO(link(0, ~uint64_t{0} / g * g, 2 * g), EINVAL) << "wraps";
    EXPECT_ERRNO(link(0, 0, ~uint64_t{0}), EINVAL);
    expect_state(0, 0);
    expect_hole(io.addr, 8 * g);
    EXPECT_OK(s.iova_free(io.id));
    EXPECT_OK(s.free(b)) << "a refused link holds the buffer";
}

TEST_F(Iova, LinkAcrossScatteredPages) {
    Buffer pages;

    ASSERT_OK(s.alloc(pages, 4 * page_size(), DMAPROBE_BUFFER_KIND_SCATTERED));
    ASSERT_OK(s.iova_alloc(io, 4 * page_size()));
    EXPECT_ERRNO(s.link(io.id, 0, pages, 0, 2 * page_size()), EINVAL);
    EXPECT_ERRNO(s.link(io.id, 0, pages, page_size(), page_size() + 1), EINVAL);
    expect_state(0, 0);
}

TEST_F(Iova, LinkAlignment) {
    space(8);
    // At the start of the space, the memory lies in its granule as the IOVA does.
    EXPECT_ERRNO(link(0, 1, g), EINVAL);
    EXPECT_ERRNO(link(0, g - 1, g), EINVAL);
    EXPECT_ERRNO(link(0, g + g / 2, 2 * g), EINVAL);
    // Behind it, both start at a granule.
    EXPECT_ERRNO(link(g, 1, g), EINVAL) << "memory";
    EXPECT_ERRNO(link(g + 1, 0, g), EINVAL) << "IOVA";
    EXPECT_ERRNO(link(g + 1, 1, g), EINVAL) << "both, alike";
    EXPECT_ERRNO(link(1, 1, g), EINVAL) << "both, alike, in the first granule";
    expect_state(0, 0);
    expect_hole(io.addr, 8 * g);
}

// Only the last link may end inside a granule.
TEST_F(Iova, NothingBehindAnUnalignedEnd) {
    space(8);
    ASSERT_OK(link(2 * g, 0, g + 1));
    EXPECT_ERRNO(link(4 * g, 0, g), EINVAL) << "behind it";
    EXPECT_ERRNO(link(7 * g, 0, 1), EINVAL) << "far behind it";
    EXPECT_ERRNO(link(0, 0, g + 1), EINVAL) << "an unaligned end before it";
    EXPECT_ERRNO(link(g, 0, 1), EINVAL) << "an unaligned end right before it";
    EXPECT_OK(link(0, 0, 2 * g)) << "before it";
    expect_state(3 * g + 1, 2);
    // When it is gone, the place behind it is free again.
    ASSERT_OK(s.unlink(io.id, 2 * g, g + 1));
    EXPECT_OK(link(4 * g, 0, g));
    ASSERT_OK(link(7 * g, 0, 5));
    expect_state(3 * g + 5, 3);
    expect_hole(io.addr + 2 * g, 2 * g);
}

// Links cover whole granules.
TEST_F(Iova, LastGranuleIsMappedInFull) {
    space(4);
    ASSERT_OK(link(0, 8 * g, g + 1));
    expect_leads_to(io.addr, 2 * g, b, 8 * g);
    expect_hole(io.addr + 2 * g, 2 * g);
    ASSERT_OK(s.iova_destroy(io.id, g + 1));
    expect_hole(io.addr, 4 * g);
}

TEST_F(Iova, Overlap) {
    space(8);
    ASSERT_OK(link(2 * g, 0, 2 * g));
    ASSERT_OK(link(6 * g, 8 * g, g + 1));
    expect_state(3 * g + 1, 2);
    EXPECT_ERRNO(link(2 * g, 0, 2 * g), EEXIST) << "the same";
    EXPECT_ERRNO(link(2 * g, 16 * g, g), EEXIST) << "its start";
    EXPECT_ERRNO(link(3 * g, 16 * g, g), EEXIST) << "its end";
    EXPECT_ERRNO(link(g, 16 * g, 2 * g), EEXIST) << "over its start";
    EXPECT_ERRNO(link(3 * g, 16 * g, 2 * g), EEXIST) << "over its end";
    EXPECT_ERRNO(link(0, 16 * g, 8 * g), EEXIST) << "over all";
    EXPECT_ERRNO(link(7 * g, 16 * g, g), EEXIST) << "in the granule where another ends";
    EXPECT_ERRNO(link(g, 16 * g, g + 1), EEXIST) << "ends in its first granule";
    expect_state(3 * g + 1, 2);
    expect_extents({{.iova = io.addr, .length = 2 * g},
                    {io.addr + 2 * g, 2 * g, DMAPROBE_EXTENT_BUFFER, b.id, 0},
                    {.iova = io.addr + 4 * g, .length = 2 * g},
                    {io.addr + 6 * g, 2 * g, DMAPROBE_EXTENT_BUFFER, b.id, 8 * g}},
                   io.addr, 8 * g);
    EXPECT_OK(link(4 * g, 16 * g, 2 * g)) << "the hole between them";
}

// The same memory may be linked more than once, also in other spaces.
TEST_F(Iova, SameMemoryTwice) {
    space(4);
    ASSERT_OK(link(0, 0, 2 * g));
    ASSERT_OK(link(2 * g, 0, 2 * g));
    const dmaprobe_iova_alloc one = io;
    space(2);
    ASSERT_OK(link(0, 0, 2 * g));
    expect_leads_to(one.addr, 2 * g, b, 0);
    expect_leads_to(one.addr + 2 * g, 2 * g, b, 0);
    expect_leads_to(io.addr, 2 * g, b, 0);
    EXPECT_OK(s.iova_destroy(io.id, 2 * g));
    EXPECT_ERRNO(s.free(b), EBUSY);
    EXPECT_OK(s.iova_destroy(one.id, 4 * g));
    EXPECT_OK(s.free(b));
}

TEST_F(Iova, UnalignedFirstLink) {
    const uint64_t skew = 0x123;

    ASSERT_LT(skew, g);
    space_for(5 * g + skew, 4 * g);
    ASSERT_EQ(io.addr % g, skew);
    EXPECT_ERRNO(link(0, 5 * g, g), EINVAL) << "memory at a granule, IOVA not";
    EXPECT_ERRNO(link(0, 5 * g + skew + 1, g), EINVAL);
    // Another page will do: only the place in the granule counts.
    ASSERT_OK(link(0, 9 * g + skew, g - skew));
    ASSERT_OK(link(g - skew, 20 * g, 2 * g));
    EXPECT_ERRNO(link(3 * g, 22 * g, g), EINVAL) << "not at a granule of the IOVA";
    ASSERT_OK(link(3 * g - skew, 30 * g, 10));
    expect_state(3 * g - skew + 10, 3);
    ASSERT_OK(s.iova_sync(io.id, 0, 3 * g - skew + 10));
    expect_extents({{first(), g, DMAPROBE_EXTENT_BUFFER, b.id, 9 * g},
                    {first() + g, 2 * g, DMAPROBE_EXTENT_BUFFER, b.id, 20 * g},
                    {first() + 3 * g, g, DMAPROBE_EXTENT_BUFFER, b.id, 30 * g},
                    {.iova = first() + 4 * g, .length = span() - 4 * g}},
                   first(), span());
    ASSERT_OK(s.unlink(io.id, 0, g - skew));
    expect_hole(first(), g);
    ASSERT_OK(link(0, 11 * g + skew, g - skew));
    ASSERT_OK(s.iova_destroy(io.id, 3 * g - skew + 10));
    expect_hole(first(), span());
}

TEST_F(Iova, UnalignedFirstAndOnlyLink) {
    space_for(7, 100);
    ASSERT_OK(link(0, 7, 100));
    expect_state(100, 1);
    expect_leads_to(io.addr, 100, b, 7);
    ASSERT_OK(s.iova_sync(io.id, 0, 100));
    ASSERT_OK(s.iova_destroy(io.id, 100));
    expect_hole(first(), span());
}

TEST_F(Iova, Sync) {
    space(8);
    EXPECT_ERRNO(s.iova_sync(io.id, 0, g), ENXIO) << "nothing is linked";
    ASSERT_OK(link(0, 0, 2 * g));
    ASSERT_OK(link(2 * g, 8 * g, g));
    ASSERT_OK(link(4 * g, 16 * g, g));
    EXPECT_OK(s.iova_sync(io.id, 0, 3 * g));
    EXPECT_OK(s.iova_sync(io.id, 0, 1)) << "part of a link";
    EXPECT_OK(s.iova_sync(io.id, g, 2 * g)) << "part of one and all of another";
    EXPECT_OK(s.iova_sync(io.id, 4 * g, g));
    EXPECT_OK(s.iova_sync(io.id, 5 * g - 1, 1));
    EXPECT_ERRNO(s.iova_sync(io.id, 3 * g, g), ENXIO) << "a hole";
    EXPECT_ERRNO(s.iova_sync(io.id, 0, 4 * g), ENXIO) << "ends in a hole";
    EXPECT_ERRNO(s.iova_sync(io.id, 0, 5 * g), ENXIO) << "across a hole";
    EXPECT_ERRNO(s.iova_sync(io.id, 3 * g, 2 * g), ENXIO) << "starts in a hole";
    EXPECT_ERRNO(s.iova_sync(io.id, 7 * g, g), ENXIO) << "at the end";
    EXPECT_ERRNO(s.iova_sync(io.id, 0, 0), EINVAL) << "no length";
    EXPECT_ERRNO(s.iova_sync(io.id, 0, 8 * g + 1), EINVAL) << "leaves the space";
    EXPECT_ERRNO(s.iova_sync(io.id, 8 * g, 1), EINVAL) << "behind the space";
    EXPECT_ERRNO(s.iova_sync(io.id, ~uint64_t{0}, 2), EINVAL) << "wraps";
    EXPECT_ERRNO(s.iova_sync(io.id, 1, ~uint64_t{0}), EINVAL) << "wraps";
    ASSERT_OK(s.unlink(io.id, 0, 2 * g));
    EXPECT_ERRNO(s.iova_sync(io.id, 0, g), ENXIO) << "unlinked";
}

TEST_F(Iova, UnlinkWholeLinks) {
    space(8);
    for (uint64_t i = 0; i < 4; i++)
        ASSERT_OK(link(2 * i * g, (32 - 2 * i) * g, 2 * g));
    EXPECT_ERRNO(s.unlink(io.id, 0, g), EINVAL) << "the first half of a link";
    EXPECT_ERRNO(s.unlink(io.id, g, g), EINVAL) << "the second half of a link";
    EXPECT_ERRNO(s.unlink(io.id, 0, 3 * g), EINVAL) << "ends inside a link";
    EXPECT_ERRNO(s.unlink(io.id, g, 3 * g), EINVAL) << "starts inside a link";
    EXPECT_ERRNO(s.unlink(io.id, 0, 2 * g - 1), EINVAL);
    EXPECT_ERRNO(s.unlink(io.id, 0, 2 * g + 1), EINVAL);
    EXPECT_ERRNO(s.unlink(io.id, 0, 0), EINVAL) << "no length";
    EXPECT_ERRNO(s.unlink(io.id, 6 * g, 4 * g), EINVAL) << "leaves the space";
    EXPECT_ERRNO(s.unlink(io.id, 8 * g, g), EINVAL) << "behind the space";
    EXPECT_ERRNO(s.unlink(io.id, ~uint64_t{0} - g + 1, 2 * g), EINVAL) << "wraps";
    EXPECT_ERRNO(s.unlink(io.id, 0, ~uint64_t{0}), EINVAL);
    EXPECT_ERRNO(s.unlink(io.id, 0, 2 * g, to_device), EINVAL) << "another direction";
    EXPECT_ERRNO(s.unlink(io.id, 0, 2 * g, from_device), EINVAL) << "another direction";
    expect_state(8 * g, 4);

    // Several links at once, from the middle.
    ASSERT_OK(s.unlink(io.id, 2 * g, 4 * g));
    expect_state(4 * g, 2);
    expect_extents({{io.addr, 2 * g, DMAPROBE_EXTENT_BUFFER, b.id, 32 * g},
                    {.iova = io.addr + 2 * g, .length = 4 * g},
                    {io.addr + 6 * g, 2 * g, DMAPROBE_EXTENT_BUFFER, b.id, 26 * g}},
                   io.addr, 8 * g);
    EXPECT_ERRNO(s.unlink(io.id, 2 * g, 2 * g), ENXIO) << "unlinked twice";
    EXPECT_ERRNO(s.unlink(io.id, 0, 4 * g), ENXIO) << "ends in a hole";
    EXPECT_ERRNO(s.unlink(io.id, 0, 8 * g), ENXIO) << "across a hole";
    EXPECT_ERRNO(s.unlink(io.id, 4 * g, 4 * g), ENXIO) << "starts in a hole";
    expect_state(4 * g, 2);

    // Linked again, with other memory and in another direction.
    ASSERT_OK(link(2 * g, 40 * g, 4 * g, to_device));
    expect_leads_to(io.addr + 2 * g, 4 * g, b, 40 * g);
    EXPECT_ERRNO(s.unlink(io.id, 0, 8 * g), EINVAL) << "links of two directions";
    ASSERT_OK(s.unlink(io.id, 2 * g, 4 * g, to_device));
    ASSERT_OK(s.unlink(io.id, 0, 2 * g));
    ASSERT_OK(s.unlink(io.id, 6 * g, 2 * g));
    expect_state(0, 0);
    expect_hole(io.addr, 8 * g);
    EXPECT_OK(s.iova_free(io.id));
}

TEST_F(Iova, UnlinkOfAnUnalignedEnd) {
    space(8);
    ASSERT_OK(link(0, 0, g));
    ASSERT_OK(link(g, 8 * g, g + 10));
    EXPECT_ERRNO(s.unlink(io.id, g, 2 * g), ENXIO) << "goes on where nothing is linked";
    EXPECT_ERRNO(s.unlink(io.id, g, g), EINVAL) << "ends inside the link";
    ASSERT_OK(s.unlink(io.id, 0, 2 * g + 10));
    expect_state(0, 0);
    expect_hole(io.addr, 8 * g);
}

TEST_F(Iova, Destroy) {
    space(8);
    EXPECT_ERRNO(s.iova_destroy(io.id, g), ENXIO) << "nothing is linked";
    ASSERT_OK(link(0, 0, 2 * g));
    ASSERT_OK(link(2 * g, 8 * g, 2 * g));
    EXPECT_ERRNO(s.iova_destroy(io.id, 0), EBUSY) << "all links lie beyond";
    EXPECT_ERRNO(s.iova_destroy(io.id, 2 * g), EBUSY) << "a link lies beyond";
    EXPECT_ERRNO(s.iova_destroy(io.id, g), EINVAL) << "cuts through the first link";
    EXPECT_ERRNO(s.iova_destroy(io.id, 3 * g), EINVAL) << "cuts through the second link";
    EXPECT_ERRNO(s.iova_destroy(io.id, 4 * g - 1), EINVAL);
    EXPECT_ERRNO(s.iova_destroy(io.id, 4 * g + 1), ENXIO) << "a hole at the end";
    EXPECT_ERRNO(s.iova_destroy(io.id, 8 * g), ENXIO) << "a hole at the end";
    EXPECT_ERRNO(s.iova_destroy(io.id, 8 * g + 1), EINVAL) << "leaves the space";
    EXPECT_ERRNO(s.iova_destroy(io.id, ~uint64_t{0}), EINVAL);
    EXPECT_ERRNO(s.iova_destroy(io.id, 4 * g, to_device), EINVAL) << "another direction";
    expect_state(4 * g, 2);
    expect_extents({{io.addr, 2 * g, DMAPROBE_EXTENT_BUFFER, b.id, 0},
                    {io.addr + 2 * g, 2 * g, DMAPROBE_EXTENT_BUFFER, b.id, 8 * g},
                    {.iova = io.addr + 4 * g, .length = 4 * g}},
                   io.addr, 8 * g);
    // Less than the space is linked, and all of that is named.
    ASSERT_OK(s.iova_destroy(io.id, 4 * g));
    expect_hole(io.addr, 8 * g);
    EXPECT_ERRNO(s.iova_destroy(io.id, 4 * g), ENOENT) << "destroyed twice";
    EXPECT_ERRNO(s.iova_free(io.id), ENOENT) << "freed after it was destroyed";
    EXPECT_OK(s.free(b));
    EXPECT_OK(s.set_mask(0xffffffff));
}

TEST_F(Iova, DestroyWithAHole) {
    space(8);
    ASSERT_OK(link(0, 0, 2 * g));
    ASSERT_OK(link(4 * g, 8 * g, 4 * g));
    EXPECT_ERRNO(s.iova_destroy(io.id, 8 * g), ENXIO);
    EXPECT_ERRNO(s.iova_destroy(io.id, 4 * g), ENXIO) << "a hole below, a link beyond";
    expect_state(6 * g, 2);
    // A hole at the start.
    ASSERT_OK(s.unlink(io.id, 0, 2 * g));
    EXPECT_ERRNO(s.iova_destroy(io.id, 8 * g), ENXIO);
    EXPECT_ERRNO(s.iova_destroy(io.id, 0), EBUSY);
    expect_leads_to(io.addr + 4 * g, 4 * g, b, 8 * g);
    // Filled, it can be destroyed.
    ASSERT_OK(link(0, 0, 4 * g));
    ASSERT_OK(s.iova_destroy(io.id, 8 * g));
    expect_hole(io.addr, 8 * g);
}

TEST_F(Iova, DestroyOfMixedDirections) {
    space(4);
    ASSERT_OK(link(0, 0, 2 * g, to_device));
    ASSERT_OK(link(2 * g, 2 * g, 2 * g, from_device));
    for (const uint32_t dir : {bidirectional, to_device, from_device})
        EXPECT_ERRNO(s.iova_destroy(io.id, 4 * g, dir), EINVAL) << "direction " << dir;
    expect_state(4 * g, 2);
    ASSERT_OK(s.unlink(io.id, 2 * g, 2 * g, from_device));
    ASSERT_OK(s.iova_destroy(io.id, 2 * g, to_device));
    expect_hole(io.addr, 4 * g);
}

// Links of any size, taken out in any order, and others put into the holes.
TEST_F(Iova, MixedSizesComeAndGo) {
    const struct {
        uint64_t at;
        uint64_t granules;
        uint64_t from;
    } first[] = {{0, 1, 9}, {1, 7, 0}, {8, 2, 40}, {10, 16, 20}, {26, 5, 1}, {31, 1, 63}},
      second[] = {{1, 3, 50}, {4, 4, 4}, {10, 1, 0}, {11, 14, 30}, {25, 1, 7}};

    space(32);
    for (const auto& l : first)
        ASSERT_OK(link(l.at * g, l.from * g, l.granules * g));
    expect_state(32 * g, 6);
    for (const size_t i : {size_t{3}, size_t{1}}) {
        ASSERT_OK(s.unlink(io.id, first[i].at * g, first[i].granules * g));
        expect_hole(io.addr + first[i].at * g, first[i].granules * g);
    }
    expect_state(9 * g, 4);
    EXPECT_ERRNO(link(0, 0, 2 * g), EEXIST);
    EXPECT_ERRNO(link(7 * g, 0, 2 * g), EEXIST);
    for (const auto& l : second)
        ASSERT_OK(link(l.at * g, l.from * g, l.granules * g));
    ASSERT_OK(s.iova_sync(io.id, 0, 32 * g));
    for (const auto& l : second)
        expect_leads_to(io.addr + l.at * g, l.granules * g, b, l.from * g);
    for (const size_t i : {size_t{0}, size_t{2}, size_t{4}, size_t{5}})
        expect_leads_to(io.addr + first[i].at * g, first[i].granules * g, b, first[i].from * g);
    expect_state(32 * g, 9);
    ASSERT_OK(s.iova_destroy(io.id, 32 * g));
    expect_hole(io.addr, 32 * g);
    EXPECT_OK(s.free(b));
}

TEST_F(Iova, DestroyOfNothing) {
    for (const uint32_t dir : {bidirectional, to_device, from_device}) {
        space(4);
        ASSERT_OK(s.iova_destroy(io.id, 0, dir));
        EXPECT_ERRNO(s.iova_free(io.id), ENOENT);
    }
    EXPECT_OK(s.set_mask(0xffffffff));
}

TEST_F(Iova, FreeWithLinks) {
    space(4);
    ASSERT_OK(link(2 * g, 0, g));
    EXPECT_ERRNO(s.iova_free(io.id), EBUSY);
    expect_leads_to(io.addr + 2 * g, g, b, 0);
    ASSERT_OK(s.unlink(io.id, 2 * g, g));
    EXPECT_OK(s.iova_free(io.id));
}

TEST_F(Iova, BufferIsHeldByItsLinks) {
    Buffer other;

    ASSERT_OK(s.alloc(other, 4 * g));
    space(4);
    ASSERT_OK(link(0, 0, g));
    ASSERT_OK(s.link(io.id, g, other, 0, g));
    EXPECT_ERRNO(s.free(b), EBUSY);
    EXPECT_ERRNO(s.free(other), EBUSY);
    ASSERT_OK(s.unlink(io.id, 0, g));
    EXPECT_OK(s.free(b));
    EXPECT_ERRNO(s.free(other), EBUSY);
    ASSERT_OK(s.unlink(io.id, g, g));
    EXPECT_OK(s.free(other));
}

// Large enough for large page-table entries where the IOMMU has them: unlinking
// one link must not touch its neighbours.
TEST_F(Iova, NeighboursOfLargeLinks) {
    const uint64_t large = uint64_t{2} << 20;
    Buffer big;

    if (s.alloc(big, 2 * large))
        GTEST_SKIP() << "no contiguous memory of 4 MiB";
    ASSERT_OK(s.iova_alloc(io, 4 * large));
    ASSERT_OK(s.link(io.id, 0, big, 0, large));
    ASSERT_OK(s.link(io.id, large, big, large, large));
    ASSERT_OK(s.link(io.id, 2 * large, big, 0, 2 * large));
    expect_leads_to(io.addr, 2 * large, big, 0);
    expect_leads_to(io.addr + 2 * large, 2 * large, big, 0);
    EXPECT_ERRNO(s.unlink(io.id, 2 * large, large), EINVAL) << "half of a link";
    ASSERT_OK(s.unlink(io.id, large, large));
    expect_extents({{io.addr, large, DMAPROBE_EXTENT_BUFFER, big.id, 0},
                    {.iova = io.addr + large, .length = large},
                    {io.addr + 2 * large, 2 * large, DMAPROBE_EXTENT_BUFFER, big.id, 0}},
                   io.addr, 4 * large);
    ASSERT_OK(s.link(io.id, large, big, 0, large));
    ASSERT_OK(s.iova_destroy(io.id, 4 * large));
    expect_hole(io.addr, 4 * large);
}

// What the merge boundary promises: at its granules, pieces join.
TEST_F(Iova, MergeBoundaryIsTheGranule) {
    const uint64_t boundary = s.limits().merge_boundary;

    EXPECT_EQ(boundary + 1, g);
    space(4);
    // Pieces that start and end at the boundary can follow one another …
    EXPECT_OK(link(0, 0, boundary + 1));
    EXPECT_OK(link(boundary + 1, 8 * g, boundary + 1));
    // … and a piece that starts off it cannot.
    EXPECT_ERRNO(link(2 * (boundary + 1), 16 * g + (boundary + 1) / 2, g), EINVAL);
}

TEST_F(Iova, ManySpacesComeAndGo) {
    std::mt19937 random(7);

    for (int round = 0; round < 200; round++) {
        const uint64_t n = 1 + random() % 16;

        space(n);
        for (uint64_t i = 0; i < n; i++)
            ASSERT_OK(link(i * g, i * g, g));
        ASSERT_OK(s.iova_sync(io.id, 0, n * g));
        expect_leads_to(io.addr, n * g, b, 0);
        ASSERT_OK(s.iova_destroy(io.id, n * g));
    }
    EXPECT_OK(s.free(b));
}

class IovaLacking : public DeviceTest {};

// Where the call is missing, it says so, and nothing else breaks.
TEST_F(IovaLacking, AllocSaysSo) {
    dmaprobe_iova_alloc op = {};

    if (!s.missing(DMAPROBE_FEATURE_DMA_IOVA) && s.translated())
        GTEST_SKIP() << "this kernel and this domain have dma_iova_try_alloc()";
    EXPECT_ERRNO(s.iova_alloc(op, page_size()), EOPNOTSUPP);
    EXPECT_OK(s.set_mask(0xffffffff));
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// Parts of the device's own BARs, mapped and linked.

#include "support/bars.h"
#include "support/fixture.h"

#include <array>
#include <cerrno>
#include <format>

namespace selftest {
namespace {

class Bars : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        bars = bars_of(bdf);
        iommu = s.translated();
        g = s.granule();
        if (s.bounces())
            GTEST_SKIP() << "everything is bounced, and a BAR cannot be";
    }

    std::array<Bar, 6> bars;
    uint64_t g = 0;
    bool iommu = false;
};

// The same with a BAR that is large enough for all that is done to it.
class Resource : public Bars {
protected:
    void SetUp() override {
        Bars::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        for (bar = 0; bar < bars.size(); bar++)
            if (bars[bar].memory() && bars[bar].size() >= 4 * g)
                return;
        GTEST_SKIP() << "the device has no memory BAR of four granules";
    }

    dmaprobe_map_resource part(uint64_t offset, uint64_t length) const {
        dmaprobe_map_resource op = {};

        op.bar = bar;
        op.offset = offset;
        op.length = length;
        return op;
    }

    // The whole range leads to the BAR and to nothing of the session's.
    void expect_leads_to_bar(uint64_t iova, uint64_t offset, uint64_t length) const {
        std::array<dmaprobe_extent, 2> extents = {};
        dmaprobe_translate op = {};

        op.flags = DMAPROBE_TRANSLATE_PHYS;
        op.iova = iova;
        op.length = length;
        op.nr_extents = extents.size();
        op.extents = reinterpret_cast<uintptr_t>(extents.data());
        ASSERT_OK(s(op));
        ASSERT_EQ(op.nr_extents, 1u);
        EXPECT_EQ(op.translated, length);
        EXPECT_EQ(extents[0].kind, uint32_t{DMAPROBE_EXTENT_FOREIGN});
        EXPECT_EQ(extents[0].phys, bars[bar].start + offset);
    }

    uint32_t bar = 0;
};

TEST_F(Resource, MapTranslateUnmap) {
    const uint64_t size = bars[bar].size();

    for (const auto& [offset, length] : {std::pair<uint64_t, uint64_t>{0, size},
                                         {0, 4},
                                         {g - 4, 8},
                                         {g, g},
                                         {size - 1, 1},
                                         {g / 2, 2 * g}}) {
        for (const uint32_t dir :
             {DMAPROBE_DIR_BIDIRECTIONAL, DMAPROBE_DIR_TO_DEVICE, DMAPROBE_DIR_FROM_DEVICE}) {
            dmaprobe_map_resource map = part(offset, length);
            std::vector<dmaprobe_segment> segments;

            SCOPED_TRACE(std::format("{:#x}+{:#x}, direction {}", offset, length, dir));
            map.dir = dir;
            ASSERT_OK(s(map));
            EXPECT_NE(map.id, 0u);
            EXPECT_LE(map.dma_addr + length - 1, s.limits().dma_mask);
            if (iommu)
                expect_leads_to_bar(map.dma_addr, offset, length);
            else
                EXPECT_EQ(map.dma_addr, bars[bar].start + offset);
            ASSERT_OK(s.segments(segments, map.id));
            ASSERT_EQ(segments.size(), 1u);
            EXPECT_EQ(segments[0].dma_addr, map.dma_addr);
            EXPECT_EQ(segments[0].length, length);
            ASSERT_OK(s.unmap(map.id));
            EXPECT_ERRNO(s.unmap(map.id), ENOENT);
            if (iommu)
                expect_hole(map.dma_addr, length);
        }
    }
    EXPECT_OK(s.set_mask(s.limits().dma_mask)) << "something is still mapped";
}

TEST_F(Resource, HasNothingToSync) {
    dmaprobe_map_resource map = part(0, g);
    dmaprobe_sync sync = {};

    ASSERT_OK(s(map));
    sync.id = map.id;
    sync.length = g;
    EXPECT_ERRNO(s(sync), EOPNOTSUPP);
    sync.target = DMAPROBE_SYNC_FOR_DEVICE;
    EXPECT_ERRNO(s(sync), EOPNOTSUPP);
    EXPECT_OK(s.unmap(map.id));
}

TEST_F(Resource, BadRanges) {
    const uint64_t size = bars[bar].size();

    for (const auto& [offset, length] : {std::pair<uint64_t, uint64_t>{0, 0},
                                         {0, size + 1},
                                         {1, size},
                                         {size, 1},
                                         {size - 1, 2},
                                         {size, 0},
                                         {~uint64_t{0}, 1},
                                         {~uint64_t{0}, 2},
                                         {1, ~uint64_t{0}},
                                         {uint64_t{1} << 32, g},
                                         {0, (uint64_t{1} << 32) + g}}) {
        dmaprobe_map_resource map = part(offset, length);

        EXPECT_ERRNO(s(map), EINVAL) << std::format("{:#x}+{:#x}", offset, length);
    }
}

TEST_F(Bars, OnlyMemory) {
    unsigned found = 0;

    for (uint32_t i = 0; i < bars.size(); i++) {
        dmaprobe_map_resource map = {};

        map.length = 4;
        map.bar = i;
        if (bars[i].memory())
            continue;
        found++;
        EXPECT_ERRNO(s(map), ENXIO) << "BAR " << i << (bars[i].flags & resource_io ? ", I/O" : "");
    }
    RecordProperty("bars_that_are_not_memory", std::to_string(found));
    for (const uint32_t bad : {6u, 7u, 0x80000000u, 0xffffffffu}) {
        dmaprobe_map_resource map = {};

        map.length = 4;
        map.bar = bad;
        EXPECT_ERRNO(s(map), EINVAL) << "BAR " << bad;
    }
}

// Without an IOMMU the BAR's own address must be within the mask.
TEST_F(Resource, BeyondTheMask) {
    dmaprobe_map_resource map = part(0, g);

    ASSERT_OK(s.set_mask(0xfffffff));
    if (iommu) {
        ASSERT_OK(s(map));
        EXPECT_LE(map.dma_addr + g - 1, 0xfffffffu);
        expect_leads_to_bar(map.dma_addr, 0, g);
    } else if (bars[bar].start <= 0xfffffff) {
        GTEST_SKIP() << "the BAR lies below 256 MiB";
    } else {
        EXPECT_ERRNO(s(map), EIO);
    }
}

// An IOMMU cannot give away less than a granule, and the rest of it is not the BAR's.
TEST_F(Bars, SmallerThanAGranule) {
    bool found = false;

    for (uint32_t i = 0; i < bars.size(); i++) {
        dmaprobe_map_resource map = {};

        if (!bars[i].memory() || bars[i].size() >= g)
            continue;
        found = true;
        map.bar = i;
        map.length = bars[i].size();
        EXPECT_ERRNO(s(map), iommu ? EINVAL : 0) << "BAR " << i;
    }
    if (!found)
        GTEST_SKIP() << "the device has no memory BAR smaller than a granule";
}

class ResourceLink : public Resource {
protected:
    void SetUp() override {
        Resource::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        for (const uint32_t feature : {DMAPROBE_FEATURE_DMA_IOVA, DMAPROBE_FEATURE_MAP_PHYS})
            if (const auto why = s.missing(feature))
                GTEST_SKIP() << *why;
        if (!iommu)
            GTEST_SKIP() << "no IOMMU translates for the device";
        ASSERT_OK(s.iova_alloc(io, 8 * g));
        ASSERT_OK(s.alloc(b, 8 * g));
    }

    int link(uint64_t offset, uint64_t bar_offset, uint64_t length) const {
        dmaprobe_iova_link op = {};

        op.id = io.id;
        op.bar = bar;
        op.buffer_offset = bar_offset;
        op.offset = offset;
        op.length = length;
        op.attrs = DMAPROBE_ATTR_MMIO;
        return s(op);
    }

    int unlink(uint64_t offset, uint64_t length, uint64_t attrs) const {
        dmaprobe_iova_unlink op = {};

        op.id = io.id;
        op.offset = offset;
        op.length = length;
        op.attrs = attrs;
        return s(op);
    }

    int destroy(uint64_t length, uint64_t attrs) const {
        dmaprobe_iova_destroy op = {};

        op.id = io.id;
        op.mapped_len = length;
        op.attrs = attrs;
        return s(op);
    }

    dmaprobe_iova_alloc io = {};
    Buffer b;
};

TEST_F(ResourceLink, BarAndMemoryInOneSpace) {
    const uint64_t mmio = DMAPROBE_ATTR_MMIO;

    ASSERT_OK(link(0, 2 * g, 2 * g));
    ASSERT_OK(s.link(io.id, 2 * g, b, 0, 2 * g));
    ASSERT_OK(link(4 * g, 0, g));
    ASSERT_OK(s.iova_sync(io.id, 0, 5 * g));
    expect_leads_to_bar(io.addr, 2 * g, 2 * g);
    expect_leads_to(io.addr + 2 * g, 2 * g, b, 0);
    expect_leads_to_bar(io.addr + 4 * g, 0, g);

    // One value of attributes cannot be that of all of them.
    for (const uint64_t attrs : {uint64_t{0}, mmio}) {
        EXPECT_ERRNO(destroy(5 * g, attrs), EINVAL);
        EXPECT_ERRNO(unlink(0, 4 * g, attrs), EINVAL);
    }
    EXPECT_ERRNO(unlink(0, 2 * g, 0), EINVAL);
    EXPECT_ERRNO(unlink(2 * g, 2 * g, mmio), EINVAL);
    expect_leads_to_bar(io.addr, 2 * g, 2 * g);

    ASSERT_OK(unlink(2 * g, 2 * g, 0));
    expect_hole(io.addr + 2 * g, 2 * g);
    EXPECT_OK(s.free(b));
    ASSERT_OK(unlink(4 * g, g, mmio));
    expect_hole(io.addr + 4 * g, g);
    EXPECT_ERRNO(destroy(2 * g, 0), EINVAL);
    ASSERT_OK(destroy(2 * g, mmio));
    expect_hole(io.addr, 8 * g);
}

TEST_F(ResourceLink, BadLinks) {
    const uint64_t size = bars[bar].size();
    dmaprobe_iova_link op = {};

    EXPECT_ERRNO(link(0, size, g), EINVAL);
    EXPECT_ERRNO(link(0, size - g, 2 * g), EINVAL);
    EXPECT_ERRNO(link(0, ~uint64_t{0} - g + 1, g), EINVAL);
    EXPECT_ERRNO(link(0, 0, 0), EINVAL);
    EXPECT_ERRNO(link(0, 4, 4), EINVAL) << "lies in its granule as the IOVA does not";
    EXPECT_ERRNO(link(g, 4, 4), EINVAL);
    EXPECT_ERRNO(link(7 * g, 0, 2 * g), EINVAL);

    op.id = io.id;
    op.length = g;
    op.attrs = DMAPROBE_ATTR_MMIO;
    op.bar = bar;
    op.buffer_id = b.id;
    EXPECT_ERRNO(s(op), EINVAL) << "a BAR and a buffer";
    op.buffer_id = 0;
    op.bar = 6;
    EXPECT_ERRNO(s(op), EINVAL) << "no such number";
    for (uint32_t i = 0; i < bars.size(); i++) {
        op.bar = i;
        if (!bars[i].memory()) {
            EXPECT_ERRNO(s(op), ENXIO) << "BAR " << i;
        }
    }
    op.bar = bar;
    op.attrs = 0;
    op.buffer_id = b.id;
    if (bar) {
        EXPECT_ERRNO(s(op), EINVAL) << "a BAR that is not meant";
    }
    expect_hole(io.addr, 8 * g);
    EXPECT_OK(s.iova_free(io.id));
}

// Closing undoes each link with its own attributes.
TEST_F(ResourceLink, CloseWithMixedLinks) {
    ASSERT_OK(link(0, 0, g));
    ASSERT_OK(s.link(io.id, g, b, 0, g));
    ASSERT_OK(link(2 * g, g, g));
    ASSERT_OK(s.close());

    Raw again = Raw::open(bdf);
    ASSERT_TRUE(again);
    std::vector<Extent> extents;
    ASSERT_OK(again.translate(extents, io.addr, 8 * g));
    ASSERT_EQ(extents.size(), 1u);
    EXPECT_EQ(extents[0].kind, uint32_t{DMAPROBE_EXTENT_HOLE});
}

} // namespace
} // namespace selftest

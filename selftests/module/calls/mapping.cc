// SPDX-License-Identifier: GPL-2.0-only
// Streaming mappings: single, page and phys.

#include "support/fixture.h"

#include <algorithm>
#include <cerrno>
#include <format>
#include <map>

namespace selftest {
namespace {

struct MapCase {
    uint32_t kind;
    uint32_t dir;
};

std::string case_name(const MapCase& one) {
    static const char* const kinds[] = {"single", "page", "phys"};
    static const char* const dirs[] = {"bidirectional", "to_device", "from_device"};

    return std::format("{}_{}", kinds[one.kind], dirs[one.dir]);
}

class Mapping : public DeviceTest {
protected:
    static dmaprobe_map range(const Buffer& b, uint64_t offset, uint64_t length) {
        dmaprobe_map op = {};

        op.kind = DMAPROBE_MAP_KIND_PAGE;
        op.buffer_id = b.id;
        op.buffer_offset = offset;
        op.length = length;
        return op;
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

    // What every address that the API gives must be.
    void expect_good_address(const dmaprobe_map& map) const {
        const uint64_t mask = s.limits().dma_mask;

        EXPECT_NE(map.id, 0u);
        EXPECT_NE(map.dma_addr, 0u);
        EXPECT_LE(map.need_sync, 1u);
        EXPECT_LE(map.dma_addr + map.length - 1, mask);
        EXPECT_GE(map.dma_addr + map.length - 1, map.dma_addr);
        if (iommu || !map.need_sync) {
            EXPECT_EQ(map.dma_addr % granule, map.buffer_offset % granule)
                << "does not lie in its granule as the memory does";
        }
    }
};

class MappingWays : public Mapping, public testing::WithParamInterface<MapCase> {
protected:
    void SetUp() override {
        Mapping::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (GetParam().kind != DMAPROBE_MAP_KIND_PHYS)
            return;
        if (const auto why = s.missing(DMAPROBE_FEATURE_MAP_PHYS))
            GTEST_SKIP() << *why;
    }

    dmaprobe_map range(const Buffer& b, uint64_t offset, uint64_t length) const {
        dmaprobe_map op = Mapping::range(b, offset, length);

        op.kind = GetParam().kind;
        op.dir = GetParam().dir;
        return op;
    }
};

INSTANTIATE_TEST_SUITE_P(
    All, MappingWays,
    testing::Values(MapCase{DMAPROBE_MAP_KIND_SINGLE, DMAPROBE_DIR_BIDIRECTIONAL},
                    MapCase{DMAPROBE_MAP_KIND_SINGLE, DMAPROBE_DIR_TO_DEVICE},
                    MapCase{DMAPROBE_MAP_KIND_SINGLE, DMAPROBE_DIR_FROM_DEVICE},
                    MapCase{DMAPROBE_MAP_KIND_PAGE, DMAPROBE_DIR_BIDIRECTIONAL},
                    MapCase{DMAPROBE_MAP_KIND_PAGE, DMAPROBE_DIR_TO_DEVICE},
                    MapCase{DMAPROBE_MAP_KIND_PAGE, DMAPROBE_DIR_FROM_DEVICE},
                    MapCase{DMAPROBE_MAP_KIND_PHYS, DMAPROBE_DIR_BIDIRECTIONAL},
                    MapCase{DMAPROBE_MAP_KIND_PHYS, DMAPROBE_DIR_TO_DEVICE},
                    MapCase{DMAPROBE_MAP_KIND_PHYS, DMAPROBE_DIR_FROM_DEVICE}),
    [](const auto& row) { return case_name(row.param); });

// Every granule leads where it should, and nowhere once it is unmapped.
TEST_P(MappingWays, MapTranslateUnmap) {
    const uint64_t page = page_size();
    Buffer b;

    ASSERT_OK(s.alloc(b, 16 * page));
    const std::pair<uint64_t, uint64_t> ranges[] = {
        {0, 16 * page},       {0, 1},
        {page, page},         {page - 1, 2},
        {5 * page + 3, 7},    {15 * page, page},
        {16 * page - 1, 1},   {100, 3 * page},
        {page / 2, 8 * page},
    };
    for (const auto& [offset, length] : ranges) {
        SCOPED_TRACE(std::format("buffer offset {:#x}, length {:#x}", offset, length));
        dmaprobe_map map = range(b, offset, length);

        ASSERT_OK(s(map));
        expect_good_address(map);
        if (iommu) {
            expect_leads_to(map.dma_addr, length, b, offset);
            // Page by page as well: the whole range's extents come from one walk.
            for (uint64_t at = 0; at < length; at += page)
                expect_leads_to(map.dma_addr + at, 1, b, offset + at);
        }
        EXPECT_OK(sync(map.id, 0, length, DMAPROBE_SYNC_FOR_CPU));
        EXPECT_OK(sync(map.id, 0, length, DMAPROBE_SYNC_FOR_DEVICE));
        ASSERT_OK(s.unmap(map.id));
        if (iommu)
            expect_hole(map.dma_addr, length);
        EXPECT_ERRNO(s.unmap(map.id), ENOENT) << "unmapped twice";
        EXPECT_ERRNO(sync(map.id, 0, 1), ENOENT);
    }
    EXPECT_OK(s.free(b));
}

TEST_P(MappingWays, PagesOfAScatteredBuffer) {
    const uint64_t page = page_size();
    Buffer b;
    std::vector<dmaprobe_map> maps;

    ASSERT_OK(s.alloc(b, 8 * page, DMAPROBE_BUFFER_KIND_SCATTERED));
    for (uint64_t i = 0; i < 8; i++) {
        dmaprobe_map map = range(b, i * page, page);

        ASSERT_OK(s(map));
        expect_good_address(map);
        maps.push_back(map);
    }
    for (const dmaprobe_map& map : maps) {
        if (iommu)
            expect_leads_to(map.dma_addr, page, b, map.buffer_offset);
        EXPECT_OK(s.unmap(map.id));
    }
}

TEST_P(MappingWays, BadRanges) {
    const uint64_t page = page_size();
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page));
    const std::pair<uint64_t, uint64_t> ranges[] = {
        {0, 0},
        {page, 0},
        {0, 4 * page + 1},
        {1, 4 * page},
        {4 * page - 1, 2},
        {4 * page, 1},
        {4 * page, 0},
        {~uint64_t{0}, 1},
        {1, ~uint64_t{0}},
        {~uint64_t{0} - page + 1, page},
        {uint64_t{1} << 63, uint64_t{1} << 63},
        {uint64_t{1} << 32, page},
        {0, uint64_t{1} << 32},
        {0, (uint64_t{1} << 32) + page},
    };
    for (const auto& [offset, length] : ranges) {
        dmaprobe_map map = range(b, offset, length);

        EXPECT_ERRNO(s(map), EINVAL) << std::format("offset {:#x}, length {:#x}", offset, length);
    }
    EXPECT_OK(s.free(b)) << "a refused mapping holds the buffer";
}

TEST_P(MappingWays, SyncRanges) {
    const uint64_t page = page_size();
    const uint64_t length = 2 * page + 100;
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * page));
    dmaprobe_map map = range(b, 10, length);
    ASSERT_OK(s(map));
    for (const uint32_t target : {DMAPROBE_SYNC_FOR_CPU, DMAPROBE_SYNC_FOR_DEVICE}) {
        SCOPED_TRACE(std::format("target {}", target));
        EXPECT_OK(sync(map.id, 0, 1, target));
        EXPECT_OK(sync(map.id, length - 1, 1, target));
        EXPECT_OK(sync(map.id, page - 11, 3, target));
        EXPECT_OK(sync(map.id, page, page, target));
        EXPECT_ERRNO(sync(map.id, 0, 0, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, 0, length + 1, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, 1, length, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, length, 1, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, ~uint64_t{0}, 1, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, 1, ~uint64_t{0}, target), EINVAL);
        EXPECT_ERRNO(sync(map.id, ~uint64_t{0} - 5, 10, target), EINVAL);
    }
}

TEST_F(Mapping, PhysWithoutTheKernelsCall) {
    const auto why = s.missing(DMAPROBE_FEATURE_MAP_PHYS);
    if (!why)
        GTEST_SKIP() << "this kernel has dma_map_phys()";
    Buffer b;

    ASSERT_OK(s.alloc(b, page_size()));
    dmaprobe_map map = range(b, 0, page_size());
    map.kind = DMAPROBE_MAP_KIND_PHYS;
    EXPECT_ERRNO(s(map), EOPNOTSUPP);
    EXPECT_OK(s.free(b));
}

// Live mappings never share an address, also when they map the same memory.
TEST_F(Mapping, LiveMappingsDoNotOverlap) {
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates: an address is the memory's own";
    const uint64_t page = page_size();
    std::map<uint64_t, uint64_t> live; // granules: first to one past the last
    Buffer b;

    ASSERT_OK(s.alloc(b, 16 * page));
    for (int i = 0; i < 200; i++) {
        const auto n = static_cast<uint64_t>(i);
        dmaprobe_map map = range(b, n * 97 % page, 1 + n * 1013 % (15 * page));

        ASSERT_OK(s(map));
        expect_good_address(map);
        const uint64_t first = map.dma_addr / granule;
        const uint64_t end = (map.dma_addr + map.length - 1) / granule + 1;
        const auto next = live.lower_bound(first);
        if (next != live.end()) {
            EXPECT_LE(end, next->first);
        }
        if (next != live.begin()) {
            EXPECT_LE(std::prev(next)->second, first);
        }
        live.emplace(first, end);
    }
}

TEST_F(Mapping, MaskIsHonoured) {
    const uint64_t limit = uint64_t{256} << 20;
    Buffer b;

    ASSERT_OK(s.set_mask(limit - 1));
    ASSERT_EQ(s.limits().dma_mask, limit - 1);
    ASSERT_OK(s.alloc(b, 64 * page_size()));
    for (uint64_t i = 0; i < 64; i++) {
        dmaprobe_map map = range(b, 0, (i + 1) * page_size());
        const int err = s(map);

        if (!iommu && err == EIO)
            GTEST_SKIP() << "no IOMMU translates, and the memory is beyond the mask";
        ASSERT_OK(err);
        EXPECT_LE(map.dma_addr + map.length, limit);
        expect_good_address(map);
    }
}

TEST_F(Mapping, MaskIsFixedWhileMapped) {
    const uint64_t before = s.limits().dma_mask;
    Buffer b;

    ASSERT_OK(s.alloc(b, page_size()));
    dmaprobe_map map = range(b, 0, page_size());
    ASSERT_OK(s(map));
    EXPECT_ERRNO(s.set_mask(0xfffffff), EBUSY);
    EXPECT_ERRNO(s.set_mask(0xfffffff, DMAPROBE_SET_MASK_COHERENT), EBUSY);
    EXPECT_EQ(s.limits().dma_mask, before);
    // The mask is the device's, so another session's mapping holds it as well.
    Raw other = Raw::open(bdf);
    ASSERT_TRUE(other);
    EXPECT_ERRNO(other.set_mask(0xfffffff), EBUSY);
    ASSERT_OK(s.unmap(map.id));
    EXPECT_OK(other.set_mask(0xfffffff));
    EXPECT_EQ(s.limits().dma_mask, 0xfffffffu);
}

// A small mask can be used up; that is an error like any other, and over when
// something is unmapped.
TEST_F(Mapping, ExhaustedMask) {
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates: there is no IOVA space to use up";
    const uint64_t limit = uint64_t{16} << 20;
    const uint64_t length = 256 * page_size();
    std::vector<uint32_t> ids;
    Buffer b;
    int err = 0;

    ASSERT_OK(s.set_mask(limit - 1));
    ASSERT_OK(s.alloc(b, length));
    while (ids.size() <= limit / length) {
        dmaprobe_map map = range(b, 0, length);

        err = s(map);
        if (err)
            break;
        EXPECT_LE(map.dma_addr + map.length, limit);
        ids.push_back(map.id);
    }
    EXPECT_ERRNO(err, ENOMEM);
    EXPECT_GE(ids.size(), limit / length / 2);
    ASSERT_FALSE(ids.empty());
    ASSERT_OK(s.unmap(ids.back()));
    ids.pop_back();
    // A lazy domain gives the space back within its flush window.
    dmaprobe_map map = range(b, 0, length);
    EXPECT_TRUE(wait_for([&] { return s(map) == 0; }, std::chrono::seconds(5)))
        << "space that was given back cannot be had again";
    ids.push_back(map.id);
    for (const uint32_t id : ids)
        EXPECT_OK(s.unmap(id));
    EXPECT_OK(s.free(b));
    EXPECT_OK(s.set_mask(0xffffffff));
}

} // namespace
} // namespace selftest

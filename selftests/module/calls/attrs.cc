// SPDX-License-Identifier: GPL-2.0-only
// DMA attributes: each where it is allowed, in every call that takes it. Where it is
// not, StructsWithAttributes (../abi/structs.cc) refuses it for every struct.

#include "support/fixture.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <format>

namespace selftest {
namespace {

struct Attr {
    const char* name;
    uint64_t value;
};

const Attr map_attrs[] = {
    {"none", 0},
    {"weak_ordering", DMAPROBE_ATTR_WEAK_ORDERING},
    {"skip_cpu_sync", DMAPROBE_ATTR_SKIP_CPU_SYNC},
    {"no_warn", DMAPROBE_ATTR_NO_WARN},
    {"privileged", DMAPROBE_ATTR_PRIVILEGED},
    {"require_coherent", DMAPROBE_ATTR_REQUIRE_COHERENT},
    {"all", DMAPROBE_MAP_ATTRS},
};

// What the kernel must answer for an attribute that the call takes.
class Attributes : public DeviceTest, public testing::WithParamInterface<Attr> {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        iommu = s.translated();
        g = s.granule();
        ASSERT_OK(s.alloc(b, 4 * page_size()));
        if (!(attrs() & DMAPROBE_ATTR_REQUIRE_COHERENT))
            return;
        if (!kernel_has(attrs()) || !(s.limits().props & DMAPROBE_DEVICE_COHERENT))
            want = EOPNOTSUPP;
        else if (s.bounces())
            want = EIO;
    }

    static uint64_t attrs() { return GetParam().value; }
    bool kernel_has(uint64_t some) const { return (s.info().attrs & some) == some; }

    // Unmapping needs the attributes again, and nothing else with them; but whether bytes
    // are copied is decided then.
    void expect_unmapped_with_its_own(uint32_t id) const {
        constexpr uint64_t skip = DMAPROBE_ATTR_SKIP_CPU_SYNC;

        for (const Attr& other : map_attrs) {
            if ((other.value & ~skip) == (attrs() & ~skip))
                continue;
            SCOPED_TRACE(other.name);
            EXPECT_ERRNO(s.unmap(id, other.value), kernel_has(other.value) ? EINVAL : EOPNOTSUPP);
        }
        EXPECT_ERRNO(s.unmap(id, attrs() | DMAPROBE_ATTR_WRITE_COMBINE), EINVAL);
        EXPECT_ERRNO(s.unmap(id, attrs() | uint64_t{1} << 40), EOPNOTSUPP);
        EXPECT_OK(s.unmap(id, attrs() ^ skip));
        EXPECT_ERRNO(s.unmap(id, attrs()), ENOENT);
    }

    Buffer b;
    bool iommu = false;
    uint64_t g = 0;
    int want = 0;
};

INSTANTIATE_TEST_SUITE_P(All, Attributes, testing::ValuesIn(map_attrs),
                         [](const auto& row) { return row.param.name; });

TEST_P(Attributes, Map) {
    for (const uint32_t kind :
         {DMAPROBE_MAP_KIND_SINGLE, DMAPROBE_MAP_KIND_PAGE, DMAPROBE_MAP_KIND_PHYS}) {
        for (const uint64_t length : {uint64_t{100}, uint64_t{3 * page_size()}}) {
            dmaprobe_map map = {};

            SCOPED_TRACE(std::format("kind {}, {} bytes", kind, length));
            map.kind = kind;
            map.buffer_id = b.id;
            map.buffer_offset = 50;
            map.length = length;
            map.attrs = attrs();
            const bool offered =
                kind != DMAPROBE_MAP_KIND_PHYS || !s.missing(DMAPROBE_FEATURE_MAP_PHYS);
            const int err = offered ? want : EOPNOTSUPP;
            EXPECT_ERRNO(s(map), err);
            if (err)
                continue;
            if (iommu)
                expect_leads_to(map.dma_addr, length, b, 50);
            expect_unmapped_with_its_own(map.id);
            if (iommu)
                expect_hole(map.dma_addr, length);
        }
    }
    EXPECT_OK(s.free(b));
}

TEST_P(Attributes, MapSg) {
    const dmaprobe_sg_entry entries[] = {{0, page_size(), b.id, 0}, {page_size(), 100, b.id, 0}};

    for (const uint32_t kind : {DMAPROBE_MAP_SG_KIND_LIST, DMAPROBE_MAP_SG_KIND_TABLE}) {
        std::vector<dmaprobe_segment> segments;
        dmaprobe_map_sg map = {};

        SCOPED_TRACE(std::format("kind {}", kind));
        EXPECT_ERRNO(s.map_sg(map, entries, kind, DMAPROBE_DIR_BIDIRECTIONAL, attrs()), want);
        if (want)
            continue;
        ASSERT_OK(s.segments(segments, map.id));
        if (iommu)
            expect_leads_to(segments[0].dma_addr, segments[0].length, b, 0);
        expect_unmapped_with_its_own(map.id);
        if (iommu)
            expect_hole(segments[0].dma_addr, segments[0].length);
    }
    EXPECT_OK(s.free(b));
}

TEST_P(Attributes, MapResource) {
    dmaprobe_map_resource map = {};

    map.length = g;
    map.attrs = attrs();
    if (attrs() & DMAPROBE_ATTR_REQUIRE_COHERENT) {
        EXPECT_ERRNO(s(map), kernel_has(attrs()) ? EINVAL : EOPNOTSUPP);
        return;
    }
    const int err = s(map);
    if (err == ENXIO)
        GTEST_SKIP() << "the device has no memory BAR 0";
    if (err == EIO && s.bounces())
        GTEST_SKIP() << "everything is bounced, and a BAR cannot be";
    ASSERT_OK(err);
    expect_unmapped_with_its_own(map.id);
    if (iommu)
        expect_hole(map.dma_addr, g);
}

TEST_P(Attributes, Link) {
    dmaprobe_iova_alloc io = {};
    dmaprobe_iova_link link = {};
    dmaprobe_iova_unlink unlink = {};
    dmaprobe_iova_destroy destroy = {};

    if (const auto why = s.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << *why;
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates for the device";
    ASSERT_OK(s.iova_alloc(io, 4 * g));
    link.id = unlink.id = destroy.id = io.id;
    link.buffer_id = b.id;
    link.attrs = unlink.attrs = attrs();
    for (const uint64_t at : {0 * g, g, 3 * g}) {
        link.offset = link.buffer_offset = at;
        link.length = g;
        EXPECT_ERRNO(s(link), want);
    }
    if (want)
        return;
    expect_leads_to(io.addr, 2 * g, b, 0);

    // It must be named again, and nothing else with it.
    unlink.length = destroy.mapped_len = 2 * g;
    for (const Attr& other : map_attrs) {
        if (other.value == attrs())
            continue;
        SCOPED_TRACE(other.name);
        unlink.attrs = destroy.attrs = other.value;
        EXPECT_ERRNO(s(unlink), kernel_has(other.value) ? EINVAL : EOPNOTSUPP);
        EXPECT_ERRNO(s(destroy), kernel_has(other.value) ? EINVAL : EOPNOTSUPP);
    }
    unlink.attrs = destroy.attrs = attrs();
    unlink.offset = 3 * g;
    unlink.length = g;
    EXPECT_OK(s(unlink));
    expect_leads_to(io.addr, 2 * g, b, 0);
    EXPECT_OK(s(destroy));
    expect_hole(io.addr, 4 * g);
    EXPECT_OK(s.free(b));
}

// Where memory is bounced, unmapping copies back what the device wrote, unless it
// is asked not to. `swiotlb=force` without a translating IOMMU makes it so.
TEST_P(Attributes, UnmapCopiesWhatIsBounced) {
    const Memory memory = s.mmap(b);

    if (!s.bounces())
        GTEST_SKIP() << "the memory is not bounced";
    if (want)
        GTEST_SKIP() << "the call is refused with " << strerrorname_np(want);
    ASSERT_TRUE(memory);
    for (const uint64_t unmap_attrs : {attrs(), attrs() ^ DMAPROBE_ATTR_SKIP_CPU_SYNC}) {
        dmaprobe_map map = {};

        SCOPED_TRACE(std::format("unmapped with {:#x}", unmap_attrs));
        memset(memory.data(), 1, memory.size());
        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.dir = DMAPROBE_DIR_BIDIRECTIONAL;
        map.buffer_id = b.id;
        map.length = b.length;
        map.attrs = attrs();
        ASSERT_OK(s(map));
        memset(memory.data(), 2, memory.size());
        ASSERT_OK(s.unmap(map.id, unmap_attrs));
        // A mapping that copies nothing has nothing of the program's to give back.
        const bool left =
            std::ranges::all_of(memory.bytes(), [&](std::byte x) { return x == std::byte{2}; });
        EXPECT_EQ(left, (unmap_attrs & DMAPROBE_ATTR_SKIP_CPU_SYNC) != 0);
    }
}

// Memory that a confidential guest shares with its host: for DMAPROBE_MAP alone, and of no
// use under an IOMMU.
TEST_F(IovaTest, SharedWithTheHost) {
    dmaprobe_map map = {};
    Buffer b;

    ASSERT_OK(s.alloc(b, page_size()));
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    map.length = page_size();
    map.attrs = DMAPROBE_ATTR_CC_SHARED;
    EXPECT_ERRNO(s(map), s.info().attrs & DMAPROBE_ATTR_CC_SHARED ? ENOMEM : EOPNOTSUPP);
    EXPECT_OK(s.free(b));
}

// Links of different attributes can only be undone one by one.
TEST_F(IovaTest, MixedAttributes) {
    const uint64_t g = granule;
    const uint64_t attrs[] = {0, DMAPROBE_ATTR_WEAK_ORDERING, DMAPROBE_ATTR_SKIP_CPU_SYNC,
                              DMAPROBE_ATTR_WEAK_ORDERING};
    dmaprobe_iova_destroy destroy = {};
    dmaprobe_iova_alloc io = {};
    Buffer b;

    ASSERT_OK(s.alloc(b, 4 * g));
    ASSERT_OK(s.iova_alloc(io, 4 * g));
    for (uint64_t i = 0; i < 4; i++) {
        dmaprobe_iova_link link = {};

        link.id = io.id;
        link.buffer_id = b.id;
        link.offset = link.buffer_offset = i * g;
        link.length = g;
        link.attrs = attrs[i];
        ASSERT_OK(s(link));
    }
    destroy.id = io.id;
    destroy.mapped_len = 4 * g;
    for (const uint64_t one : attrs) {
        destroy.attrs = one;
        EXPECT_ERRNO(s(destroy), EINVAL);
    }
    expect_leads_to(io.addr, 4 * g, b, 0);
    for (const uint64_t i : {2, 0, 3, 1}) {
        dmaprobe_iova_unlink unlink = {};

        unlink.id = io.id;
        unlink.offset = i * g;
        unlink.length = g;
        unlink.attrs = attrs[i];
        ASSERT_OK(s(unlink));
        expect_hole(io.addr + i * g, g);
    }
    EXPECT_OK(s.iova_free(io.id));
    EXPECT_OK(s.free(b));
}

} // namespace
} // namespace selftest

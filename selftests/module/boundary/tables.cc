// SPDX-License-Identifier: GPL-2.0-only
// The boundary: the device's page tables. Who reads them while others change them, what a
// list maps beside its entries, and how much memory they take.

#include "boundary.h"

#include "support/alloc.h"

#include <linux/udmabuf.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <list>
#include <mutex>
#include <optional>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

#ifndef MAP_HUGE_1GB
#define MAP_HUGE_1GB (30 << 26)
#endif

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr uint64_t mib = uint64_t{1} << 20;
constexpr uint64_t gib = uint64_t{1} << 30;

// --- readers against changers ------------------------------------------------------

// A session in which one thread changes page tables, while others translate what it is
// just changing. The kernel gives the tables back without regard to who reads them.
class World {
public:
    World(const Raw& session, std::string device)
        : s(session), bdf(std::move(device)), page(page_size()) {}

    const Raw& s;
    const std::string bdf;
    const uint64_t page;
    std::atomic<bool> stop = false;
    std::atomic<uint64_t> rounds = 0;
    // The buffer to which all leads that is no hole; 0 where there are several, or where
    // the memory can be gone before it is looked up.
    std::atomic<uint32_t> only = 0;
    std::string skip;

    // What is to be translated from now on.
    void show(uint64_t iova, uint64_t length) {
        iova_ = iova;
        length_ = length;
    }
    uint64_t iova() const { return iova_; }
    uint64_t length() const { return length_; }

    void complain(const std::string& what) {
        const std::scoped_lock locked(lock_);

        if (odd_.empty())
            odd_ = what;
        stop = true;
    }
    bool check(std::string_view what, int err) {
        if (err)
            complain(std::format("{}: {}", what, strerrorname_np(err)));
        return !err;
    }
    std::string odd() const {
        const std::scoped_lock locked(lock_);

        return odd_;
    }

private:
    std::atomic<uint64_t> iova_ = 0;
    std::atomic<uint64_t> length_ = 0;
    mutable std::mutex lock_;
    std::string odd_;
};

void change_maps(World& w) {
    Buffer b;

    if (!w.check("buffer", w.s.alloc(b, 4 * mib)))
        return;
    w.only = b.id;
    for (uint64_t i = 0; !w.stop; i++, w.rounds++) {
        const std::array lengths = {w.page, 16 * w.page, 2 * mib, 4 * mib};
        dmaprobe_map map = {};

        if (!w.check("map", map_range(w.s, map, b, lengths[i % lengths.size()])))
            return;
        w.show(map.dma_addr, map.length);
        w.check("unmap", w.s.unmap(map.id));
    }
}

void change_lists(World& w) {
    std::vector<dmaprobe_sg_entry> entries(512);
    Buffer b;

    if (!w.check("buffer", scattered(w.s, b, entries.size() * w.page, w.page)))
        return;
    w.only = b.id;
    for (size_t i = 0; i < entries.size(); i++)
        entries[i] = {.offset = i * w.page, .length = w.page, .buffer_id = b.id, .__reserved = 0};
    for (; !w.stop; w.rounds++) {
        std::vector<dmaprobe_segment> segments;
        dmaprobe_map_sg list = {};

        if (!w.check("map_sg", w.s.map_sg(list, entries)) ||
            !w.check("segments", w.s.segments(segments, list.id)))
            return;
        w.show(segments.front().dma_addr, b.length);
        w.check("unmap", w.s.unmap(list.id));
    }
}

// Link @count times @piece, which is physically contiguous, side by side; and unlink
// them at once, one by one, or with the space.
void change_links(World& w, const Buffer& b, uint64_t piece, uint64_t count) {
    const uint64_t all = piece * count;

    w.only = b.id;
    for (; !w.stop; w.rounds++) {
        dmaprobe_iova_alloc space = {};

        if (!w.check("iova_alloc", w.s.iova_alloc(space, all)))
            return;
        w.show(space.addr, all);
        for (uint64_t at = 0; at < all; at += piece)
            if (!w.check("link", w.s.link(space.id, at, b, at % b.length, piece)))
                return;
        switch (w.rounds % 3) {
        case 0:
            w.check("destroy", w.s.iova_destroy(space.id, all));
            continue;
        case 1:
            w.check("unlink", w.s.unlink(space.id, 0, all));
            break;
        default:
            for (uint64_t at = 0; at < all; at += piece)
                w.check("unlink", w.s.unlink(space.id, at, piece));
        }
        w.check("iova_free", w.s.iova_free(space.id));
    }
}

// The tables that have 4 KiB pages in them go.
void change_links_of_a_page(World& w) {
    Buffer b;

    if (w.check("buffer", scattered(w.s, b, 512 * w.page, w.page)))
        change_links(w, b, w.page, 512);
}

// The tables that have 2 MiB pages in them go.
void change_links_of_2_mib(World& w) {
    Buffer b;

    if (scattered(w.s, b, 2 * mib, 2 * mib))
        w.skip = "no 2 MiB of contiguous memory are left";
    else
        change_links(w, b, 2 * mib, 512);
}

void change_links_of_1_gib(World& w) {
    const Setting pages("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "1");
    void* at = mmap(nullptr, gib, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_1GB, -1, 0);
    Buffer b;

    if (at == MAP_FAILED) {
        w.skip = "there is no huge page of 1 GiB to be had";
        return;
    }
    const Memory memory(at, gib);
    if (w.check("pin", w.s.pin(b, at, gib)))
        change_links(w, b, gib, 1);
}

void change_allocations(World& w) {
    for (; !w.stop; w.rounds++) {
        Allocation a;

        if (!w.check("alloc", allocate(w.s, a, {"", static_cast<uint32_t>(w.rounds % 4)}, 2 * mib)))
            return;
        w.show(a.dma_addr, a.length);
        // Who translates holds it for a moment.
        int err = EBUSY;
        while (err == EBUSY && !w.stop)
            err = release(w.s, a);
        w.check("destroy", w.stop ? 0 : err);
    }
}

int import(const Raw& s, int fd, dmaprobe_map_dmabuf& op, dmaprobe_segment& first) {
    std::vector<dmaprobe_segment> segments;

    op = {};
    op.fd = fd;
    if (const int err = s(op))
        return err;
    const int err = s.segments(segments, op.id);
    if (!segments.empty())
        first = segments.front();
    return err;
}

void change_imports_of(World& w, int fd) {
    for (; !w.stop; w.rounds++) {
        dmaprobe_map_dmabuf map = {};
        dmaprobe_segment first = {};

        if (!w.check("import", import(w.s, fd, map, first)))
            return;
        w.show(first.dma_addr, map.length);
        w.check("unmap", w.s.unmap(map.id));
    }
}

void change_imports(World& w) {
    dmaprobe_export out = {};
    Allocation a;

    if (!w.check("alloc", allocate(w.s, a, {"", DMAPROBE_ALLOC_KIND_PAGES}, 2 * mib)))
        return;
    out.id = a.id;
    if (!w.check("export", w.s(out)))
        return;
    const Fd fd(out.fd);
    change_imports_of(w, fd.get());
}

void change_imports_of_others(World& w) {
    const Fd driver(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
    const Fd file(memfd_create("udmabuf", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    udmabuf_create op = {};

    if (!driver) {
        w.skip = "no /dev/udmabuf";
        return;
    }
    if (ftruncate(file.get(), 2 * mib) || fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK))
        w.complain("no memfd");
    op.memfd = static_cast<uint32_t>(file.get());
    op.flags = UDMABUF_FLAGS_CLOEXEC;
    op.size = 2 * mib;
    const Fd fd(ioctl(driver.get(), UDMABUF_CREATE, &op));
    if (!fd)
        w.complain("no udmabuf");
    else
        change_imports_of(w, fd.get());
}

// The exporter's session ends, which takes the memory away from the importer.
void change_revoked_exports(World& w) {
    for (; !w.stop; w.rounds++) {
        Raw exporter = Raw::open(w.bdf);
        dmaprobe_map_dmabuf map = {};
        dmaprobe_segment first = {};
        dmaprobe_export out = {};
        Allocation a;

        if (!w.check("alloc", allocate(exporter, a, {"", DMAPROBE_ALLOC_KIND_PAGES}, 2 * mib)))
            return;
        out.id = a.id;
        if (!w.check("export", exporter(out)))
            return;
        const Fd fd(out.fd);
        if (!w.check("import", import(w.s, fd.get(), map, first)))
            return;
        w.show(first.dma_addr, map.length);
        w.check("close", exporter.close());
        w.check("unmap", w.s.unmap(map.id));
    }
}

void change_other_sessions(World& w) {
    for (; !w.stop; w.rounds++) {
        Raw other = Raw::open(w.bdf);
        dmaprobe_iova_alloc space = {};
        Buffer b;

        if (!w.check("buffer", other.alloc(b, 4 * mib)) ||
            !w.check("iova_alloc", other.iova_alloc(space, 4 * mib)))
            return;
        w.show(space.addr, 4 * mib);
        // Page by page, so that it takes tables.
        for (uint64_t at = 0; at < 4 * mib; at += 8 * w.page)
            if (!w.check("link", other.link(space.id, at, b, at ^ w.page * 8, w.page * 8)))
                return;
        w.check("close", other.close());
    }
}

struct Changer {
    const char* name;
    void (*change)(World& w);
    bool links; // by dma_iova_*()
};

void PrintTo(const Changer& changer, std::ostream* out) {
    *out << changer.name;
}

constexpr std::array changers = {
    Changer{"maps", change_maps, false},
    Changer{"lists", change_lists, false},
    Changer{"links_of_a_page", change_links_of_a_page, true},
    Changer{"links_of_2_mib", change_links_of_2_mib, true},
    Changer{"links_of_1_gib", change_links_of_1_gib, true},
    Changer{"allocations", change_allocations, false},
    Changer{"imports", change_imports, false},
    Changer{"imports_of_others", change_imports_of_others, false},
    Changer{"revoked_exports", change_revoked_exports, false},
    Changer{"other_sessions", change_other_sessions, true},
};

class BoundaryTables : public DeviceTest, public testing::WithParamInterface<Changer> {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!iommu)
            GTEST_SKIP() << "no IOMMU translates for the device";
        if (GetParam().links)
            if (const auto reason = s.missing(DMAPROBE_FEATURE_DMA_IOVA))
                GTEST_SKIP() << *reason;
        // Some of what is mapped is one segment of 2 MiB, and some takes a whole GiB of addresses,
        // which need not be there below 4 GiB.
        ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 0x80000000));
        ASSERT_OK(s.set_mask((uint64_t{1} << 40) - 1));
    }
};

// What is wrong with an answer, or nothing. @own: the session is the one that changes.
std::string illegal(const dmaprobe_translate& op, std::span<const dmaprobe_extent> extents,
                    bool own, uint32_t only) {
    uint64_t at = op.iova;

    for (const dmaprobe_extent& e : extents) {
        const bool physical = op.flags & DMAPROBE_TRANSLATE_PHYS && e.kind;

        if (e.iova != at || !e.length)
            return std::format("an extent at {:#x} is at {:#x}", at, e.iova);
        if (e.kind > DMAPROBE_EXTENT_FOREIGN || (e.kind == DMAPROBE_EXTENT_BUFFER) != !!e.buffer_id)
            return std::format("kind {} with id {}", e.kind, e.buffer_id);
        if (e.kind == DMAPROBE_EXTENT_BUFFER && (!own || (only && e.buffer_id != only)))
            return std::format("leads to {}", e.buffer_id);
        // Without dma_iova_*(), the module has memory of its own mapped.
        if (e.kind == DMAPROBE_EXTENT_FOREIGN && own && only && kernel_is_at_least(6, 16))
            return "leads to foreign memory";
        if (physical != !!e.phys)
            return std::format("physical address {:#x}", e.phys);
        at += e.length;
    }
    return at - op.iova == op.translated && op.translated && op.translated <= op.length
               ? ""
               : std::format("{:#x} bytes were translated", op.translated);
}

void translate(World& w, const Raw& s, bool own, std::atomic<uint64_t>& done) {
    std::vector<dmaprobe_extent> room(600);

    for (unsigned i = 0; !w.stop; i++) {
        dmaprobe_translate op = {};
        uint64_t iova = w.iova();
        uint64_t length = w.length();

        if (!length) {
            std::this_thread::yield();
            continue;
        }
        // A gigabyte takes long to translate: only parts of it.
        if (length > 16 * mib) {
            iova += i * 7 % 64 * (length / 64);
            length /= 64;
        }
        // All of it, a part, a page; the same with physical addresses; a little beside.
        op.flags = i % 2 ? DMAPROBE_TRANSLATE_PHYS : 0;
        op.iova = iova + (i % 5 == 4 ? length / 2 : 0);
        op.length = i % 5 == 3 ? w.page : length;
        op.nr_extents = static_cast<uint32_t>(i % 7 ? room.size() : 1);
        op.extents = reinterpret_cast<uintptr_t>(room.data());
        if (!w.check("translate", s(op)))
            return;
        if (const std::string why = illegal(op, std::span(room).first(op.nr_extents), own, w.only);
            !why.empty())
            w.complain(std::format("{:#x}+{:#x}: {}", op.iova, op.length, why));
        done++;
    }
}

// Nothing of it crashes, and each answer is one that could have been true. KASAN, on the
// debug kernel, sees what is read after it was freed.
TEST_P(BoundaryTables, TranslateAgainst) {
    std::atomic<uint64_t> translated = 0;
    const Raw other = Raw::open(bdf);
    World w(s, bdf);

    ASSERT_TRUE(other);
    {
        std::list<std::jthread> threads;

        threads.emplace_back([&] {
            GetParam().change(w);
            w.stop = true;
        });
        for (int t = 0; t < 2; t++)
            threads.emplace_back([&] { translate(w, s, true, translated); });
        threads.emplace_back([&] { translate(w, other, false, translated); });
        const auto end = steady_clock::now() + milliseconds(900);
        wait_for(
            [&] {
                return w.stop || (steady_clock::now() >= end && w.rounds > 5 && translated > 50);
            },
            seconds(20));
        w.stop = true;
    }
    if (!w.skip.empty())
        GTEST_SKIP() << w.skip;
    EXPECT_EQ(w.odd(), "");
    EXPECT_GT(w.rounds.load(), 0u);
    EXPECT_GT(translated.load(), 0u);
    RecordProperty("changed", static_cast<int>(w.rounds));
    RecordProperty("translated", static_cast<int>(translated));
}

INSTANTIATE_TEST_SUITE_P(All, BoundaryTables, testing::ValuesIn(changers),
                         [](const auto& changer) { return changer.param.name; });

// Both functions of a slot are in one group.
class BoundaryTablesOfAGroup : public testing::Test {
protected:
    void SetUp() override {
        const std::string bdf = env("DMAPROBE_BDF");

        if (bdf.empty())
            GTEST_SKIP() << "no device: DMAPROBE_BDF is not set";
        pair_.emplace(bdf);
        if (!pair_->why().empty())
            GTEST_SKIP() << pair_->why();
    }

    const TwoFunctions& pair() const { return *pair_; }

private:
    std::optional<TwoFunctions> pair_;
};

// The same tables through another device.
TEST_F(BoundaryTablesOfAGroup, TranslateAgainstTheOtherFunction) {
    const Raw one = Raw::open(pair().first());
    const Raw two = Raw::open(pair().second());
    std::atomic<uint64_t> translated = 0;
    World w(one, pair().first());

    ASSERT_TRUE(one && two);
    if (!one.translated() || one.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << "no dma_iova_*() here";
    if (std::string(one.domain().iommu) != two.domain().iommu)
        GTEST_SKIP() << "the two functions do not share an IOMMU";
    {
        std::list<std::jthread> threads;

        threads.emplace_back([&] { change_links_of_a_page(w); });
        for (int t = 0; t < 2; t++)
            threads.emplace_back([&] { translate(w, two, false, translated); });
        const auto end = steady_clock::now() + milliseconds(900);
        wait_for(
            [&] {
                return w.stop || (steady_clock::now() >= end && w.rounds > 5 && translated > 50);
            },
            seconds(20));
        w.stop = true;
    }
    EXPECT_EQ(w.odd(), "");
    EXPECT_GT(w.rounds.load(), 0u);
    EXPECT_GT(translated.load(), 0u);
}

// The kernel remembers for all functions of a group that it had no room below a narrow mask,
// and refuses what is below 4 GiB from then on: 31 mappings of a page kept another user away.
TEST_F(BoundaryTablesOfAGroup, NobodyNarrowsTheMaskOfBoth) {
    const OpenNode all(pair().first());
    const Raw two = Raw::open(pair().second());

    ASSERT_TRUE(two);
    if (!two.translated())
        GTEST_SKIP() << "no IOMMU translates for the device";
    as_user(some_user, [&] {
        constexpr uint32_t both = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT;
        const Raw one = Raw::open(pair().first());

        ASSERT_TRUE(one);
        EXPECT_ERRNO(one.set_mask((uint64_t{1} << 17) - 1, both), EPERM);
        EXPECT_OK(one.set_mask(0xffffffff, both));
    });

    Buffer b;
    dmaprobe_map map = {};

    ASSERT_OK(two.alloc(b, page_size()));
    EXPECT_OK(map_range(two, map, b, page_size()));
}

} // namespace
} // namespace selftest

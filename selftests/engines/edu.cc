// SPDX-License-Identifier: GPL-2.0-only
// The device moves bytes through what was mapped, and through nothing else. By the
// library, so that its objects are tested along the way.

#include "support/engine.h"
#include "support/fixture.h"
#include "support/ktap.h"
#include "support/result.h"
#include "support/system.h"

#include <dmaprobe/buffer.h>
#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>
#include <dmaprobe/fault.h>
#include <dmaprobe/iova.h>
#include <dmaprobe/mapping.h>
#include <dmaprobe/session.h>
#include <dmaprobe/translate.h>

#include <linux/pci_regs.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <format>
#include <fstream>
#include <poll.h>
#include <stop_token>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

namespace dp = dmaprobe;
using dp::Direction;
using dp::Iova;
using dp::MapKind;
using dp::Size;
using std::chrono::milliseconds;
using std::chrono::seconds;

class Engine : public EngineTest {
protected:
    std::string why_not(const dp::EngineTraits& traits) const override {
        return traits.read_effect == dp::ReadEffect::stores && traits.block == Size(1)
                   ? ""
                   : std::format("{} does not store any byte that it reads", traits.description);
    }

    // The device writes these bytes to memory.
    void device_writes(Iova to, const std::vector<std::byte>& bytes) {
        dp::Buffer b = buffer(page_size());
        dp::Mapping m = map(b, Direction::to_device);

        load_device(bytes, b, m);
        EXPECT_WORKS(engine->copy_from_device(to, Size(bytes.size())));
    }

    // What the device reads from memory.
    std::vector<std::byte> device_reads(Iova from, size_t length) {
        dp::Buffer b = buffer(page_size());
        dp::Mapping m = map(b, Direction::from_device);

        EXPECT_WORKS(engine->copy_to_device(from, Size(length)));
        EXPECT_WORKS(engine->copy_from_device(m.dma_addr(), Size(length)));
        EXPECT_WORKS(m.sync_for_cpu());
        return {b.bytes().begin(), b.bytes().begin() + static_cast<ptrdiff_t>(length)};
    }

    void load_device(const std::vector<std::byte>& bytes, dp::Buffer& b, dp::Mapping& m) {
        put(b.bytes(), bytes);
        EXPECT_WORKS(m.sync_for_device());
        EXPECT_WORKS(engine->copy_to_device(m.dma_addr(), Size(bytes.size())));
    }

    // A lazy domain invalidates what was unmapped within 10 ms.
    void wait_for_flush() const {
        const auto domain = session->domain();

        if (!domain || domain->type == dp::DomainType::dma_fq)
            std::this_thread::sleep_for(milliseconds(100));
    }

    // One access of the bus only: each would be a fault of its own.
    void expect_read_faults(Iova at) {
        const Faults one(1);
        wait_for_flush();
        EXPECT_WORKS(engine->copy_to_device(at, Size(4)));
        expect_fault(at, dp::FaultAccess::read);
    }

    void expect_write_faults(Iova at) {
        const Faults one(1);
        wait_for_flush();
        EXPECT_WORKS(engine->copy_from_device(at, Size(4)));
        expect_fault(at, dp::FaultAccess::write);
    }
};

// Through VFIO where the kernel has what it takes, otherwise through sysfs.
TEST_F(Engine, RouteIsTheOneThatTheKernelOffers) {
    bool node = false;
    std::error_code none;

    for (const auto& entry : std::filesystem::directory_iterator(pci_path(bdf) + "/vfio-dev", none))
        node |= exists("/dev/vfio/devices/" + entry.path().filename().string());
    const bool vfio = node && exists("/dev/iommu");

    diagnose(std::format("path: {} ({})", dp::to_string(access->path()), access->why()));
    EXPECT_EQ(dp::to_string(access->path()), vfio ? "vfio" : "sysfs");
    EXPECT_FALSE(access->why().empty());
    EXPECT_EQ(read_text(pci_path(bdf) + "/vendor"), std::format("{:#06x}", access->ids().vendor));
    EXPECT_EQ(read_text(pci_path(bdf) + "/device"), std::format("{:#06x}", access->ids().device));
}

TEST_F(Engine, ForcedRoute) {
    const dp::AccessPath other =
        access->path() == dp::AccessPath::vfio ? dp::AccessPath::sysfs : dp::AccessPath::vfio;

    engine.reset();
    ASSERT_WORKS(access->close());
    if (other == dp::AccessPath::vfio) {
        EXPECT_FAILS(dp::DeviceAccess::open(*keeper, other), EOPNOTSUPP);
        return;
    }
    auto forced = dp::DeviceAccess::open(*keeper, other);
    ASSERT_WORKS(forced);
    EXPECT_EQ(dp::to_string(forced->path()), dp::to_string(other));
    auto probed = dp::Engine::probe(*keeper, *forced);
    ASSERT_WORKS(probed);
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    put(b.bytes(), pattern(64, 3));
    EXPECT_WORKS((*probed)->copy(m.dma_addr() + Size(128), m.dma_addr(), Size(64)));
    EXPECT_TRUE(same(b.bytes().subspan(128, 64), pattern(64, 3)));
}

// Only one can have the device's registers by VFIO; by sysfs many can.
TEST_F(Engine, SecondAccess) {
    auto again = dp::DeviceAccess::open(*session);

    if (access->path() == dp::AccessPath::vfio)
        EXPECT_FAILS(again, EBUSY);
    else
        EXPECT_WORKS(again);
}

TEST_F(Engine, Bars) {
    auto bar = access->bar(0);

    ASSERT_WORKS(bar);
    EXPECT_GE(bar->length(), Size(4096));
    EXPECT_WORKS(bar->read32(0));
    EXPECT_FAILS(bar->read32(bar->length().value()), ERANGE);
    EXPECT_FAILS(bar->read32(bar->length().value() - 2), ERANGE);
    EXPECT_FAILS(bar->read32(~uint64_t{0} - 3), ERANGE);
    EXPECT_FAILS(bar->read32(2), EINVAL);
    EXPECT_FAILS(bar->read64(4), EINVAL);
    EXPECT_FAILS(bar->write32(bar->length().value(), 0), ERANGE);
    EXPECT_FAILS(access->bar(6), EINVAL);
    EXPECT_FAILS(access->bar(1), ENXIO) << "edu has one BAR";
}

TEST_F(Engine, ConfigSpaceEnds) {
    for (const uint64_t beyond : {uint64_t{4096}, uint64_t{4095}, ~uint64_t{0} - 1}) {
        EXPECT_FAILS(access->read_config16(beyond), ERANGE);
        EXPECT_FAILS(access->write_config16(beyond, 0), ERANGE);
    }
}

// Session and access are of one device.
TEST_F(Engine, OfAnotherDevice) {
    std::string name = (std::filesystem::temp_directory_path() / "dmaprobe.XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    const std::string path = name + "/ffff:1f:1f.7";
    std::ofstream(path) << "no device";
    {
        const auto other = dp::Session::open_path(path);
        ASSERT_WORKS(other);
        EXPECT_FAILS(dp::Engine::probe(*other, *access), EINVAL);
    }
    std::filesystem::remove_all(name);
}

TEST_F(Engine, WrongArguments) {
    const dp::EngineTraits& traits = engine->traits();
    const Iova good(0x1000);
    const Iova last(traits.dma_mask);

    EXPECT_FAILS(engine->copy_to_device(good, Size(0)), EINVAL);
    EXPECT_FAILS(engine->copy_to_device(good, traits.max_transfer + Size(1)), EINVAL);
    EXPECT_FAILS(engine->copy_to_device(good, Size(2), traits.device_memory - Size(1)), EINVAL);
    EXPECT_FAILS(engine->copy_to_device(good, Size(1), traits.device_memory), EINVAL);
    EXPECT_FAILS(engine->copy_to_device(good, Size(1), Size::max()), EINVAL);
    EXPECT_FAILS(engine->copy_to_device(last, Size(2)), ERANGE);
    EXPECT_FAILS(engine->copy_to_device(last + Size(1), Size(1)), ERANGE);
    EXPECT_FAILS(engine->copy_from_device(last + Size(1), Size(1)), ERANGE);
    EXPECT_FAILS(engine->copy_from_device(Iova::max(), Size(16)), ERANGE);
    EXPECT_FAILS(engine->copy(last, good, Size(2)), ERANGE);
    EXPECT_FAILS(engine->copy(good, last, Size(2)), ERANGE);
    EXPECT_FAILS(engine->copy(good, good, Size(0)), EINVAL);
    ASSERT_TRUE(engine->last_error());
    EXPECT_EQ(engine->last_error()->code, EINVAL);
    expect_no_fault();
}

class EngineMaps : public Engine, public testing::WithParamInterface<MapKind> {};

INSTANTIATE_TEST_SUITE_P(Kind, EngineMaps,
                         testing::Values(MapKind::single, MapKind::page, MapKind::phys),
                         [](const auto& row) { return std::string(dp::to_string(row.param)); });

// The device reads through one mapping and writes through another.
TEST_P(EngineMaps, DataBothWays) {
    const size_t page = page_size();

    if (GetParam() == MapKind::phys) {
        if (const auto why = s.missing(DMAPROBE_FEATURE_MAP_PHYS))
            GTEST_SKIP() << *why;
    }
    dp::Buffer src = buffer(2 * page);
    dp::Buffer dst = buffer(2 * page);
    dp::Mapping from = map(src, Direction::to_device, GetParam());
    dp::Mapping to = map(dst, Direction::from_device, GetParam());
    const auto bytes = pattern(2 * page, 1);

    EXPECT_LE(from.dma_addr().value() + 2 * page - 1, engine->dma_mask());
    put(src.bytes(), bytes);
    ASSERT_WORKS(from.sync_for_device());
    // A full page, then a piece across the pages' edge.
    ASSERT_WORKS(engine->copy(to.dma_addr(), from.dma_addr(), Size(page)));
    ASSERT_WORKS(to.sync_for_cpu());
    EXPECT_TRUE(same(dst.bytes().first(page), std::span(bytes).first(page)));
    EXPECT_TRUE(same(dst.bytes().subspan(page), std::vector<std::byte>(page)))
        << "written behind the end";
    ASSERT_WORKS(
        engine->copy(to.dma_addr() + Size(page - 5), from.dma_addr() + Size(page - 20), Size(40)));
    ASSERT_WORKS(to.sync_for_cpu(Size(page - 5), Size(40)));
    EXPECT_TRUE(same(dst.bytes().subspan(page - 5, 40), std::span(bytes).subspan(page - 20, 40)));
    EXPECT_TRUE(same(src.bytes(), bytes)) << "the source changed";
    expect_no_fault();
    EXPECT_WORKS(from.unmap());
    EXPECT_WORKS(to.unmap());
}

TEST_P(EngineMaps, DataThroughOneBidirectionalMapping) {
    const size_t page = page_size();

    if (GetParam() == MapKind::phys) {
        if (const auto why = s.missing(DMAPROBE_FEATURE_MAP_PHYS))
            GTEST_SKIP() << *why;
    }
    dp::Buffer b = buffer(4 * page);
    dp::Mapping m = map(b, Direction::bidirectional, GetParam());
    const auto bytes = pattern(page, 2);

    put(b.bytes(), bytes);
    ASSERT_WORKS(m.sync_for_device());
    ASSERT_WORKS(engine->copy(m.dma_addr() + Size(3 * page), m.dma_addr(), Size(page)));
    ASSERT_WORKS(m.sync_for_cpu());
    EXPECT_TRUE(same(b.bytes().subspan(3 * page), bytes));
    EXPECT_TRUE(same(b.bytes().first(page), bytes));
    EXPECT_TRUE(same(b.bytes().subspan(page, 2 * page), std::vector<std::byte>(2 * page)));
    expect_no_fault();
}

// Pages that lie anywhere are one range to the device. dma_iova_sync() is called,
// as it must be; that it was needed cannot be seen here: VT-d without caching mode
// does not cache what is not mapped, so a forgotten sync goes unnoticed.
TEST_F(Engine, LinkedPagesAtEveryEdge) {
    NEEDS_IOVA();
    const size_t page = page_size();
    const size_t n = 4;
    dp::Buffer pages = buffer(n * page, dp::BufferKind::scattered);
    auto space = dp::IovaSpace::alloc(*session, Size(n * page));
    const auto bytes = pattern(n * page, 4);
    // Where in the space each of the buffer's pages goes.
    const size_t place[n] = {2, 0, 3, 1};

    ASSERT_WORKS(space);
    for (size_t i = 0; i < n; i++) {
        ASSERT_WORKS(space->link(pages, Size(i * page), Size(place[i] * page), Size(page),
                                 Direction::bidirectional));
        put(pages.bytes().subspan(i * page, page),
            {bytes.begin() + static_cast<ptrdiff_t>(place[i] * page),
             bytes.begin() + static_cast<ptrdiff_t>((place[i] + 1) * page)});
    }
    ASSERT_WORKS(space->sync(Size(), Size(n * page)));

    // Reads: the first bytes, across each edge, the last bytes.
    EXPECT_TRUE(same(device_reads(space->addr(), 16), std::span(bytes).first(16)));
    for (size_t i = 1; i < n; i++)
        EXPECT_TRUE(same(device_reads(space->addr() + Size(i * page - 16), 32),
                         std::span(bytes).subspan(i * page - 16, 32)))
            << "across the end of page " << i - 1;
    EXPECT_TRUE(
        same(device_reads(space->addr() + Size(n * page - 16), 16), std::span(bytes).last(16)));

    // Writes, in the same places.
    auto want = bytes;
    const auto written = [&](size_t at, size_t length, size_t seed) {
        const auto piece = pattern(length, seed);

        device_writes(space->addr() + Size(at), piece);
        std::ranges::copy(piece, want.begin() + static_cast<ptrdiff_t>(at));
    };
    written(0, 8, 10);
    for (size_t i = 1; i < n; i++)
        written(i * page - 8, 16, 10 + i);
    written(n * page - 8, 8, 20);
    for (size_t i = 0; i < n; i++)
        EXPECT_TRUE(same(pages.bytes().subspan(i * page, page),
                         std::span(want).subspan(place[i] * page, page)))
            << "page " << i << " of the buffer";
    expect_no_fault();
    EXPECT_WORKS(space->destroy(Size(n * page), Direction::bidirectional));
}

// From the links to the device's access nothing but dma_iova_sync() talks to the IOMMU: mapping or
// unmapping anything else would make the links known as well. An IOMMU that finds new entries by
// itself, such as VT-d without caching mode, works without; virtio-iommu does not.
TEST_F(Engine, LinksReachTheDeviceThroughSyncAlone) {
    NEEDS_IOVA();
    const size_t page = page_size();
    dp::Buffer pages = buffer(2 * page, dp::BufferKind::scattered);
    auto space = dp::IovaSpace::alloc(*session, Size(2 * page));
    const auto bytes = pattern(64, 6);

    ASSERT_WORKS(space);
    put(pages.bytes(), bytes);
    for (size_t at = 0; at < 2 * page; at += page)
        ASSERT_WORKS(space->link(pages, Size(at), Size(at), Size(page), Direction::bidirectional));
    ASSERT_WORKS(space->sync(Size(), Size(2 * page)));
    EXPECT_WORKS(engine->copy(space->addr() + Size(page), space->addr(), Size(bytes.size())));

    EXPECT_TRUE(same(pages.bytes().subspan(page, bytes.size()), bytes));
    expect_no_fault();
    EXPECT_WORKS(space->destroy(Size(2 * page), Direction::bidirectional));
}

// The program's own memory, at an odd byte: the device reads and writes just that.
TEST_F(Engine, PinnedMemoryBothWays) {
    const size_t page = page_size();
    Memory m = Memory::fenced(2 * page);
    Buffer b;
    dmaprobe_map op = {};

    ASSERT_TRUE(m);
    auto want = pattern(2 * page, 30);
    put(m.bytes(), want);
    ASSERT_OK(s.pin(b, m.data() + 1001, page));
    op.kind = DMAPROBE_MAP_KIND_PAGE;
    op.buffer_id = b.id;
    op.length = page - 1001;
    if (const int err = s(op); err == EIO && !iommu)
        GTEST_SKIP() << "no IOMMU translates, and the device cannot reach the memory";
    else
        ASSERT_OK(err);
    EXPECT_TRUE(same(device_reads(Iova(op.dma_addr + 3), 512), std::span(want).subspan(1004, 512)));
    const auto written = pattern(700, 31);
    device_writes(Iova(op.dma_addr + 5), written);
    std::ranges::copy(written, want.begin() + 1006);
    EXPECT_TRUE(same(m.bytes(), want));
    expect_no_fault();
}

// What the device writes after the program has unmapped its memory is there when the
// program looks again.
TEST_F(Engine, PinnedMemoryAfterMunmap) {
    const size_t page = page_size();
    const Fd fd(memfd_create("pinned", MFD_CLOEXEC));
    Buffer b;
    dmaprobe_map op = {};

    ASSERT_TRUE(fd);
    ASSERT_EQ(ftruncate(fd.get(), static_cast<off_t>(page)), 0);
    const auto look = [&] {
        void* at = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);

        return at == MAP_FAILED ? Memory{} : Memory{at, page};
    };
    Memory m = look();
    ASSERT_TRUE(m);
    put(m.bytes(), pattern(page, 32));
    ASSERT_OK(s.pin(b, m.data(), page));
    op.kind = DMAPROBE_MAP_KIND_PAGE;
    op.buffer_id = b.id;
    op.length = page;
    if (const int err = s(op); err == EIO && !iommu)
        GTEST_SKIP() << "no IOMMU translates, and the device cannot reach the memory";
    else
        ASSERT_OK(err);
    m.unmap();
    EXPECT_TRUE(same(device_reads(Iova(op.dma_addr), page), pattern(page, 32)));
    device_writes(Iova(op.dma_addr + 100), pattern(300, 33));
    ASSERT_OK(s.unmap(op.id));
    ASSERT_OK(s.free(b));
    m = look();
    ASSERT_TRUE(m);
    auto want = pattern(page, 32);
    std::ranges::copy(pattern(300, 33), want.begin() + 100);
    EXPECT_TRUE(same(m.bytes(), want));
    expect_no_fault();
}

// A child does not take the parent's page away when either of them writes.
TEST_F(Engine, PinnedMemoryAfterFork) {
    const size_t page = page_size();
    Memory m = Memory::fenced(page);
    Buffer b;
    dmaprobe_map op = {};

    ASSERT_TRUE(m);
    put(m.bytes(), pattern(page, 34));
    ASSERT_OK(s.pin(b, m.data(), page));
    op.kind = DMAPROBE_MAP_KIND_PAGE;
    op.buffer_id = b.id;
    op.length = page;
    if (const int err = s(op); err == EIO && !iommu)
        GTEST_SKIP() << "no IOMMU translates, and the device cannot reach the memory";
    else
        ASSERT_OK(err);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        for (;;)
            pause();
    }
    put(m.bytes(), pattern(page, 35));
    EXPECT_TRUE(same(device_reads(Iova(op.dma_addr), page), pattern(page, 35)));
    device_writes(Iova(op.dma_addr), pattern(page, 36));
    EXPECT_TRUE(same(m.bytes(), pattern(page, 36)));
    kill(child, SIGKILL);
    int status = 0;
    EXPECT_TRUE(wait_for_child(child, seconds(10), status));
    expect_no_fault();
}

// A buffer at an odd place of its pages, which COPY fills and reads.
TEST_F(Engine, KmallocMemoryBothWays) {
    const size_t page = page_size();
    dmaprobe_buffer_alloc alloc = {};
    dmaprobe_map op = {};

    alloc.kind = DMAPROBE_BUFFER_KIND_KMALLOC;
    alloc.length = 2 * page + 8;
    alloc.offset = page - 8;
    ASSERT_OK(s(alloc));
    auto want = pattern(alloc.length, 37);
    ASSERT_OK(s.copy(alloc.id, DMAPROBE_COPY_WRITE, 0, want));
    op.buffer_id = alloc.id;
    op.length = alloc.length;
    if (const int err = s(op); err == EIO && !iommu)
        GTEST_SKIP() << "no IOMMU translates, and the device cannot reach the memory";
    else
        ASSERT_OK(err);
    EXPECT_TRUE(same(device_reads(Iova(op.dma_addr), 64), std::span(want).first(64)));
    device_writes(Iova(op.dma_addr + 2 * page - 100), pattern(108, 38));
    std::ranges::copy(pattern(108, 38), want.end() - 108);
    ASSERT_OK(s.unmap(op.id));
    std::vector<std::byte> got(alloc.length);
    ASSERT_OK(s.copy(alloc.id, DMAPROBE_COPY_READ, 0, got));
    EXPECT_TRUE(same(got, want));
    expect_no_fault();
}

// The library's and the bare ABI's view of the page tables are one.
TEST_F(Engine, TranslateOfTheLibrary) {
    NEEDS_IOMMU();
    const size_t page = page_size();
    dp::Buffer b = buffer(4 * page);
    dp::Mapping m = map(b, Direction::bidirectional);
    auto extents = dp::translate(*session, m.dma_addr(), m.length());

    ASSERT_WORKS(extents);
    ASSERT_EQ(extents->size(), 1u);
    EXPECT_EQ(extents->front().iova, m.dma_addr());
    EXPECT_EQ(extents->front().length, m.length());
    EXPECT_EQ(extents->front().kind, dp::ExtentKind::buffer);
    EXPECT_EQ(extents->front().buffer_id, b.id());
    EXPECT_EQ(extents->front().buffer_offset, Size());
    EXPECT_FALSE(extents->front().phys);
    const Iova at = m.dma_addr();
    EXPECT_WORKS(m.unmap());
    extents = dp::translate(*session, at, Size(4 * page), {.phys = true});
    ASSERT_WORKS(extents);
    ASSERT_EQ(extents->size(), 1u);
    EXPECT_EQ(extents->front().kind, dp::ExtentKind::hole);
    EXPECT_EQ(extents->front().length, Size(4 * page));
    EXPECT_FALSE(extents->front().phys);
}

// --- what must not work ----------------------------------------------------

TEST_F(Engine, WriteThroughToDevice) {
    NEEDS_IOMMU();
    NEEDS_FAULTS();
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::to_device);
    const auto bytes = pattern(page_size(), 5);

    put(b.bytes(), bytes);
    ASSERT_WORKS(m.sync_for_device());
    expect_write_faults(m.dma_addr());
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote";
    // The mapping still serves what it is for.
    EXPECT_TRUE(same(device_reads(m.dma_addr(), 64), std::span(bytes).first(64)));
    expect_no_fault();
}

TEST_F(Engine, WriteThroughALinkToDevice) {
    NEEDS_IOVA();
    NEEDS_FAULTS();
    const size_t page = page_size();
    dp::Buffer b = buffer(2 * page);
    auto space = dp::IovaSpace::alloc(*session, Size(2 * page));
    const auto bytes = pattern(2 * page, 6);

    ASSERT_WORKS(space);
    ASSERT_WORKS(space->link(b, Size(), Size(), Size(page), Direction::bidirectional));
    ASSERT_WORKS(space->link(b, Size(page), Size(page), Size(page), Direction::to_device));
    ASSERT_WORKS(space->sync(Size(), Size(2 * page)));
    put(b.bytes(), bytes);
    expect_write_faults(space->addr() + Size(page));
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote";
    device_writes(space->addr(), pattern(64, 7));
    EXPECT_TRUE(same(b.bytes().first(64), pattern(64, 7))) << "the neighbour does not work";
    expect_no_fault();
}

TEST_F(Engine, DmaAfterUnmap) {
    NEEDS_IOMMU();
    NEEDS_FAULTS();
    const size_t page = page_size();
    dp::Buffer b = buffer(4 * page);
    dp::Mapping m = map(b, Direction::bidirectional);
    const auto bytes = pattern(4 * page, 8);
    const Iova at = m.dma_addr();

    device_writes(at + Size(2 * page), pattern(64, 9));
    EXPECT_TRUE(same(b.bytes().subspan(2 * page, 64), pattern(64, 9)));
    expect_no_fault();
    ASSERT_WORKS(m.unmap());
    put(b.bytes(), bytes);
    expect_write_faults(at + Size(2 * page));
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote after the unmap";
}

TEST_F(Engine, DmaAfterUnlink) {
    NEEDS_IOVA();
    NEEDS_FAULTS();
    const size_t page = page_size();
    dp::Buffer b = buffer(3 * page);
    auto space = dp::IovaSpace::alloc(*session, Size(3 * page));
    const auto bytes = pattern(3 * page, 11);

    ASSERT_WORKS(space);
    for (size_t i = 0; i < 3; i++)
        ASSERT_WORKS(
            space->link(b, Size(i * page), Size(i * page), Size(page), Direction::bidirectional));
    ASSERT_WORKS(space->sync(Size(), Size(3 * page)));
    // Have the device use the page first, so that a stale entry would be cached.
    device_writes(space->addr() + Size(page), pattern(64, 12));
    EXPECT_TRUE(same(b.bytes().subspan(page, 64), pattern(64, 12)));
    expect_no_fault();
    ASSERT_WORKS(space->unlink(Size(page), Size(page), Direction::bidirectional));
    put(b.bytes(), bytes);
    expect_write_faults(space->addr() + Size(page));
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote after the unlink";
    // The neighbours go on working.
    EXPECT_TRUE(same(device_reads(space->addr() + Size(page - 32), 32),
                     std::span(bytes).subspan(page - 32, 32)));
    EXPECT_TRUE(same(device_reads(space->addr() + Size(2 * page), 32),
                     std::span(bytes).subspan(2 * page, 32)));
    expect_no_fault();
}

TEST_F(Engine, DmaAfterDestroy) {
    NEEDS_IOVA();
    NEEDS_FAULTS();
    const size_t page = page_size();
    dp::Buffer b = buffer(3 * page, dp::BufferKind::scattered);
    auto space = dp::IovaSpace::alloc(*session, Size(3 * page));
    const auto bytes = pattern(3 * page, 13);

    ASSERT_WORKS(space);
    for (size_t i = 0; i < 3; i++)
        ASSERT_WORKS(
            space->link(b, Size(i * page), Size(i * page), Size(page), Direction::bidirectional));
    ASSERT_WORKS(space->sync(Size(), Size(3 * page)));
    device_writes(space->addr(), pattern(64, 14));
    EXPECT_TRUE(same(b.bytes().first(64), pattern(64, 14)));
    const Iova at = space->addr();
    ASSERT_WORKS(space->destroy(Size(3 * page), Direction::bidirectional));
    EXPECT_EQ(space->addr(), at) << "the address must stay readable";
    put(b.bytes(), bytes);
    expect_write_faults(at);
    expect_read_faults(at + Size(2 * page));
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote after the destroy";
}

// The session that mapped is closed with all of it live; the device is kept
// enabled by another.
TEST_F(Engine, DmaAfterClose) {
    NEEDS_IOMMU();
    NEEDS_FAULTS();
    const size_t page = page_size();
    Iova linked;
    Iova mapped;

    {
        Raw raw = Raw::open(bdf);
        Buffer b;
        dmaprobe_map m = {};
        dmaprobe_iova_alloc io = {};

        ASSERT_TRUE(raw);
        ASSERT_OK(raw.alloc(b, page));
        m.kind = DMAPROBE_MAP_KIND_PAGE;
        m.buffer_id = b.id;
        m.length = page;
        ASSERT_OK(raw(m));
        mapped = Iova(m.dma_addr);
        if (no_iova.empty()) {
            ASSERT_OK(raw.iova_alloc(io, page));
            ASSERT_OK(raw.link(io.id, 0, b, 0, page));
            ASSERT_OK(raw.iova_sync(io.id, 0, page));
            linked = Iova(io.addr);
        }
        Memory memory = raw.mmap(b);
        ASSERT_TRUE(memory);
        device_writes(mapped, pattern(64, 15));
        EXPECT_TRUE(same(memory.bytes().first(64), pattern(64, 15)));
        if (no_iova.empty()) {
            device_writes(linked + Size(64), pattern(64, 16));
            EXPECT_TRUE(same(memory.bytes().subspan(64, 64), pattern(64, 16)));
        }
        expect_no_fault();
        memory.unmap();
        ASSERT_OK(raw.close());
    }
    expect_hole(mapped.value(), page);
    if (no_iova.empty())
        expect_hole(linked.value(), page);
    // Faults are few; whichever is the more likely to have been forgotten.
    expect_write_faults(no_iova.empty() ? linked : mapped);
}

// The library's session is closed while its objects live: they are of no use any
// more, and the memory that they show is still there.
TEST_F(Engine, LibrarySessionClosedUnderItsObjects) {
    const size_t page = page_size();
    dp::Buffer b = buffer(page);
    dp::Mapping m = map(b, Direction::bidirectional);

    put(b.bytes(), pattern(page, 17));
    ASSERT_WORKS(session->close());
    EXPECT_EQ(session->fd(), -1);
    EXPECT_WORKS(session->close()) << "a second close";
    EXPECT_FAILS(session->limits(), EBADF);
    EXPECT_FAILS(m.sync_for_cpu(), EBADF);
    EXPECT_TRUE(same(b.bytes(), pattern(page, 17)));
    EXPECT_FAILS(m.unmap(), EBADF);
    EXPECT_WORKS(m.unmap()) << "closed by the first";
    EXPECT_FAILS(b.close(), EBADF);
    EXPECT_WORKS(b.close()) << "closed by the first";
}

// With bus mastering off the device can do nothing, and no IOMMU sees it try. It cannot interrupt
// either.
TEST_F(Engine, BusMasteringOff) {
    engine.reset();
    auto polling = dp::Engine::probe(*keeper, *access, {.completion = dp::Completion::polling});
    ASSERT_WORKS(polling);
    engine = std::move(*polling);
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    const auto bytes = pattern(page_size(), 18);
    const auto command = access->read_config16(PCI_COMMAND);

    ASSERT_WORKS(command);
    ASSERT_TRUE(*command & PCI_COMMAND_MASTER) << "bus mastering is off from the start";
    device_writes(m.dma_addr(), pattern(64, 19));
    EXPECT_TRUE(same(b.bytes().first(64), pattern(64, 19)));
    put(b.bytes(), bytes);
    ASSERT_WORKS(
        access->write_config16(PCI_COMMAND, static_cast<uint16_t>(*command & ~PCI_COMMAND_MASTER)));
    EXPECT_WORKS(engine->copy_from_device(m.dma_addr(), Size(64)));
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote";
    expect_no_fault();
    ASSERT_WORKS(access->write_config16(PCI_COMMAND, *command));
    device_writes(m.dma_addr(), pattern(64, 20));
    EXPECT_TRUE(same(b.bytes().first(64), pattern(64, 20)));
}

// Moving into an access closes what it had.
TEST_F(Engine, MovedInto) {
    dp::DeviceAccess kept = std::move(*access);

    EXPECT_WORKS(engine->reset());
    kept = std::move(*access);
    EXPECT_FAILS(engine->reset(), EBADF);
    engine.reset();
}

// The session that enabled the device is closed: the device stops.
TEST_F(Engine, CommandRegisterFollowsTheAccess) {
    const std::string config = pci_path(bdf) + "/config";
    const auto enabled = [&] {
        const std::string text = read_text(config);

        return text.size() > PCI_COMMAND &&
               (static_cast<unsigned char>(text[PCI_COMMAND]) & PCI_COMMAND_MASTER) != 0;
    };

    EXPECT_TRUE(enabled());
    engine.reset();
    ASSERT_WORKS(access->close());
    EXPECT_FALSE(enabled());
    EXPECT_FAILS(access->read_config16(PCI_COMMAND), EBADF);
    EXPECT_WORKS(access->close()) << "a second close";
    auto again = dp::DeviceAccess::open(*keeper);
    ASSERT_WORKS(again);
    EXPECT_TRUE(enabled());
    const dp::DeviceAccess moved(std::move(*again));
    EXPECT_WORKS(moved.read_config16(PCI_COMMAND));
    EXPECT_FAILS(again->read_config16(PCI_COMMAND), EBADF);
    EXPECT_FAILS(again->bar(0), EBADF);
    EXPECT_FAILS(again->reset(), EBADF);
    EXPECT_FAILS(again->check_present("gone"), EBADF);
    EXPECT_EQ(again->bdf(), dp::Bdf{});
    EXPECT_EQ(again->why(), "");
}

// An engine has the open device, not the object that opened it.
TEST_F(Engine, OutlivesTheAccessAndTheSession) {
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    std::optional<dp::DeviceAccess> moved = std::move(access);

    access.reset();
    std::optional<dp::Session> moved_session = std::move(keeper);
    keeper.reset();
    device_writes(m.dma_addr(), pattern(64, 60));
    EXPECT_TRUE(same(b.bytes().first(64), pattern(64, 60)));
    ASSERT_WORKS(engine->reset());

    ASSERT_WORKS(moved->close());
    EXPECT_FAILS(engine->copy_to_device(m.dma_addr(), Size(64)), EBADF);
    EXPECT_FAILS(engine->reset(), EBADF);
    moved.reset();
    EXPECT_FAILS(engine->copy_from_device(m.dma_addr(), Size(64)), EBADF);
    EXPECT_TRUE(same(b.bytes().first(64), pattern(64, 60))) << "the device wrote";

    engine.reset();
    auto opened = dp::DeviceAccess::open(*moved_session);
    ASSERT_WORKS(opened);
    auto probed = dp::Engine::probe(*moved_session, *opened);
    ASSERT_WORKS(probed);
    moved_session.reset();
    EXPECT_FAILS((*probed)->copy_from_device(m.dma_addr(), Size(64)), EBADF);
}

// A program's own engine, in place of the library's, and made by probe() as those are.
class Mine final : public dp::Engine {
public:
    static dp::Result<std::unique_ptr<dp::Engine>>
    create(const dp::Session&, const dp::DeviceAccess& device, const dp::EngineOptions& options) {
        auto bar = device.bar(0);
        if (!bar)
            return std::unexpected(std::move(bar.error()));
        auto interrupts = interrupts_for(device, options, 1);
        if (!interrupts)
            return std::unexpected(std::move(interrupts.error()));
        return std::make_unique<Mine>(device, std::move(*bar), std::move(*interrupts));
    }
    Mine(const dp::DeviceAccess& device, dp::Bar bar, std::optional<dp::Interrupts> interrupts)
        : Engine(*find(device.ids()), device, completion_by(interrupts)), bar_(std::move(bar)) {}

    static std::atomic<bool> wanted;

private:
    dp::Result<void> do_to_device(std::span<const dp::Segment>, Size) override {
        if (auto there = check_present("mine"); !there)
            return there;
        return bar_.read32(0).transform([](uint32_t) {});
    }
    dp::Result<void> do_from_device(std::span<const dp::Segment>, Size) override { return {}; }
    dp::Result<void> do_reset() override { return reset_function(); }

    dp::Bar bar_;
};
std::atomic<bool> Mine::wanted = false;

TEST_F(Engine, OfTheProgram) {
    // It stays for the other tests, but drives nothing there.
    static const dp::Result<void> added = dp::Engine::add({
        .traits = {.name = "mine",
                   .description = "a test's engine",
                   .dma_mask = ~0ULL,
                   .max_transfer = Size(4096),
                   .segment_edge = Size(),
                   .device_memory = Size(4096),
                   .identity = Size()},
        .drives = [](const dp::DeviceIds&) noexcept { return Mine::wanted.load(); },
        .create = Mine::create,
    });
    ASSERT_WORKS(added);
    engine.reset();
    Mine::wanted = true;
    auto probed = dp::Engine::probe(*keeper, *access);
    Mine::wanted = false;
    ASSERT_WORKS(probed);
    EXPECT_EQ((*probed)->name(), "mine");
    EXPECT_WORKS((*probed)->copy_to_device(Iova(0), Size(4)));
    EXPECT_EQ(dp::Engine::find(access->ids())->name, "edu");
    ASSERT_WORKS(access->close());
    EXPECT_FAILS((*probed)->copy_to_device(Iova(0), Size(4)), EBADF);
    EXPECT_FAILS((*probed)->reset(), EBADF);
}

TEST_F(Engine, Reset) {
    const auto done = access->reset();

    if (!done && done.error().code == EOPNOTSUPP)
        GTEST_SKIP() << done.error().message();
    ASSERT_WORKS(done);
    ASSERT_WORKS(engine->reset());
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    device_writes(m.dma_addr(), pattern(64, 21));
    EXPECT_TRUE(same(b.bytes().first(64), pattern(64, 21)));
}

// A transfer cannot be stopped: an engine begins with the end of one that somebody left under way.
TEST_F(Engine, BeginsAtRest) {
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    auto bar = access->bar(0);

    ASSERT_WORKS(bar);
    put(b.bytes(), pattern(64, 31));
    ASSERT_WORKS(m.sync_for_device());
    for (int i = 0; i < 3; i++) {
        // Its registers: from, to (its own memory), how much, and the command that starts it.
        for (const auto& [reg, value] : {std::pair<uint64_t, uint64_t>{0x80, m.dma_addr().value()},
                                         {0x88, 0x40000},
                                         {0x90, 64},
                                         {0x98, 1}})
            ASSERT_WORKS(bar->write64(reg, value));
        engine.reset();
        auto probed = dp::Engine::probe(*keeper, *access);
        ASSERT_WORKS(probed);
        engine = std::move(*probed);
        ASSERT_WORKS(engine->copy_from_device(m.dma_addr() + Size(64), Size(64)));
        ASSERT_WORKS(m.sync_for_cpu());
        EXPECT_TRUE(same(b.bytes().subspan(64, 64), pattern(64, 31)));
    }
    expect_no_fault();
}

// The same by interrupt and by polling; by VFIO there are interrupts.
TEST_F(Engine, Completions) {
    for (const auto completion : {dp::Completion::interrupt, dp::Completion::polling}) {
        engine.reset();
        auto probed = dp::Engine::probe(*keeper, *access, {.completion = completion});
        if (completion == dp::Completion::interrupt && access->path() == dp::AccessPath::sysfs) {
            EXPECT_FAILS(probed, EOPNOTSUPP);
            continue;
        }
        ASSERT_WORKS(probed);
        engine = std::move(*probed);
        EXPECT_EQ(dp::to_string(engine->completion()), dp::to_string(completion));
        dp::Buffer b = buffer(page_size());
        dp::Mapping m = map(b, Direction::bidirectional);
        for (size_t i = 0; i < 5; i++) {
            put(b.bytes(), pattern(64, 50 + i));
            ASSERT_WORKS(m.sync_for_device());
            ASSERT_WORKS(engine->copy(m.dma_addr() + Size(128), m.dma_addr(), Size(64)));
            ASSERT_WORKS(m.sync_for_cpu());
            EXPECT_TRUE(same(b.bytes().subspan(128, 64), pattern(64, 50 + i)));
        }
    }
    expect_no_fault();
}

TEST_F(Engine, Interrupts) {
    engine.reset();
    EXPECT_FAILS(access->interrupts(0), EINVAL);
    if (access->path() == dp::AccessPath::sysfs) {
        EXPECT_FAILS(access->interrupts(1), EOPNOTSUPP);
        return;
    }
    EXPECT_FAILS(access->interrupts(2), EOPNOTSUPP) << "edu has one vector";
    auto interrupts = access->interrupts(1);
    ASSERT_WORKS(interrupts);
    EXPECT_EQ(dp::to_string(interrupts->kind()), "MSI");
    EXPECT_EQ(interrupts->vectors(), 1u);
    EXPECT_FAILS(interrupts->wait(1, milliseconds(0)), EINVAL);
    EXPECT_FAILS(interrupts->wait(0, milliseconds(1)), ETIMEDOUT);
}

// An interrupt can be polled for, and waiting for one be stopped.
TEST_F(Engine, InterruptsPollAndStop) {
    if (access->path() == dp::AccessPath::sysfs)
        GTEST_SKIP() << "interrupts come by VFIO only";
    if (engine->name() != "edu")
        GTEST_SKIP() << "raising an interrupt by hand is known of edu only";
    constexpr uint64_t reg_raise = 0x60;
    constexpr uint64_t reg_ack = 0x64;
    engine.reset();
    auto bar = access->bar(0);
    ASSERT_WORKS(bar);
    auto interrupts = access->interrupts(1);
    ASSERT_WORKS(interrupts);
    EXPECT_EQ(interrupts->fd(1), -1);
    pollfd polled{.fd = interrupts->fd(0), .events = POLLIN, .revents = 0};
    EXPECT_EQ(poll(&polled, 1, 0), 0);
    ASSERT_WORKS(bar->write32(reg_raise, 1));
    EXPECT_EQ(poll(&polled, 1, 5000), 1);
    const auto came = interrupts->wait(0, milliseconds(0));
    ASSERT_WORKS(came);
    EXPECT_EQ(*came, 1u);
    EXPECT_EQ(poll(&polled, 1, 0), 0);
    ASSERT_WORKS(bar->write32(reg_ack, 1));

    std::stop_source stop;
    {
        const std::jthread other([&] {
            std::this_thread::sleep_for(milliseconds(200));
            stop.request_stop();
        });
        EXPECT_FAILS(interrupts->wait(0, milliseconds::max(), stop.get_token()), ECANCELED);
    }
    EXPECT_FAILS(interrupts->wait(0, milliseconds(0)), ETIMEDOUT);
    ASSERT_WORKS(bar->write32(reg_raise, 1));
    EXPECT_EQ(poll(&polled, 1, 5000), 1);
    EXPECT_WORKS(interrupts->wait(0, milliseconds::max(), stop.get_token())) << "it was there";
    ASSERT_WORKS(bar->write32(reg_ack, 1));
}

// A deadline that is too short is an error, and the engine comes to rest again.
TEST_F(Engine, Deadline) {
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);

    engine->set_deadline(milliseconds(1));
    dp::Result<void> done;
    // A program that sleeps for longer than the transfer takes finds it ended.
    for (int attempt = 0; done && attempt < 20; attempt++)
        done = engine->copy_to_device(m.dma_addr(), Size(64));
    EXPECT_FAILS(done, ETIMEDOUT);
    engine->set_deadline(engine->traits().deadline);
    ASSERT_WORKS(engine->reset());
    EXPECT_WORKS(engine->copy_to_device(m.dma_addr(), Size(64)));
    EXPECT_FALSE(engine->last_error());
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// Each class of the library against the module, by both transports. What the
// module must answer is tested elsewhere, by the bare ABI: here it is the classes
// that must pass it on, and end what they own.

#include "support/fixture.h"
#include "support/result.h"

#include <dmaprobe/alloc.h>
#include <dmaprobe/batch.h>
#include <dmaprobe/buffer.h>
#include <dmaprobe/dmabuf.h>
#include <dmaprobe/iova.h>
#include <dmaprobe/mapping.h>
#include <dmaprobe/pool.h>
#include <dmaprobe/run.h>
#include <dmaprobe/session.h>
#include <dmaprobe/translate.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <optional>
#include <sys/mman.h>
#include <thread>
#include <vector>

namespace selftest {
namespace {

namespace dp = dmaprobe;
using dp::Attr;
using dp::Direction;
using dp::MapKind;
using dp::Size;
using dp::Transport;

std::vector<std::byte> pattern(size_t length, size_t seed = 0) {
    std::vector<std::byte> bytes(length);

    for (size_t i = 0; i < length; i++)
        bytes[i] = static_cast<std::byte>((i * 131 + i / 251 + seed * 17 + 1) & 0xff);
    return bytes;
}

class Library : public DeviceTest, public testing::WithParamInterface<Transport> {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        page = page_size();
        auto opened = dp::Session::open(bdf, {.transport = GetParam()});
        if (!opened && opened.error().op == "ring")
            GTEST_SKIP() << opened.error().message();
        ASSERT_WORKS(opened);
        session.emplace(std::move(*opened));
    }

    // Everything of the session has been ended by its owners.
    void TearDown() override {
        if (!session || session->fd() < 0)
            return;
        const auto left = session->stats();

        ASSERT_WORKS(left);
        EXPECT_EQ(*left, dp::Stats()) << "something is left";
    }

    dp::Buffer contiguous(uint64_t length) {
        auto made = dp::Buffer::contiguous(*session, Size(length));

        EXPECT_WORKS(made);
        return std::move(made.value());
    }

    // A range of the device's address space, or nothing when none can be had here.
    std::optional<dp::IovaSpace> space(uint64_t length) {
        auto made = dp::IovaSpace::alloc(*session, Size(length));

        if (!made) {
            EXPECT_FAILS(made, EOPNOTSUPP);
            return std::nullopt;
        }
        return std::move(*made);
    }

    size_t page = 0;
    std::optional<dp::Session> session;
};

INSTANTIATE_TEST_SUITE_P(By, Library, testing::Values(Transport::ioctl, Transport::ring),
                         [](const auto& p) { return std::string(dp::to_string(p.param)); });

TEST_P(Library, Session) {
    EXPECT_EQ(session->transport(), GetParam());
    EXPECT_WORKS(session->nop());
    const auto info = session->info();
    ASSERT_WORKS(info);
    EXPECT_EQ(info->abi_version, uint32_t{DMAPROBE_ABI_VERSION});
    EXPECT_EQ(info->dma_iova, !s.missing(DMAPROBE_FEATURE_DMA_IOVA));
    EXPECT_EQ(info->map_phys, !s.missing(DMAPROBE_FEATURE_MAP_PHYS));
    EXPECT_EQ(static_cast<uint64_t>(info->attrs), s.info().attrs);
    const auto calls = session->calls();
    ASSERT_WORKS(calls);
    EXPECT_EQ(calls->size(), dp::kernel_calls(*info).size());
    const auto call = session->find_call("dma_map_phys");
    ASSERT_WORKS(call);
    EXPECT_EQ(call->status, info->map_phys ? dp::CallStatus::offered : dp::CallStatus::missing);
    EXPECT_FAILS(session->find_call("dma_map_everything"), ENOENT);
    const auto limits = session->limits();
    ASSERT_WORKS(limits);
    const dmaprobe_get_limits raw = s.limits();
    EXPECT_EQ(limits->dma_mask, raw.dma_mask);
    EXPECT_EQ(limits->cache_alignment, Size(raw.cache_alignment));
    EXPECT_EQ(limits->can_mmap, (raw.props & DMAPROBE_DEVICE_CAN_MMAP) != 0);
    EXPECT_EQ(limits->confined, (raw.props & DMAPROBE_DEVICE_CONFINED) != 0);
    EXPECT_WORKS(session->domain());

    const auto nothing = session->bench_nop(1000);
    ASSERT_WORKS(nothing);
    EXPECT_GT(nothing->count(), 0);
    EXPECT_FAILS(session->bench_nop(0), EINVAL);
    const dp::Buffer b = contiguous(page);
    const auto maps = session->bench_map(b, 100);
    ASSERT_WORKS(maps);
    EXPECT_GT(maps->count(), 0);
}

TEST_P(Library, SegmentLimits) {
    EXPECT_FAILS(session->set_segments({}), EINVAL);
    ASSERT_WORKS(session->set_segments(
        {.max_size = Size(8192), .boundary_mask = 0xffffff, .min_align_mask = 0xff}));
    const auto limits = session->limits();
    ASSERT_WORKS(limits);
    EXPECT_EQ(limits->max_segment_size, Size(8192));
    EXPECT_EQ(limits->segment_boundary_mask, 0xffffffu);
    EXPECT_EQ(limits->min_align_mask, 0xffu);
    ASSERT_WORKS(session->set_segments({.min_align_mask = 0}));
    EXPECT_EQ(session->limits()->min_align_mask, 0u);
    EXPECT_EQ(session->limits()->max_segment_size, Size(8192));
}

// close() ends the session at once, whichever way its calls went: the masks can be
// set as soon as it has returned.
TEST_P(Library, CloseEndsTheSession) {
    for (int i = 0; i < 50; i++) {
        auto other = dp::Session::open(bdf, {.transport = GetParam()});
        ASSERT_WORKS(other);
        auto b = dp::Buffer::kmalloc(*other, Size(64));
        ASSERT_WORKS(b);
        const auto m =
            dp::Mapping::map(*b, MapKind::single, Size(), Size(64), Direction::bidirectional);
        ASSERT_WORKS(m);
        EXPECT_FAILS(session->set_segments({.max_size = Size(65536)}), EBUSY);
        // By ring, a worker's: it must not be the last to hold the file.
        EXPECT_WORKS(other->stats());
        ASSERT_WORKS(other->close());
        ASSERT_WORKS(session->set_segments({.max_size = Size(65536)})) << i;
    }
}

TEST_P(Library, BuffersOfAllKinds) {
    struct Kind {
        dp::BufferKind kind;
        uint64_t length;
        dp::BufferOptions options;
    };
    const std::vector<Kind> kinds = {
        {dp::BufferKind::contiguous, 4 * page, {}},
        {dp::BufferKind::scattered, 4 * page, {}},
        {dp::BufferKind::scattered, 4 * page, {.order = 1}},
        {dp::BufferKind::contiguous, page, {.node = 0}},
        {dp::BufferKind::kmalloc, 200, {.offset = Size(64)}},
    };
    for (const auto& [kind, length, options] : kinds) {
        SCOPED_TRACE(dp::to_string(kind));
        auto b = dp::Buffer::alloc(*session, kind, Size(length), options);
        ASSERT_WORKS(b);
        EXPECT_EQ(b->kind(), kind);
        EXPECT_EQ(b->length(), Size(length));
        EXPECT_EQ(session->stats()->nr_buffers, 1u);

        const auto bytes = pattern(100);
        EXPECT_WORKS(b->write(Size(60), bytes));
        std::vector<std::byte> seen(100);
        EXPECT_WORKS(b->read(Size(60), seen));
        EXPECT_EQ(seen, bytes);
        if (kind == dp::BufferKind::kmalloc) {
            EXPECT_TRUE(b->bytes().empty());
        } else {
            EXPECT_TRUE(std::ranges::equal(b->bytes().subspan(60, 100), bytes));
        }
        EXPECT_FAILS(b->read(Size(length - 99), seen), EINVAL);
        EXPECT_FAILS(b->write(Size(), {}), EINVAL);

        dp::Buffer moved = std::move(*b);
        EXPECT_WORKS(moved.close());
        EXPECT_EQ(moved.length(), Size());
        EXPECT_FAILS(moved.read(Size(), seen), EBADF);
        EXPECT_FAILS(dp::Mapping::map(moved, MapKind::page, Size(), Size(8), Direction::to_device),
                     EBADF);
        EXPECT_FAILS(dp::Mapping::map_sg(std::vector<dp::SgEntry>{{moved, Size(), Size(8)}},
                                         dp::SgKind::list, Direction::to_device),
                     EBADF);
        EXPECT_FAILS(dp::IovaSpace::alloc(*session, Size(page), moved, Size()), EBADF);
        EXPECT_FAILS(session->bench_map(moved, 1), EBADF);
        EXPECT_EQ(session->stats()->nr_buffers, 0u);
    }
    EXPECT_FAILS(
        dp::Buffer::alloc(*session, dp::BufferKind::contiguous, Size(page), {.node = 1000}),
        EINVAL);
    EXPECT_FAILS(dp::Buffer::alloc(*session, dp::BufferKind::pinned, Size(page)), EINVAL);
}

TEST_P(Library, PinnedMemory) {
    const Memory memory = Memory::fenced(4 * page);
    const auto inside = memory.bytes().subspan(100, 2 * page);
    {
        const auto b = dp::Buffer::pin(*session, inside);
        ASSERT_WORKS(b);
        EXPECT_EQ(b->kind(), dp::BufferKind::pinned);
        EXPECT_EQ(b->bytes().data(), inside.data());
        EXPECT_EQ(b->length(), Size(2 * page));
        EXPECT_EQ(session->stats()->pinned, Size(3 * page));
        std::vector<std::byte> seen(1);
        EXPECT_FAILS(b->read(Size(), seen), EOPNOTSUPP);
        const auto m =
            dp::Mapping::map(*b, MapKind::page, Size(10), Size(100), Direction::from_device);
        ASSERT_WORKS(m);
    }
    EXPECT_EQ(session->stats()->pinned, Size());
    // It is still the program's.
    std::ranges::fill(inside, std::byte{1});

    ASSERT_TRUE(memory.protect(PROT_READ));
    EXPECT_FAILS(dp::Buffer::pin(*session, inside), EFAULT);
    const auto b = dp::Buffer::pin_read_only(*session, inside);
    ASSERT_WORKS(b);
    EXPECT_TRUE(b->bytes().empty());
    EXPECT_FAILS(dp::Mapping::map(*b, MapKind::page, Size(), Size(8), Direction::from_device),
                 EACCES);
    EXPECT_WORKS(dp::Mapping::map(*b, MapKind::page, Size(), Size(8), Direction::to_device));
}

TEST_P(Library, Mapping) {
    const dp::Buffer b = contiguous(2 * page);
    auto m = dp::Mapping::map(b, MapKind::single, Size(16), Size(page), Direction::bidirectional,
                              Attr::weak_ordering | Attr::no_warn);
    ASSERT_WORKS(m);
    EXPECT_EQ(m->nr_segments(), 1u);
    const auto segments = m->segments();
    ASSERT_WORKS(segments);
    EXPECT_EQ(*segments, (std::vector{dp::Segment{m->dma_addr(), Size(page)}}));
    EXPECT_WORKS(m->sync_for_cpu());
    EXPECT_WORKS(m->sync_for_device(Size(4), Size(8)));
    EXPECT_FAILS(m->sync_for_cpu(Size(1), Size(page)), EINVAL);
    dp::Mapping moved = std::move(*m);
    EXPECT_WORKS(moved.unmap());
    EXPECT_FAILS(moved.segments(), EBADF);
    EXPECT_FAILS(dp::Mapping::map(b, MapKind::page, Size(), Size(8), Direction::to_device,
                                  Attr::write_combine),
                 EINVAL);
    EXPECT_FAILS(
        dp::Mapping::map(b, MapKind::page, Size(), Size(8), Direction::to_device, Attr(1ULL << 40)),
        EOPNOTSUPP);
}

// It is unmapped with the attributes it was mapped with, and can copy or not as it likes.
TEST_P(Library, UnmapAttributes) {
    const dp::Buffer b = contiguous(page);
    for (const Attr attrs : {Attr::none, Attr::weak_ordering}) {
        for (int way = 0; way < 3; way++) {
            auto m = dp::Mapping::map(b, MapKind::page, Size(), Size(page),
                                      Direction::bidirectional, attrs);
            ASSERT_WORKS(m);
            EXPECT_EQ(m->attrs(), attrs);
            EXPECT_FAILS(m->unmap(attrs | Attr::privileged), EINVAL);
            EXPECT_EQ(session->stats()->nr_mappings, 1u) << "it stays mapped";
            if (way == 0) {
                EXPECT_WORKS(m->unmap());
            } else if (way == 1) {
                EXPECT_WORKS(m->unmap(attrs | Attr::skip_cpu_sync));
            } // else by its destructor
        }
    }
    dp::Run run(*session);
    const auto mapping = run.map(b, MapKind::page, Size(), Size(page), Direction::bidirectional,
                                 Attr::weak_ordering);
    run.unmap(mapping, Attr::weak_ordering);
    EXPECT_WORKS(run.execute());
    EXPECT_EQ(session->stats()->nr_mappings, 0u);
}

// What else is mmapped of it holds a buffer, which then stays as it was.
TEST_P(Library, BufferThatIsMmappedTwice) {
    auto b = dp::Buffer::contiguous(*session, Size(2 * page));
    ASSERT_WORKS(b);
    b->bytes()[3] = std::byte{42};
    // The module's offset of an object is made of its id.
    void* at = mmap(nullptr, page, PROT_READ, MAP_SHARED, session->fd(),
                    static_cast<off_t>(uint64_t{b->id()} << 32));
    ASSERT_NE(at, MAP_FAILED) << strerror(errno);
    Memory second(at, page);
    EXPECT_FAILS(b->close(), EBUSY);
    ASSERT_EQ(b->bytes().size(), 2 * page);
    EXPECT_EQ(b->bytes()[3], std::byte{42});
    EXPECT_EQ(second.data()[3], std::byte{42});
    second.unmap();
    EXPECT_WORKS(b->close());
}

TEST_P(Library, Lists) {
    auto scattered = dp::Buffer::scattered(*session, Size(8 * page));
    ASSERT_WORKS(scattered);
    dp::Buffer& b = *scattered;
    const dp::Buffer other = contiguous(page);
    std::vector<dp::SgEntry> list;
    list.reserve(10);
    for (size_t i = 0; i < 8; i++)
        list.push_back({b, Size(i * page), Size(page)});
    list.push_back({other, Size(), Size(512)});

    for (const dp::SgKind kind : {dp::SgKind::list, dp::SgKind::table}) {
        auto m = dp::Mapping::map_sg(list, kind, Direction::bidirectional);
        ASSERT_WORKS(m);
        EXPECT_EQ(m->kind(), kind == dp::SgKind::list ? MapKind::sg_list : MapKind::sg_table);
        EXPECT_EQ(m->length(), Size(8 * page + 512));
        const auto segments = m->segments();
        ASSERT_WORKS(segments);
        EXPECT_EQ(segments->size(), m->nr_segments());
        EXPECT_LE(segments->size(), list.size());
        Size sum;
        for (const dp::Segment& segment : *segments)
            sum += segment.length;
        EXPECT_EQ(sum, m->length());
        EXPECT_WORKS(m->sync_for_device());
        EXPECT_WORKS(m->sync_for_cpu());
        EXPECT_FAILS(m->sync_for_cpu(Size(), Size(page)), EINVAL);
        EXPECT_FAILS(b.close(), EBUSY);
        EXPECT_WORKS(m->unmap());
    }
}

// Each session counts its objects from the same number on, so that an object of another session
// could be taken for one of this.
TEST_P(Library, ObjectsOfAnotherSession) {
    auto other = dp::Session::open(bdf, {.transport = GetParam()});
    ASSERT_WORKS(other);
    const dp::Buffer mine = contiguous(page);
    const auto foreign = dp::Buffer::contiguous(*other, Size(page));
    ASSERT_WORKS(foreign);
    ASSERT_EQ(foreign->id(), mine.id());

    const std::vector<dp::SgEntry> list = {{mine, Size(), Size(page)},
                                           {*foreign, Size(), Size(page)}};
    EXPECT_FAILS(dp::Mapping::map_sg(list, dp::SgKind::table, Direction::to_device), ENOENT);
    EXPECT_FAILS(dp::IovaSpace::try_alloc(*session, Size(page), *foreign, Size()), ENOENT);
    EXPECT_FAILS(dp::IovaSpace::alloc(*session, Size(page), *foreign, Size()), ENOENT);
    if (auto iova = space(page)) {
        EXPECT_FAILS(iova->link(*foreign, Size(), Size(), Size(page), Direction::to_device),
                     ENOENT);
    }
    EXPECT_FAILS(session->bench_map(*foreign, 1), ENOENT);
    dp::Run run(*session);
    run.map(*foreign, MapKind::page, Size(), Size(page), Direction::to_device);
    EXPECT_FAILS(run.execute(), ENOENT);
}

TEST_P(Library, Resource) {
    auto m = dp::Mapping::map_resource(*session, 0, Size(), Size(page), Direction::bidirectional);
    ASSERT_WORKS(m);
    EXPECT_EQ(m->kind(), MapKind::resource);
    const auto segments = m->segments();
    ASSERT_WORKS(segments);
    EXPECT_EQ(*segments, (std::vector{dp::Segment{m->dma_addr(), Size(page)}}));
    EXPECT_FAILS(m->sync_for_cpu(), EOPNOTSUPP);
    EXPECT_WORKS(m->unmap());
    EXPECT_FAILS(
        dp::Mapping::map_resource(*session, 6, Size(), Size(page), Direction::bidirectional),
        EINVAL);
}

TEST_P(Library, IovaSpace) {
    auto made = space(3 * page);
    if (!made)
        GTEST_SKIP() << "no IOVA space is to be had here";
    const dp::Buffer b = contiguous(page);

    ASSERT_WORKS(
        made->link(b, Size(), Size(), Size(page), Direction::to_device, Attr::weak_ordering));
    ASSERT_WORKS(made->sync(Size(), Size(page)));
    // The attributes are part of a link.
    EXPECT_FAILS(made->unlink(Size(), Size(page), Direction::to_device), EINVAL);
    ASSERT_WORKS(made->unlink(Size(), Size(page), Direction::to_device, Attr::weak_ordering));

    if (const auto why = s.missing(DMAPROBE_FEATURE_MAP_PHYS); why) {
        EXPECT_FAILS(made->link_bar(0, Size(), Size(), Size(page), Direction::bidirectional),
                     EOPNOTSUPP);
    } else {
        ASSERT_WORKS(made->link_bar(0, Size(), Size(), Size(page), Direction::bidirectional));
        EXPECT_EQ(made->state()->nr_links, 1u);
        EXPECT_FAILS(made->destroy(Size(page), Direction::bidirectional), EINVAL);
        ASSERT_WORKS(made->destroy(Size(page), Direction::bidirectional, Attr::mmio));
    }
    // Another is unlinked and freed by its destructor.
    auto another = space(page);
    ASSERT_TRUE(another);
    ASSERT_WORKS(another->link(b, Size(), Size(), Size(page), Direction::to_device));

    auto ended = space(page);
    ASSERT_TRUE(ended);
    ASSERT_WORKS(ended->free());
    EXPECT_FAILS(ended->link(b, Size(), Size(), Size(page), Direction::to_device), EBADF);
    EXPECT_FAILS(ended->link_bar(0, Size(), Size(), Size(page), Direction::to_device), EBADF);
    EXPECT_FAILS(ended->sync(Size(), Size(page)), EBADF);
    EXPECT_FAILS(ended->unlink(Size(), Size(page), Direction::to_device), EBADF);
    EXPECT_FAILS(ended->state(), EBADF);
}

// What is moved into ends what it had.
TEST_P(Library, MovedInto) {
    const auto stats = [&] { return *session->stats(); };
    std::vector<dp::Buffer> buffers;
    std::vector<dp::Mapping> mappings;
    std::vector<dp::IovaSpace> spaces;
    std::vector<dp::Alloc> allocs;
    std::vector<dp::Pool> pools;

    for (int i = 0; i < 2; i++) {
        buffers.push_back(contiguous(page));
        auto mapping =
            dp::Mapping::map(buffers[0], MapKind::page, Size(), Size(page), Direction::to_device);
        ASSERT_WORKS(mapping);
        mappings.push_back(std::move(*mapping));
        auto iova = dp::IovaSpace::try_alloc(*session, Size(page));
        ASSERT_WORKS(iova);
        spaces.push_back(std::move(*iova));
        auto alloc = dp::Alloc::coherent(*session, Size(page));
        ASSERT_WORKS(alloc);
        allocs.push_back(std::move(*alloc));
        auto pool = dp::Pool::create(*session, Size(96), Size(64), Size(1024));
        ASSERT_WORKS(pool);
        pools.push_back(std::move(*pool));
    }
    mappings[0] = std::move(mappings[1]);
    EXPECT_EQ(stats().nr_mappings, 1u);
    mappings.clear();
    buffers[0] = std::move(buffers[1]);
    EXPECT_EQ(stats().nr_buffers, 1u);
    spaces[0] = std::move(spaces[1]);
    EXPECT_EQ(stats().nr_iovas, 1u);
    allocs[0] = std::move(allocs[1]);
    EXPECT_EQ(stats().nr_allocs, 1u);
    pools[0] = std::move(pools[1]);
    EXPECT_EQ(stats().nr_pools, 1u);

    auto first = dp::Session::open(bdf, {.transport = GetParam()});
    ASSERT_WORKS(first);
    auto second = dp::Session::open(bdf, {.transport = GetParam()});
    ASSERT_WORKS(second);
    auto buffer = dp::Buffer::contiguous(*first, Size(page));
    ASSERT_WORKS(buffer);
    *first = std::move(*second);
    EXPECT_FAILS(dp::Mapping::map(*buffer, MapKind::page, Size(), Size(8), Direction::to_device),
                 EBADF);
    EXPECT_WORKS(first->nop());
    EXPECT_FAILS(second->nop(), EBADF);
}

// Trying makes an object in any case.
TEST_P(Library, IovaSpaceThatIsTried) {
    const bool some = s.translated() && !s.missing(DMAPROBE_FEATURE_DMA_IOVA);
    auto tried = dp::IovaSpace::try_alloc(*session, Size(page));
    ASSERT_WORKS(tried);
    EXPECT_EQ(tried->use(), some);
    EXPECT_EQ(tried->state()->use, tried->use());
    const dp::Buffer b = contiguous(page);
    if (tried->use()) {
        EXPECT_WORKS(tried->link(b, Size(), Size(), Size(page), Direction::to_device));
        EXPECT_WORKS(tried->unlink(Size(), Size(page), Direction::to_device));
    } else {
        EXPECT_FAILS(tried->link(b, Size(), Size(), Size(page), Direction::to_device), EOPNOTSUPP);
        EXPECT_EQ(tried->addr(), dp::Iova());
    }
    EXPECT_WORKS(tried->free());
    // More than there is: by its destructor.
    const auto huge = dp::IovaSpace::try_alloc(*session, Size(uint64_t{1} << 60));
    ASSERT_WORKS(huge);
    EXPECT_FALSE(huge->use());
    EXPECT_FAILS(dp::IovaSpace::alloc(*session, Size(uint64_t{1} << 60)),
                 some ? ENOSPC : EOPNOTSUPP);
}

TEST_P(Library, Allocations) {
    using enum dp::AllocKind;
    for (const dp::AllocKind kind : {coherent, noncoherent, pages, noncontiguous}) {
        SCOPED_TRACE(dp::to_string(kind));
        const Size length(5 * page);
        auto a = dp::Alloc::create(*session, kind, length);
        ASSERT_WORKS(a);
        EXPECT_EQ(a->kind(), kind);
        EXPECT_EQ(a->length(), length);
        ASSERT_EQ(a->bytes().size(), length.value());
        EXPECT_TRUE(std::ranges::all_of(a->bytes(), [](std::byte b) { return b == std::byte{}; }));

        // Program and kernel see the same bytes.
        const auto bytes = pattern(length.value(), 1);
        std::ranges::copy(bytes, a->bytes().begin());
        std::vector<std::byte> seen(length.value());
        EXPECT_WORKS(a->read(Size(), seen));
        EXPECT_EQ(seen, bytes);
        EXPECT_WORKS(a->write(Size(page - 1), std::span(bytes).first(2)));
        EXPECT_EQ(a->bytes()[page], bytes[1]);

        const auto segments = a->segments();
        ASSERT_WORKS(segments);
        EXPECT_EQ(*segments, (std::vector{dp::Segment{a->dma_addr(), length}}));
        if (a->nr_pieces() == 0) {
            EXPECT_FAILS(a->pieces(), ENXIO);
        } else {
            const auto pieces = a->pieces(true);
            ASSERT_WORKS(pieces);
            EXPECT_EQ(pieces->size(), a->nr_pieces());
            Size sum;
            for (const dp::AllocPiece& piece : *pieces) {
                EXPECT_TRUE(piece.phys);
                sum += piece.length;
            }
            EXPECT_GE(sum, length);
            EXPECT_FALSE(a->pieces()->front().phys);
        }
        if (kind == coherent) {
            EXPECT_FAILS(a->sync_for_cpu(), EOPNOTSUPP);
        } else {
            EXPECT_WORKS(a->sync_for_cpu());
            EXPECT_WORKS(a->sync_for_device());
        }
        EXPECT_EQ(session->stats()->nr_allocs, 1u);
        dp::Alloc moved = std::move(*a);
        EXPECT_EQ(moved.bytes()[0], bytes[0]);
        EXPECT_WORKS(moved.free());
        EXPECT_TRUE(moved.bytes().empty());
        EXPECT_WORKS(moved.free());
        EXPECT_FAILS(moved.read(Size(), seen), EBADF);
        EXPECT_FAILS(moved.pieces(), EBADF);
        EXPECT_FAILS(moved.export_dmabuf(), EBADF);
    }
}

TEST_P(Library, AllocationOptions) {
    const auto a = dp::Alloc::create(*session, dp::AllocKind::noncoherent, Size(100),
                                     {.direction = Direction::from_device, .mmap = false});
    ASSERT_WORKS(a);
    EXPECT_EQ(a->direction(), Direction::from_device);
    EXPECT_TRUE(a->bytes().empty());
    EXPECT_FAILS(dp::Alloc::create(*session, dp::AllocKind::pages, Size(page),
                                   {.attrs = Attr::write_combine}),
                 EINVAL);
    const auto unseen = dp::Alloc::coherent(*session, Size(page), Attr::no_kernel_mapping);
    ASSERT_WORKS(unseen);
    std::vector<std::byte> seen(1);
    EXPECT_FAILS(unseen->read(Size(), seen), EOPNOTSUPP);
}

TEST_P(Library, DmaBuf) {
    auto a = dp::Alloc::coherent(*session, Size(3 * page));
    ASSERT_WORKS(a);
    a->bytes()[5] = std::byte{42};
    {
        auto exported = a->export_dmabuf();
        ASSERT_WORKS(exported);
        const auto length = exported->length();
        ASSERT_WORKS(length);
        EXPECT_EQ(*length, Size(3 * page));
        EXPECT_WORKS(exported->begin_cpu_access(Direction::bidirectional));
        EXPECT_WORKS(exported->end_cpu_access(Direction::bidirectional));

        auto other = dp::Session::open(bdf, {.transport = GetParam()});
        ASSERT_WORKS(other);
        auto m = dp::Mapping::import_dmabuf(*other, exported->fd(), Direction::bidirectional);
        ASSERT_WORKS(m);
        EXPECT_EQ(m->kind(), MapKind::dmabuf);
        EXPECT_EQ(m->length(), Size(3 * page));
        const auto segments = m->segments();
        ASSERT_WORKS(segments);
        EXPECT_EQ(segments->size(), m->nr_segments());
        EXPECT_FAILS(m->sync_for_cpu(), EOPNOTSUPP);
        // It is still there, and so is what is in it.
        EXPECT_FAILS(a->free(), EBUSY);
        ASSERT_EQ(a->bytes().size(), 3 * page);
        EXPECT_EQ(a->bytes()[5], std::byte{42});
        EXPECT_WORKS(m->unmap());
    }
    // Its last holder lets go of it a little later than close() returns.
    EXPECT_TRUE(wait_for([&] { return a->free().has_value(); }, std::chrono::seconds(5)));
    EXPECT_FAILS(dp::Mapping::import_dmabuf(*session, 0, Direction::to_device), EINVAL);
    EXPECT_FAILS(dp::Mapping::import_dmabuf(*session, -1, Direction::to_device), EBADF);
}

TEST_P(Library, Pools) {
    auto pool = dp::Pool::create(*session, Size(96), Size(64), Size(1024));
    ASSERT_WORKS(pool);
    EXPECT_EQ(pool->block_size(), Size(96));
    {
        std::vector<dp::PoolBlock> blocks;
        for (int i = 0; i < 40; i++) {
            auto block = pool->alloc();
            ASSERT_WORKS(block);
            EXPECT_EQ(block->length(), Size(96));
            EXPECT_EQ(block->dma_addr().value() % 64, 0u);
            EXPECT_EQ(block->dma_addr().value() / 1024, (block->dma_addr().value() + 95) / 1024);
            EXPECT_WORKS(block->write(Size(), pattern(96, blocks.size())));
            blocks.push_back(std::move(*block));
        }
        std::vector<std::byte> seen(96);
        for (size_t i = 0; i < blocks.size(); i++) {
            EXPECT_WORKS(blocks[i].read(Size(), seen));
            EXPECT_EQ(seen, pattern(96, i));
        }
        EXPECT_FAILS(blocks[0].read(Size(1), seen), EINVAL);
        EXPECT_FAILS(pool->destroy(), EBUSY);
        EXPECT_WORKS(blocks[0].free());
        EXPECT_FAILS(blocks[0].read(Size(), seen), EBADF);
        blocks[1] = std::move(blocks[2]);
        EXPECT_EQ(session->stats()->nr_blocks, 38u);
    }
    EXPECT_EQ(session->stats()->nr_blocks, 0u);
    EXPECT_WORKS(pool->destroy());
    EXPECT_FAILS(pool->alloc(), EBADF);
}

TEST_P(Library, RunOfASequence) {
    dp::Run run(*session);
    const auto bytes = pattern(64);
    std::vector<std::byte> seen(64);
    const auto buffer = run.buffer_alloc(dp::BufferKind::kmalloc, Size(64), {.offset = Size(8)});
    run.write(buffer, Size(), bytes);
    const auto mapping =
        run.map(buffer, MapKind::single, Size(), Size(64), Direction::bidirectional);
    run.sync_for_device(mapping, Size(), Size(64));
    run.sync_for_cpu(mapping, Size(), Size(64));
    run.unmap(mapping);
    run.read(buffer, Size(), seen);
    run.close(buffer);
    const auto pool = run.pool_create(Size(32));
    const auto block = run.pool_alloc(pool);
    run.write(block, Size(), std::span(bytes).first(32));
    run.free(block);
    run.destroy(pool);
    const auto alloc = run.alloc(dp::AllocKind::noncoherent, Size(page));
    run.sync_for_device(alloc, Size(), Size(page));
    run.free(alloc);

    // Again and again; what it names is what it has made this time.
    for (int i = 0; i < 3; i++) {
        std::ranges::fill(seen, std::byte{});
        ASSERT_WORKS(run.execute());
        EXPECT_EQ(run.done(), run.size());
        EXPECT_EQ(seen, bytes);
        EXPECT_WORKS(run.result(mapping));
        ASSERT_WORKS(run.id(mapping));
        ASSERT_WORKS(run.addr(mapping));
        ASSERT_WORKS(run.addr(block));
        EXPECT_EQ(*session->stats(), dp::Stats());
    }
}

// Pages that are anywhere become one range of addresses. Each is where it is, also where more of
// them are asked for than one answer of the module holds.
TEST_P(Library, TranslateScatteredPages) {
    const auto b = dp::Buffer::scattered(*session, Size(300 * page));
    ASSERT_WORKS(b);
    auto iova = space(300 * page);
    if (!iova)
        GTEST_SKIP() << "no IOVA space is to be had here";
    for (size_t at = 0; at < 300 * page; at += page)
        ASSERT_WORKS(iova->link(*b, Size(at), Size(at), Size(page), Direction::to_device));
    ASSERT_WORKS(iova->sync(Size(), iova->length()));
    const auto whole = dp::translate(*session, iova->addr(), iova->length());
    ASSERT_WORKS(whole);
    ASSERT_EQ(whole->size(), 1u);
    EXPECT_EQ(whole->front().length, iova->length());
    EXPECT_FALSE(whole->front().phys);
    const auto pieces = dp::translate(*session, iova->addr(), iova->length(), {.phys = true});
    ASSERT_WORKS(pieces);
    ASSERT_EQ(pieces->size(), 300u);
    for (size_t i = 0; i < pieces->size(); i++) {
        const auto alone =
            dp::translate(*session, iova->addr() + Size(i * page), Size(page), {.phys = true});
        ASSERT_WORKS(alone);
        ASSERT_EQ(alone->size(), 1u);
        EXPECT_EQ((*pieces)[i], alone->front());
        EXPECT_EQ((*pieces)[i].buffer_offset, Size(i * page));
    }
}

// More than one call of the module translates, and no address leads anywhere.
TEST_P(Library, TranslateALargeHole) {
    if (!s.translated())
        GTEST_SKIP() << "no IOMMU translates for the device";
    if (GetParam() != Transport::ioctl)
        GTEST_SKIP() << "once is enough of a million granules";
    const Size length((uint64_t{4} << 30) + page);
    const auto extents = dp::translate(*session, dp::Iova(uint64_t{1} << 60), length);
    ASSERT_WORKS(extents);
    ASSERT_EQ(extents->size(), 1u);
    EXPECT_EQ(extents->front().kind, dp::ExtentKind::hole);
    EXPECT_EQ(extents->front().length, length);
}

TEST_P(Library, RunOfPinsAndBars) {
    const Memory memory = Memory::fenced(page);
    dp::Run run(*session);
    const auto pinned = run.buffer_pin(memory.bytes());
    const auto mapping = run.map(pinned, MapKind::page, Size(), Size(page), Direction::from_device);
    const auto resource = run.map_resource(0, Size(), Size(page), Direction::from_device);
    run.unmap(resource);
    run.unmap(mapping);
    if (!s.missing(DMAPROBE_FEATURE_MAP_PHYS) && space(page)) {
        const auto iova = run.iova_alloc(Size(page));
        run.iova_link_bar(iova, 0, Size(), Size(), Size(page), Direction::from_device);
        run.iova_destroy(iova, Size(page), Direction::from_device, Attr::mmio);
    }
    run.close(pinned);
    ASSERT_WORKS(run.execute());
    EXPECT_EQ(*session->stats(), dp::Stats());
}

TEST_P(Library, RunOfLinks) {
    if (!space(page))
        GTEST_SKIP() << "no IOVA space is to be had here";
    const auto b = dp::Buffer::scattered(*session, Size(4 * page));
    ASSERT_WORKS(b);
    dp::Run run(*session);
    const auto iova = run.iova_alloc(Size(4 * page), *b, Size());
    for (size_t i = 0; i < 4; i++)
        run.iova_link(iova, *b, Size(i * page), Size(i * page), Size(page), Direction::to_device);
    run.iova_sync(iova, Size(), Size(4 * page));
    auto& state = run.add<dmaprobe_get_iova_state>(DMAPROBE_GET_IOVA_STATE, "iova_state");
    state.id = DMAPROBE_RUN_ID(static_cast<uint32_t>(iova.call()));
    run.iova_unlink(iova, Size(page), Size(page), Direction::to_device);
    run.iova_link(iova, *b, Size(page), Size(page), Size(page), Direction::to_device);
    run.iova_destroy(iova, Size(4 * page), Direction::to_device);
    ASSERT_WORKS(run.execute());
    EXPECT_EQ(state.nr_links, 4u);
    EXPECT_EQ(state.addr, run.addr(iova)->value());

    dp::Run short_lived(*session);
    short_lived.iova_free(short_lived.iova_alloc(Size(page)));
    EXPECT_WORKS(short_lived.execute());
}

TEST_P(Library, RunThatFailsInTheMiddle) {
    const dp::Buffer b = contiguous(page);
    dp::Run run(*session);
    const auto good = run.map(b, MapKind::page, Size(), Size(page), Direction::to_device);
    const auto bad = run.map(b, MapKind::page, Size(1), Size(page), Direction::to_device);
    const auto unmap = run.unmap(good);
    const auto missing = run.unmap(bad);

    EXPECT_FAILS(run.execute(), EINVAL);
    EXPECT_EQ(run.done(), 2u);
    EXPECT_WORKS(run.result(good));
    EXPECT_FAILS(run.result(bad), EINVAL);
    EXPECT_EQ(run.result(bad).error().op, "map");
    EXPECT_FAILS(run.addr(bad), EINVAL);
    EXPECT_FAILS(run.result(unmap), ECANCELED);
    // What was made stays, and can be named by its id.
    EXPECT_EQ(session->stats()->nr_mappings, 1u);
    dp::Run after(*session);
    after.unmap(dp::Ref<dp::Mapping>(*run.id(good)));
    EXPECT_WORKS(after.execute());

    EXPECT_FAILS(run.execute(dp::OnError::carry_on), EINVAL);
    EXPECT_EQ(run.done(), 4u);
    EXPECT_WORKS(run.result(unmap));
    EXPECT_FAILS(run.result(missing), ENOENT);
}

TEST_P(Library, BatchOfManyCalls) {
    for (const unsigned depth : {1U, 8U, 7U, 128U}) {
        auto batch = dp::Batch::create(*session, {.depth = depth});
        ASSERT_WORKS(batch);
        for (int i = 0; i < 100; i++)
            batch->nop();
        for (int round = 0; round < 3; round++)
            ASSERT_WORKS(batch->execute()) << depth;
        // One more call makes another batch of it.
        const auto wrong = batch->unmap(dp::Ref<dp::Mapping>(1));
        EXPECT_FAILS(batch->execute(), ENOENT);
        EXPECT_EQ(batch->code(0), 0);
        EXPECT_EQ(batch->code(wrong), ENOENT);
        batch->clear();
        for (int i = 0; i < 100; i++)
            batch->nop();
        EXPECT_WORKS(batch->execute());
    }
}

TEST_P(Library, BatchOfMappings) {
    const dp::Buffer b = contiguous(page);
    constexpr size_t n = 64;
    auto maps = dp::Batch::create(*session, {.depth = n});
    ASSERT_WORKS(maps);
    auto unmaps = dp::Batch::create(*session, {.depth = n});
    ASSERT_WORKS(unmaps);
    std::vector<dp::Ref<dp::Mapping>> made;
    std::vector<dmaprobe_unmap*> ends;
    for (size_t i = 0; i < n; i++) {
        made.push_back(maps->map(b, MapKind::page, Size(), Size(page), Direction::to_device));
        ends.push_back(&unmaps->add<dmaprobe_unmap>(DMAPROBE_UNMAP, "unmap"));
    }
    // The same structs, with other ids in them.
    for (int round = 0; round < 3; round++) {
        ASSERT_WORKS(maps->execute());
        EXPECT_EQ(session->stats()->nr_mappings, n);
        for (size_t i = 0; i < n; i++)
            ends[i]->id = maps->id(made[i]).value();
        ASSERT_WORKS(unmaps->execute());
        EXPECT_EQ(session->stats()->nr_mappings, 0u);
    }
}

// Calls that sleep go to workers of the ring, and may overtake each other; linked
// ones must not.
TEST_P(Library, BatchInOrder) {
    auto batch = dp::Batch::create(*session, {.depth = 16, .order = dp::Order::linked});
    ASSERT_WORKS(batch);
    const auto b = dp::Buffer::kmalloc(*session, Size(8));
    ASSERT_WORKS(b);
    const auto values = pattern(40);
    std::vector<std::byte> seen(40);
    for (size_t i = 0; i < values.size(); i++) {
        batch->write(*b, Size(), std::span(values).subspan(i, 1));
        batch->read(*b, Size(), std::span(seen).subspan(i, 1));
    }
    for (int round = 0; round < 3; round++) {
        ASSERT_WORKS(batch->execute());
        EXPECT_EQ(seen, values);
        std::ranges::fill(seen, std::byte{});
    }

    batch->clear();
    for (int i = 0; i < 40; i++)
        batch->write(*b, Size(i == 20 ? 8 : 0), std::span(values).first(1));
    EXPECT_FAILS(batch->execute(), EINVAL);
    for (size_t i = 0; i < 40; i++)
        EXPECT_EQ(batch->code(i), i < 20 ? 0 : i == 20 ? EINVAL : ECANCELED) << i;
}

// A batch keeps the file, but not a closed session's calls.
TEST_P(Library, BatchOfAClosedSession) {
    auto other = dp::Session::open(bdf, {.transport = GetParam()});
    ASSERT_WORKS(other);
    {
        auto batch = dp::Batch::create(*other);
        ASSERT_WORKS(batch);
        batch->nop();
        ASSERT_WORKS(batch->execute());
        ASSERT_WORKS(other->close());
        EXPECT_FAILS(batch->execute(), EBADF);
        EXPECT_EQ(batch->code(0), ECANCELED) << "the result of the last time";
    }
}

TEST_P(Library, CallsOfManyThreads) {
    const dp::Buffer b = contiguous(page);
    std::atomic<unsigned> wrong = 0;
    std::vector<std::thread> threads;
    threads.reserve(4);
    for (int i = 0; i < 4; i++)
        threads.emplace_back([&] {
            for (int j = 0; j < 100; j++) {
                auto m =
                    dp::Mapping::map(b, MapKind::page, Size(), Size(64), Direction::bidirectional);
                if (!m || !session->stats() || !m->sync_for_cpu() || !m->unmap())
                    wrong++;
            }
        });
    for (std::thread& thread : threads)
        thread.join();
    EXPECT_EQ(wrong, 0u);
}

} // namespace
} // namespace selftest

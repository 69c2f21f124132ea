// SPDX-License-Identifier: GPL-2.0-only
// Memory that the DMA API allocates: what it gives, who sees its bytes, and when it
// goes.

#include "support/alloc.h"
#include "support/result.h"
#include "support/system.h"
#include "support/unbind.h"

#include <linux/capability.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <ostream>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {

namespace dp = dmaprobe;
using std::chrono::milliseconds;
using std::chrono::seconds;

const std::vector<AllocWay> alloc_ways = {
    {"coherent", DMAPROBE_ALLOC_KIND_COHERENT},
    {"coherent_weak_ordering", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_WEAK_ORDERING},
    {"coherent_write_combine", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_WRITE_COMBINE},
    {"coherent_no_kernel_mapping", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_NO_KERNEL_MAPPING},
    {"coherent_force_contiguous", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_FORCE_CONTIGUOUS},
    {"coherent_single_pages", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_ALLOC_SINGLE_PAGES},
    {"coherent_no_warn", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_NO_WARN},
    {"coherent_privileged", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_PRIVILEGED},
    {"noncoherent", DMAPROBE_ALLOC_KIND_NONCOHERENT},
    {"pages", DMAPROBE_ALLOC_KIND_PAGES},
    {"noncontiguous", DMAPROBE_ALLOC_KIND_NONCONTIGUOUS},
    {"noncontiguous_single_pages", DMAPROBE_ALLOC_KIND_NONCONTIGUOUS,
     DMAPROBE_ATTR_ALLOC_SINGLE_PAGES},
};

void PrintTo(const AllocWay& way, std::ostream* out) {
    *out << way.name;
}

int allocate(const Raw& session, Allocation& out, const AllocWay& way, uint64_t length,
             uint32_t dir) {
    dmaprobe_alloc op = {};

    op.kind = way.kind;
    op.attrs = way.attrs;
    op.dir = dir;
    op.length = length;
    const int err = session(op);
    if (!err)
        out = {.id = op.id,
               .nr_entries = op.nr_entries,
               .length = length,
               .dma_addr = op.dma_addr,
               .mmap_offset = op.mmap_offset};
    return err;
}

int release(const Raw& session, const Allocation& allocation) {
    return session.destroy(allocation.id);
}

static uint64_t round_to_pages(uint64_t length) {
    return (length + page_size() - 1) / page_size() * page_size();
}

Memory map_allocation(const Raw& session, const Allocation& allocation, uint64_t offset) {
    const uint64_t length = round_to_pages(allocation.length) - offset;
    void* at = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, session.fd(),
                    static_cast<off_t>(allocation.mmap_offset + offset));

    return at == MAP_FAILED ? Memory{} : Memory{at, length};
}

int copy_in(const Raw& session, uint32_t id, uint64_t offset, std::span<const std::byte> from) {
    dmaprobe_copy op = {};

    op.id = id;
    op.dir = DMAPROBE_COPY_WRITE;
    op.offset = offset;
    op.length = from.size();
    op.addr = reinterpret_cast<uintptr_t>(from.data());
    return session(op);
}

int copy_out(const Raw& session, uint32_t id, uint64_t offset, std::span<std::byte> to) {
    dmaprobe_copy op = {};

    op.id = id;
    op.dir = DMAPROBE_COPY_READ;
    op.offset = offset;
    op.length = to.size();
    op.addr = reinterpret_cast<uintptr_t>(to.data());
    return session(op);
}

int segments(const Raw& session, uint32_t id, std::vector<dmaprobe_segment>& out) {
    dmaprobe_get_segments op = {};

    op.id = id;
    if (const int err = session(op))
        return err;
    out.resize(op.nr_segments);
    op.segments = reinterpret_cast<uintptr_t>(out.data());
    return session(op);
}

int sgtable(const Raw& session, uint32_t id, std::vector<dmaprobe_sgtable_entry>& out,
            uint32_t flags) {
    dmaprobe_get_sgtable op = {};

    op.id = id;
    op.flags = flags;
    if (const int err = session(op))
        return err;
    out.resize(op.nr_entries);
    op.entries = reinterpret_cast<uintptr_t>(out.data());
    return session(op);
}

int sync_all(const Raw& session, const Allocation& allocation, uint32_t target) {
    dmaprobe_sync op = {};

    op.id = allocation.id;
    op.target = target;
    op.length = allocation.length;
    const int err = session(op);
    return err == EOPNOTSUPP ? 0 : err;
}

std::vector<std::byte> pattern_of(size_t length, size_t seed) {
    std::vector<std::byte> bytes(length);

    for (size_t i = 0; i < length; i++)
        bytes[i] = static_cast<std::byte>((i * 37 + i / 253 + seed * 29 + 1) & 0xff);
    return bytes;
}

bool give_up_capability(unsigned capability) {
    __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, 2> data{};

    if (syscall(SYS_capget, &header, data.data()))
        return false;
    for (auto* set : {&data[capability / 32].effective, &data[capability / 32].permitted})
        *set &= ~(1u << capability % 32);
    return syscall(SYS_capset, &header, data.data()) == 0;
}

static thread_local sigjmp_buf bus_error;
static thread_local volatile sig_atomic_t expects_bus_error;

bool gives_sigbus(const std::byte* at) {
    static const bool handled = [] {
        struct sigaction action = {};

        action.sa_handler = [](int) {
            if (expects_bus_error)
                siglongjmp(bus_error, 1);
            signal(SIGBUS, SIG_DFL);
        };
        action.sa_flags = SA_NODEFER;
        return sigaction(SIGBUS, &action, nullptr) == 0;
    }();
    volatile bool hit = handled;

    if (sigsetjmp(bus_error, 1) == 0) {
        expects_bus_error = 1;
        [[maybe_unused]] const std::byte b = *static_cast<const volatile std::byte*>(at);
        hit = false;
    }
    expects_bus_error = 0;
    return hit;
}

Rig::Rig(const std::string& bdf) {
    auto opened = dp::Session::open(bdf);
    if (!opened) {
        why_ = opened.error().message();
        return;
    }
    keeper_.emplace(std::move(*opened));
    auto reached = dp::DeviceAccess::open(*keeper_);
    if (!reached) {
        why_ = reached.error().message();
        return;
    }
    access_.emplace(std::move(*reached));
    known_ = dp::Engine::find(access_->ids()) != nullptr;
    auto probed = dp::Engine::probe(*keeper_, *access_);
    if (!probed) {
        why_ = probed.error().message();
        return;
    }
    if (auto set = keeper_->set_mask((*probed)->dma_mask()); !set) {
        why_ =
            std::format("the platform does not serve the engine's mask: {}", set.error().message());
        return;
    }
    engine_ = std::move(*probed);
}

bool Rig::move(uint64_t to, uint64_t from, uint64_t length) {
    const auto moved = engine_->copy(dp::Iova(to), dp::Iova(from), dp::Size(length));

    EXPECT_WORKS(moved);
    return moved.has_value();
}

namespace {

constexpr uint64_t longest = uint64_t{256} << 20;

class Alloc : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        iommu = s.translated();
        // Noncontiguous memory is one segment, and by default a PCI device takes short ones.
        ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 0x80000000));
    }

    // What the pages of an allocation are charged as: the kernel takes a power of two of
    // them where they are contiguous.
    uint64_t charge_of(const AllocWay& way, uint64_t length) const {
        const uint64_t pages = round_to_pages(length) / page_size();
        const bool contiguous = way.kind == DMAPROBE_ALLOC_KIND_NONCOHERENT ||
                                way.kind == DMAPROBE_ALLOC_KIND_PAGES || !iommu ||
                                (way.kind == DMAPROBE_ALLOC_KIND_COHERENT &&
                                 way.attrs & DMAPROBE_ATTR_FORCE_CONTIGUOUS);

        return page_size() * (contiguous ? std::bit_ceil(pages) : pages);
    }

    // Allocations are reported as buffers.
    void expect_leads_to_start(const Allocation& a) const {
        if (iommu)
            expect_leads_to(a.dma_addr, a.length, {.id = a.id, .length = a.length}, 0);
    }

    bool iommu = false;
};

class AllocWays : public Alloc, public testing::WithParamInterface<AllocWay> {
protected:
    const AllocWay& way() const { return GetParam(); }
    bool coherent() const { return way().kind == DMAPROBE_ALLOC_KIND_COHERENT; }
    bool copies() const { return !(way().attrs & DMAPROBE_ATTR_NO_KERNEL_MAPPING); }

    int allocate(Allocation& out, uint64_t length) const {
        return selftest::allocate(s, out, way(), length);
    }
};

INSTANTIATE_TEST_SUITE_P(Alloc, AllocWays, testing::ValuesIn(alloc_ways),
                         [](const auto& row) { return row.param.name; });

TEST_P(AllocWays, OneZeroedSegment) {
    const uint64_t page = page_size();

    for (const uint64_t length : {uint64_t{1}, page - 1, page, page + 1, 5 * page, 64 * page}) {
        SCOPED_TRACE(std::format("{:#x} bytes", length));
        Allocation a;
        std::vector<dmaprobe_segment> segs;
        std::vector<dmaprobe_sgtable_entry> pieces;
        uint64_t sum = 0;

        // What the allocator gives next was used just before.
        for (int i = 0; i < 2; i++) {
            ASSERT_OK(allocate(a, length));
            Memory m = map_allocation(s, a);
            ASSERT_TRUE(m) << strerror(errno);
            EXPECT_TRUE(
                std::ranges::all_of(m.bytes(), [](std::byte b) { return b == std::byte{}; }));
            memset(m.data(), 0xee, m.size());
            m.unmap();
            if (i == 0) {
                ASSERT_OK(release(s, a));
            }
        }
        EXPECT_EQ(a.dma_addr % page, 0u);
        ASSERT_OK(segments(s, a.id, segs));
        ASSERT_EQ(segs.size(), 1u);
        EXPECT_EQ(segs[0].dma_addr, a.dma_addr);
        EXPECT_EQ(segs[0].length, length);
        ASSERT_OK(sgtable(s, a.id, pieces));
        EXPECT_EQ(pieces.size(), a.nr_entries);
        for (const auto& piece : pieces) {
            EXPECT_GT(piece.length, 0u);
            EXPECT_EQ(piece.phys, 0u) << "not asked for";
            sum += piece.length;
        }
        EXPECT_EQ(sum, length);
        expect_leads_to_start(a);
        ASSERT_OK(release(s, a));
        if (iommu)
            expect_hole(a.dma_addr, round_to_pages(length));
    }
}

TEST_P(AllocWays, PhysicalAddresses) {
    const uint64_t page = page_size();
    std::vector<dmaprobe_sgtable_entry> pieces;
    Allocation a;
    uint64_t at = 0;

    ASSERT_OK(allocate(a, 32 * page));
    ASSERT_OK(sgtable(s, a.id, pieces, DMAPROBE_SGTABLE_PHYS));
    for (const auto& piece : pieces) {
        std::array<dmaprobe_extent, 64> extents{};
        dmaprobe_translate op = {};

        EXPECT_NE(piece.phys, 0u);
        op.flags = DMAPROBE_TRANSLATE_PHYS;
        op.iova = a.dma_addr + at;
        op.length = piece.length;
        op.nr_extents = extents.size();
        op.extents = reinterpret_cast<uintptr_t>(extents.data());
        if (iommu) {
            ASSERT_OK(s(op));
            EXPECT_EQ(op.nr_extents, 1u) << "not in one piece";
            EXPECT_EQ(extents[0].phys, piece.phys);
        }
        at += piece.length;
    }
    EXPECT_EQ(at, a.length);
}

TEST_P(AllocWays, DeviceReadsAndWritesIt) {
    const uint64_t page = page_size();
    Rig rig(bdf);
    Allocation a;

    if (!rig)
        GTEST_SKIP() << rig.why();
    ASSERT_OK(allocate(a, 4 * page));
    ASSERT_LE(a.dma_addr + a.length - 1, rig.engine().dma_mask());
    Memory m = map_allocation(s, a);
    ASSERT_TRUE(m);
    const auto bytes = pattern_of(2 * page, 1);

    // What the program writes, the device reads; what the device writes, the
    // program reads. Across the edge of two pages, as the pages need not be
    // neighbours.
    std::ranges::copy(bytes, m.data() + page / 2);
    ASSERT_OK(sync_all(s, a, DMAPROBE_SYNC_FOR_DEVICE));
    ASSERT_TRUE(rig.move(a.dma_addr + 3 * page, a.dma_addr + page, page));
    ASSERT_OK(sync_all(s, a, DMAPROBE_SYNC_FOR_CPU));
    EXPECT_EQ(memcmp(m.data() + 3 * page, bytes.data() + page / 2, page), 0);
    EXPECT_EQ(memcmp(m.data() + page / 2, bytes.data(), bytes.size()), 0) << "the source changed";
    EXPECT_TRUE(
        std::all_of(m.data(), m.data() + page / 2, [](std::byte b) { return b == std::byte{}; }));
    if (copies()) {
        std::vector<std::byte> got(page);

        ASSERT_OK(copy_out(s, a.id, 3 * page, got));
        EXPECT_TRUE(std::equal(got.begin(), got.end(), bytes.begin() + page / 2));
    }
}

TEST_P(AllocWays, CopySeesWhatTheMapSees) {
    const uint64_t page = page_size(), length = 8 * page - 10;
    Allocation a;
    std::array<std::byte, 1> byte{};

    ASSERT_OK(allocate(a, length));
    Memory m = map_allocation(s, a);
    ASSERT_TRUE(m);
    if (!copies()) {
        EXPECT_ERRNO(copy_out(s, a.id, 0, byte), EOPNOTSUPP);
        EXPECT_ERRNO(copy_in(s, a.id, 0, byte), EOPNOTSUPP);
        return;
    }
    const auto bytes = pattern_of(length, 2);
    std::vector<std::byte> got(length);
    ASSERT_OK(copy_in(s, a.id, 0, bytes));
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), m.data()));
    const auto other = pattern_of(length, 3);
    std::ranges::copy(other, m.data());
    ASSERT_OK(copy_out(s, a.id, 0, got));
    EXPECT_EQ(got, other);
    ASSERT_OK(copy_out(s, a.id, page - 3, std::span(got).first(page + 7)));
    EXPECT_TRUE(std::equal(got.begin(), got.begin() + static_cast<ptrdiff_t>(page) + 7,
                           other.begin() + static_cast<ptrdiff_t>(page) - 3));

    EXPECT_OK(copy_out(s, a.id, length - 1, byte));
    EXPECT_ERRNO(copy_out(s, a.id, length, byte), EINVAL);
    EXPECT_ERRNO(copy_in(s, a.id, length, byte), EINVAL);
    EXPECT_ERRNO(copy_out(s, a.id, ~uint64_t{0}, byte), EINVAL);
    got.resize(length + 1);
    EXPECT_ERRNO(copy_out(s, a.id, 0, got), EINVAL);
}

TEST_P(AllocWays, Sync) {
    const uint64_t page = page_size();
    Allocation a;

    ASSERT_OK(allocate(a, 3 * page));
    for (const uint32_t target : {DMAPROBE_SYNC_FOR_CPU, DMAPROBE_SYNC_FOR_DEVICE}) {
        const auto sync = [&](uint64_t offset, uint64_t length) {
            dmaprobe_sync op = {};

            op.id = a.id;
            op.target = target;
            op.offset = offset;
            op.length = length;
            return s(op);
        };
        const bool whole = way().kind == DMAPROBE_ALLOC_KIND_NONCONTIGUOUS;

        if (coherent()) {
            EXPECT_ERRNO(sync(0, a.length), EOPNOTSUPP);
            continue;
        }
        EXPECT_OK(sync(0, a.length));
        EXPECT_ERRNO(sync(0, a.length - 1), whole ? EINVAL : 0);
        EXPECT_ERRNO(sync(page + 1, 1), whole ? EINVAL : 0);
        EXPECT_ERRNO(sync(1, a.length), EINVAL);
        EXPECT_ERRNO(sync(0, a.length + 1), EINVAL);
        EXPECT_ERRNO(sync(a.length, 1), EINVAL);
        EXPECT_ERRNO(sync(~uint64_t{0}, 2), EINVAL);
    }
}

TEST_P(AllocWays, MapFromAnOffset) {
    const uint64_t page = page_size();
    Allocation a;
    Allocation neighbour;

    ASSERT_OK(allocate(a, 4 * page));
    ASSERT_OK(allocate(neighbour, 4 * page));
    Memory all = map_allocation(s, a);
    Memory tail = map_allocation(s, a, 3 * page);
    Memory other = map_allocation(s, neighbour);
    ASSERT_TRUE(all && tail && other);
    for (size_t i = 0; i < 4; i++)
        memset(all.data() + i * page, static_cast<int>(0x10 + i), page);
    EXPECT_EQ(tail.data()[0], std::byte{0x13});
    tail.data()[page - 1] = std::byte{0x77};
    EXPECT_EQ(all.data()[4 * page - 1], std::byte{0x77});
    EXPECT_EQ(other.data()[0], std::byte{0});

    const auto refused = [&](uint64_t offset, size_t length, int flags) {
        void* at = mmap(nullptr, length, PROT_READ | PROT_WRITE, flags, s.fd(),
                        static_cast<off_t>(a.mmap_offset + offset));
        const int err = at == MAP_FAILED ? errno : 0;

        if (!err)
            munmap(at, length);
        return err;
    };
    EXPECT_ERRNO(refused(0, 5 * page, MAP_SHARED), EINVAL);
    EXPECT_ERRNO(refused(page, 4 * page, MAP_SHARED), EINVAL);
    EXPECT_ERRNO(refused(4 * page, page, MAP_SHARED), EINVAL);
    EXPECT_ERRNO(refused(uint64_t{0xfffff} * page, page, MAP_SHARED), EINVAL);
    EXPECT_ERRNO(refused(0, page, MAP_PRIVATE), EINVAL);
    // It does not grow.
    EXPECT_EQ(mremap(tail.data(), page, 2 * page, MREMAP_MAYMOVE), MAP_FAILED);
}

TEST_P(AllocWays, FreeWhileMmapped) {
    const uint64_t page = page_size();
    Allocation a;

    ASSERT_OK(allocate(a, 4 * page));
    {
        Memory m = map_allocation(s, a);
        ASSERT_TRUE(m);
        m.data()[0] = std::byte{0x5a};
        EXPECT_ERRNO(release(s, a), EBUSY);
        // Part of it goes, the rest is moved.
        ASSERT_EQ(munmap(m.data() + page, page), 0);
        EXPECT_ERRNO(release(s, a), EBUSY);
        Memory place = Memory::fenced(page);
        ASSERT_TRUE(place);
        void* moved = mremap(m.data(), page, page, MREMAP_MAYMOVE | MREMAP_FIXED, place.data());
        ASSERT_EQ(moved, place.data());
        EXPECT_EQ(place.data()[0], std::byte{0x5a});
        ASSERT_EQ(munmap(m.data() + 2 * page, 2 * page), 0);
        EXPECT_ERRNO(release(s, a), EBUSY) << "the page that was moved is left";
    }

    // A child's copy counts as well.
    Memory m = map_allocation(s, a);
    ASSERT_TRUE(m);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        raise(SIGSTOP);
        _exit(m.data()[0] == std::byte{0x5a} ? 0 : 1);
    }
    int status = 0;
    ASSERT_TRUE(wait_for([&] { return waitpid(child, &status, WNOHANG | WUNTRACED) == child; },
                         seconds(20)));
    m.unmap();
    EXPECT_ERRNO(release(s, a), EBUSY) << "the child has it mapped";
    kill(child, SIGCONT);
    ASSERT_TRUE(wait_for_child(child, seconds(20), status));
    EXPECT_EQ(status, 0);
    EXPECT_OK(release(s, a));
    EXPECT_ERRNO(release(s, a), ENOENT);
}

TEST_P(AllocWays, MaskIsHonoured) {
    const uint64_t page = page_size();
    // Under an IOMMU the kernel maps what dma_alloc_pages() gives as any other
    // page: by the streaming mask (kernel/dma/ops_helpers.c). No other uses it.
    const bool streaming = iommu && (way().kind == DMAPROBE_ALLOC_KIND_NONCOHERENT ||
                                     way().kind == DMAPROBE_ALLOC_KIND_PAGES);
    const uint32_t which = streaming ? DMAPROBE_SET_MASK_STREAMING : DMAPROBE_SET_MASK_COHERENT;

    for (const unsigned bits : {32u, 28u, 24u}) {
        const uint64_t mask = (uint64_t{1} << bits) - 1;
        Allocation a;

        SCOPED_TRACE(std::format("{} bits", bits));
        if (const int err = s.set_mask(mask, which)) {
            EXPECT_ERRNO(err, EIO);
            EXPECT_FALSE(iommu);
            continue;
        }
        ASSERT_OK(allocate(a, 2 * page));
        EXPECT_LE(a.dma_addr + 2 * page - 1, mask);
        EXPECT_ERRNO(s.set_mask(mask, which), EBUSY) << "the allocation is mapped";
        ASSERT_OK(release(s, a));
    }
}

// As Mapping.ExhaustedMask.
TEST_P(AllocWays, ExhaustedMask) {
    const bool streaming =
        way().kind == DMAPROBE_ALLOC_KIND_NONCOHERENT || way().kind == DMAPROBE_ALLOC_KIND_PAGES;
    const uint64_t limit = uint64_t{4} << 20, length = 64 * page_size();
    std::vector<Allocation> all;
    Allocation a;
    int err = 0;

    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates: there is no IOVA space to use up";
    ASSERT_OK(s.set_mask(limit - 1,
                         streaming ? DMAPROBE_SET_MASK_STREAMING : DMAPROBE_SET_MASK_COHERENT));
    // A lazy domain may still keep the space that another test has just given back.
    ASSERT_TRUE(wait_for([&] { return allocate(a, length) == 0; }, seconds(5)));
    do {
        EXPECT_LE(a.dma_addr + a.length, limit);
        all.push_back(a);
        err = allocate(a, length);
    } while (!err && all.size() <= limit / length);
    EXPECT_ERRNO(err, ENOMEM);
    ASSERT_OK(release(s, all.back()));
    all.pop_back();
    EXPECT_TRUE(wait_for([&] { return allocate(a, length) == 0; }, seconds(5)))
        << "space that was given back cannot be had again";
    EXPECT_OK(release(s, a));
    for (const Allocation& each : all)
        EXPECT_OK(release(s, each));
    EXPECT_OK(s.set_mask(0xffffffff));
}

TEST_P(AllocWays, ExtremeLengths) {
    Allocation a;

    EXPECT_ERRNO(allocate(a, 0), EINVAL);
    EXPECT_ERRNO(allocate(a, longest + 1), EINVAL);
    EXPECT_ERRNO(allocate(a, uint64_t{1} << 32), EINVAL);
    EXPECT_ERRNO(allocate(a, uint64_t{1} << 63), EINVAL);
    EXPECT_ERRNO(allocate(a, ~uint64_t{0}), EINVAL);
    // These may work on a large machine. Whatever they do, all is given back. Each takes long where
    // the kernel checks every page.
    for (const uint64_t length : {longest, longest / 2 + 1, uint64_t{8} << 20}) {
        SCOPED_TRACE(std::format("{:#x} bytes", length));
        const int err = allocate(a, length);

        if (err) {
            EXPECT_ERRNO(err, ENOMEM);
        } else {
            EXPECT_OK(release(s, a));
        }
    }
    // What was taken in vain comes back late.
    EXPECT_TRUE(wait_for([&] { return allocate(a, page_size()) == 0; }, seconds(5)));
}

TEST_P(AllocWays, GivenBackAtClose) {
    const uint64_t page = page_size();

    for (int i = 0; i < 3; i++) {
        Raw other = Raw::open(bdf);
        Allocation a;
        Allocation b;

        ASSERT_TRUE(other);
        ASSERT_OK(selftest::allocate(other, a, way(), 16 * page));
        ASSERT_OK(selftest::allocate(other, b, way(), 16 * page));
        Memory m = map_allocation(other, a);
        ASSERT_TRUE(m);
        ASSERT_OK(other.close());
        m.data()[0] = std::byte{1};
        EXPECT_ERRNO(s.set_mask(0xffffffff), EBUSY) << "the map keeps the session";
        m.unmap();
        EXPECT_OK(s.set_mask(0xffffffff));
        if (iommu)
            expect_hole(a.dma_addr, a.length);
    }
}

TEST_F(Alloc, Values) {
    const uint64_t page = page_size();
    Allocation a;
    constexpr std::array kinds = {DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ALLOC_KIND_NONCOHERENT,
                                  DMAPROBE_ALLOC_KIND_PAGES, DMAPROBE_ALLOC_KIND_NONCONTIGUOUS};
    constexpr std::array<uint64_t, 4> taken = {
        DMAPROBE_ATTR_WEAK_ORDERING | DMAPROBE_ATTR_WRITE_COMBINE |
            DMAPROBE_ATTR_NO_KERNEL_MAPPING | DMAPROBE_ATTR_FORCE_CONTIGUOUS |
            DMAPROBE_ATTR_ALLOC_SINGLE_PAGES | DMAPROBE_ATTR_NO_WARN | DMAPROBE_ATTR_PRIVILEGED,
        0, 0, DMAPROBE_ATTR_ALLOC_SINGLE_PAGES};

    for (const uint32_t kind : kinds) {
        for (unsigned bit = 0; bit < 12; bit++) {
            const uint64_t attr = uint64_t{1} << bit;

            SCOPED_TRACE(std::format("kind {}, attribute {:#x}", kind, attr));
            const int err = allocate(s, a, {"", kind, attr}, page);
            if (taken.at(kind) & attr) {
                EXPECT_OK(err);
            } else {
                EXPECT_TRUE(err == EINVAL || err == EOPNOTSUPP) << err;
            }
        }
        for (const uint32_t dir : {DMAPROBE_DIR_TO_DEVICE, DMAPROBE_DIR_FROM_DEVICE})
            EXPECT_ERRNO(allocate(s, a, {"", kind}, page, dir),
                         kind == DMAPROBE_ALLOC_KIND_COHERENT ? EINVAL : 0);
    }
    // All at once.
    EXPECT_OK(allocate(s, a, {"", DMAPROBE_ALLOC_KIND_COHERENT, taken[0]}, 3 * page));
    EXPECT_TRUE(map_allocation(s, a));
}

// The kernel's call makes one segment of it whatever the device takes.
TEST_F(Alloc, NoncontiguousFitsASegment) {
    const uint64_t page = page_size();
    const AllocWay way = {"", DMAPROBE_ALLOC_KIND_NONCONTIGUOUS};
    Allocation a;

    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(4 * page)));
    for (const uint64_t length : {4 * page + 1, 5 * page, longest})
        EXPECT_ERRNO(allocate(s, a, way, length), EINVAL);
    for (const uint64_t length : {uint64_t{1}, 4 * page - 1, 4 * page}) {
        ASSERT_OK(allocate(s, a, way, length));
        ASSERT_OK(release(s, a));
    }
    // Less than whole pages of a segment are none.
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(4 * page - 1)));
    EXPECT_ERRNO(allocate(s, a, way, 4 * page - 1), EINVAL);
    ASSERT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY,
                             0x80000000, 8 * page - 1));
    EXPECT_ERRNO(allocate(s, a, way, 8 * page + 1), EINVAL);
    std::vector<Allocation> all;
    for (const uint64_t pages : {1, 5, 8, 3, 8, 7}) {
        ASSERT_OK(allocate(s, a, way, pages * page));
        EXPECT_EQ(a.dma_addr / (8 * page), (a.dma_addr + a.length - 1) / (8 * page))
            << "crosses a boundary";
        all.push_back(a);
    }
    for (const Allocation& each : all)
        EXPECT_OK(release(s, each));
    // Of other memory the kernel's calls give an address, not a segment.
    EXPECT_OK(allocate(s, a, alloc_ways[0], 9 * page));
}

TEST_F(Alloc, OneSegmentOfManyPieces) {
    const uint64_t page = page_size(), length = 256 * page;
    std::vector<dmaprobe_segment> segs;
    std::vector<dmaprobe_sgtable_entry> pieces;
    std::vector<std::byte> got(length);
    Allocation a;

    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates, so the memory is in one piece";
    ASSERT_OK(allocate(
        s, a, {"", DMAPROBE_ALLOC_KIND_NONCONTIGUOUS, DMAPROBE_ATTR_ALLOC_SINGLE_PAGES}, length));
    ASSERT_OK(segments(s, a.id, segs));
    EXPECT_EQ(segs.size(), 1u);
    ASSERT_OK(sgtable(s, a.id, pieces));
    EXPECT_GT(pieces.size(), 1u);
    RecordProperty("pieces", static_cast<int>(pieces.size()));
    expect_leads_to_start(a);

    Memory m = map_allocation(s, a);
    ASSERT_TRUE(m);
    const auto bytes = pattern_of(length, 5);
    std::ranges::copy(bytes, m.data());
    ASSERT_OK(copy_out(s, a.id, 0, got));
    EXPECT_EQ(got, bytes);

    // Little room.
    std::array<dmaprobe_sgtable_entry, 2> two{};
    dmaprobe_get_sgtable op = {};
    op.id = a.id;
    op.nr_entries = 1;
    op.entries = reinterpret_cast<uintptr_t>(two.data());
    ASSERT_OK(s(op));
    EXPECT_EQ(op.nr_entries, pieces.size());
    EXPECT_EQ(two[0].length, pieces[0].length);
    EXPECT_EQ(two[1].length, 0u);
}

TEST_F(Alloc, ForceContiguousIsInOnePiece) {
    std::vector<dmaprobe_sgtable_entry> pieces;
    Allocation a;

    ASSERT_OK(allocate(s, a, {"", DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ATTR_FORCE_CONTIGUOUS},
                       64 * page_size()));
    ASSERT_OK(sgtable(s, a.id, pieces));
    EXPECT_EQ(pieces.size(), 1u);
}

TEST_F(Alloc, NotABuffer) {
    Allocation a;
    dmaprobe_map map = {};

    ASSERT_OK(allocate(s, a, alloc_ways[0], page_size()));
    map.buffer_id = a.id;
    map.length = page_size();
    EXPECT_ERRNO(s(map), ENOENT);
    EXPECT_ERRNO(s.unmap(a.id), ENOENT);
    EXPECT_ERRNO(s.iova_free(a.id), ENOENT);
}

// As for buffers, and together with them.
TEST_F(Alloc, BeyondTheMemlockLimit) {
    const uint64_t page = page_size();
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        const rlimit limit = {8 * page, 8 * page};

        if (setrlimit(RLIMIT_MEMLOCK, &limit) || !give_up_capability(CAP_IPC_LOCK))
            _exit(1);
        for (const AllocWay& way : alloc_ways) {
            for (int i = 0; i < 5; i++) {
                const Raw one = Raw::open(bdf);
                const Raw two = Raw::open(bdf);
                Allocation a;
                Allocation more;
                Buffer b;

                if (!one || !two)
                    _exit(2);
                // A power of two, as whatever is contiguous is charged.
                if (allocate(one, a, way, 3 * page + 1))
                    _exit(3);
                if (allocate(one, more, way, 4 * page + 1) != ENOMEM)
                    _exit(4);
                if (two.alloc(b, 5 * page) != ENOMEM)
                    _exit(5);
                if (allocate(two, more, way, 4 * page))
                    _exit(6);
                if (two.alloc(b, page) != ENOMEM)
                    _exit(7);
                if (release(one, a) || two.alloc(b, 4 * page))
                    _exit(8);
            }
        }
        _exit(0);
    }
    int status = -1;
    ASSERT_TRUE(wait_for_child(child, seconds(30), status)) << "the child did not end";
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0) << "a step of the child did not come out as it must";
}

// What the kernel takes for it, which is more than was asked for.
TEST_P(AllocWays, Charge) {
    const uint64_t page = page_size();

    for (const uint64_t length : {uint64_t{1}, page, page + 1, 5 * page, 8 * page, 33 * page}) {
        SCOPED_TRACE(std::format("{:#x} bytes", length));
        Allocation a;

        ASSERT_OK(allocate(a, length));
        EXPECT_EQ(s.stats().charged, charge_of(way(), length));
        ASSERT_OK(release(s, a));
        EXPECT_EQ(s.stats().charged, 0u);
    }
}

TEST_F(Alloc, SessionsMapTheirOwn) {
    const uint64_t page = page_size();
    Raw other = Raw::open(bdf);
    Allocation mine;
    Allocation theirs;

    ASSERT_TRUE(other);
    ASSERT_OK(allocate(s, mine, alloc_ways[0], page));
    ASSERT_OK(allocate(other, theirs, alloc_ways[0], page));
    ASSERT_EQ(mine.mmap_offset, theirs.mmap_offset) << "the test wants the same id in both";
    Memory m1 = map_allocation(s, mine);
    Memory m2 = map_allocation(other, theirs);
    ASSERT_TRUE(m1 && m2);
    memset(m1.data(), 1, page);
    EXPECT_EQ(m2.data()[0], std::byte{0});
    m2.unmap();
    // Taking one session's memory away leaves the other's alone.
    ASSERT_OK(other.close());
    EXPECT_EQ(m1.data()[0], std::byte{1});
    EXPECT_OK(s.set_mask(0xffffffff) == EBUSY ? 0 : EINVAL);
}

TEST_F(Alloc, KilledProcess) {
    const pid_t child = fork();

    ASSERT_GE(child, 0);
    if (child == 0) {
        const Raw mine = Raw::open(bdf);
        std::vector<Memory> maps;

        if (!mine)
            _exit(1);
        for (const AllocWay& way : alloc_ways) {
            Allocation a;

            if (allocate(mine, a, way, 8 * page_size()))
                _exit(2);
            maps.push_back(map_allocation(mine, a));
            if (!maps.back())
                _exit(3);
            maps.back().data()[0] = std::byte{1};
        }
        raise(SIGSTOP);
        _exit(4);
    }
    int status = 0;
    ASSERT_TRUE(wait_for([&] { return waitpid(child, &status, WNOHANG | WUNTRACED) == child; },
                         seconds(20)));
    EXPECT_TRUE(WIFSTOPPED(status)) << "the child did not get everything: status " << status;
    EXPECT_ERRNO(s.set_mask(0xffffffff), EBUSY);
    kill(child, SIGKILL);
    if (WIFSTOPPED(status)) {
        ASSERT_TRUE(wait_for_child(child, seconds(20), status)) << "the child does not end";
    }
    EXPECT_OK(s.set_mask(0xffffffff));
}

// --- the device goes away ----------------------------------------------------

class AllocUnbind : public Unbinding<Alloc> {};

TEST_F(AllocUnbind, WhatIsMmappedGivesSigbus) {
    const uint64_t page = page_size();
    Raw other = Raw::open(bdf);
    std::vector<Memory> maps;
    std::vector<Allocation> all;

    ASSERT_TRUE(other);
    for (const Raw* session : {&s, &other}) {
        for (const AllocWay& way : alloc_ways) {
            Allocation a;

            SCOPED_TRACE(way.name);
            ASSERT_OK(allocate(*session, a, way, 4 * page));
            all.push_back(a);
            maps.push_back(map_allocation(*session, a));
            ASSERT_TRUE(maps.back());
            memset(maps.back().data(), 0x3c, maps.back().size());
            maps.push_back(map_allocation(*session, a, 3 * page));
            ASSERT_TRUE(maps.back());
        }
    }
    // A page moved elsewhere, and one taken out of the middle.
    Memory place = Memory::fenced(page);
    ASSERT_TRUE(place);
    ASSERT_EQ(mremap(maps[0].data(), page, page, MREMAP_MAYMOVE | MREMAP_FIXED, place.data()),
              place.data());
    EXPECT_EQ(place.data()[0], std::byte{0x3c});
    ASSERT_EQ(munmap(maps[2].data() + page, page), 0);

    std::array<int, 2> go{};
    ASSERT_EQ(pipe2(go.data(), O_CLOEXEC), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        char c = 0;

        if (read(go[0], &c, 1) != 1)
            _exit(2);
        for (const Memory& m : maps) {
            const std::byte* last = m.data() + m.size() - page;

            if (!gives_sigbus(last))
                _exit(1);
        }
        _exit(gives_sigbus(place.data()) ? 0 : 1);
    }

    ASSERT_OK(unbind_driver(bdf));
    EXPECT_EQ(write(go[1], "", 1), 1);
    for (size_t i = 0; i < maps.size(); i++) {
        for (size_t at = 0; at < maps[i].size(); at += page) {
            // Holes that the test made.
            if ((i == 0 && at == 0) || (i == 2 && at == page))
                continue;
            EXPECT_TRUE(gives_sigbus(maps[i].data() + at)) << "map " << i << ", offset " << at;
        }
    }
    EXPECT_TRUE(gives_sigbus(place.data()));
    int status = 0;
    ASSERT_TRUE(wait_for_child(child, seconds(20), status));
    EXPECT_EQ(status, 0) << "in the child";
    ::close(go[0]);
    ::close(go[1]);

    EXPECT_FALSE(map_allocation(s, all[0]));
    EXPECT_ERRNO(errno, ENODEV);
    EXPECT_ERRNO(release(s, all[0]), ENODEV);
    EXPECT_OK(other.close());
    EXPECT_OK(s.close());
    // The maps still keep the files. With them gone, nothing is left.
    maps.clear();
    place.unmap();
    come_back();
    if (iommu)
        for (const Allocation& a : all)
            expect_hole(a.dma_addr, a.length);
    EXPECT_OK(s.set_mask(0xffffffff));
}

// mmap(), munmap() and fork() race with the unbind: whoever has it mapped afterwards
// gets SIGBUS.
TEST_F(AllocUnbind, WhileItIsBeingMmapped) {
    const uint64_t page = page_size();

    for (int round = 0; round < 20; round++) {
        std::atomic<bool> gone = false;
        std::atomic<int> alive = 0;
        std::atomic<int> odd = 0;
        std::atomic<int> maps = 0;
        std::vector<std::thread> threads;
        std::vector<Allocation> all;

        SCOPED_TRACE(std::format("round {}", round));
        threads.reserve(3);
        for (const AllocWay& way : {alloc_ways[0], alloc_ways[4], alloc_ways[9], alloc_ways[10]}) {
            all.emplace_back();
            ASSERT_OK(allocate(s, all.back(), way, 16 * page));
        }
        for (unsigned nr = 0; nr < 3; nr++) {
            threads.emplace_back([&, nr] {
                std::vector<Memory> mine;
                unsigned i = nr;

                while (!gone) {
                    Memory m = map_allocation(s, all[i++ % all.size()]);

                    if (!m && errno != ENODEV && errno != ENOENT)
                        odd = errno;
                    if (!m)
                        continue;
                    maps++;
                    if (mine.size() > 8)
                        mine.erase(mine.begin());
                    mine.push_back(std::move(m));
                }
                for (const Memory& m : mine)
                    alive += !gives_sigbus(m.data());
            });
        }
        // Children that look at what they got from their parent.
        std::array<int, 2> go{};
        ASSERT_EQ(pipe2(go.data(), O_CLOEXEC), 0);
        Memory mine = map_allocation(s, all[1]);
        ASSERT_TRUE(mine);
        std::vector<pid_t> children;
        std::thread forker([&] {
            while (!gone && children.size() < 30) {
                const pid_t child = fork();

                if (child == 0) {
                    char c = 0;

                    ::close(go[1]);
                    // Until the other end is closed.
                    _exit(read(go[0], &c, 1) == 0 && gives_sigbus(mine.data()) ? 0 : 1);
                }
                if (child > 0)
                    children.push_back(child);
            }
        });
        EXPECT_TRUE(wait_for([&] { return maps > 0 || odd != 0; }, seconds(20)));
        std::this_thread::sleep_for(milliseconds(20 + 3 * round));
        EXPECT_OK(unbind_driver(bdf));
        gone = true;
        for (std::thread& thread : threads)
            thread.join();
        forker.join();
        ::close(go[1]);
        for (const pid_t child : children) {
            int status = 0;

            EXPECT_TRUE(wait_for_child(child, seconds(20), status));
            EXPECT_EQ(status, 0) << "a child still had it mapped";
        }
        ::close(go[0]);
        EXPECT_EQ(alive, 0) << "still mapped after the unbind";
        EXPECT_ERRNO(odd.load(), 0);
        EXPECT_GT(maps, 0);
        EXPECT_TRUE(gives_sigbus(mine.data()));
        mine.unmap();
        EXPECT_OK(s.close());
        come_back();
        if (HasFailure())
            return;
    }
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// What every struct of the ABI promises, tested for every struct from one list.
// A command that is not in the list fails Abi.UnknownNumbers.

#include "support/alloc.h"
#include "support/ops.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <limits>
#include <set>
#include <sys/mman.h>

namespace selftest {
namespace {

std::vector<Op> ops_with(bool (*wanted)(const Op& op)) {
    std::vector<Op> some;

    std::ranges::copy_if(ops(), std::back_inserter(some), wanted);
    return some;
}

class EveryStruct : public DeviceTest, public testing::WithParamInterface<Op> {
protected:
    const Op& op() const { return GetParam(); }

    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        room_ = Memory::fenced(4 * page_size());
        ASSERT_TRUE(room_);
        // The fixture's own session would keep masks and memory alive.
        lacks_ = selftest::unsupported_reason(op(), s);
        EXPECT_OK(s.close());
    }

    // Why the sample cannot work on this machine, or nothing.
    const std::string& unsupported_reason() const { return lacks_; }

    // The sample as a caller with a struct of this size would pass it: zeroes
    // behind what this program knows, its end at the end of a page.
    std::byte* sample(Live& live, size_t size) const {
        const size_t claimed = std::max<size_t>(size, 4);
        std::vector<std::byte> full(std::max(op().size, size));

        op().sample(live, full.data());
        set<uint32_t>(full.data(), 0, static_cast<uint32_t>(size));
        std::byte* at = room_.data() + room_.size() - claimed;
        memcpy(at, full.data(), claimed);
        return at;
    }

    // A call that must fail and must not touch the caller's struct.
    void refused(Live& live, std::byte* at, int err) const {
        const std::vector<std::byte> before(at, room_.data() + room_.size());

        EXPECT_ERRNO(submit(live.s.fd(), op().command, at), err);
        EXPECT_TRUE(std::equal(before.begin(), before.end(), at))
            << "a call that failed changed its struct";
    }

    // The same for the sample with one member changed.
    template <class V>
    void refused_with(size_t offset, V value, int err) const {
        Live live(bdf);
        std::byte* at = sample(live, op().size);

        SCOPED_TRACE(std::format("offset {} = {:#x}", offset, value));
        set<V>(at, offset, value);
        refused(live, at, err);
    }

    Memory room_;
    std::string lacks_;
};

// The same for the structs that have such a member.
class StructsWithAttributes : public EveryStruct {};
class StructsWithReserved : public EveryStruct {};
class StructsWithEnums : public EveryStruct {};
class StructsWithIds : public EveryStruct {};
class StructsWithPointers : public EveryStruct {};
class StructsThatAnswer : public EveryStruct {};

TEST_P(EveryStruct, KeepsItsFirstSize) {
    // The first version's size never changes; a struct only grows.
    EXPECT_GE(op().size, op().min_size);
}

TEST_P(EveryStruct, Exact) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    Live live(bdf);

    EXPECT_OK(submit(live.s.fd(), op().command, sample(live, op().size)));
}

TEST_P(EveryStruct, FirstSize) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    Live live(bdf);

    EXPECT_OK(submit(live.s.fd(), op().command, sample(live, op().min_size)));
}

TEST_P(EveryStruct, TooShort) {
    std::set<size_t> sizes = {
        0, 1, 2, 3, 4, 7, 8, op().min_size - 8, op().min_size - 4, op().min_size - 1};
    sizes.erase(op().min_size); // of a struct with nothing but size and flags
    Live live(bdf);

    for (const size_t size : sizes) {
        SCOPED_TRACE(std::format("size {}", size));
        // In full behind the size that it claims, so that only the size is wrong.
        std::byte* at = sample(live, op().size);
        set<uint32_t>(at, 0, static_cast<uint32_t>(size));
        refused(live, at, EINVAL);
    }
}

TEST_P(EveryStruct, LongerWithZeroTail) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    for (const size_t more : {size_t{8}, size_t{64}, page_size() - op().size}) {
        SCOPED_TRACE(std::format("{} bytes longer", more));
        Live live(bdf);
        std::byte* at = sample(live, op().size + more);

        EXPECT_OK(submit(live.s.fd(), op().command, at));
        EXPECT_TRUE(std::all_of(at + op().size, at + op().size + more, [](std::byte b) {
            return b == std::byte{0};
        })) << "the tail is not zero in the answer";
    }
}

TEST_P(EveryStruct, LongerWithOtherTail) {
    for (const size_t more : {size_t{8}, size_t{64}, page_size() - op().size}) {
        for (const size_t where : {size_t{0}, more - 1}) {
            SCOPED_TRACE(std::format("{} bytes longer, byte {} set", more, where));
            Live live(bdf);
            std::byte* at = sample(live, op().size + more);

            at[op().size + where] = std::byte{1};
            refused(live, at, E2BIG);
        }
    }
}

// All structs are, so none of these is a struct's size, whatever its tail is.
TEST_P(EveryStruct, SizeThatIsNoMultipleOf8) {
    for (const size_t more : {1, 2, 4, 7, 9}) {
        SCOPED_TRACE(std::format("{} bytes longer", more));
        Live live(bdf);

        refused(live, sample(live, op().size + more), EINVAL);
    }
}

// No struct grows beyond a page, so its tail is not even looked at.
TEST_P(EveryStruct, LongerThanAPage) {
    for (const size_t size : {page_size() + 1, page_size() + 8, 2 * page_size()}) {
        SCOPED_TRACE(std::format("size {}", size));
        Live live(bdf);

        refused(live, sample(live, size), E2BIG);
    }
    for (const uint32_t size : {0x7fffffffu, 0x80000000u, 0xffffffffu}) {
        SCOPED_TRACE(std::format("size {:#x}", size));
        Live live(bdf);
        std::byte* at = sample(live, op().size);

        set<uint32_t>(at, 0, size);
        refused(live, at, E2BIG);
    }
}

TEST_P(EveryStruct, ClaimsMoreThanThereIs) {
    for (const size_t more : {size_t{8}, page_size() - op().size}) {
        SCOPED_TRACE(std::format("{} bytes longer", more));
        Live live(bdf);
        std::byte* at = sample(live, op().size);

        set<uint32_t>(at, 0, static_cast<uint32_t>(op().size + more));
        refused(live, at, EFAULT);
    }
}

TEST_P(EveryStruct, UnknownFlags) {
    Live live(bdf);

    for (unsigned bit = 0; bit < 32; bit++) {
        if (op().flags >> bit & 1)
            continue;
        SCOPED_TRACE(std::format("flag {:#x}", 1u << bit));
        std::byte* at = sample(live, op().size);
        set<uint32_t>(at, 4, get<uint32_t>(at, 4) | 1u << bit);
        refused(live, at, EOPNOTSUPP);
    }
}

// Known and taken; known, but of another command; unknown, to us or to the kernel.
TEST_P(StructsWithAttributes, WrongAttributes) {
    Live live(bdf);
    const uint64_t unknown = ~live.s.info().attrs;

    for (const AttrsField& field : op().attrs) {
        for (unsigned bit = 0; bit < 64; bit++) {
            const uint64_t attr = uint64_t{1} << bit;

            if (field.taken & attr & ~unknown)
                continue;
            SCOPED_TRACE(std::format("attribute {:#x}", attr));
            std::byte* at = sample(live, op().size);
            set<uint64_t>(at, field.offset, attr);
            refused(live, at, attr & unknown ? EOPNOTSUPP : EINVAL);
            // A good one beside it changes nothing.
            set<uint64_t>(at, field.offset, attr | DMAPROBE_ATTR_WEAK_ORDERING);
            refused(live, at, attr & unknown ? EOPNOTSUPP : EINVAL);
        }
    }
}

// A file that was opened for reading: what a call needs is checked in a fixed order.
TEST_P(EveryStruct, ReadOnlyFile) {
    if (transport() == "run")
        GTEST_SKIP() << "a run needs a file that is open for writing";
    const Raw reader = Raw::open(bdf, O_RDONLY);
    Live live(bdf);

    ASSERT_TRUE(reader) << strerror(reader.error());
    const auto answers = [&](std::byte* at, int err) {
        const std::vector<std::byte> before(at, room_.data() + room_.size());

        EXPECT_ERRNO(submit(reader.fd(), op().command, at), err);
        if (err) {
            EXPECT_TRUE(std::equal(before.begin(), before.end(), at))
                << "a call that failed changed its struct";
        }
    };
    if (only_reads(op())) {
        // This session has no objects.
        if (unsupported_reason().empty())
            answers(sample(live, op().size), op().ids.empty() ? 0 : ENOENT);
        return;
    }
    answers(sample(live, op().size), EBADF);
    // Before the mode, of what is wrong as well: size, tail, flags.
    std::byte* at = sample(live, op().size);
    set<uint32_t>(at, 0, static_cast<uint32_t>(op().min_size - 1));
    answers(at, EINVAL);
    at = sample(live, op().size + 8);
    at[op().size] = std::byte{1};
    answers(at, E2BIG);
    at = sample(live, op().size);
    set<uint32_t>(at, 4, 1u << 31);
    answers(at, EOPNOTSUPP);
    // Behind it: reserved members, values, objects.
    const auto with = [&](size_t offset, uint32_t value) {
        SCOPED_TRACE(std::format("offset {} = {:#x}", offset, value));
        at = sample(live, op().size);
        set<uint32_t>(at, offset, value);
        answers(at, EBADF);
    };
    for (const size_t offset : op().reserved)
        with(offset, 1);
    for (const EnumField& field : op().enums)
        with(field.offset, field.end);
    for (const IdField& field : op().ids)
        with(field.offset, Live::no_such_id);
}

// And one that was opened for writing only can do all.
TEST_P(EveryStruct, WriteOnlyFile) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    Live live(bdf);

    live.s = Raw::open(bdf, O_WRONLY);
    ASSERT_TRUE(live.s) << strerror(live.s.error());
    EXPECT_OK(submit(live.s.fd(), op().command, sample(live, op().size)));
}

TEST_P(StructsWithReserved, Reserved) {
    for (const size_t offset : op().reserved)
        for (const uint32_t value : {1u, 0x80000000u})
            refused_with<uint32_t>(offset, value, EINVAL);
}

TEST_P(StructsWithEnums, EnumsOutOfRange) {
    for (const EnumField& field : op().enums)
        for (const uint32_t value : {field.end, field.end + 1, 0x80000000u, 0xffffffffu})
            refused_with<uint32_t>(field.offset, value, EINVAL);
}

TEST_P(StructsWithIds, BadIds) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    for (const IdField& field : op().ids) {
        if (!field.optional)
            refused_with<uint32_t>(field.offset, 0, ENOENT);
        for (const uint32_t id : {Live::no_such_id, 0x80000000u, 0xffffffffu})
            refused_with<uint32_t>(field.offset, id, ENOENT);

        for (const Kind other : all_kinds) {
            if (other == field.kind || std::ranges::contains(field.also, other))
                continue;
            Live live(bdf);
            std::byte* at = sample(live, op().size);

            SCOPED_TRACE(std::format("offset {} names an object of kind {}", field.offset,
                                     std::to_underlying(other)));
            set<uint32_t>(at, field.offset, live.live(other));
            refused(live, at, ENOENT);
        }

        Live live(bdf);
        std::byte* at = sample(live, op().size);

        SCOPED_TRACE(std::format("offset {} names an object that is gone", field.offset));
        set<uint32_t>(at, field.offset, live.freed(field.kind));
        refused(live, at, ENOENT);
    }
}

TEST_P(StructsWithIds, IdsOfAnotherSession) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    Live live(bdf);
    Raw other = Raw::open(bdf);
    std::byte* at = sample(live, op().size);

    ASSERT_TRUE(other);
    const std::vector<std::byte> before(at, room_.data() + room_.size());
    EXPECT_ERRNO(submit(other.fd(), op().command, at), ENOENT);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), at));
}

TEST_P(EveryStruct, BadStructPointer) {
    Live live(bdf);
    const int fd = live.s.fd();
    std::byte* at = sample(live, op().size);

    EXPECT_ERRNO(submit(fd, op().command, nullptr), EFAULT);
    // The fence behind the room.
    EXPECT_ERRNO(submit(fd, op().command, room_.data() + room_.size()), EFAULT);
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the kernel's
    void* const kernel = reinterpret_cast<void*>(std::numeric_limits<uintptr_t>::max() - 0xfff);
    EXPECT_ERRNO(submit(fd, op().command, kernel), EFAULT);
    // One byte of the struct lies behind the fence, then all but one.
    memmove(at + 1, at, op().size - 1);
    EXPECT_ERRNO(submit(fd, op().command, at + 1), EFAULT);
    EXPECT_ERRNO(submit(fd, op().command, room_.data() + room_.size() - 1), EFAULT);
    // Not readable.
    std::ignore = sample(live, op().size);
    ASSERT_TRUE(room_.protect(PROT_NONE));
    EXPECT_ERRNO(submit(fd, op().command, at), EFAULT);
    ASSERT_TRUE(room_.protect(PROT_READ | PROT_WRITE));
}

TEST_P(StructsWithPointers, BadInnerPointer) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    if (op().command == DMAPROBE_GET_DOMAIN) {
        Live live(bdf);

        if (live.s.domain().nr_regions == 0)
            GTEST_SKIP() << "the domain has no reserved region to write";
    }
    for (const PointerField& field : op().pointers) {
        Memory read_only = Memory::fenced(page_size());
        const Memory writable = Memory::fenced(page_size());

        ASSERT_TRUE(writable && read_only && read_only.protect(PROT_READ));
        refused_with<uint64_t>(field.offset, 0, EFAULT);
        refused_with<uint64_t>(field.offset, room_.address() + room_.size(), EFAULT);
        refused_with<uint64_t>(field.offset, ~uint64_t{0xfff}, EFAULT);
        if (field.input) {
            // The first byte can be read, the last one cannot.
            refused_with<uint64_t>(field.offset, read_only.address() + read_only.size() - 1,
                                   EFAULT);
            continue;
        }
        refused_with<uint64_t>(field.offset, read_only.address(), EFAULT);
        // The first byte can be written, the last one cannot.
        refused_with<uint64_t>(field.offset, writable.address() + writable.size() - 1, EFAULT);
        refused_with<uint64_t>(field.offset, read_only.address() + read_only.size() - 1, EFAULT);
    }
}

// An answer that cannot be written: it is as if the call had not been made.
TEST_P(StructsThatAnswer, ReadOnlyStruct) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    Live live(bdf);
    std::byte* at = sample(live, op().size);
    const Raw& session = live.s;

    // A pool keeps what it has grown by.
    if (op().makes)
        live.live(op().makes->kind);
    const dmaprobe_get_stats before = session.stats();
    ASSERT_TRUE(room_.protect(PROT_READ));
    EXPECT_ERRNO(submit(session.fd(), op().command, at), EFAULT);
    ASSERT_TRUE(room_.protect(PROT_READ | PROT_WRITE));
    const dmaprobe_get_stats after = session.stats();
    EXPECT_EQ(memcmp(&before, &after, sizeof(before)), 0) << "the session holds more than before";

    // No object has an id but those that the sample needed.
    const std::set<uint32_t> known = live.ids();
    for (uint32_t id = 1; id < 256; id++) {
        if (known.contains(id))
            continue;
        SCOPED_TRACE(std::format("id {}", id));
        EXPECT_ERRNO(session.destroy(id), ENOENT);
        EXPECT_ERRNO(session.unmap(id), ENOENT);
        EXPECT_ERRNO(session.iova_free(id), ENOENT);
    }
}

// The same where half of the struct can be written.
TEST_P(StructsThatAnswer, HalfWritableStruct) {
    if (!unsupported_reason().empty())
        GTEST_SKIP() << unsupported_reason();
    const size_t page = page_size();
    Live live(bdf);
    std::byte* at = sample(live, op().size);
    const std::vector<std::byte> given(at, at + op().size);
    const Raw& session = live.s;

    if (op().makes)
        live.live(op().makes->kind);
    const dmaprobe_get_stats before = session.stats();
    // The last word lies in a page of its own, which can be read only.
    at = room_.data() + page - (op().size - 8);
    memcpy(at, given.data(), given.size());
    ASSERT_EQ(mprotect(room_.data() + page, page, PROT_READ), 0);
    EXPECT_ERRNO(submit(session.fd(), op().command, at), EFAULT);
    ASSERT_TRUE(room_.protect(PROT_READ | PROT_WRITE));
    const dmaprobe_get_stats after = session.stats();
    EXPECT_EQ(memcmp(&before, &after, sizeof(before)), 0) << "the session holds more than before";
}

const auto name_of = [](const auto& row) { return row.param.name; };

INSTANTIATE_TEST_SUITE_P(Abi, EveryStruct, testing::ValuesIn(ops()), name_of);
INSTANTIATE_TEST_SUITE_P(Abi, StructsWithAttributes, testing::ValuesIn(ops_with([](const Op& op) {
                             return !op.attrs.empty();
                         })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Abi, StructsWithReserved, testing::ValuesIn(ops_with([](const Op& op) {
                             return !op.reserved.empty();
                         })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Abi, StructsWithEnums, testing::ValuesIn(ops_with([](const Op& op) {
                             return !op.enums.empty();
                         })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Abi, StructsWithIds,
                         testing::ValuesIn(ops_with([](const Op& op) { return !op.ids.empty(); })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Abi, StructsWithPointers, testing::ValuesIn(ops_with([](const Op& op) {
                             return !op.pointers.empty();
                         })),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Abi, StructsThatAnswer,
                         testing::ValuesIn(ops_with([](const Op& op) { return op.answers; })),
                         name_of);

class Abi : public DeviceTest {};

TEST_F(Abi, UnknownNumbers) {
    // A size of 0 is too small for every command, so that one which exists
    // answers EINVAL and does nothing.
    std::array<std::byte, 256> zero = {};
    std::set<unsigned> listed;

    for (const Op& op : ops())
        EXPECT_TRUE(listed.insert(op.number).second) << op.name << " is listed twice";
    for (unsigned nr = 0; nr < 256; nr++) {
        SCOPED_TRACE(std::format("command {}", nr));
        EXPECT_ERRNO(submit(s.fd(), _IO(DMAPROBE_IOC_MAGIC, nr), zero.data()),
                     listed.contains(nr) ? EINVAL : ENOTTY);
    }
}

TEST_F(Abi, CommandsWithSizeAndDirection) {
    // Only the bare numbers are commands.
    dmaprobe_get_info op = {};

    op.size = sizeof(op);
    constexpr unsigned number = CommandOf<dmaprobe_get_info>::number;
    for (const unsigned long command :
         {static_cast<unsigned long>(_IOR(DMAPROBE_IOC_MAGIC, number, op)),
          static_cast<unsigned long>(_IOW(DMAPROBE_IOC_MAGIC, number, op)),
          static_cast<unsigned long>(_IOWR(DMAPROBE_IOC_MAGIC, number, op)),
          static_cast<unsigned long>(_IOC(_IOC_NONE, DMAPROBE_IOC_MAGIC, number, 4))})
        EXPECT_ERRNO(submit(s.fd(), command, &op), ENOTTY);
    EXPECT_OK(s(op));
}

TEST_F(Abi, OtherMagics) {
    dmaprobe_get_info op = {};

    op.size = sizeof(op);
    for (const unsigned magic : {0x3bu, 0x42u, 0xd9u, 0xdbu, 0xffu})
        for (unsigned nr = 0; nr < 32; nr++)
            EXPECT_ERRNO(submit(s.fd(), _IO(magic, nr), &op), ENOTTY)
                << std::format("magic {:#x}, number {}", magic, nr);
}

// What the kernel offers came with its versions.
TEST_F(Abi, Info) {
    const dmaprobe_get_info info = s.info();
    const auto expect = [](bool has, unsigned major, unsigned minor, const char* what) {
        EXPECT_EQ(has, kernel_is_at_least(major, minor)) << what;
    };

    EXPECT_EQ(info.abi_version, uint32_t{DMAPROBE_ABI_VERSION});
    EXPECT_EQ(info.features & ~uint32_t{DMAPROBE_FEATURE_DMA_IOVA | DMAPROBE_FEATURE_MAP_PHYS}, 0u);
    expect(info.features & DMAPROBE_FEATURE_DMA_IOVA, 6, 16, "dma_iova_*()");
    expect(info.features & DMAPROBE_FEATURE_MAP_PHYS, 6, 18, "dma_map_phys()");
    constexpr uint64_t young =
        DMAPROBE_ATTR_MMIO | DMAPROBE_ATTR_REQUIRE_COHERENT | DMAPROBE_ATTR_CC_SHARED;
    EXPECT_EQ(info.attrs & ~all_attrs, 0u);
    EXPECT_EQ(info.attrs & ~young, all_attrs & ~young);
    expect(info.attrs & DMAPROBE_ATTR_MMIO, 6, 18, "MMIO");
    expect(info.attrs & DMAPROBE_ATTR_REQUIRE_COHERENT, 7, 0, "REQUIRE_COHERENT");
    expect(info.attrs & DMAPROBE_ATTR_CC_SHARED, 7, 0, "CC_SHARED");
}

TEST_F(Abi, LimitsAgreeWithTheDomain) {
    const dmaprobe_get_limits limits = s.limits();
    const dmaprobe_get_domain domain = s.domain();

    EXPECT_NE(limits.dma_mask, 0u);
    EXPECT_NE(limits.coherent_dma_mask, 0u);
    // No session has set others.
    EXPECT_LE(limits.dma_mask, 0xffffffffu);
    EXPECT_LE(limits.coherent_dma_mask, 0xffffffffu);
    EXPECT_EQ(limits.__reserved, 0u);
    EXPECT_NE(limits.max_segment_size, 0u);
    EXPECT_NE(limits.max_mapping_size, 0u);
    EXPECT_EQ(limits.dma_mask & (limits.dma_mask + 1), 0u) << "not ones from bit 0 up";
    EXPECT_EQ(limits.props & ~uint32_t{DMAPROBE_DEVICE_COHERENT | DMAPROBE_DEVICE_NEED_SYNC |
                                       DMAPROBE_DEVICE_NEED_UNMAP |
                                       DMAPROBE_DEVICE_ADDRESSING_LIMITED | DMAPROBE_DEVICE_IOMMU |
                                       DMAPROBE_DEVICE_CAN_MMAP | DMAPROBE_DEVICE_CONFINED},
              0u);
    if (!(limits.props & DMAPROBE_DEVICE_IOMMU)) {
        EXPECT_NE(domain.type, uint32_t{DMAPROBE_DOMAIN_DMA});
        EXPECT_NE(domain.type, uint32_t{DMAPROBE_DOMAIN_DMA_FQ});
        EXPECT_EQ(limits.merge_boundary, 0u);
        return;
    }
    EXPECT_TRUE(domain.type == DMAPROBE_DOMAIN_DMA || domain.type == DMAPROBE_DOMAIN_DMA_FQ)
        << domain.type;
    EXPECT_EQ(limits.merge_boundary, s.granule() - 1);
    EXPECT_GT(domain.aperture_end, domain.aperture_start);
    EXPECT_STRNE(domain.driver, "");
    EXPECT_LT(strnlen(domain.iommu, sizeof(domain.iommu)), sizeof(domain.iommu));
    EXPECT_LT(strnlen(domain.driver, sizeof(domain.driver)), sizeof(domain.driver));
}

// The number of regions does not depend on the room, and no more is written.
TEST_F(Abi, DomainRegions) {
    const uint32_t count = s.domain().nr_regions;
    std::vector<dmaprobe_resv_region> room(count + 2);

    for (const uint32_t entries : {0u, 1u, count, count + 1}) {
        dmaprobe_get_domain op = {};

        SCOPED_TRACE(std::format("room for {}", entries));
        memset(room.data(), 0xff, room.size() * sizeof(room[0]));
        op.nr_regions = entries;
        op.regions = entries ? reinterpret_cast<uintptr_t>(room.data()) : 1;
        ASSERT_OK(s(op));
        EXPECT_EQ(op.nr_regions, count);
        for (size_t i = 0; i < room.size(); i++) {
            if (i >= std::min(entries, count)) {
                EXPECT_EQ(room[i].start, ~uint64_t{0}) << "entry " << i << " written";
                continue;
            }
            EXPECT_LE(room[i].type, uint32_t{DMAPROBE_RESV_SW_MSI});
            EXPECT_EQ(room[i].__reserved, 0u);
            EXPECT_NE(room[i].length, 0u);
        }
    }
    if (count == 0)
        GTEST_SKIP() << "the domain has no reserved region";
}

TEST_F(Abi, SetMaskValues) {
    const uint64_t page = page_size();

    for (const uint64_t mask :
         {uint64_t{0}, uint64_t{1}, page / 2 - 1, page, page - 1, 16 * page - 1, uint64_t{0xfffffe},
          uint64_t{0xfff0ffff}, ~uint64_t{0} << 1}) {
        SCOPED_TRACE(std::format("mask {:#x}", mask));
        EXPECT_ERRNO(s.set_mask(mask), EINVAL);
        EXPECT_ERRNO(s.set_mask(mask, DMAPROBE_SET_MASK_COHERENT), EINVAL);
    }
    EXPECT_ERRNO(s.set_mask(0xffffffff, 0), EINVAL) << "no mask chosen";
    const int least = s.set_mask(32 * page - 1);
    EXPECT_TRUE(least == 0 || least == EIO) << least;
}

// The kernel remembers a size that it had no room for below a mask, and refuses it below
// others as well until a large range is given back.
TEST_F(Abi, SetMaskOfNoRoomIsForgotten) {
    dmaprobe_iova_alloc io = {};

    if (!s.translated() || s.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << "no dma_iova_*() here";
    ASSERT_OK(s.set_mask(0xffffff));
    EXPECT_ERRNO(s.iova_alloc(io, 32 << 20), ENOSPC);
    for (const uint64_t mask : {0xfffffffULL, 0xffffffffULL}) {
        ASSERT_OK(s.set_mask(mask));
        ASSERT_OK(s.iova_alloc(io, 32 << 20)) << std::format("mask {:#x}", mask);
        ASSERT_OK(s.iova_free(io.id));
        EXPECT_ERRNO(s.iova_alloc(io, mask + 1), ENOSPC);
    }
    ASSERT_OK(s.set_mask(0xffffffff));
    ASSERT_OK(s.iova_alloc(io, 32 << 20));
}

// By allocations too, which a lazy domain gives back later.
TEST_F(Abi, SetMaskOfNoRoomForAllocationsIsForgotten) {
    const uint64_t page = page_size();
    const uint32_t both = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT;
    const AllocWay way = {.name = "coherent", .kind = DMAPROBE_ALLOC_KIND_COHERENT};

    if (!s.translated())
        GTEST_SKIP() << "no IOMMU translates for the device";
    for (int round = 0; round < 4; round++) {
        Allocation a;

        ASSERT_OK(s.set_mask(32 * page - 1, both));
        EXPECT_ERRNO(allocate(s, a, way, 33 * page), ENOMEM);
        ASSERT_OK(s.set_mask(0xffffffff, both));
        EXPECT_OK(allocate(s, a, way, 64 * page)) << "round " << round;
        if (a.id) {
            EXPECT_OK(release(s, a));
        }
    }
}

TEST_F(Abi, SetMaskSetsWhatWasAskedFor) {
    const dmaprobe_get_limits before = s.limits();

    ASSERT_OK(s.set_mask(0xfffffff));
    EXPECT_EQ(s.limits().dma_mask, 0xfffffffu);
    EXPECT_EQ(s.limits().coherent_dma_mask, before.coherent_dma_mask);
    ASSERT_OK(s.set_mask(0x3fffffff, DMAPROBE_SET_MASK_COHERENT));
    EXPECT_EQ(s.limits().dma_mask, 0xfffffffu);
    EXPECT_EQ(s.limits().coherent_dma_mask, 0x3fffffffu);
    ASSERT_OK(s.set_mask(0xffffffff, DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT));
    EXPECT_EQ(s.limits().dma_mask, 0xffffffffu);
    EXPECT_EQ(s.limits().coherent_dma_mask, 0xffffffffu);
    ASSERT_OK(s.set_mask(~uint64_t{0}));
    EXPECT_EQ(s.limits().dma_mask, ~uint64_t{0});
}

TEST_F(Abi, EnableTwiceAndGiveUpTwice) {
    for (const uint32_t enable : {0u, 1u, 1u, 0u, 0u, 1u}) {
        dmaprobe_enable op = {};

        op.enable = enable;
        EXPECT_OK(s(op)) << "enable " << enable;
    }
}

class Translate : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!s.translated())
            GTEST_SKIP() << "no IOMMU translates for the device";
    }

    int ask(uint64_t iova, uint64_t length, uint32_t room = 1) const {
        std::vector<dmaprobe_extent> extents(room + 1);
        dmaprobe_translate op = {};

        op.iova = iova;
        op.length = length;
        op.nr_extents = room;
        op.extents = reinterpret_cast<uintptr_t>(extents.data());
        return s(op);
    }
};

TEST_F(Translate, Ranges) {
    const uint64_t gib4 = uint64_t{1} << 32;

    EXPECT_OK(ask(0x1000, 1));
    EXPECT_ERRNO(ask(0x1000, 0), EINVAL) << "no length";
    EXPECT_ERRNO(ask(0x1000, gib4 + 1), EINVAL) << "more than 4 GiB";
    EXPECT_ERRNO(ask(0x1000, ~uint64_t{0}), EINVAL);
    EXPECT_ERRNO(ask(~uint64_t{0} - 0xffe, 0x1000), EINVAL) << "overflow";
    EXPECT_ERRNO(ask(0x1000, 0x1000, 0), EINVAL) << "no room";
}

// With room for one extent only, the rest can be asked for from where it ended.
TEST_F(Translate, LittleRoom) {
    const uint64_t g = s.granule();
    const uint64_t length = 4 * g;
    Buffer b;
    dmaprobe_map map = {};
    dmaprobe_extent extents[2];

    ASSERT_OK(s.alloc(b, length));
    map.buffer_id = b.id;
    map.length = length;
    ASSERT_OK(s(map));
    memset(extents, 0xff, sizeof(extents));
    dmaprobe_translate op = {};
    op.iova = map.dma_addr + length - g;
    op.length = 2 * g;
    op.nr_extents = 1;
    op.extents = reinterpret_cast<uintptr_t>(extents);
    ASSERT_OK(s(op));
    EXPECT_EQ(op.nr_extents, 1u);
    EXPECT_EQ(op.translated, g);
    EXPECT_EQ(extents[0].iova, op.iova);
    EXPECT_EQ(extents[0].length, g);
    EXPECT_EQ(extents[0].kind, uint32_t{DMAPROBE_EXTENT_BUFFER});
    EXPECT_EQ(extents[0].buffer_id, b.id);
    EXPECT_EQ(extents[0].buffer_offset, length - g);
    EXPECT_EQ(extents[0].phys, 0u) << "reported without being asked";
    EXPECT_EQ(extents[1].iova, ~uint64_t{0}) << "written beyond the room";
}

// Not at granules: what is reported starts and ends where it was asked for.
TEST_F(Translate, InsideAGranule) {
    Buffer b;
    dmaprobe_map map = {};

    ASSERT_OK(s.alloc(b, 2 * page_size()));
    map.buffer_id = b.id;
    map.length = b.length;
    ASSERT_OK(s(map));
    expect_leads_to(map.dma_addr + 5, 3, b, 5);
    expect_leads_to(map.dma_addr + page_size() - 1, 2, b, page_size() - 1);
}

TEST_F(Translate, Phys) {
    Buffer b;
    dmaprobe_map map = {};
    dmaprobe_extent extent = {};
    dmaprobe_translate op = {};

    ASSERT_OK(s.alloc(b, 2 * page_size()));
    map.buffer_id = b.id;
    map.length = b.length;
    ASSERT_OK(s(map));
    op.flags = DMAPROBE_TRANSLATE_PHYS;
    op.iova = map.dma_addr;
    op.length = b.length;
    op.nr_extents = 1;
    op.extents = reinterpret_cast<uintptr_t>(&extent);
    ASSERT_OK(s(op));
    EXPECT_EQ(op.translated, b.length);
    EXPECT_NE(extent.phys, 0u);
    EXPECT_EQ(extent.phys % page_size(), 0u);
}

// The hint saves a search and changes no result, also when it is wrong.
TEST_F(Translate, HintOfAnotherBuffer) {
    Buffer a;
    Buffer b;
    dmaprobe_map map = {};
    dmaprobe_extent extent = {};
    dmaprobe_translate op = {};

    ASSERT_OK(s.alloc(a, page_size()));
    ASSERT_OK(s.alloc(b, page_size()));
    map.buffer_id = a.id;
    map.length = a.length;
    ASSERT_OK(s(map));
    op.iova = map.dma_addr;
    op.length = a.length;
    op.buffer_id = b.id;
    op.nr_extents = 1;
    op.extents = reinterpret_cast<uintptr_t>(&extent);
    ASSERT_OK(s(op));
    EXPECT_EQ(extent.kind, uint32_t{DMAPROBE_EXTENT_BUFFER});
    EXPECT_EQ(extent.buffer_id, a.id);
    EXPECT_EQ(extent.buffer_offset, 0u);
}

// Memory of another session is reported as foreign, without a word about whose.
TEST_F(Translate, OtherSessionsMemory) {
    Raw other = Raw::open(bdf);
    Buffer b;
    dmaprobe_map map = {};

    ASSERT_TRUE(other);
    ASSERT_OK(other.alloc(b, page_size()));
    map.buffer_id = b.id;
    map.length = b.length;
    ASSERT_OK(other(map));
    expect_extents({{.iova = map.dma_addr, .length = page_size(), .kind = DMAPROBE_EXTENT_FOREIGN}},
                   map.dma_addr, page_size());
}

} // namespace
} // namespace selftest

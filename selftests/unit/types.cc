// SPDX-License-Identifier: GPL-2.0-only
// Addresses, sizes, errors, BDFs: what needs no device.

#include "support/result.h"

#include <dmaprobe/bdf.h>
#include <dmaprobe/query.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/translate.h>
#include <dmaprobe/types.h>

#include <bit>
#include <cerrno>
#include <format>
#include <functional>
#include <iterator>
#include <limits>
#include <sstream>
#include <type_traits>
#include <unordered_set>

namespace selftest {
namespace {

using namespace dmaprobe;
using namespace dmaprobe::literals;

constexpr uint64_t top = std::numeric_limits<uint64_t>::max();

template <class A, class B>
concept Addable = requires(A a, B b) { a + b; };
template <class A, class B>
concept Subtractable = requires(A a, B b) { a - b; };
template <class A, class B>
concept Comparable = requires(A a, B b) { a < b; };

// What must not compile.
static_assert(!Addable<Iova, Iova>);
static_assert(!Addable<Phys, Phys>);
static_assert(!Addable<Iova, Phys>);
static_assert(!Addable<Iova, uint64_t>);
static_assert(!Addable<Size, uint64_t>);
static_assert(!Subtractable<Iova, Phys>);
static_assert(!Subtractable<Size, Iova>);
static_assert(!Comparable<Iova, Phys>);
static_assert(!Comparable<Iova, Size>);
static_assert(!std::is_convertible_v<uint64_t, Iova>);
static_assert(!std::is_convertible_v<uint64_t, Size>);
static_assert(!std::is_convertible_v<Iova, uint64_t>);
static_assert(!std::is_convertible_v<Iova, Phys>);
static_assert(!std::is_constructible_v<Iova, Phys>);
static_assert(!std::is_constructible_v<Iova, Size>);
// What must.
static_assert(std::is_same_v<decltype(Iova() - Iova()), Size>);
static_assert(std::is_same_v<decltype(Iova() + Size()), Iova>);
static_assert(std::is_same_v<decltype(Size() + Iova()), Iova>);
static_assert(std::is_same_v<decltype(Size() + Size()), Size>);
// Kernel objects have one owner.
static_assert(!std::is_copy_constructible_v<Session> &&
              std::is_nothrow_move_constructible_v<Session>);

TEST(Size, Arithmetic) {
    EXPECT_EQ(Size(3) + Size(4), Size(7));
    EXPECT_EQ(Size(7) - Size(4), Size(3));
    EXPECT_EQ(Size(7) * 3, Size(21));
    EXPECT_EQ(3 * Size(7), Size(21));
    Size s(1);
    s += Size(5);
    EXPECT_EQ(s, Size(6));
    s -= Size(2);
    EXPECT_EQ(s, Size(4));
    EXPECT_EQ(512_B, Size(512));
    EXPECT_EQ(4_KiB, Size(4096));
    EXPECT_EQ(2_MiB, Size(2097152));
}

TEST(Size, NeverWraps) {
    EXPECT_EQ(Size(top) + Size(1), Size::max());
    EXPECT_EQ(Size(top) + Size(top), Size::max());
    EXPECT_EQ(Size(top - 1) + Size(1), Size(top));
    EXPECT_EQ(Size(0) - Size(1), Size::max());
    EXPECT_EQ(Size(4) - Size(5), Size::max());
    EXPECT_EQ(Size(5) - Size(5), Size(0));
    EXPECT_EQ(Size(4) - Size(5) - Size(3), Size::max()) << "what did not fit stays";
    EXPECT_EQ(Size(4) - Size(5) + Size(3), Size::max());
    Size s(4);
    s -= Size(5);
    EXPECT_EQ(s, Size::max());
    EXPECT_EQ(Size(top / 2 + 1) * 2, Size::max());
    EXPECT_EQ(Size(top) * 0, Size(0));
    EXPECT_EQ(checked_add(Size(top), Size(1)), std::nullopt);
    EXPECT_EQ(checked_add(Size(top), Size(0)), Size(top));
    EXPECT_EQ(checked_sub(Size(1), Size(2)), std::nullopt);
    EXPECT_EQ(checked_sub(Size(2), Size(2)), Size(0));
    EXPECT_EQ(checked_mul(Size(top / 2 + 1), 2), std::nullopt);
    EXPECT_EQ(checked_mul(Size(top / 2), 2), Size(top - 1));
    EXPECT_EQ(checked_mul(Size(top), 0), Size(0));
}

TEST(Address, Arithmetic) {
    Iova a(0x1000);

    EXPECT_EQ(a + Size(0x234), Iova(0x1234));
    EXPECT_EQ(Size(0x234) + a, Iova(0x1234));
    EXPECT_EQ(Iova(0x1234) - a, Size(0x234));
    EXPECT_EQ(a - Iova(0x1234), Size::max());
    EXPECT_EQ(a - a, Size(0));
    a += Size(1);
    EXPECT_EQ(a, Iova(0x1001));
    EXPECT_LT(Iova(1), Iova(2));
    EXPECT_EQ(Iova(0x12345).align_down(4_KiB), Iova(0x12000));
    EXPECT_EQ(Iova(0x12345).align_down(Size(1)), Iova(0x12345));
    EXPECT_EQ(Iova(0x12345).align_down(Size(0)), Iova(0x12345));
}

TEST(Address, NeverWraps) {
    EXPECT_EQ(Iova(top) + Size(1), Iova::max());
    EXPECT_EQ(Iova(1) + Size(top), Iova::max());
    EXPECT_EQ((Iova(1) + Size(top)) - Iova(1), Size::max());
    EXPECT_EQ(checked_add(Iova(top), Size(1)), std::nullopt);
    EXPECT_EQ(checked_add(Iova(top - 1), Size(1)), Iova(top));
    EXPECT_EQ(checked_sub(Iova(1), Iova(2)), std::nullopt);
    EXPECT_EQ(checked_sub(Iova(2), Iova(1)), Size(1));
}

TEST(Address, Text) {
    std::ostringstream out;

    EXPECT_EQ(to_string(Iova(0xfee00000)), "0xfee00000");
    EXPECT_EQ(to_string(Phys(0)), "0x0");
    EXPECT_EQ(to_string(Size(4096)), "4096");
    out << Iova(0x10) << ' ' << Phys(0x20) << ' ' << Size(3) << ' ' << Direction::to_device;
    EXPECT_EQ(out.str(), "0x10 0x20 3 to_device");
}

TEST(Format, AsPrinted) {
    EXPECT_EQ(std::format("{} {} {}", Iova(0xfee00000), Phys(0), Size(4096)),
              "0xfee00000 0x0 4096");
    EXPECT_EQ(std::format("[{:>10}] [{:<6}]", Iova(0x1000), Phys(0x20)), "[    0x1000] [0x20  ]");
    EXPECT_EQ(std::format("{:#x} {:>6}", Size(4096), Size(12)), "0x1000     12") << "a number";
    EXPECT_EQ(std::format("{}|{:>14}", Bdf{0, 1, 0, 0}, Bdf{1, 0xff, 0x1f, 7}),
              "0000:01:00.0|  0001:ff:1f.7");
    EXPECT_EQ(std::format("{} {}", Direction::to_device, Attr::no_warn | Attr::mmio),
              "to_device no_warn|mmio");
    const Error error{ENOENT, "open", "no such node"};
    EXPECT_EQ(std::format("{}", error), error.message());
    const dmaprobe::Extent extent{.iova = Iova(0x1000),
                                  .length = Size(0x2000),
                                  .kind = ExtentKind::buffer,
                                  .buffer_id = 3,
                                  .buffer_offset = Size(0x40),
                                  .phys = Phys(0x80000)};
    std::ostringstream out;
    out << extent;
    EXPECT_EQ(out.str(), "[0x1000, +0x2000) buffer 3 + 0x40 phys 0x80000");
    EXPECT_EQ(std::format("{}", extent), out.str());
}

// Values that differ in one member only are kept apart.
TEST(Hash, InContainers) {
    const std::unordered_set<Iova> addresses = {Iova(1), Iova(2), Iova(1)};
    EXPECT_EQ(addresses.size(), 2u);
    const std::unordered_set<Size> sizes = {Size(1), Size(2), Size(1)};
    EXPECT_EQ(sizes.size(), 2u);
    const Bdf bdfs[] = {{0, 0, 0, 0}, {0, 0, 0, 7}, {0, 0, 1, 0}, {0, 1, 0, 0}, {1, 0, 0, 0}};
    std::unordered_set<size_t> hashes;
    for (const Bdf& bdf : bdfs)
        hashes.insert(std::hash<Bdf>()(bdf));
    EXPECT_EQ(hashes.size(), std::size(bdfs));
    EXPECT_EQ(std::hash<Bdf>()({1, 2, 3, 4}), std::hash<Bdf>()({1, 2, 3, 4}));
}

TEST(Names, OfValuesKnownAndUnknown) {
    EXPECT_EQ(to_string(Direction::bidirectional), "bidirectional");
    EXPECT_EQ(to_string(Direction::from_device), "from_device");
    EXPECT_EQ(to_string(std::bit_cast<Direction>(uint32_t{7})), "unknown");
    EXPECT_EQ(to_string(CallStatus::missing), "missing");
    EXPECT_EQ(to_string(CallStatus::not_driven), "not-driven");
    EXPECT_EQ(to_string(std::bit_cast<CallStatus>(uint32_t{7})), "unknown");
    EXPECT_EQ(to_string(DomainType::dma), "DMA");
    EXPECT_EQ(to_string(DomainType::dma_fq), "DMA-FQ");
    EXPECT_EQ(to_string(std::bit_cast<DomainType>(uint32_t{77})), "unknown");
    EXPECT_EQ(to_string(ReservedType::sw_msi), "sw-msi");
    EXPECT_EQ(to_string(std::bit_cast<ReservedType>(uint32_t{77})), "unknown");
}

TEST(DomainGranule, IsTheSmallestPage) {
    dmaprobe::Domain domain;

    EXPECT_EQ(domain.granule(), Size(0));
    domain.pgsize_bitmap = 0x40201000;
    EXPECT_EQ(domain.granule(), Size(0x1000));
    domain.pgsize_bitmap = uint64_t{1} << 63;
    EXPECT_EQ(domain.granule(), Size(uint64_t{1} << 63));
}

TEST(ErrorText, IsOneLine) {
    EXPECT_EQ(errno_name(EINVAL), "EINVAL");
    EXPECT_EQ(errno_name(ENODEV), "ENODEV");
    EXPECT_EQ(errno_name(123456), "123456");
    const Error plain{EBUSY, "map", {}};
    EXPECT_NE(plain.message().find("map"), std::string::npos);
    EXPECT_NE(plain.message().find("EBUSY"), std::string::npos);
    const Error detailed{ENOENT, "open", "no such node"};
    EXPECT_NE(detailed.message().find("no such node"), std::string::npos);
    EXPECT_NE(detailed.message().find("ENOENT"), std::string::npos);
    for (const Error& error : {plain, detailed, Error{0, "", {}}, Error{-1, "x", {}}})
        EXPECT_EQ(error.message().find('\n'), std::string::npos);
    EXPECT_EQ(plain, (Error{EBUSY, "map", {}}));
    EXPECT_NE(plain, (Error{EBUSY, "unmap", {}}));
}

TEST(BdfText, Good) {
    const std::pair<const char*, Bdf> good[] = {
        {"0000:01:00.0", {0, 1, 0, 0}},
        {"01:00.0", {0, 1, 0, 0}},
        {"1:0.0", {0, 1, 0, 0}},
        {"0000:ff:1f.7", {0, 0xff, 0x1f, 7}},
        {"0001:Ab:1C.3", {1, 0xab, 0x1c, 3}},
        {"10000:e1:00.0", {0x10000, 0xe1, 0, 0}},
        {"ffffffff:00:00.0", {0xffffffff, 0, 0, 0}},
    };

    for (const auto& [text, want] : good) {
        const auto got = Bdf::parse(text);

        ASSERT_WORKS(got) << text;
        EXPECT_EQ(*got, want) << text;
    }
}

TEST(BdfText, Bad) {
    for (const char* text : {"",
                             ".",
                             ":",
                             ":.",
                             "::.",
                             "00:00",
                             "00.0",
                             "0000:00.0:0",
                             "0000:01:00",
                             "0000:01:00.",
                             "0000:01:00.8",
                             "0000:01:20.0",
                             "0000:100:00.0",
                             "0000:01:00.00",
                             "0000:01:00.g",
                             "g:01:00.0",
                             ":01:00.0",
                             "0000::00.0",
                             "0000:01:.0",
                             " 0000:01:00.0",
                             "0000:01:00.0 ",
                             "0000:01:00.0\n",
                             "0:0000:01:00.0",
                             "-1:00.0",
                             "+1:00.0",
                             "0x1:00.0",
                             "100000000:00:00.0",
                             "0000:01:00.0.0",
                             "0000:01:00,0",
                             "eth0",
                             "../../etc/passwd"}) {
        const auto got = Bdf::parse(text);

        EXPECT_FAILS(got, EINVAL) << '\'' << text << '\'';
        if (!got) {
            EXPECT_FALSE(got.error().detail.empty()) << text;
        }
    }
    EXPECT_FAILS(Bdf::parse(std::string_view("0000:01:00.0\0", 13)), EINVAL);
    EXPECT_FAILS(Bdf::parse(std::string(100000, ':')), EINVAL);
}

TEST(BdfText, BackAndForth) {
    for (const char* text : {"0000:00:00.0", "0000:ff:1f.7", "0001:0a:1c.3", "10000:e1:00.0"}) {
        const auto bdf = Bdf::parse(text);

        ASSERT_WORKS(bdf);
        EXPECT_EQ(bdf->to_string(), text);
    }
    EXPECT_LT((Bdf{0, 1, 0, 0}), (Bdf{0, 2, 0, 0}));
    EXPECT_LT((Bdf{0, 0xff, 0x1f, 7}), (Bdf{1, 0, 0, 0}));
}

TEST(SessionOpen, OfWhatIsNotThere) {
    EXPECT_FAILS(Session::open("not a bdf"), EINVAL);
    EXPECT_FAILS(Session::open_path("/nonexistent/0000:01:00.0"), ENOENT);
    EXPECT_FAILS(Session::open_path("/nonexistent/none"), EINVAL);
    const auto none = Session::open("fffe:fe:1e.7");
    ASSERT_FAILS(none, ENOENT);
    EXPECT_NE(none.error().detail.find("fffe:fe:1e.7"), std::string::npos) << none.error().detail;
}

} // namespace
} // namespace selftest

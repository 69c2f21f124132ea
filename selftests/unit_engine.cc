// SPDX-License-Identifier: GPL-2.0-only
// What every engine guarantees, with an engine made of memory.

#include "result.h"

#include <dmaprobe/engine.h>

#include <cerrno>
#include <vector>

namespace selftest {
namespace {

using namespace dmaprobe;

struct Transfer {
    bool to_device;
    uint64_t address;
    uint64_t length;
    uint64_t device_offset;

    bool operator==(const Transfer&) const = default;
};

constexpr EngineTraits fake_traits = {
    .name = "fake",
    .description = "an engine for tests",
    .emulated = true,
    .dma_mask = 0xfffff,
    .max_transfer = Size(1024),
    .alignment = 4,
    .block = Size(4),
    .segment_edge = Size(256),
    .device_memory = Size(2048),
    .identity = Size(),
    .intake = Intake::stores,
};

class Fake : public dmaprobe::Engine {
public:
    explicit Fake(const EngineTraits& traits = fake_traits) : Engine(traits) {}

    std::vector<Transfer> seen;
    int fail_after = -1;

private:
    Result<void> transfer(bool to_device, std::span<const Segment> segments, Size offset) {
        if (fail_after >= 0 && static_cast<int>(seen.size()) >= fail_after)
            return std::unexpected(Error{EIO, "fake", "as asked for"});
        for (const Segment& segment : segments) {
            seen.push_back(
                {to_device, segment.addr.value(), segment.length.value(), offset.value()});
            offset += segment.length;
        }
        return {};
    }
    Result<void> do_to_device(std::span<const Segment> src, Size offset) override {
        return transfer(true, src, offset);
    }
    Result<void> do_from_device(std::span<const Segment> dst, Size offset) override {
        return transfer(false, dst, offset);
    }
    Result<void> do_reset() override { return {}; }
};

TEST(FakeEngine, TransfersAsAskedFor) {
    Fake e;

    EXPECT_WORKS(e.copy_to_device(Iova(0x1000), Size(4)));
    EXPECT_WORKS(e.copy_to_device(Iova(0xffc00), Size(1024), Size(1024)));
    EXPECT_WORKS(e.copy_from_device(Iova(0), Size(1024)));
    EXPECT_EQ(e.seen, (std::vector<Transfer>{
                          {true, 0x1000, 4, 0}, {true, 0xffc00, 1024, 1024}, {false, 0, 1024, 0}}));
    EXPECT_EQ(e.name(), "fake");
    EXPECT_TRUE(e.emulated());
    EXPECT_EQ(e.dma_mask(), 0xfffffu);
}

// Nothing is started when anything about it is wrong.
TEST(FakeEngine, RefusesBeforeItStarts) {
    Fake e;

    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(0)), EINVAL);
    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(1028)), EINVAL) << "too long";
    EXPECT_FAILS(e.copy_to_device(Iova(0x1002), Size(4)), EINVAL) << "not aligned";
    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(6)), EINVAL) << "length not aligned";
    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(4), Size(2)), EINVAL);
    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(4), Size(2048)), EINVAL);
    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(8), Size(2044)), EINVAL);
    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(4), Size(0xfffffffffffffffc)), EINVAL);
    EXPECT_FAILS(e.copy_to_device(Iova(0x100000), Size(4)), ERANGE);
    EXPECT_FAILS(e.copy_to_device(Iova(0xffffc), Size(8)), ERANGE);
    EXPECT_FAILS(e.copy_from_device(Iova(0xfffffffffffffffc), Size(8)), ERANGE);
    EXPECT_FAILS(e.copy(Iova(0x1000), Iova(0xffffc), Size(8)), ERANGE);
    EXPECT_FAILS(e.copy(Iova(0xffffc), Iova(0x1000), Size(8)), ERANGE);
    EXPECT_FAILS(e.copy(Iova(0x1000), Iova(0x2000), Size(2)), EINVAL);
    EXPECT_TRUE(e.seen.empty());
    ASSERT_TRUE(e.last_error());
    EXPECT_EQ(e.last_error()->code, EINVAL);
    EXPECT_WORKS(e.copy_to_device(Iova(0x1000), Size(4)));
    EXPECT_FALSE(e.last_error());
}

TEST(FakeEngine, LongCopiesInPieces) {
    Fake e;

    EXPECT_WORKS(e.copy(Iova(0x8000), Iova(0x1000), Size(2052)));
    EXPECT_EQ(e.seen, (std::vector<Transfer>{{true, 0x1000, 1024, 0},
                                             {false, 0x8000, 1024, 0},
                                             {true, 0x1400, 1024, 0},
                                             {false, 0x8400, 1024, 0},
                                             {true, 0x1800, 4, 0},
                                             {false, 0x8800, 4, 0}}));
}

TEST(FakeEngine, StopsAtTheFirstFailure) {
    Fake e;

    e.fail_after = 3;
    EXPECT_FAILS(e.copy(Iova(0x8000), Iova(0x1000), Size(4096)), EIO);
    EXPECT_EQ(e.seen.size(), 3u);
    ASSERT_TRUE(e.last_error());
    EXPECT_EQ(e.last_error()->code, EIO);
}

// Segments meet at multiples of the edge; the first may start, and the last end, anywhere.
TEST(FakeEngine, Segments) {
    Fake e;
    const auto goes = [&](std::vector<Segment> segments) {
        return e.copy_to_device(segments, Size(8));
    };

    EXPECT_WORKS(
        goes({{Iova(0x10fc), Size(4)}, {Iova(0x5000), Size(256)}, {Iova(0x100), Size(4)}}));
    EXPECT_EQ(e.seen, (std::vector<Transfer>{
                          {true, 0x10fc, 4, 8}, {true, 0x5000, 256, 12}, {true, 0x100, 4, 268}}));
    e.seen.clear();
    EXPECT_FAILS(goes({}), EINVAL);
    EXPECT_FAILS(goes({{Iova(0x1000), Size(252)}, {Iova(0x5000), Size(4)}}), EINVAL);
    EXPECT_FAILS(goes({{Iova(0x1000), Size(256)}, {Iova(0x5004), Size(4)}}), EINVAL);
    EXPECT_FAILS(goes({{Iova(0x1000), Size(256)}, {Iova(0x5000), Size(0)}}), EINVAL);
    EXPECT_FAILS(goes({{Iova(0x1000), Size(1024)}, {Iova(0x5000), Size(4)}}), EINVAL) << "too long";
    EXPECT_FAILS(goes({{Iova(0xfff00), Size(256)}, {Iova(0x100000), Size(4)}}), ERANGE);
    EXPECT_TRUE(e.seen.empty());

    EngineTraits one = fake_traits;
    one.segment_edge = Size();
    Fake single(one);
    EXPECT_FAILS(single.copy_from_device(
                     std::vector<Segment>{{Iova(0x1000), Size(256)}, {Iova(0x5000), Size(4)}}),
                 EINVAL);
    EXPECT_WORKS(single.copy_from_device(std::vector<Segment>{{Iova(0x1000), Size(256)}}));
}

// What a device cannot do is not tried.
TEST(FakeEngine, Intake) {
    EngineTraits traits = fake_traits;

    traits.intake = Intake::none;
    Fake writer(traits);
    EXPECT_FAILS(writer.copy_to_device(Iova(0x1000), Size(4)), EOPNOTSUPP);
    EXPECT_FAILS(writer.copy(Iova(0x1000), Iova(0x2000), Size(4)), EOPNOTSUPP);
    EXPECT_FAILS(writer.identify(std::vector<Segment>{{Iova(0x1000), Size(256)}}), EOPNOTSUPP);
    EXPECT_WORKS(writer.copy_from_device(Iova(0x1000), Size(4)));
    EXPECT_EQ(writer.seen.size(), 1u);
    traits.intake = Intake::compares;
    Fake comparer(traits);
    EXPECT_FAILS(comparer.copy(Iova(0x1000), Iova(0x2000), Size(4)), EOPNOTSUPP);
    EXPECT_WORKS(comparer.copy_to_device(Iova(0x1000), Size(4)));
    EXPECT_EQ(comparer.seen.size(), 1u);
}

TEST(Engines, KnownByIdsOrClass) {
    const auto name = [](uint16_t vendor, uint16_t device, uint32_t class_code) {
        const EngineTraits* found = dmaprobe::Engine::find({vendor, device, class_code});

        return found ? found->name : "none";
    };

    EXPECT_EQ(name(0x1234, 0x11e8, 0x00ff00), "edu");
    EXPECT_EQ(name(0x1b36, 0x0005, 0x00ff00), "testdev");
    EXPECT_EQ(name(0x1b36, 0x0010, 0x010802), "nvme");
    EXPECT_EQ(name(0x144d, 0xa808, 0x010802), "nvme");
    EXPECT_EQ(name(0x144d, 0xa808, 0x010801), "none") << "NVMHCI of old";
    EXPECT_EQ(name(0x1234, 0x11e9, 0x00ff00), "none");
    EXPECT_EQ(name(0, 0, 0), "none");
    EXPECT_EQ(name(0xffff, 0xffff, 0xffffff), "none");
    EXPECT_EQ(dmaprobe::Engine::find({0x1234, 0x11e8, 0})->dma_mask, 0xfffffffu);
}

} // namespace
} // namespace selftest

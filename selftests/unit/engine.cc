// SPDX-License-Identifier: GPL-2.0-only
// What every engine guarantees, with an engine made of memory.

#include "support/result.h"

#include <dmaprobe/engine.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <memory>
#include <string_view>
#include <thread>
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
    .read_effect = ReadEffect::stores,
};

class Fake : public dmaprobe::Engine {
public:
    explicit Fake(const EngineTraits& traits = fake_traits) : Engine(traits) {}

    std::vector<Transfer> seen;
    int fail_after = -1;
    int code = EIO; // of that failure
    bool resets = true;

private:
    Result<void> transfer(bool to_device, std::span<const Segment> segments, Size offset) {
        if (fail_after >= 0 && static_cast<int>(seen.size()) >= fail_after)
            return std::unexpected(Error{code, "fake", "as asked for"});
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
    Result<void> do_reset() override {
        return resets ? Result<void>() : std::unexpected(Error{ETIMEDOUT, "fake", {}});
    }
};

// After a transfer that did not end, there is no other until a reset has succeeded.
TEST(FakeEngine, RestAfterATimeout) {
    Fake e;

    e.fail_after = 0;
    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(4)), EIO);
    e.code = ETIMEDOUT;
    EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(4)), ETIMEDOUT);
    e.fail_after = -1;
    e.resets = false;
    for (int i = 0; i < 2; i++) {
        EXPECT_FAILS(e.copy_to_device(Iova(0x1000), Size(4)), EIO);
        EXPECT_FAILS(e.copy_from_device(Iova(0x1000), Size(4)), EIO);
        EXPECT_FAILS(e.copy(Iova(0x1000), Iova(0x2000), Size(4)), EIO);
        EXPECT_FAILS(e.reset(), ETIMEDOUT);
    }
    EXPECT_TRUE(e.seen.empty());
    e.resets = true;
    EXPECT_WORKS(e.reset());
    EXPECT_WORKS(e.copy_to_device(Iova(0x1000), Size(4)));
}

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
    EngineTraits all = fake_traits;
    all.dma_mask = ~uint64_t{0};
    all.block = Size(1);
    Fake reaches_all(all);
    EXPECT_FAILS(reaches_all.copy(Iova(0), Iova(0), Size(4) - Size(8)), ERANGE) << "a slip";
    EXPECT_FAILS(reaches_all.copy_from_device(Iova(0xfffffffffffffffc), Size(4)), ERANGE)
        << "no address is its end";
    EXPECT_TRUE(reaches_all.seen.empty());
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
TEST(FakeEngine, ReadEffect) {
    EngineTraits traits = fake_traits;

    traits.read_effect = ReadEffect::none;
    Fake writer(traits);
    EXPECT_FAILS(writer.copy_to_device(Iova(0x1000), Size(4)), EOPNOTSUPP);
    EXPECT_FAILS(writer.copy(Iova(0x1000), Iova(0x2000), Size(4)), EOPNOTSUPP);
    EXPECT_FAILS(writer.identify(std::vector<Segment>{{Iova(0x1000), Size(256)}}), EOPNOTSUPP);
    EXPECT_WORKS(writer.copy_from_device(Iova(0x1000), Size(4)));
    EXPECT_EQ(writer.seen.size(), 1u);
    traits.read_effect = ReadEffect::compares;
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
    // As Linux waits for a command.
    EXPECT_EQ(dmaprobe::Engine::find({0, 0, 0x010802})->deadline, std::chrono::seconds(30));
}

// A program's engines. They stay, so that each test has devices of its own.
constexpr uint16_t no_vendor = 0xfff0;

EngineType type_for(std::string_view name, bool (*drives)(const DeviceIds&) noexcept) {
    EngineType type{
        .traits = fake_traits,
        .drives = drives,
        .create = [](const Session&, const DeviceAccess&, const EngineOptions&)
            -> Result<std::unique_ptr<Engine>> { return std::make_unique<Fake>(); },
    };
    type.traits.name = name;
    return type;
}

TEST(AddEngine, IsFound) {
    constexpr DeviceIds ids{.vendor = no_vendor, .device = 1, .class_code = 0xff0000};

    EXPECT_EQ(dmaprobe::Engine::find(ids), nullptr);
    ASSERT_WORKS(dmaprobe::Engine::add(type_for("found", [](const DeviceIds& device) noexcept {
        return device.vendor == no_vendor && device.device == 1;
    })));
    const EngineTraits* traits = dmaprobe::Engine::find(ids);
    ASSERT_NE(traits, nullptr);
    EXPECT_EQ(traits->name, "found");
    EXPECT_EQ(traits->dma_mask, fake_traits.dma_mask);
    EXPECT_EQ(dmaprobe::Engine::find({no_vendor, 999, 0xff0000}), nullptr);
}

// Of two that drive a device, the one that was added last is taken, and the first stays where it
// is.
TEST(AddEngine, LastOneFirst) {
    constexpr DeviceIds ids{.vendor = no_vendor, .device = 2, .class_code = 0x010802};
    const auto drives = [](const DeviceIds& device) noexcept {
        return device.vendor == no_vendor && device.device == 2;
    };
    const EngineTraits* const builtin = dmaprobe::Engine::find(ids);

    ASSERT_NE(builtin, nullptr);
    EXPECT_EQ(builtin->name, "nvme");
    ASSERT_WORKS(dmaprobe::Engine::add(type_for("first", drives)));
    const EngineTraits* const first = dmaprobe::Engine::find(ids);
    ASSERT_WORKS(dmaprobe::Engine::add(type_for("second", drives)));
    EXPECT_EQ(dmaprobe::Engine::find(ids)->name, "second");
    EXPECT_EQ(first->name, "first");
    EXPECT_EQ(builtin->name, "nvme");
    EXPECT_EQ(dmaprobe::Engine::find({no_vendor, 3, 0x010802}), builtin);
}

TEST(AddEngine, Refused) {
    const auto drives = [](const DeviceIds&) noexcept { return true; };
    const auto changed = [&](auto change) {
        EngineType type = type_for("refused", drives);

        change(type);
        return dmaprobe::Engine::add(type);
    };

    EXPECT_FAILS(changed([](EngineType& type) { type.traits.name = "edu"; }), EEXIST);
    EXPECT_FAILS(changed([](EngineType& type) { type.traits.name = ""; }), EINVAL);
    EXPECT_FAILS(changed([](EngineType& type) { type.drives = nullptr; }), EINVAL);
    EXPECT_FAILS(changed([](EngineType& type) { type.create = nullptr; }), EINVAL);
    EXPECT_FAILS(changed([](EngineType& type) { type.traits.alignment = 0; }), EINVAL);
    EXPECT_FAILS(changed([](EngineType& type) { type.traits.block = Size(); }), EINVAL);
    EXPECT_EQ(dmaprobe::Engine::find({no_vendor, 4, 0xff0000}), nullptr) << "nothing was added";
}

// Some threads add while others look. The names have static storage.
TEST(AddEngine, ByManyThreads) {
    constexpr std::array<std::string_view, 4> names = {"t0", "t1", "t2", "t3"};
    std::atomic<unsigned> added = 0;
    {
        std::vector<std::jthread> threads;
        threads.reserve(2 * names.size());
        for (size_t i = 0; i < 2 * names.size(); i++)
            threads.emplace_back([&, i] {
                // Each name twice, and one of them is refused.
                const bool ok =
                    dmaprobe::Engine::add(type_for(names[i % names.size()],
                                                   [](const DeviceIds& device) noexcept {
                                                       return device.vendor == no_vendor &&
                                                              device.device == 5;
                                                   }))
                        .has_value();
                added += ok ? 1 : 0;
                EXPECT_NE(dmaprobe::Engine::find({no_vendor, 5, 0xff0000}), nullptr);
                EXPECT_EQ(dmaprobe::Engine::find({0x1234, 0x11e8, 0})->name, "edu");
            });
    }
    EXPECT_EQ(added, names.size());
}

// Without memory in the device, nothing could go through it.
TEST(FakeEngine, CopyNeedsMemoryInTheDevice) {
    EngineTraits traits = fake_traits;

    traits.device_memory = Size();
    Fake e(traits);
    EXPECT_FAILS(e.copy(Iova(0x8000), Iova(0x1000), Size(4)), EOPNOTSUPP);
    EXPECT_TRUE(e.seen.empty());
}

} // namespace
} // namespace selftest

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
    .vendor = 0x1af4,
    .device = 0xffff,
    .description = "an engine for tests",
    .emulated = true,
    .sees_faults = false,
    .dma_mask = 0xfffff,
    .max_transfer = Size(1024),
    .alignment = 4,
    .device_memory = Size(2048),
};

class Fake : public dmaprobe::Engine {
public:
    Fake() : Engine(fake_traits) {}

    std::vector<Transfer> seen;
    int fail_after = -1;

private:
    Result<void> transfer(Transfer t) {
        if (fail_after >= 0 && static_cast<int>(seen.size()) >= fail_after)
            return std::unexpected(Error{EIO, "fake", "as asked for"});
        seen.push_back(t);
        return {};
    }
    Result<void> do_to_device(Iova src, Size length, Size offset) override {
        return transfer({true, src.value(), length.value(), offset.value()});
    }
    Result<void> do_from_device(Iova dst, Size length, Size offset) override {
        return transfer({false, dst.value(), length.value(), offset.value()});
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

TEST(Engines, KnownById) {
    const EngineTraits* edu = dmaprobe::Engine::find(0x1234, 0x11e8);

    ASSERT_NE(edu, nullptr);
    EXPECT_EQ(edu->name, "edu");
    EXPECT_TRUE(edu->emulated);
    EXPECT_EQ(edu->dma_mask, 0xfffffffu);
    EXPECT_EQ(dmaprobe::Engine::find(0x1234, 0x11e9), nullptr);
    EXPECT_EQ(dmaprobe::Engine::find(0, 0), nullptr);
    EXPECT_EQ(dmaprobe::Engine::find(0xffff, 0xffff), nullptr);
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// The engine for QEMU's iommu-testdev, which writes a pattern of its own at once.

#include "support/engine.h"
#include "support/fixture.h"
#include "support/result.h"

#include <cerrno>
#include <cstring>
#include <format>

namespace selftest {
namespace {

namespace dp = dmaprobe;
using dp::Direction;
using dp::Iova;
using dp::Size;

class Testdev : public EngineTest {
protected:
    std::string why_not(const dp::EngineTraits& traits) const override {
        return traits.name == "testdev" ? "" : "the device is no iommu-testdev";
    }

    static std::vector<std::byte> written(size_t length) {
        const uint32_t word = 0x12345678;
        std::vector<std::byte> bytes(length);

        for (size_t at = 0; at < length; at += sizeof(word))
            std::memcpy(bytes.data() + at, &word, sizeof(word));
        return bytes;
    }
};

TEST_F(Testdev, Writes) {
    const size_t page = page_size();
    dp::Buffer b = buffer(2 * page);
    dp::Mapping m = map(b, Direction::from_device);
    auto want = std::vector<std::byte>(2 * page);

    ASSERT_WORKS(engine->copy_from_device(m.dma_addr() + Size(page - 8), Size(20)));
    ASSERT_WORKS(m.sync_for_cpu());
    std::ranges::copy(written(20), want.begin() + static_cast<ptrdiff_t>(page - 8));
    EXPECT_TRUE(same(b.bytes(), want));
    ASSERT_WORKS(engine->copy_from_device(m.dma_addr(), Size(2 * page)));
    ASSERT_WORKS(m.sync_for_cpu());
    EXPECT_TRUE(same(b.bytes(), written(2 * page)));
    ASSERT_WORKS(engine->reset());
    expect_no_fault();
}

TEST_F(Testdev, DoesNotRead) {
    EXPECT_FAILS(engine->copy_to_device(Iova(0x1000), Size(4)), EOPNOTSUPP);
    EXPECT_FAILS(engine->copy(Iova(0x1000), Iova(0x2000), Size(4)), EOPNOTSUPP);
    EXPECT_FAILS(engine->copy_from_device(Iova(0x1000), Size(2)), EINVAL);
    EXPECT_FAILS(engine->copy_from_device(Iova(0x1000), Size((1 << 20) + 4)), EINVAL);
    engine.reset();
    EXPECT_FAILS(dp::Engine::probe(*keeper, *access, {.completion = dp::Completion::interrupt}),
                 EOPNOTSUPP);
}

// The device itself reports that it was stopped.
TEST_F(Testdev, SeesFaults) {
    NEEDS_IOMMU();
    NEEDS_FAULTS();
    const Faults two(2);
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::to_device);
    const auto bytes = pattern(page_size(), 3);
    const Iova at = m.dma_addr();

    put(b.bytes(), bytes);
    ASSERT_WORKS(m.sync_for_device());
    EXPECT_FAILS(engine->copy_from_device(at, Size(4)), EIO);
    expect_fault(at, dp::FaultAccess::write);
    ASSERT_WORKS(m.unmap());
    EXPECT_FAILS(engine->copy_from_device(at, Size(4)), EIO);
    expect_fault(at, dp::FaultAccess::write);
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote";
}

} // namespace
} // namespace selftest

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A fixture for tests in which the device moves bytes, by the library: its engine, a
 * session that maps, and the faults of the IOMMU.
 */
#ifndef SELFTESTS_ENGINE_H
#define SELFTESTS_ENGINE_H

#include "fixture.h"
#include "result.h"

#include <dmaprobe/buffer.h>
#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>
#include <dmaprobe/fault.h>
#include <dmaprobe/mapping.h>
#include <dmaprobe/pci.h>
#include <dmaprobe/session.h>

#include <algorithm>
#include <format>

namespace selftest {

/* Bytes that look alike nowhere, other ones for each seed. */
inline std::vector<std::byte> pattern(size_t length, size_t seed) {
    std::vector<std::byte> bytes(length);

    for (size_t i = 0; i < length; i++)
        bytes[i] = static_cast<std::byte>((i * 131 + i / 251 + seed * 17 + 1) & 0xff);
    return bytes;
}

inline void put(std::span<std::byte> to, std::span<const std::byte> from) {
    std::ranges::copy(from, to.begin());
}

inline testing::AssertionResult same(std::span<const std::byte> got,
                                     std::span<const std::byte> want) {
    const auto [g, w] = std::ranges::mismatch(got, want);

    if (g == got.end() && w == want.end())
        return testing::AssertionSuccess();
    const auto at = g - got.begin();
    return testing::AssertionFailure()
           << std::format("byte {} of {} differs: {:#04x}, not {:#04x}", at, want.size(),
                          g == got.end() ? 0u : std::to_integer<unsigned>(*g),
                          w == want.end() ? 0u : std::to_integer<unsigned>(*w));
}

class EngineTest : public DeviceTest {
protected:
    /* Which engines the tests are for: why not for this one, or nothing. */
    virtual std::string why_not(const dmaprobe::EngineTraits& traits) const = 0;

    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        no_iova = s.missing(DMAPROBE_FEATURE_DMA_IOVA).value_or(iommu ? "" : "no IOMMU translates");

        /* One session for the device's registers, which stays open when the one
         * that maps is closed. */
        auto opened = dmaprobe::Session::open(bdf);
        ASSERT_WORKS(opened);
        keeper.emplace(std::move(*opened));
        auto reached = dmaprobe::DeviceAccess::open(*keeper);
        ASSERT_WORKS(reached);
        access.emplace(std::move(*reached));
        RecordProperty("path", std::string(dmaprobe::to_string(access->path())));
        RecordProperty("path_reason", access->why());
        const dmaprobe::EngineTraits* traits = dmaprobe::Engine::find(access->ids());
        if (!traits)
            GTEST_SKIP() << "no engine drives this device";
        if (const std::string why = why_not(*traits); !why.empty())
            GTEST_SKIP() << why;
        ASSERT_WORKS(keeper->set_mask(traits->dma_mask));
        auto probed = dmaprobe::Engine::probe(*keeper, *access);
        ASSERT_WORKS(probed);
        engine = std::move(*probed);

        auto second = dmaprobe::Session::open(bdf);
        ASSERT_WORKS(second);
        session.emplace(std::move(*second));
        /* Whether one page can be reached would be luck, so it is all of the memory or nothing. */
        if (const uint64_t all = s.limits().required_mask; !iommu && engine->dma_mask() < all)
            GTEST_SKIP() << std::format("no IOMMU translates, and addresses up to {:#x} are beyond "
                                        "the engine's mask {:#x}",
                                        all, engine->dma_mask());
        if (iommu) {
            auto ids = dmaprobe::PciBus().requester_ids(session_bdf());
            ASSERT_WORKS(ids);
            requesters = std::move(*ids);
            auto watching = dmaprobe::FaultWatcher::open();
            ASSERT_WORKS(watching);
            watcher.emplace(std::move(*watching));
        }
    }

    dmaprobe::Buffer buffer(uint64_t length,
                            dmaprobe::BufferKind kind = dmaprobe::BufferKind::contiguous) {
        auto made = dmaprobe::Buffer::alloc(*session, kind, dmaprobe::Size(length));

        EXPECT_WORKS(made);
        return std::move(made.value());
    }

    dmaprobe::Mapping map(const dmaprobe::Buffer& b, dmaprobe::Direction dir,
                          dmaprobe::MapKind kind = dmaprobe::MapKind::page) {
        auto made = dmaprobe::Mapping::map(b, kind, dmaprobe::Size(), b.length(), dir);

        EXPECT_WORKS(made);
        return std::move(made.value());
    }

    /* The device's next access there faults, and nothing else does. */
    void expect_fault(dmaprobe::Iova at, dmaprobe::FaultAccess what) {
        const auto fault = watcher->wait(requesters, std::chrono::seconds(5));

        ASSERT_WORKS(fault);
        if (!fault->iova) {
            /* As QEMU emulates it. */
            EXPECT_EQ(fault->platform, "amd-vi") << fault->raw;
            return;
        }
        /* VT-d reports the granule. */
        EXPECT_EQ(fault->iova->align_down(dmaprobe::Size(granule)),
                  at.align_down(dmaprobe::Size(granule)));
        if (fault->access == dmaprobe::FaultAccess::unknown) {
            /* As QEMU emulates it, where nothing is mapped. */
            EXPECT_EQ(fault->platform, "virtio-iommu") << fault->raw;
        } else {
            EXPECT_EQ(dmaprobe::to_string(fault->access), dmaprobe::to_string(what));
        }
        EXPECT_FALSE(fault->reason.empty());
    }

    void expect_no_fault() {
        if (!watcher)
            return;
        const auto faults = watcher->drain();

        ASSERT_WORKS(faults);
        for (const dmaprobe::Fault& fault : *faults)
            EXPECT_FALSE(fault.is_from(requesters)) << fault.raw;
    }

    dmaprobe::Bdf session_bdf() const { return keeper->bdf(); }

    std::string no_iova;
    std::optional<dmaprobe::Session> keeper;
    std::optional<dmaprobe::DeviceAccess> access;
    std::unique_ptr<dmaprobe::Engine> engine;
    std::optional<dmaprobe::Session> session;
    std::optional<dmaprobe::FaultWatcher> watcher;
    std::vector<dmaprobe::Bdf> requesters; /* what it may be called in reports of faults */
};

#define NEEDS_IOMMU()                                                                              \
    if (!iommu)                                                                                    \
    GTEST_SKIP() << "no IOMMU translates for the device"
#define NEEDS_FAULTS()                                                                             \
    if (const std::string lacking = s.no_faults(); !lacking.empty())                               \
    GTEST_SKIP() << lacking
#define NEEDS_IOVA()                                                                               \
    if (!no_iova.empty())                                                                          \
    GTEST_SKIP() << no_iova

} // namespace selftest

#endif

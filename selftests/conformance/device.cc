// SPDX-License-Identifier: GPL-2.0-only
// What the device itself can do with memory that it was given, and with memory that it
// was not given, or no longer has.

#include "check.h"

#include "support/engine.h"
#include "support/system.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <format>
#include <thread>

namespace conformance {
namespace {

using dp::FaultAccess;
using selftest::Faults;
using selftest::same;

constexpr const char* api_document = "Documentation/core-api/dma-api.rst";

// --- data -------------------------------------------------------------------------

class Data : public WayCheck {
protected:
    /// Where a transfer begins or ends at an edge of a granule, or goes across it.
    std::vector<std::size_t> places(const Target& t) const {
        const std::size_t length = t.length().value();
        const std::size_t half = unit / 2 / engine->traits().alignment * engine->traits().alignment;
        std::vector<std::size_t> found;
        for (std::size_t edge = 0; edge <= length; edge += granule)
            for (const std::size_t back : {unit, half, std::size_t{0}})
                if (edge >= back && edge - back + unit <= length &&
                    t.contiguous(edge - back) >= unit)
                    found.push_back(edge - back);
        return found;
    }
};
FOR_ALL_MEMORY_KINDS(Data);

TEST_P(Data, BothWays) {
    rule("what the device writes is in the memory, what is in the memory the device reads, at each "
         "edge of a granule, and no other byte changes",
         api_document);
    auto made = make();
    // Where the kernel bounces everything, which the limit of a mapping shows, a dma-buf cannot be
    // mapped, and dmaprobe maps nothing for a device that may not reach the bounce buffers.
    const bool bounces = !limits.iommu && limits.max_mapping_size != Size(~std::uint64_t{0});
    if (!made && made.error().code == EIO && bounces &&
        (GetParam() == MemoryKind::dmabuf || engine->dma_mask() < 0xffffffff))
        GTEST_SKIP() << "it would have to be bounced: " << made.error().message();
    ASSERT_WORKS(made);
    Target& t = *made;
    const std::size_t length = t.length().value();
    bool read = true;

    for (const std::size_t place : places(t)) {
        SCOPED_TRACE(std::format("{} bytes at offset {:#x}", unit, place));
        std::vector<std::byte> want(length, std::byte{0x5a});
        ASSERT_WORKS(t.put(0, want));
        ASSERT_WORKS(device_writes(t.at(place)));
        std::ranges::copy(content(), want.begin() + static_cast<std::ptrdiff_t>(place));
        const auto got = t.get(0, length);
        ASSERT_WORKS(got);
        ASSERT_TRUE(same(*got, want));
        const auto seen = device_reads(t.at(place));
        ASSERT_WORKS(seen);
        ASSERT_NE(static_cast<int>(*seen), static_cast<int>(Read::other))
            << "the device read other bytes";
        read = read && *seen == Read::same;
    }
    if (!read)
        value("not_checked", "this device cannot read memory");
    expect_no_fault();
}

// --- permissions -------------------------------------------------------------------

class Permission : public TranslatedCheck {
protected:
    void SetUp() override {
        TranslatedCheck::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        // These are always for both directions.
        if (GetParam() == MemoryKind::coherent || GetParam() == MemoryKind::pool ||
            GetParam() == MemoryKind::dmabuf)
            GTEST_SKIP() << to_string(GetParam()) << " memory is for both directions";
    }
};
FOR_ALL_MEMORY_KINDS(Permission);

TEST_P(Permission, WriteThroughToDevice) {
    rule("DMA_TO_DEVICE is read-only for the device",
         "drivers/iommu/dma-iommu.c, dma_info_to_prot()");
    const Faults limit(faults_of_a_transfer());
    auto made = make(Direction::to_device);
    ASSERT_WORKS(made);
    const std::vector<std::byte> bytes(unit, std::byte{0x11});
    ASSERT_WORKS(made->put(granule, bytes));
    const auto said = try_to_write(made->at(granule));
    ASSERT_WORKS(said);
    const auto got = made->get(granule, unit);
    ASSERT_WORKS(got);
    // __iommu_dma_alloc_noncontiguous() maps for both directions, whichever it is given.
    if (GetParam() == MemoryKind::noncontiguous && same(*got, content())) {
        quirk("noncontiguous memory that was allocated with DMA_TO_DEVICE can be written to by the "
              "device");
        expect_no_fault();
        return;
    }
    ASSERT_TRUE(same(*got, bytes)) << "the device wrote";
    expect_fault(made->at(granule), FaultAccess::write, *said != Answer::none);
}

TEST_P(Permission, ReadThroughFromDevice) {
    rule("DMA_FROM_DEVICE is write-only for the device where the IOMMU has that",
         "drivers/iommu/dma-iommu.c, dma_info_to_prot()");
    if (engine->traits().read_effect == dp::ReadEffect::none)
        GTEST_SKIP() << engine->traits().description << " cannot read memory";
    const Faults limit(faults_of_a_transfer());
    auto made = make(Direction::from_device);
    ASSERT_WORKS(made);
    // Not by the device: an IOMMU may keep what it looked up for a write, and stop the read without
    // a word, as QEMU's VT-d does.
    ASSERT_WORKS(made->put(granule, content()));
    const auto seen = device_reads(made->at(granule));
    if (seen && *seen == Read::same) {
        quirk("the device can read what it may only write to");
        expect_no_fault();
        return;
    }
    bool stopped = true; // it has other bytes
    if (!seen) {
        const auto said = answer(seen.error().code, engine->traits().sees_read_faults);
        ASSERT_TRUE(said) << seen.error();
        stopped = *said == Answer::stopped;
    }
    expect_fault(made->at(granule), FaultAccess::read, stopped);
}

// --- edges -------------------------------------------------------------------------

class Edge : public TranslatedCheck {};
FOR_ALL_MEMORY_KINDS(Edge);

TEST_P(Edge, PastTheLastGranule) {
    rule("the granule behind the last one is not the device's", api_document);
    const Faults limit(faults_of_a_transfer());
    auto made = make();
    ASSERT_WORKS(made);
    const Iova behind = made->segments().back().addr + made->segments().back().length;
    if (!is_hole(behind, unit))
        GTEST_SKIP() << "something else is mapped behind it";
    const auto said = try_to_write(behind);
    ASSERT_WORKS(said);
    expect_fault(behind, FaultAccess::write, *said == Answer::stopped);
}

TEST_P(Edge, BeforeTheFirstGranule) {
    rule("the granule in front of the first one is not the device's", api_document);
    const Faults limit(faults_of_a_transfer());
    auto made = make();
    ASSERT_WORKS(made);
    const Iova first = made->segments().front().addr;
    if (first.value() < granule)
        GTEST_SKIP() << "there is nothing in front of it";
    const Iova before(first.value() - unit);
    if (!is_hole(before, unit))
        GTEST_SKIP() << "something else is mapped in front of it";
    const auto said = try_to_write(before);
    ASSERT_WORKS(said);
    expect_fault(before, FaultAccess::write, *said == Answer::stopped);
}

// A mapping that ends inside a granule.
class InsideAGranule : public DeviceCheck {};

TEST_F(InsideAGranule, PastTheLastByte) {
    rule("an IOMMU protects whole granules: a device that goes past a mapping's last byte, and "
         "stays in the granule, is not stopped",
         "Documentation/core-api/dma-api.rst: memory coherency operates at a granularity");
    if (!limits.iommu)
        GTEST_SKIP() << "no IOMMU translates for the device";
    auto buffer = dp::Buffer::alloc(*session, dp::BufferKind::contiguous, Size(granule));
    ASSERT_WORKS(buffer);
    auto mapping = dp::Mapping::map(*buffer, dp::MapKind::page, Size(), Size(granule - unit),
                                    Direction::bidirectional);
    ASSERT_WORKS(mapping);
    const Iova behind = mapping->dma_addr() + Size(granule - unit);
    const auto done = device_writes(behind);
    const bool wrote = same(buffer->bytes().last(unit), content());
    value("granule", std::to_string(granule));
    if (wrote) {
        quirk(std::format("a device can write past the end of a mapping, up to the end of its "
                          "granule of {} bytes",
                          granule));
        EXPECT_WORKS(done);
        expect_no_fault();
        return;
    }
    ASSERT_TRUE(done || answer(done.error().code, engine->traits().sees_write_faults))
        << done.error();
    // Stopped, or the bytes went into a bounce buffer.
    value("stopped", done ? "without an error" : done.error().message());
}

// --- afterwards -------------------------------------------------------------------

class After : public TranslatedCheck {
protected:
    void SetUp() override {
        TranslatedCheck::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        // To see that a translation which is still there is noticed.
        if (lazy() && selftest::env("DMAPROBE_EXPECT_STRICT").empty())
            GTEST_SKIP() << "the domain is lazy (DMA-FQ): Window.OfUnmap measures it";
    }

    /// Have the IOMMU look the addresses up, so that a translation that is left in its cache shows.
    void warm(const Target& t) {
        for (int i = 0; i < 3; i++)
            for (std::size_t at = 0; at < t.length().value(); at += granule) {
                ASSERT_WORKS(device_writes(t.at(at)));
                const auto got = t.get(at, unit);
                ASSERT_WORKS(got);
                ASSERT_TRUE(same(*got, content())) << "it does not work before";
            }
        expect_no_fault();
    }
};
FOR_ALL_MEMORY_KINDS(After);

TEST_P(After, AccessAfterRelease) {
    rule("after unmap, destroy or free no byte of the memory is the device's, whatever it used "
         "before",
         api_document);
    const Faults limit(faults_of_a_transfer());
    auto made = make();
    ASSERT_WORKS(made);
    Target& t = *made;
    ASSERT_NO_FATAL_FAILURE(warm(t));
    const std::size_t middle = granule;
    const Iova at = t.at(middle);
    const std::vector<std::byte> bytes(unit, std::byte{0x33});
    ASSERT_WORKS(t.end());
    if (t.outlasts()) {
        ASSERT_WORKS(t.put(middle, bytes));
    }
    const auto said = try_to_write(at);
    ASSERT_WORKS(said);
    if (t.outlasts()) {
        const auto got = t.get(middle, unit);
        ASSERT_WORKS(got);
        ASSERT_TRUE(same(*got, bytes)) << "the device wrote to memory that is no longer its own";
    }
    if (engine->traits().sees_write_faults) {
        EXPECT_NE(static_cast<int>(*said), static_cast<int>(Answer::done))
            << "the device wrote to an address that is no longer its own";
    }
    expect_fault(at, FaultAccess::write,
                 *said == Answer::stopped || (t.outlasts() && *said == Answer::done));
}

// --- the IOVA calls ----------------------------------------------------------------

class Sync : public DeviceCheck {};

TEST_F(Sync, OfALink) {
    rule("what was linked is the device's after dma_iova_sync(); whether it is so before, depends "
         "on the IOMMU",
         "drivers/iommu/dma-iommu.c, dma_iova_sync()");
    SKIP_IF(unsupported_reason(MemoryKind::linked));
    const Faults limit(faults_of_a_transfer());
    auto buffer = dp::Buffer::alloc(*session, dp::BufferKind::contiguous, Size(granule));
    ASSERT_WORKS(buffer);
    auto space = dp::IovaSpace::alloc(*session, Size(granule));
    ASSERT_WORKS(space);
    ASSERT_WORKS(space->link(*buffer, Size(), Size(), Size(granule), Direction::bidirectional));
    const auto said = try_to_write(space->addr());
    ASSERT_WORKS(said);
    const bool early = same(buffer->bytes().first(unit), content());
    value("reached_before_the_sync", early ? "yes" : "no");
    if (early) {
        quirk("the device reaches what was linked without dma_iova_sync(), so that a forgotten one "
              "does not show");
        expect_no_fault();
    } else {
        expect_fault(space->addr(), FaultAccess::write, *said != Answer::none);
    }
    std::ranges::fill(buffer->bytes(), std::byte{0x55});
    ASSERT_WORKS(space->sync(Size(), Size(granule)));
    ASSERT_WORKS(device_writes(space->addr()));
    EXPECT_TRUE(same(buffer->bytes().first(unit), content())) << "it does not work after the sync";
}

// dma_iova_unlink() of a part: the rest stays. It invalidates at once, in every domain.
class Unlink : public DeviceCheck {};

TEST_F(Unlink, OfAPart) {
    rule("dma_iova_unlink() takes what it names from the device at once, also under a lazy domain, "
         "and nothing else",
         "drivers/iommu/dma-iommu.c, __iommu_dma_iova_unlink()");
    SKIP_IF(unsupported_reason(MemoryKind::linked));
    const Faults limit(faults_of_a_transfer());
    auto buffer = dp::Buffer::scattered(*session, Size(3 * granule));
    ASSERT_WORKS(buffer);
    auto space = dp::IovaSpace::alloc(*session, Size(3 * granule));
    ASSERT_WORKS(space);
    for (std::size_t at = 0; at < 3 * granule; at += granule)
        ASSERT_WORKS(
            space->link(*buffer, Size(at), Size(at), Size(granule), Direction::bidirectional));
    ASSERT_WORKS(space->sync(Size(), Size(3 * granule)));
    for (int i = 0; i < 3; i++)
        for (std::size_t at = 0; at < 3 * granule; at += granule) {
            ASSERT_WORKS(device_writes(space->addr() + Size(at)));
            ASSERT_TRUE(same(buffer->bytes().subspan(at, unit), content()));
        }
    ASSERT_WORKS(space->unlink(Size(granule), Size(granule), Direction::bidirectional));
    std::ranges::fill(buffer->bytes(), std::byte{0x44});
    const auto said = try_to_write(space->addr() + Size(granule));
    ASSERT_WORKS(said);
    ASSERT_TRUE(same(buffer->bytes(), std::vector<std::byte>(3 * granule, std::byte{0x44})))
        << "the device wrote after the unlink";
    expect_fault(space->addr() + Size(granule), FaultAccess::write, *said != Answer::none);
    for (const std::size_t at : {std::size_t{0}, 2 * granule}) {
        ASSERT_WORKS(device_writes(space->addr() + Size(at)));
        EXPECT_TRUE(same(buffer->bytes().subspan(at, unit), content())) << "a neighbour is gone";
    }
}

// --- the window of lazy domains ----------------------------------------------------

class Window : public DeviceCheck {
protected:
    using Clock = std::chrono::steady_clock;

    void SetUp() override {
        DeviceCheck::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!lazy())
            GTEST_SKIP() << "the domain is " << to_string(domain.type) << ", not DMA-FQ";
        auto made = dp::Buffer::alloc(*session, dp::BufferKind::contiguous, Size(granule));
        ASSERT_WORKS(made);
        buffer.emplace(std::move(*made));
        // How long the device takes says what it can see.
        auto mapping = map();
        ASSERT_WORKS(mapping);
        ASSERT_TRUE(writes(mapping->dma_addr()));
        const auto began = Clock::now();
        ASSERT_TRUE(writes(mapping->dma_addr()));
        const auto one = Clock::now() - began;
        value("one_transfer_us", std::to_string(one / std::chrono::microseconds(1)));
        if (one > milliseconds(5))
            GTEST_SKIP() << std::format("a transfer of this device takes {} ms, too long to see a "
                                        "window of 10 ms",
                                        one / milliseconds(1));
        ASSERT_WORKS(mapping->unmap());
        close();
    }

    dp::Result<dp::Mapping> map() const {
        return dp::Mapping::map(*buffer, dp::MapKind::page, Size(), Size(granule),
                                Direction::bidirectional);
    }
    /// Whether the device reaches the buffer by this address.
    bool writes(Iova at) {
        std::ranges::fill(buffer->bytes().first(unit), std::byte{});
        EXPECT_WORKS(try_to_write(at));
        return static_cast<bool>(same(buffer->bytes().first(unit), content()));
    }
    /// Let a window end by its time, so that it does not end the next one.
    static void close() { std::this_thread::sleep_for(milliseconds(30)); }

    std::optional<dp::Buffer> buffer;
};

TEST_F(Window, OfUnmap) {
    rule("under a lazy domain (DMA-FQ) a device can reach memory for some time after it was "
         "unmapped: until a queue of 256 ranges is full, or 10 ms have passed",
         "drivers/iommu/dma-iommu.c, IOVA_DEFAULT_FQ_SIZE and IOVA_DEFAULT_FQ_TIMEOUT");
    const Faults limit(Faults::all);
    // Where the kernel has one queue for all CPUs, the time is 1 s. A busy machine makes a round
    // longer, but not one after the other so long.
    constexpr seconds never(5);
    std::vector<std::int64_t> windows; // in microseconds
    int through = 0;
    int endless = 0;
    for (int round = 0; round < 20 && endless < 3; round++) {
        auto mapping = map();
        ASSERT_WORKS(mapping);
        const Iova at = mapping->dma_addr();
        ASSERT_TRUE(writes(at));
        ASSERT_WORKS(mapping->unmap());
        const auto began = Clock::now();
        auto last = began;
        while (last - began < never && writes(at))
            last = Clock::now();
        windows.push_back((last - began) / std::chrono::microseconds(1));
        through += last != began;
        endless = last - began < never ? 0 : endless + 1;
        close();
    }
    std::ranges::sort(windows);
    value("window_us_min", std::to_string(windows.front()));
    value("window_us_median", std::to_string(windows[windows.size() / 2]));
    value("window_us_max", std::to_string(windows.back()));
    value("rounds_with_a_window", std::format("{} of {}", through, windows.size()));
    EXPECT_LT(endless, 3) << "three times in a row, the translation had not gone after 5 s";
    if (through != 0)
        quirk(std::format("for up to {} us after an unmap the device still reaches the memory",
                          windows.back()));
}

// How many ranges have to be unmapped until the first is out of the device's reach.
TEST_F(Window, InRanges) {
    rule("the window also ends when the queue of a CPU is full", "drivers/iommu/dma-iommu.c, "
                                                                 "queue_iova()");
    const Faults limit(Faults::all);
    const selftest::OneCpu here; // each has a queue
    constexpr std::array<std::size_t, 5> counts = {32, 128, 240, 300, 600};
    std::string seen;
    for (const std::size_t count : counts) {
        std::vector<dp::Mapping> mappings;
        for (std::size_t i = 0; i <= count; i++) {
            auto made = map();
            ASSERT_WORKS(made);
            mappings.push_back(std::move(*made));
        }
        const Iova at = mappings[0].dma_addr();
        ASSERT_TRUE(writes(at));
        const auto began = Clock::now();
        for (dp::Mapping& mapping : mappings)
            ASSERT_WORKS(mapping.unmap());
        const auto took = Clock::now() - began;
        const bool open = writes(at);
        seen += std::format("{}{} more in {} us: {}", seen.empty() ? "" : "; ", count,
                            took / std::chrono::microseconds(1), open ? "open" : "closed");
        // More than two queues.
        if (count == counts.back()) {
            EXPECT_FALSE(open) << "the queues are full, and the translation is still there";
        }
        close();
    }
    value("after_unmapping", seen);
}

} // namespace
} // namespace conformance

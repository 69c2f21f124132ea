// SPDX-License-Identifier: GPL-2.0-only

#include "check.h"

#include "../fixture.h"

#include <algorithm>
#include <cerrno>
#include <format>

namespace conformance {

namespace {

std::vector<std::byte> random_bytes(std::size_t length) {
    static std::mt19937 random(20260101);
    std::vector<std::byte> bytes(length);
    for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(random());
    return bytes;
}

} // namespace

void rule(const std::string& text, const std::string& defined) {
    testing::Test::RecordProperty("rule", text);
    testing::Test::RecordProperty("defined", defined);
}

void quirk(const std::string& text) {
    testing::Test::RecordProperty("quirk", text);
}

void value(const std::string& name, const std::string& text) {
    testing::Test::RecordProperty(name, text);
}

void Check::SetUp() {
    const std::string bdf = selftest::env("DMAPROBE_BDF");
    if (bdf.empty())
        GTEST_SKIP() << "no device: DMAPROBE_BDF is not set";
    auto opened = dp::Session::open(bdf);
    ASSERT_WORKS(opened);
    session.emplace(std::move(*opened));
    const auto got = session->limits();
    ASSERT_WORKS(got);
    limits = *got;
    auto found = session->domain();
    ASSERT_WORKS(found);
    domain = std::move(*found);
    granule = std::max<std::size_t>(domain.granule().value(), selftest::page_size());
}

std::string Check::lacks(Way way) const {
    const auto info = session->info();
    if (!info)
        return info.error().message();
    if (way == Way::phys && !info->map_phys)
        return "dma_map_phys(): this kernel is older than Linux 6.18";
    if (way == Way::linked && !info->dma_iova)
        return "dma_iova_*(): this kernel is older than Linux 6.16";
    if (way == Way::linked && !limits.iommu)
        return "no IOMMU translates for the device";
    return "";
}

void DeviceCheck::SetUp() {
    Check::SetUp();
    if (IsSkipped() || HasFatalFailure())
        return;
    // Who ran before may have used up what the kernel reports in 5 s.
    static const bool once = (selftest::Faults(selftest::Faults::all), true);
    std::ignore = once;
    auto reached = dp::DeviceAccess::open(*session);
    ASSERT_WORKS(reached);
    access.emplace(std::move(*reached));
    const dp::EngineTraits* traits = dp::Engine::find(access->ids());
    if (!traits)
        GTEST_SKIP() << "no engine drives this device";
    // The kernel may refuse such a mask, where no memory is below it.
    if (!limits.iommu && traits->dma_mask < limits.required_mask)
        GTEST_SKIP() << std::format("no IOMMU translates, and addresses up to {:#x} are beyond the "
                                    "engine's mask {:#x}",
                                    limits.required_mask, traits->dma_mask);
    ASSERT_WORKS(session->set_mask(traits->dma_mask));
    auto probed = dp::Engine::probe(*session, *access);
    if (!probed && probed.error().code == EOPNOTSUPP)
        GTEST_SKIP() << probed.error().message();
    ASSERT_WORKS(probed);
    engine = std::move(*probed);
    // Small, since each access of the bus would be a fault of its own.
    unit = std::max<std::size_t>(4, engine->traits().block.value());
    auto scratch = Target::make(*session, Way::coherent, Size(selftest::page_size()));
    ASSERT_WORKS(scratch);
    scratch_.emplace(std::move(*scratch));
    ASSERT_WORKS(load());
    if (limits.iommu) {
        auto watching = dp::FaultWatcher::open();
        ASSERT_WORKS(watching);
        watcher_.emplace(std::move(*watching));
    }
}

void DeviceCheck::TearDown() {
    if (engine) {
        EXPECT_WORKS(engine->reset()) << "the device is not at rest";
    }
}

/// Let the device have bytes that nothing else has, or learn what it has.
dp::Result<void> DeviceCheck::load() {
    if (engine->traits().intake == dp::Intake::stores) {
        content_ = random_bytes(unit);
        if (auto done = scratch_->put(0, content_); !done)
            return done;
        return engine->copy_to_device(scratch_->at(0), Size(unit));
    }
    if (auto done = engine->copy_from_device(scratch_->at(0), Size(unit)); !done)
        return done;
    auto got = scratch_->get(0, unit);
    if (!got)
        return std::unexpected(std::move(got.error()));
    content_ = std::move(*got);
    return {};
}

dp::Result<void> DeviceCheck::device_writes(Iova at) {
    return engine->copy_from_device(at, Size(unit));
}

dp::Result<Read> DeviceCheck::device_reads(Iova at) {
    switch (engine->traits().intake) {
    case dp::Intake::none:
        return Read::unknown;
    case dp::Intake::compares: {
        auto done = engine->copy_to_device(at, Size(unit));
        if (done)
            return Read::same;
        if (done.error().code == EILSEQ)
            return Read::other;
        return std::unexpected(std::move(done.error()));
    }
    case dp::Intake::stores:
        break;
    }
    // What the device has is wiped first, since it has the bytes it is about to read.
    const std::vector<std::byte> content = content_;
    if (auto done = scratch_->put(0, std::vector<std::byte>(unit)); !done)
        return std::unexpected(std::move(done.error()));
    if (auto done = engine->copy_to_device(scratch_->at(0), Size(unit)); !done)
        return std::unexpected(std::move(done.error()));
    if (auto done = engine->copy_to_device(at, Size(unit)); !done)
        return std::unexpected(std::move(done.error()));
    if (auto done = engine->copy_from_device(scratch_->at(0), Size(unit)); !done)
        return std::unexpected(std::move(done.error()));
    auto got = scratch_->get(0, unit);
    if (!got)
        return std::unexpected(std::move(got.error()));
    const Read verdict = *got == content ? Read::same : Read::other;
    if (verdict == Read::other) {
        if (auto done = scratch_->put(0, content); !done)
            return std::unexpected(std::move(done.error()));
        if (auto done = engine->copy_to_device(scratch_->at(0), Size(unit)); !done)
            return std::unexpected(std::move(done.error()));
    }
    return verdict;
}

void DeviceCheck::expect_fault(Iova at, dp::FaultAccess wanted) {
    const auto fault = watcher_->wait(session->bdf(), seconds(5));

    if (!fault && fault.error().code == ETIMEDOUT) {
        FAIL() << "the IOMMU reported no fault that is known here";
    }
    ASSERT_WORKS(fault);
    value("fault", fault->raw);
    value("fault_reason", fault->reason);
    std::string reports = "a fault";
    if (fault->bdf)
        reports += ", device";
    if (fault->iova) {
        reports += ", address";
        // VT-d reports 4 KiB pages.
        EXPECT_EQ(fault->iova->align_down(Size(granule)), at.align_down(Size(granule)));
    }
    if (fault->access != dp::FaultAccess::unknown) {
        reports += ", read or write";
        EXPECT_EQ(dp::to_string(fault->access), dp::to_string(wanted));
    }
    // What is missing, the platform does not report.
    value("fault_tells", reports);
}

void DeviceCheck::expect_no_fault() {
    if (!watcher_)
        return;
    const auto faults = watcher_->drain();
    ASSERT_WORKS(faults);
    for (const dp::Fault& fault : *faults)
        EXPECT_FALSE(fault.is_from(session->bdf())) << fault.raw;
}

std::size_t DeviceCheck::faults_of_a_transfer() const {
    return unit <= 8 ? 1 : selftest::Faults::all;
}

bool DeviceCheck::is_hole(Iova at, std::size_t length) const {
    const auto extents = dp::translate(*session, at, Size(length));
    return extents && std::ranges::all_of(*extents, [](const dp::Extent& extent) {
               return extent.kind == dp::ExtentKind::hole;
           });
}

void WayCheck::SetUp() {
    DeviceCheck::SetUp();
    if (IsSkipped() || HasFatalFailure())
        return;
    SKIP_IF(lacks(GetParam()));
}

void TranslatedCheck::SetUp() {
    WayCheck::SetUp();
    if (!IsSkipped() && !HasFatalFailure() && !limits.iommu)
        GTEST_SKIP() << "no IOMMU translates for the device";
}

dp::Result<Target> WayCheck::make(Direction direction) {
    return Target::make(*session, GetParam(), Size(3 * granule), direction);
}

} // namespace conformance

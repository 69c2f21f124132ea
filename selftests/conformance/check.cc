// SPDX-License-Identifier: GPL-2.0-only

#include "check.h"

#include "support/fixture.h"
#include "support/ktap.h"

#include <dmaprobe/pci.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <format>
#include <print>
#include <string_view>
#include <sys/prctl.h>
#include <thread>
#include <tuple>
#include <unistd.h>

namespace conformance {

namespace {

/* Exit code of a run that was stopped. */
constexpr int stopped = 3;

/* Where the tool that runs this wants the reason of that; below 0 without one. */
int stop_file = -1;

/* A controller may take minutes to come to rest. */
constexpr seconds deadline(300);

/* Whether a report of a fault was understood. */
bool understood = false;

std::vector<std::byte> random_bytes(std::size_t length) {
    static std::mt19937 random(20260101);
    std::vector<std::byte> bytes(length);
    for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(random());
    return bytes;
}

/// Why a failure is none of the platform's: the device is gone.
std::string other_cause() {
    const auto session = dp::Session::open(selftest::env("DMAPROBE_BDF"));
    if (session || (session.error().code != ENODEV && session.error().code != ENOENT))
        return "";
    return "the device was unbound or unplugged";
}

class StopListener : public testing::EmptyTestEventListener {
    void OnTestEnd(const testing::TestInfo& test) override {
        if (test.result()->Failed())
            if (const std::string why = other_cause(); !why.empty())
                stop(why);
    }
};

/* The device's node, as a signal's handler may use it. */
std::string node;

/// The device went while its registers or its memory were looked at, or the kernel took them away
/// without cause: then the access is repeated, and ends this program.
void on_sigbus(int) {
    static constexpr std::string_view reason = "the device went: SIGBUS";
    static constexpr std::string_view line = "\nBail out! the device went: SIGBUS\n";
    if (access(node.c_str(), F_OK) == 0) {
        signal(SIGBUS, SIG_DFL);
        raise(SIGBUS);
        return;
    }
    std::ignore = write(STDOUT_FILENO, line.data(), line.size());
    if (stop_file >= 0)
        std::ignore = write(stop_file, reason.data(), reason.size());
    _exit(stopped);
}

class Together : public testing::Environment {
public:
    void SetUp() override {
        if (const std::string file = selftest::env("DMAPROBE_CHECK_STOPPED"); !file.empty())
            stop_file = open(file.c_str(), O_WRONLY | O_CLOEXEC);
        node = selftest::node_path(selftest::env("DMAPROBE_BDF"));
        struct sigaction action{};
        action.sa_handler = on_sigbus;
        sigaction(SIGBUS, &action, nullptr);
        // Whoever kills the tool does not know of this program.
        if (!selftest::env("DMAPROBE_CHECK_STOPPED").empty()) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            if (getppid() == 1)
                _exit(stopped);
        }
        testing::UnitTest::GetInstance()->listeners().Append(new StopListener);
    }
};

[[maybe_unused]] const testing::Environment* const together =
    testing::AddGlobalTestEnvironment(new Together);

/// A step that opens or sets up the device. Somebody else who uses it is no finding, nor is what
/// this user may not do.
template <class T>
void need(const dp::Result<T>& result) {
    if (result)
        return;
    switch (result.error().code) {
    case EAGAIN:
    case EBUSY:
    case ENODEV:
    case ENOENT:
        stop(result.error().message());
    case EACCES:
    case EPERM:
        GTEST_SKIP() << result.error().message();
    default:
        ASSERT_WORKS(result);
    }
}

} // namespace

void stop(const std::string& reason) {
    std::println("Bail out! {}", selftest::one_line(reason));
    std::fflush(stdout);
    const std::string line = selftest::one_line(reason);
    if (stop_file >= 0)
        std::ignore = write(stop_file, line.data(), line.size());
    _exit(stopped);
}

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
    ASSERT_NO_FATAL_FAILURE(need(opened));
    if (IsSkipped())
        return;
    session.emplace(std::move(*opened));
    const auto got = session->limits();
    ASSERT_WORKS(got);
    limits = *got;
    auto found = session->domain();
    ASSERT_WORKS(found);
    domain = std::move(*found);
    granule = std::max<std::size_t>(domain.granule().value(), selftest::page_size());
}

std::string Check::unsupported_reason(MemoryKind kind) const {
    const auto info = session->info();
    if (!info)
        return info.error().message();
    if (kind == MemoryKind::phys && !info->map_phys)
        return "dma_map_phys(): this kernel is older than Linux 6.18";
    if (kind == MemoryKind::linked && !info->dma_iova)
        return "dma_iova_*(): this kernel is older than Linux 6.16";
    if (kind == MemoryKind::linked && !limits.iommu)
        return "no IOMMU translates for the device";
    return "";
}

void DeviceCheck::SetUp() {
    Check::SetUp();
    if (IsSkipped() || HasFatalFailure())
        return;
    selftest::restart_deadline(deadline);
    // Who ran before may have used up what the kernel reports in 5 s.
    static const bool once = (selftest::Faults(selftest::Faults::all), true);
    std::ignore = once;
    auto reached = dp::DeviceAccess::open(*session);
    ASSERT_NO_FATAL_FAILURE(need(reached));
    if (IsSkipped())
        return;
    access.emplace(std::move(*reached));
    const dp::EngineTraits* traits = dp::Engine::find(access->ids());
    if (!traits)
        GTEST_SKIP() << "no engine drives this device";
    // The kernel may refuse such a mask, where no memory is below it.
    if (!limits.iommu && traits->dma_mask < limits.required_mask)
        GTEST_SKIP() << std::format("no IOMMU translates, and addresses up to {:#x} are beyond the "
                                    "engine's mask {:#x}",
                                    limits.required_mask, traits->dma_mask);
    ASSERT_NO_FATAL_FAILURE(need(session->set_mask_up_to(traits->dma_mask)));
    if (IsSkipped())
        return;
    auto probed = dp::Engine::probe(*session, *access);
    if (!probed && probed.error().code == EPERM)
        GTEST_SKIP() << probed.error().message(); // memory of its own
    if (!probed && probed.error().code == EOPNOTSUPP)
        GTEST_SKIP() << probed.error().message();
    ASSERT_WORKS(probed);
    engine = std::move(*probed);
    // Small, since each access of the bus would be a fault of its own.
    unit = std::max<std::size_t>(4, engine->traits().block.value());
    auto scratch = Target::make(*session, MemoryKind::coherent, Size(selftest::page_size()));
    ASSERT_NO_FATAL_FAILURE(need(scratch));
    if (IsSkipped())
        return;
    scratch_.emplace(std::move(*scratch));
    ASSERT_WORKS(load());
    if (limits.iommu) {
        auto watching = dp::FaultWatcher::open();
        if (watching)
            watcher_.emplace(std::move(*watching));
        else if (watching.error().code == EACCES || watching.error().code == EPERM)
            value("not_checked", watching.error().message());
        else
            ASSERT_WORKS(watching);
        auto ids = dp::PciBus().requester_ids(session->bdf());
        ASSERT_WORKS(ids);
        requesters_ = std::move(*ids);
    }
}

void DeviceCheck::TearDown() {
    selftest::restart_deadline(deadline);
    if (engine) {
        EXPECT_WORKS(engine->reset()) << ": the device is not at rest";
    }
}

/// Let the device have bytes that nothing else has, or learn what it has.
dp::Result<void> DeviceCheck::load() {
    if (engine->traits().read_effect == dp::ReadEffect::stores) {
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

/// What the device did not end in time it may still do: it has to be at rest before anything that
/// it was given is taken from it. Where it does not come to rest, nothing more is known of it.
dp::Result<void> DeviceCheck::rest(dp::Result<void> done) {
    if (!done && done.error().code == ETIMEDOUT) {
        selftest::restart_deadline(deadline);
        if (auto reset = engine->reset(); !reset)
            return std::unexpected(dp::Error{ENOTRECOVERABLE, "reset", reset.error().message()});
    }
    return done;
}

/// What an error of a transfer to a wrong address says; nothing of other errors, by which nothing
/// was tried.
std::optional<Answer> DeviceCheck::answer(int code, bool sees_faults) {
    if (code == EIO && sees_faults)
        return Answer::stopped;
    if (code == EIO || code == ETIMEDOUT)
        return Answer::none;
    return std::nullopt;
}

dp::Result<void> DeviceCheck::device_writes(Iova at) {
    return rest(engine->copy_from_device(at, Size(unit)));
}

dp::Result<Answer> DeviceCheck::try_to_write(Iova at) {
    const auto done = device_writes(at);
    if (done)
        return Answer::done;
    if (const auto said = answer(done.error().code, engine->traits().sees_write_faults))
        return *said;
    return std::unexpected(done.error());
}

dp::Result<Read> DeviceCheck::device_reads(Iova at) {
    switch (engine->traits().read_effect) {
    case dp::ReadEffect::none:
        return Read::unknown;
    case dp::ReadEffect::compares: {
        auto done = rest(engine->copy_to_device(at, Size(unit)));
        if (done)
            return Read::same;
        if (done.error().code == EILSEQ)
            return Read::other;
        return std::unexpected(std::move(done.error()));
    }
    case dp::ReadEffect::stores:
        break;
    }
    // What the device has is wiped first, since it has the bytes it is about to read.
    const std::vector<std::byte> content = content_;
    if (auto done = scratch_->put(0, std::vector<std::byte>(unit)); !done)
        return std::unexpected(std::move(done.error()));
    if (auto done = engine->copy_to_device(scratch_->at(0), Size(unit)); !done)
        return std::unexpected(std::move(done.error()));
    auto read = rest(engine->copy_to_device(at, Size(unit)));
    if (read) {
        if (auto done = engine->copy_from_device(scratch_->at(0), Size(unit)); !done)
            return std::unexpected(std::move(done.error()));
        auto got = scratch_->get(0, unit);
        if (!got)
            return std::unexpected(std::move(got.error()));
        if (*got == content)
            return Read::same;
    }
    if (auto done = scratch_->put(0, content); !done)
        return std::unexpected(std::move(done.error()));
    if (auto done = engine->copy_to_device(scratch_->at(0), Size(unit)); !done)
        return std::unexpected(std::move(done.error()));
    if (!read)
        return std::unexpected(std::move(read.error()));
    return Read::other;
}

/// Whether the platform reports a fault of the device in words that are known. It is asked once: by
/// a write to where nothing is mapped, and if that is not reported, by a read.
bool DeviceCheck::reports_faults() {
    if (understood || !watcher_)
        return understood;
    static const bool reports = [this] {
        // The kernel reports few faults in 5 s, and others may have used them up.
        std::this_thread::sleep_for(milliseconds(5200));
        std::vector<Target> taken;
        while (taken.size() < 16) {
            auto target = Target::make(*session, MemoryKind::coherent, Size(granule));
            if (!target)
                break;
            const Iova first = target->segments().front().addr;
            taken.push_back(std::move(*target));
            if (first.value() < granule)
                continue;
            const Iova before(first.value() - unit);
            if (!is_hole(before, unit))
                continue;
            std::ignore = device_writes(before);
            if (watcher_->wait(requesters_, seconds(5)))
                return true;
            if (engine->traits().read_effect == dp::ReadEffect::none)
                return false;
            std::ignore = device_reads(before);
            return watcher_->wait(requesters_, seconds(5)).has_value();
        }
        return true; // so that a report that is missing is a failure
    }();
    return reports;
}

void DeviceCheck::expect_fault(Iova at, dp::FaultAccess wanted, bool seen) {
    const auto fault = watcher_ ? watcher_->wait(requesters_, seconds(5))
                                : std::unexpected(dp::Error{ETIMEDOUT, "fault_wait", {}});

    if (!fault && fault.error().code == ETIMEDOUT) {
        std::string lines;
        if (watcher_)
            for (const std::string& line : watcher_->take_other_lines())
                lines += (lines.empty() ? "" : "; ") + line;
        if (!lines.empty())
            value("log", lines);
        ASSERT_FALSE(reports_faults()) << "the IOMMU did not report the fault, as it does others";
        const char* missing = watcher_
                                  ? "no report of the IOMMU is understood"
                                  : "the kernel log, which has the IOMMU's report, is not readable";
        if (!seen)
            GTEST_SKIP() << "nothing shows whether the device was stopped: " << missing;
        quirk(std::format("the device was stopped, and {}", missing));
        return;
    }
    ASSERT_WORKS(fault);
    understood = true;
    value("fault", fault->raw);
    value("fault_reason", fault->reason);
    std::string reports = "a fault";
    if (fault->bdf) {
        reports += ", device";
        if (!fault->is_from(session->bdf()))
            value("fault_names", fault->bdf->to_string() + ", a bridge above the device");
    }
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
    value("fault_reports", reports);
}

void DeviceCheck::expect_no_fault() {
    if (!watcher_)
        return;
    const auto faults = watcher_->drain();
    ASSERT_WORKS(faults);
    for (const dp::Fault& fault : *faults)
        EXPECT_FALSE(fault.is_from(requesters_)) << fault.raw;
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
    SKIP_IF(unsupported_reason(GetParam()));
    // What the module keeps from users is no finding. Root maps nothing before the check does.
    if (geteuid() == 0)
        return;
    if (const auto made = make();
        !made && (made.error().code == EPERM || made.error().code == EOPNOTSUPP))
        GTEST_SKIP() << made.error().message();
}

void TranslatedCheck::SetUp() {
    WayCheck::SetUp();
    if (!IsSkipped() && !HasFatalFailure() && !limits.iommu)
        GTEST_SKIP() << "no IOMMU translates for the device";
}

dp::Result<Target> WayCheck::make(Direction direction) const {
    return Target::make(*session, GetParam(), Size(3 * granule), direction);
}

} // namespace conformance

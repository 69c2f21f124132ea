/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the checks of the platform share: a session, the device's engine, the faults of
 * the IOMMU, and the words in which a check says what it found.
 *
 * A check is a GoogleTest test. A failed one is a finding about the platform: kernel,
 * IOMMU driver, hardware. A quirk is legal, but a driver's author must know it.
 */
#ifndef SELFTESTS_CONFORMANCE_CHECK_H
#define SELFTESTS_CONFORMANCE_CHECK_H

#include "support/result.h"
#include "support/target.h"

#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>
#include <dmaprobe/fault.h>
#include <dmaprobe/session.h>
#include <dmaprobe/translate.h>

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace conformance {

namespace dp = dmaprobe;
using dp::Direction;
using dp::Iova;
using dp::Size;
using selftest::MemoryKind;
using selftest::Target;
using std::chrono::milliseconds;
using std::chrono::seconds;

/* What a check reports besides its verdict; each in the check that is running. */
void rule(const std::string& text, const std::string& defined);
void quirk(const std::string& text);
void value(const std::string& name, const std::string& text);

/*
 * End the run at once: what happened is no verdict on the platform. `dmaprobe check` says so, and
 * exits with 3.
 */
[[noreturn]] void stop(const std::string& reason);

/* What became of a read by the device. */
enum class Read {
    same,    /* it read what was there */
    other,   /* it read something else */
    unknown, /* the device cannot say */
};

/* What a device says of a transfer to an address that is not its own. */
enum class Answer {
    done,    /* that it is done; of a write, which is posted, it may not know better */
    stopped, /* an error, by an engine that sees that it is stopped */
    none,    /* that it has failed, or nothing */
};

/* A session without an engine: what the kernel reports by itself. */
class Check : public testing::Test {
protected:
    void SetUp() override;

    /* Why the way cannot be had here, or nothing. */
    std::string unsupported_reason(MemoryKind kind) const;
    bool lazy() const { return domain.type == dp::DomainType::dma_fq; }

    std::optional<dp::Session> session;
    dp::Limits limits;
    dp::Domain domain;
    std::size_t granule = 0; /* the page size without an IOMMU */
};

/* With the device's engine. */
class DeviceCheck : public Check {
protected:
    void SetUp() override;
    void TearDown() override;

    /* The device writes `unit` bytes there; memory must then hold content(). */
    dp::Result<void> device_writes(Iova at);
    /* The same where it must not, or may not be able to. Errors by which nothing was tried. */
    dp::Result<Answer> try_to_write(Iova at);
    /* The same for the error of a read. */
    static std::optional<Answer> answer(int code, bool sees_faults);
    /* The device reads `unit` bytes there, where content() is. */
    dp::Result<Read> device_reads(Iova at);
    /* What the device has in its memory. */
    const std::vector<std::byte>& content() const { return content_; }

    /*
     * A fault of this address, and of no other, has been reported. Where no report is understood,
     * what shows that the device was stopped is what the caller has `seen`: then this is a quirk,
     * and otherwise nobody can say.
     */
    void expect_fault(Iova at, dp::FaultAccess access, bool seen);
    void expect_no_fault();
    /* How many a transfer of `unit` bytes is reported as, out of the few that the kernel reports.
     */
    std::size_t faults_of_a_transfer() const;
    /* Whether nothing leads anywhere from there on. */
    bool is_hole(Iova at, std::size_t length) const;

    std::size_t unit = 0; /* bytes of the smallest transfer that is used here */
    std::optional<dp::DeviceAccess> access;
    std::unique_ptr<dp::Engine> engine; // goes before what it uses

private:
    dp::Result<void> load();
    dp::Result<void> rest(dp::Result<void> done);
    bool reports_faults();

    std::optional<dp::FaultWatcher> watcher_;
    std::vector<dp::Bdf> requesters_;
    std::optional<Target> scratch_;
    std::vector<std::byte> content_;
};

/* For each way of giving memory to a device. */
class WayCheck : public DeviceCheck, public testing::WithParamInterface<MemoryKind> {
protected:
    void SetUp() override;

    /* Memory of three granules or so. */
    dp::Result<Target> make(Direction direction = Direction::bidirectional) const;
};

/* Where an IOMMU translates. */
class TranslatedCheck : public WayCheck {
protected:
    void SetUp() override;
};

#define FOR_ALL_MEMORY_KINDS(suite)                                                                \
    INSTANTIATE_TEST_SUITE_P(, suite, testing::ValuesIn(selftest::all_memory_kinds),               \
                             [](const auto& row) { return std::string(to_string(row.param)); })

/* The platform does not let the rule be checked. */
#define SKIP_IF(why)                                                                               \
    if (const std::string reason = (why); !reason.empty())                                         \
    GTEST_SKIP() << reason

} // namespace conformance

#endif

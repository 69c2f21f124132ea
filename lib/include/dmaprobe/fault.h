// SPDX-License-Identifier: MIT
// IOMMU faults, read where the platform reports them: the kernel log.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <dmaprobe/bdf.h>
#include <dmaprobe/result.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// What the device wanted to do.
enum class FaultAccess {
    unknown, ///< the log does not say
    read,    ///< to read memory
    write,   ///< to write memory
};

/// "unknown", "read" or "write".
[[nodiscard]] std::string_view to_string(FaultAccess access) noexcept;

/// One fault, as an IOMMU driver reported it.
struct Fault {
    std::chrono::microseconds time{0}; ///< since boot, the kernel log's clock
    std::optional<Bdf> bdf;            ///< the requester, if reported, which behind a bridge may
                                       ///< be the bridge (PciBus::requester_ids()); domain 0 when
                                       ///< that part was not
    bool names_domain = true;          ///< whether the log names the PCI domain
    std::optional<Iova> iova;          ///< as reported, if it was; VT-d rounds it down to 4 KiB
    FaultAccess access = FaultAccess::unknown; ///< what the device wanted to do
    std::string reason;                        ///< the reason in the driver's words
    std::string platform;                      ///< the parser that knew it, such as "vt-d"
    std::string raw;                           ///< the line of the log

    /// Whether this device can be the one: what was not reported is not compared.
    [[nodiscard]] bool is_from(const Bdf& device) const noexcept;
    /// Whether one of these can be the one.
    [[nodiscard]] bool is_from(std::span<const Bdf> requesters) const noexcept;
};

/// Finds faults in the kernel log, record by record: of /dev/kmsg ("3,123,456789,-;text",
/// Documentation/ABI/testing/dev-kmsg of the kernel) or plain lines.
///
/// Known, by the kernel's drivers/iommu:
/// - VT-d (intel/dmar.c), with and without the PCI domain, with and without PASID;
/// - AMD-Vi (amd/iommu.c). As QEMU 11.1 emulates it, Linux sees each fault come from 00:00.0, or
///   from the device when that is on the first bus, at address 0: such a one has no IOVA and no
///   access, and no device or that one;
/// - SMMUv3 (arm/arm-smmu-v3/arm-smmu-v3.c), which reports an event in five records. It knows the
///   device by its StreamID, whose low 16 bits are taken for the requester id, until a sixth
///   record, of newer kernels, names the device;
/// - virtio-iommu (virtio-iommu.c), which knows the endpoint's number: on a PCI bus the requester
///   id;
/// - RISC-V's (riscv/iommu.c), which knows the device by a number, on a PCI bus the requester id.
/// This
///   was written by the driver's source, and never seen at work.
class FaultParser {
public:
    /// Take the next record: a fault that it completes is put behind the others; the last one is
    /// corrected when the record says more of it. Returns whether the record belongs to a fault.
    bool take(std::string_view record, std::deque<Fault>& faults);

private:
    /// An event of SMMUv3, of which not all words have come.
    struct Event {
        std::string smmu; ///< the beginning of its records
        std::vector<std::uint64_t> words;
        Fault fault;
    };
    bool take_smmu(std::string_view text, std::chrono::microseconds time,
                   std::deque<Fault>& faults);

    std::optional<Event> event_;
};

/// The fault that one record reports by itself; FaultParser::take() with nothing before it.
[[nodiscard]] std::optional<Fault> parse_fault(std::string_view record);

/// Follows the kernel log from the moment of open() on.
///
/// The kernel limits how many faults it reports, on most IOMMUs for all devices together, to ten
/// messages in 5 seconds. A fault of VT-d uses up to three of them.
///
/// One transfer may be reported many times. virtio-iommu, as QEMU emulates it, reports each access
/// of the bus, of 4 bytes for edu; of 4 KiB the kernel logs ten and suppresses the rest
/// (viommu_fault_handler() of drivers/iommu/virtio-iommu.c; seen with Linux 7.3). wait() takes one,
/// and the others stay: later waits meet them. So drain() before a transfer whose fault is waited
/// for, or have the device touch a few bytes only.
class FaultWatcher {
public:
    /// Open the log at its end: what was logged before is not seen. EACCES, EPERM: not root.
    [[nodiscard]] static Result<FaultWatcher> open(const std::string& path = "/dev/kmsg");

    FaultWatcher(FaultWatcher&&) noexcept;
    FaultWatcher& operator=(FaultWatcher&&) noexcept;
    FaultWatcher(const FaultWatcher&) = delete;
    FaultWatcher& operator=(const FaultWatcher&) = delete;
    ~FaultWatcher();

    /// The next fault of a device that was not taken yet. Faults of other devices stay for their
    /// own wait() or drain().
    ///
    /// Waits until `deadline` (a year or more: without end) or `stop`:
    /// when a stop is requested, also by another thread, the wait ends at once. ETIMEDOUT: no fault
    /// came in time. ECANCELED: a stop was requested. A fault that had come by then is still
    /// returned.
    [[nodiscard]] Result<Fault> wait(const Bdf& bdf, std::chrono::milliseconds deadline,
                                     std::stop_token stop = {});
    /// The same of a device whose DMA can carry any of these ids (PciBus::requester_ids()).
    [[nodiscard]] Result<Fault> wait(std::span<const Bdf> requesters,
                                     std::chrono::milliseconds deadline, std::stop_token stop = {});
    /// The next fault of any device.
    [[nodiscard]] Result<Fault> wait(std::chrono::milliseconds deadline, std::stop_token stop = {});

    /// The log's descriptor, to wait for several things at a time with poll(), epoll or io_uring.
    /// It is readable when the log has records that were not read, of faults or of anything else.
    /// So call wait() with a deadline of 0 until it answers ETIMEDOUT, which reads all records, and
    /// only then poll; POLLERR too says that there is something to read. It stays the watcher's,
    /// which closes it; nobody else may read from it.
    [[nodiscard]] int fd() const noexcept { return fd_; }

    /// All faults that were logged and not taken yet, of all devices, without waiting.
    [[nodiscard]] Result<std::vector<Fault>> drain();

    /// The last lines of the log that belong to no known fault, at most 16, oldest first: where a
    /// fault was expected and none was found, they may report it in words that no parser knows.
    /// Those that were read since the last call; wait() and drain() read.
    [[nodiscard]] std::vector<std::string> take_other_lines();

    /// How often the log was overwritten before it was read, so that faults may be missing.
    [[nodiscard]] std::uint64_t overruns() const noexcept { return overruns_; }

private:
    explicit FaultWatcher(int fd) noexcept : fd_(fd) {}
    [[nodiscard]] Result<void> read_all();
    template <class Match>
    [[nodiscard]] Result<Fault> wait_for(const Match& match, std::chrono::milliseconds deadline,
                                         std::stop_token stop);

    int fd_ = -1;
    FaultParser parser_;
    std::deque<Fault> pending_;
    std::deque<std::string> other_lines_;
    std::uint64_t overruns_ = 0;
};

} // namespace dmaprobe

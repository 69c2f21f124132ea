// SPDX-License-Identifier: MIT
// A device's config space and BARs, by VFIO or by sysfs.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <dmaprobe/bdf.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

struct DeviceState; // what is open of a device

/// What a PCI device is: by this an engine (engine.h) knows whether it can drive it.
struct DeviceIds {
    std::uint16_t vendor = 0;     ///< PCI vendor id
    std::uint16_t device = 0;     ///< PCI device id
    std::uint32_t class_code = 0; ///< class, subclass and programming interface, 24 bits
};

/// How the device is reached.
enum class AccessPath {
    vfio, ///< /dev/vfio/devices/vfioN, bound to an iommufd
    sysfs ///< resourceN and config in sysfs; the module enables the device
};

/// "vfio" or "sysfs".
[[nodiscard]] std::string_view to_string(AccessPath path) noexcept;

/// A memory BAR, mapped into the program. Accesses are volatile, of exactly the width asked for,
/// and checked against the BAR's length; the values are little-endian on the bus and the CPU's own
/// here. They are ordered with the program's accesses to memory as the kernel's readl() and
/// writel() are.
///
/// By VFIO, a Bar keeps the VFIO device open for as long as it lives.
class Bar {
public:
    Bar(Bar&&) noexcept;
    Bar& operator=(Bar&&) noexcept;
    Bar(const Bar&) = delete;
    Bar& operator=(const Bar&) = delete;
    /// Unmaps it.
    ~Bar();

    /// Bytes.
    [[nodiscard]] Size length() const noexcept { return Size(length_); }

    /// Read. ERANGE: the offset leaves the BAR; EINVAL: it is not a multiple of the width.
    [[nodiscard]] Result<std::uint32_t> read32(std::uint64_t offset) const;
    /// Read 8 bytes; errors as read32().
    [[nodiscard]] Result<std::uint64_t> read64(std::uint64_t offset) const;
    /// Write; errors as read32().
    [[nodiscard]] Result<void> write32(std::uint64_t offset, std::uint32_t value) const;
    /// Write 8 bytes; errors as read32().
    [[nodiscard]] Result<void> write64(std::uint64_t offset, std::uint64_t value) const;

private:
    friend class VfioBackend;
    friend class SysfsBackend;
    // Maps `length` bytes whose physical address starts at `start`.
    [[nodiscard]] static Result<Bar> map(int fd, std::uint64_t offset, std::uint64_t start,
                                         std::uint64_t length);
    Bar(std::span<std::byte> map, std::size_t start, std::size_t length) noexcept
        : map_(map), base_(map.data() + start), length_(length) {}
    [[nodiscard]] Result<void> check(std::uint64_t offset, std::size_t width,
                                     std::string_view op) const;

    std::span<std::byte> map_; // whole pages; a small BAR may start inside one
    std::byte* base_ = nullptr;
    std::size_t length_ = 0;
};

/// How a device's interrupts come.
enum class InterruptKind {
    msi_x, ///< messages, each vector with an address of its own
    msi,   ///< messages of one address
};

/// "MSI-X" or "MSI".
[[nodiscard]] std::string_view to_string(InterruptKind kind) noexcept;

/// A device's interrupts, by VFIO: each vector is counted in an eventfd from the moment this object
/// is there. It keeps the VFIO device open for as long as it lives; one for a device at a time.
class Interrupts {
public:
    Interrupts(Interrupts&&) noexcept;
    Interrupts& operator=(Interrupts&&) noexcept;
    Interrupts(const Interrupts&) = delete;
    Interrupts& operator=(const Interrupts&) = delete;
    /// Switches them off.
    ~Interrupts();

    /// How they come.
    [[nodiscard]] InterruptKind kind() const noexcept { return kind_; }
    /// How many vectors there are.
    [[nodiscard]] unsigned vectors() const noexcept {
        return static_cast<unsigned>(events_.size());
    }

    /// Wait until a vector has come, and return how often it came since the last wait.
    ///
    /// Waits until `deadline` (a year or more: without end) or `stop`:
    /// when a stop is requested, also by another thread, the wait ends at once. EINVAL: no such
    /// vector. ETIMEDOUT: it did not come in time. ECANCELED: a stop was requested. An interrupt
    /// that had come by then is still returned.
    [[nodiscard]] Result<std::uint64_t> wait(unsigned vector, std::chrono::milliseconds deadline,
                                             std::stop_token stop = {}) const;

    /// The eventfd of a vector, -1 when there is no such vector, to wait for several things at a
    /// time with poll(), epoll or io_uring (eventfd(2)). It is readable when the vector has come
    /// since the last wait(); then wait() with a deadline of 0 returns how often. It stays this
    /// object's, which closes it.
    [[nodiscard]] int fd(unsigned vector) const noexcept;

private:
    friend class VfioBackend;
    Interrupts() noexcept = default;
    [[nodiscard]] static Result<Interrupts> open(int vfio_device, unsigned vectors);

    int device_ = -1;         // VFIO's device
    std::vector<int> events_; // an eventfd for each vector
    InterruptKind kind_ = InterruptKind::msi_x;
};

/// Access to a bound device. Open the Session first, since it keeps the device powered: when that
/// is closed, enable() by sysfs and check_present() answer EBADF. While the access is open, memory
/// decoding and bus mastering are on.
///
/// Engines share what is open: they go on when the access is moved, and answer EBADF when it is
/// closed or destroyed. close(), and moving into an access, must not run beside other uses of the
/// device.
///
/// By VFIO, opening resets the function, and another opener gets EBUSY; so does a session that asks
/// to be enabled. By sysfs, it is the session that is enabled, and interrupts are not to be had.
class DeviceAccess {
public:
    /// Open the device of a session.
    ///
    /// @param force take this path; without it VFIO's where its nodes exist, otherwise sysfs'
    /// @param sysfs where sysfs is
    /// EOPNOTSUPP: the forced path does not exist here, with the reason as detail. EBUSY: somebody
    /// else has the device, or a function that VFIO resets together with it. EAGAIN: somebody has
    /// been resetting it for 5 s. EPERM: as Session::enable(). EACCES: not root, or
    /// kernel lockdown forbids it.
    [[nodiscard]] static Result<DeviceAccess> open(const Session& session,
                                                   std::optional<AccessPath> force = std::nullopt,
                                                   const std::string& sysfs = "/sys");

    DeviceAccess(DeviceAccess&&) noexcept;
    DeviceAccess& operator=(DeviceAccess&&) noexcept;
    DeviceAccess(const DeviceAccess&) = delete;
    DeviceAccess& operator=(const DeviceAccess&) = delete;
    /// Closes, best effort.
    ~DeviceAccess();

    /// Switch bus mastering off and close the device. A second close is no error.
    [[nodiscard]] Result<void> close();

    /// The device.
    [[nodiscard]] const Bdf& bdf() const noexcept;
    /// The path that was taken.
    [[nodiscard]] AccessPath path() const noexcept;
    /// Why this path and not the other, in one line.
    [[nodiscard]] const std::string& why() const noexcept;
    /// Both ids and the class from config space.
    [[nodiscard]] const DeviceIds& ids() const noexcept;

    /// Map a memory BAR.
    /// @param index 0 to 5
    /// EINVAL: no such index. ENXIO: the device has no memory BAR there. EOPNOTSUPP: it cannot be
    /// mapped.
    [[nodiscard]] Result<Bar> bar(unsigned index) const;

    /// Switch the device's interrupts on, MSI-X where it has that, otherwise MSI.
    /// @param vectors how many, at least 1
    /// EOPNOTSUPP: the path is sysfs, or the device has fewer. EINVAL: none. EBUSY and others:
    /// VFIO_DEVICE_SET_IRQS.
    [[nodiscard]] Result<Interrupts> interrupts(unsigned vectors) const;

    /// Read config space. ERANGE when it ends before the range does.
    [[nodiscard]] Result<void> read_config(std::uint64_t offset, std::span<std::byte> out) const;
    /// Write config space. VFIO filters writes; see drivers/vfio/pci/vfio_pci_config.c.
    [[nodiscard]] Result<void> write_config(std::uint64_t offset,
                                            std::span<const std::byte> in) const;
    /// Read 16 bits of config space.
    [[nodiscard]] Result<std::uint16_t> read_config16(std::uint64_t offset) const;
    /// Write 16 bits of config space.
    [[nodiscard]] Result<void> write_config16(std::uint64_t offset, std::uint16_t value) const;
    /// Read 32 bits of config space.
    [[nodiscard]] Result<std::uint32_t> read_config32(std::uint64_t offset) const;

    /// Switch memory decoding and bus mastering on or off by VFIO, in the command register; by
    /// sysfs bus mastering alone, by Session::enable(), since the memory of a bound device is
    /// always decoded.
    [[nodiscard]] Result<void> enable(bool on) const;

    /// Whether the device is still there: ENODEV when it was unplugged or unbound. Its registers
    /// may then read as all ones, or accesses to a Bar give SIGBUS; by VFIO, the kernel waits with
    /// the removal until this object is closed.
    [[nodiscard]] Result<void> check_present(std::string_view op) const;

    /// Reset the function (VFIO_DEVICE_RESET, or sysfs' reset) and enable it again. EOPNOTSUPP when
    /// it has no reset of its own.
    [[nodiscard]] Result<void> reset() const;

private:
    friend class Engine;
    explicit DeviceAccess(std::shared_ptr<DeviceState> state) noexcept;
    [[nodiscard]] const DeviceState& state() const noexcept;

    std::shared_ptr<DeviceState> state_; // shared with engines; null when it was moved from
};

} // namespace dmaprobe

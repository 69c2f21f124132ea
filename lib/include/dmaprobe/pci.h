// SPDX-License-Identifier: MIT
// PCI devices as sysfs shows them, and moving them between drivers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <dmaprobe/bdf.h>
#include <dmaprobe/query.h>
#include <dmaprobe/result.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// Where to find the kernel's files; tests point it to a tree of their own.
struct SystemPaths {
    std::string sysfs = "/sys";              ///< sysfs
    std::string procfs = "/proc";            ///< procfs: mounts, swaps, open files of processes
    std::string dev = "/dev";                ///< device nodes
    std::string state_dir = "/run/dmaprobe"; ///< where bind() remembers the previous driver
};

/// Another function of the same IOMMU group.
struct GroupMember {
    Bdf bdf;             ///< its address
    std::string driver;  ///< its driver, empty without one
    bool bridge = false; ///< a PCI bridge: it does no harm in a group
};

/// A PCI function as sysfs shows it.
struct PciDevice {
    Bdf bdf;                            ///< its address
    std::uint16_t vendor = 0;           ///< vendor id
    std::uint16_t device = 0;           ///< device id
    std::uint32_t class_code = 0;       ///< class, subclass and programming interface, 24 bits
    std::string driver;                 ///< its driver, empty without one
    std::string driver_override;        ///< the driver it is reserved for, empty without one
    std::optional<std::uint32_t> group; ///< IOMMU group; nothing when no IOMMU serves the device
    std::string group_type; ///< type of the group's domain in sysfs' words ("DMA-FQ"); or empty
    std::vector<GroupMember> group_members; ///< the group's other members
    std::string iommu;                      ///< the IOMMU instance, as under /sys/class/iommu
    std::string iommu_driver; ///< its driver as far as sysfs shows, such as "intel-iommu"
    std::string engine;       ///< the engine that can drive it (engine.h), empty for none

    /// Whether it is a bridge (base class 06), which is never bound.
    [[nodiscard]] bool is_bridge() const noexcept { return (class_code >> 16) == 0x06; }
    /// The group's other members that a driver other than dmaprobe has, without bridges: the
    /// device's DMA can reach what they map.
    [[nodiscard]] std::vector<GroupMember> group_users() const;
};

/// What hangs on a device and would go away with its driver.
struct Usage {
    std::string driver; ///< the driver, empty without one
    /// What the driver offers, each as a short text: "network interface eth0 (down)".
    std::vector<std::string> offers;
    /// What is in use and would be lost: "network interface eth0 (up)", "nvme0n1p2 mounted on /".
    std::vector<std::string> losses;
};

/// What bind() did.
struct BindReport {
    bool already_bound = false;  ///< nothing was to do
    std::string previous_driver; ///< the driver it was taken from, empty when it had none
    std::string previous_domain; ///< the domain's type before, in sysfs' words; empty when it is
                                 ///< what it was
};

/// What unbind() did.
struct UnbindReport {
    /// The driver it went back to; empty when it had none before.
    std::string driver;
    /// Set when the previous driver did not take it back: its name.
    std::string refused_by;
    /// Set when the group's domain could not be given its previous type: why.
    std::string domain_kept;
};

/// The PCI bus in sysfs (Documentation/ABI/testing/sysfs-bus-pci of the kernel).
class PciBus {
public:
    /// @param paths where the kernel's files are
    explicit PciBus(SystemPaths paths = {});

    /// All functions, ordered by address. EIO and the like when sysfs cannot be read; a function
    /// that goes away meanwhile is left out.
    [[nodiscard]] Result<std::vector<PciDevice>> devices() const;
    /// One function. ENODEV when there is none.
    [[nodiscard]] Result<PciDevice> device(const Bdf& bdf) const;
    /// The requester ids that a function's DMA can carry, as far as sysfs shows: its own first,
    /// then those of conventional PCI bridges above it, which put their own in its place
    /// (pci_for_each_dma_alias() of the kernel, but for devices' quirks). An IOMMU reports a fault
    /// by one of these. Without root, the kinds of PCI Express bridges are not seen. ENODEV when
    /// there is no such function.
    [[nodiscard]] Result<std::vector<Bdf>> requester_ids(const Bdf& bdf) const;
    /// What hangs on a function: network interfaces, block devices with their mounts, holders, swap
    /// and the processes that have them open, virtual functions, other class devices. As far as the
    /// caller may see it: root sees all. ENODEV when there is no such function.
    [[nodiscard]] Result<Usage> usage(const Bdf& bdf) const;

    /// Whether the dmaprobe driver is there: the module is loaded.
    [[nodiscard]] bool module_loaded() const;
    /// The functions that are bound to dmaprobe, ordered by address.
    [[nodiscard]] Result<std::vector<Bdf>> bound() const;

    /// Bind a function to dmaprobe through driver_override, unbind and drivers_probe, and remember
    /// the driver it had. When a step fails, what was done is undone.
    ///
    /// @param force also take it from another driver, and though its IOMMU group is shared
    /// @param domain the type (dma, dma_fq or identity) that the default domain of its IOMMU group
    ///        is to have, until unbind(); nothing: leave it
    /// EINVAL: a domain cannot be given that type. ENODEV: no such function. EPERM: a bridge.
    /// EOPNOTSUPP: no IOMMU group. EBUSY: a driver has it, or another function of its group has
    /// one, and `force` is not set. ENOENT: the module is not loaded. EACCES: not root. EIO:
    /// dmaprobe did not take it. Also EBUSY: it is bound already, or another function of the group
    /// has a driver, and the domain is of another type. EOPNOTSUPP: the IOMMU has no domain of that
    /// type for it.
    [[nodiscard]] Result<BindReport> bind(const Bdf& bdf, bool force,
                                          std::optional<DomainType> domain = std::nullopt) const;

    /// Give a function back to the driver that bind() took it from, and its group's domain the type
    /// it had. Open sessions answer ENODEV from then on; an open VFIO device is waited for. Also
    /// when it is reserved for dmaprobe still, and has no driver any more: it was unbound by hand,
    /// or the module was removed.
    ///
    /// ENODEV: no such function. ENXIO: it is not bound to dmaprobe. EACCES: not root.
    [[nodiscard]] Result<UnbindReport> unbind(const Bdf& bdf) const;

    /// The paths in use.
    [[nodiscard]] const SystemPaths& paths() const noexcept { return paths_; }

private:
    SystemPaths paths_;
};

} // namespace dmaprobe

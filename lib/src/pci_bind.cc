// SPDX-License-Identifier: MIT
// Moving PCI devices between drivers.
#include <dmaprobe/pci.h>

#include <cerrno>
#include <format>
#include <string_view>
#include <utility>

#include <unistd.h>

#include "best_effort.h"
#include "file.h"
#include "pci_files.h"

namespace dmaprobe {

namespace {

using namespace pci;

/// What bind() remembers of a device, in a file of its own.
struct Remembered {
    std::string driver;
    std::string driver_override;
    std::string domain; // type of the group's default domain; empty when bind() left it
};

std::string state_file(const SystemPaths& paths, const Bdf& bdf) {
    return paths.state_dir + "/" + bdf.to_string();
}

Result<void> remember(const SystemPaths& paths, const Bdf& bdf, const Remembered& what) {
    return file::replace(state_file(paths, bdf),
                         std::format("driver={}\ndriver_override={}\ndomain={}\n", what.driver,
                                     what.driver_override, what.domain));
}

std::optional<Remembered> recall(const SystemPaths& paths, const Bdf& bdf) {
    const auto text = file::read(state_file(paths, bdf));
    if (!text)
        return std::nullopt;
    Remembered what;
    for (auto line : split(*text, '\n')) {
        const auto equals = line.find('=');
        if (equals == std::string_view::npos)
            continue;
        const auto key = line.substr(0, equals);
        if (key == "driver")
            what.driver = line.substr(equals + 1);
        else if (key == "driver_override")
            what.driver_override = line.substr(equals + 1);
        else if (key == "domain")
            what.domain = line.substr(equals + 1);
    }
    return what;
}

void forget(const SystemPaths& paths, const Bdf& bdf) {
    ::unlink(state_file(paths, bdf).c_str());
}

/// Reserve the device for a driver; an empty name clears that.
Result<void> set_override(const std::string& dir, std::string_view driver) {
    return file::write(dir + "/driver_override", std::format("{}\n", driver));
}

/// The file that has the type of a device's default domain.
std::string domain_file(const std::string& dir) {
    return dir + "/iommu_group/type";
}

/// Have the kernel make another default domain for the device's group
/// (drivers/iommu/iommu.c, iommu_group_store_type()).
Result<void> set_domain(const std::string& dir, const std::string& name, std::string_view type) {
    constexpr std::string_view op = "bind";
    const std::string path = domain_file(dir);
    const auto done = file::write(path, std::format("{}\n", type));
    if (!done) {
        const int code = done.error().code;
        if (code == EACCES)
            return std::unexpected(
                Error{EACCES, op, "no permission to change the domain's type: it needs root"});
        if (code == EPERM || code == EBUSY)
            return std::unexpected(Error{
                EBUSY, op,
                std::format("the kernel does not change the domain of {}'s IOMMU group: another "
                            "function of it has a driver",
                            name)});
        return std::unexpected(Error{EOPNOTSUPP, op,
                                     std::format("{}'s IOMMU has no domain of type {} for it ({})",
                                                 name, type, errno_name(code))});
    }
    if (const auto now = file::read_line(path); !now || *now != type)
        return std::unexpected(Error{EOPNOTSUPP, op,
                                     std::format("the domain of {}'s IOMMU group stays of type {}",
                                                 name, now.value_or("unknown"))});
    return {};
}

/// Whether VFIO takes devices that no IOMMU is in front of (drivers/vfio/group.c,
/// vfio_group_find_or_alloc()).
bool takes_without_iommu(const SystemPaths& paths) {
    return file::read_line(paths.sysfs + "/module/vfio/parameters/enable_unsafe_noiommu_mode") ==
           "Y";
}

/// Let a driver have the device again: by name, or as the kernel chooses when that fails.
void give_to(const SystemPaths& paths, const Bdf& bdf, const std::string& driver) {
    if (file::write(driver_dir(paths, driver) + "/bind", bdf.to_string()))
        return;
    best_effort(file::write(paths.sysfs + "/bus/pci/drivers_probe", bdf.to_string()));
}

std::unexpected<Error> failed(std::string_view op, const Error& error, std::string_view what) {
    if (error.code == EACCES || error.code == EPERM)
        return std::unexpected(
            Error{EACCES, op, std::format("no permission to {}: it needs root", what)});
    return std::unexpected(
        Error{error.code, op, std::format("could not {}: {}", what, error.message())});
}

} // namespace

Result<BindReport> PciBus::bind(const Bdf& bdf, bool force,
                                std::optional<DomainType> domain) const {
    if (domain && (*domain == DomainType::none || *domain == DomainType::other))
        return std::unexpected(
            Error{EINVAL, "bind", "a domain's type can become dma, dma_fq or identity"});
    const std::string name = bdf.to_string();
    const std::string dir = device_dir(paths_, bdf);
    const auto found = device(bdf);
    if (!found)
        return no_device("bind", bdf);
    if (found->is_bridge())
        return std::unexpected(
            Error{EPERM, "bind",
                  std::format("{} is a bridge; taking it would cut off what is behind it", name)});
    // Only while it has no driver can its domain be changed.
    const std::string_view type =
        domain && to_string(*domain) != found->group_type ? to_string(*domain) : "";
    if (found->driver == our_driver) {
        if (!type.empty())
            return std::unexpected(
                Error{EBUSY, "bind",
                      std::format("{} is bound already, with a domain of type {}: unbind it first",
                                  name, found->group_type.empty() ? "none" : found->group_type)});
        return BindReport{.already_bound = true, .previous_driver = {}, .previous_domain = {}};
    }
    if (::access((dir + "/driver_override").c_str(), W_OK) != 0)
        return failed("bind", Error{errno, "access", dir + "/driver_override"},
                      "write driver_override");
    if (!found->group && !takes_without_iommu(paths_))
        return std::unexpected(Error{
            EOPNOTSUPP, "bind",
            std::format("{} has no IOMMU group: the machine has no IOMMU for it, or it is off "
                        "(firmware setting; intel_iommu=on, amd_iommu=on). Without one, VFIO takes "
                        "it only by CONFIG_VFIO_NOIOMMU and vfio.enable_unsafe_noiommu_mode=1",
                        name)});
    if (!force) {
        if (!found->driver.empty()) {
            const auto hangs = usage(bdf);
            std::string lost = "sysfs shows nothing that would be lost with it";
            if (hangs && !hangs->losses.empty())
                lost = "this would be lost: " + join(hangs->losses, "; ");
            else if (hangs && !hangs->offers.empty())
                lost = "this would go away: " + join(hangs->offers, "; ");
            return std::unexpected(
                Error{EBUSY, "bind",
                      std::format("{} is in use by driver {}; {}", name, found->driver, lost)});
        }
        std::vector<std::string> others;
        for (const auto& member : found->group_members) {
            if (member.bridge)
                continue;
            others.push_back(std::format("{} ({})", member.bdf,
                                         member.driver.empty() ? "no driver" : member.driver));
        }
        if (!found->group_users().empty())
            return std::unexpected(Error{
                EBUSY, "bind",
                std::format("{} shares IOMMU group {}, and with it all DMA addresses, with {}",
                            name, *found->group, join(others, ", "))});
    }
    if (!module_loaded())
        return std::unexpected(Error{ENOENT, "bind", "the dmaprobe module is not loaded"});

    Remembered before{found->driver, found->driver_override, type.empty() ? "" : found->group_type};
    // It was taken from us by hand, or the module was removed: what bind() found first still holds.
    if (found->driver.empty() && found->driver_override == our_driver) {
        if (const auto first = recall(paths_, bdf)) {
            before.driver = first->driver;
            before.driver_override = first->driver_override;
            if (!first->domain.empty())
                before.domain = first->domain;
        } else {
            before.driver_override.clear();
        }
    }
    if (auto done = remember(paths_, bdf, before); !done)
        return failed("bind", done.error(), "remember the previous driver");
    if (auto done = set_override(dir, our_driver); !done) {
        forget(paths_, bdf);
        return failed("bind", done.error(), "set driver_override");
    }
    const auto undo = [&] {
        if (!before.domain.empty() && file::read_line(domain_file(dir)) != before.domain)
            best_effort(set_domain(dir, name, before.domain));
        best_effort(set_override(dir, before.driver_override));
        if (!before.driver.empty() && file::link_name(dir + "/driver").empty())
            give_to(paths_, bdf, before.driver);
        forget(paths_, bdf);
    };
    if (!found->driver.empty()) {
        if (auto done = file::write(driver_dir(paths_, found->driver) + "/unbind", name); !done) {
            undo();
            return failed("bind", done.error(), "unbind " + found->driver);
        }
    }
    if (!type.empty()) {
        if (auto done = set_domain(dir, name, type); !done) {
            undo();
            return std::unexpected(std::move(done.error()));
        }
    }
    const auto probed = file::write(paths_.sysfs + "/bus/pci/drivers_probe", name);
    if (file::link_name(dir + "/driver") != our_driver) {
        undo();
        return std::unexpected(
            Error{EIO, "bind",
                  std::format("driver dmaprobe did not take {} ({}); the kernel log says why", name,
                              probed ? "its probe failed" : errno_name(probed.error().code))});
    }
    return BindReport{
        .already_bound = false, .previous_driver = before.driver, .previous_domain = before.domain};
}

Result<UnbindReport> PciBus::unbind(const Bdf& bdf) const {
    const std::string name = bdf.to_string();
    const std::string dir = device_dir(paths_, bdf);
    if (!file::exists(dir))
        return no_device("unbind", bdf);
    const std::string driver = file::link_name(dir + "/driver");
    // Unbound by hand, or by the module's end: what bind() changed is still to be put back.
    const bool left = driver.empty() && read_override(dir) == our_driver;
    if (driver != our_driver && !left)
        return std::unexpected(
            Error{ENXIO, "unbind",
                  std::format("{} is not bound to dmaprobe ({})", name,
                              driver.empty() ? "it has no driver" : "its driver is " + driver)});

    if (!left)
        if (auto done = file::write(driver_dir(paths_, our_driver) + "/unbind", name); !done)
            return failed("unbind", done.error(), "unbind dmaprobe");

    // Bound by hand, nothing is remembered: the kernel then chooses the driver.
    const auto before = recall(paths_, bdf);
    std::string other = before ? before->driver_override : read_override(dir);
    if (other == our_driver)
        other.clear();
    if (auto done = set_override(dir, other); !done)
        return failed("unbind", done.error(), "restore driver_override");
    UnbindReport report;
    if (before && !before->domain.empty()) {
        if (auto done = set_domain(dir, name, before->domain); !done)
            report.domain_kept = done.error().detail;
    }
    if (!before)
        best_effort(file::write(paths_.sysfs + "/bus/pci/drivers_probe", name));
    else if (!before->driver.empty())
        give_to(paths_, bdf, before->driver);
    forget(paths_, bdf);

    report.driver = file::link_name(dir + "/driver");
    if (before && report.driver != before->driver)
        report.refused_by = before->driver;
    return report;
}

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// PCI devices as sysfs shows them.
#include <dmaprobe/pci.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <format>
#include <iterator>
#include <string_view>
#include <system_error>
#include <utility>

#include <dmaprobe/engine.h>

#include "file.h"
#include "pci_files.h"

namespace dmaprobe {

namespace pci {

std::string device_dir(const SystemPaths& paths, const Bdf& bdf) {
    return paths.sysfs + "/bus/pci/devices/" + bdf.to_string();
}

std::string driver_dir(const SystemPaths& paths, std::string_view driver) {
    return std::format("{}/bus/pci/drivers/{}", paths.sysfs, driver);
}

std::unexpected<Error> no_device(std::string_view op, const Bdf& bdf) {
    return std::unexpected(Error{ENODEV, op, std::format("there is no PCI device {}", bdf)});
}

std::string join(const std::vector<std::string>& parts, std::string_view between) {
    std::string text;
    for (const auto& part : parts)
        text.append(text.empty() ? "" : between).append(part);
    return text;
}

std::string read_override(const std::string& dir) {
    // sysfs says "(null)" when there is none.
    auto text = file::read_line(dir + "/driver_override").value_or("");
    return text == "(null)" ? "" : text;
}

std::vector<std::string_view> split(std::string_view text, char between) {
    std::vector<std::string_view> parts;
    while (!text.empty()) {
        const auto end = std::min(text.find(between), text.size());
        if (end != 0)
            parts.push_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return parts;
}

} // namespace pci

namespace {

using namespace pci;

std::uint32_t class_of(const std::string& dir) {
    return static_cast<std::uint32_t>(file::read_number(dir + "/class").value_or(0));
}

/// The IOMMU's driver. Intel's and AMD's leave a group of attributes under their name; the others
/// are devices with a driver of their own.
std::string iommu_driver_of(const std::string& iommu_dir) {
    for (const char* name : {"intel-iommu", "amd-iommu"}) {
        if (file::exists(iommu_dir + "/" + name))
            return name;
    }
    return file::link_name(iommu_dir + "/device/driver");
}

} // namespace

std::vector<GroupMember> PciDevice::group_users() const {
    std::vector<GroupMember> users;
    std::ranges::copy_if(group_members, std::back_inserter(users), [](const GroupMember& member) {
        return !member.bridge && !member.driver.empty() && member.driver != our_driver;
    });
    return users;
}

PciBus::PciBus(SystemPaths paths) : paths_(std::move(paths)) {}

Result<PciDevice> PciBus::device(const Bdf& bdf) const {
    const std::string dir = device_dir(paths_, bdf);
    const auto vendor = file::read_number(dir + "/vendor");
    const auto id = file::read_number(dir + "/device");
    if (!vendor || !id)
        return no_device("pci", bdf);

    PciDevice device;
    device.bdf = bdf;
    device.vendor = static_cast<std::uint16_t>(*vendor);
    device.device = static_cast<std::uint16_t>(*id);
    device.class_code = class_of(dir);
    device.driver = file::link_name(dir + "/driver");
    device.driver_override = read_override(dir);
    device.iommu = file::link_name(dir + "/iommu");
    if (!device.iommu.empty())
        device.iommu_driver = iommu_driver_of(dir + "/iommu");
    if (const EngineTraits* engine = Engine::find(
            {.vendor = device.vendor, .device = device.device, .class_code = device.class_code}))
        device.engine = engine->name;

    if (const auto group = file::link_name(dir + "/iommu_group"); !group.empty()) {
        const std::string group_dir = paths_.sysfs + "/kernel/iommu_groups/" + group;
        device.group = static_cast<std::uint32_t>(std::strtoul(group.c_str(), nullptr, 10));
        device.group_type = file::read_line(group_dir + "/type").value_or("");
        if (device.group_type == "unknown")
            device.group_type.clear();
        for (const auto& name : file::names(group_dir + "/devices")) {
            const auto member = Bdf::parse(name);
            if (!member || *member == bdf)
                continue;
            const std::string member_dir = device_dir(paths_, *member);
            device.group_members.push_back({*member, file::link_name(member_dir + "/driver"),
                                            (class_of(member_dir) >> 16) == 0x06});
        }
    }
    return device;
}

Result<std::vector<PciDevice>> PciBus::devices() const {
    const std::string dir = paths_.sysfs + "/bus/pci/devices";
    const auto names = file::list(dir);
    if (!names && names.error().code == ENOENT)
        return std::unexpected(
            Error{ENOENT, "pci", std::format("{} does not exist: no PCI, or no sysfs", dir)});
    if (!names)
        return std::unexpected(names.error());
    std::vector<PciDevice> list;
    for (const auto& name : *names) {
        const auto bdf = Bdf::parse(name);
        if (!bdf)
            continue;
        if (auto found = device(*bdf))
            list.push_back(std::move(*found));
    }
    std::ranges::sort(list, {}, &PciDevice::bdf);
    return list;
}

namespace {

/// What a bridge does to the requester ids of what comes from below.
enum class Bridge {
    keeps,       ///< PCI Express ports hand them on
    own,         ///< a bridge of conventional PCI, or from it, gives its own
    first_below, ///< one from PCI Express gives that of device 0 on the bus below
};

/// Out of the bridge's configuration space (PCI Express Base Specification, "PCI Express
/// Capabilities Register").
Bridge bridge_of(std::string_view config) {
    const auto byte = [config](std::size_t at) {
        return at < config.size() ? static_cast<unsigned char>(config[at]) : 0U;
    };
    constexpr unsigned status_capabilities = 0x10;
    constexpr unsigned pci_express = 0x10;
    unsigned at = (byte(0x06) & status_capabilities) != 0 ? byte(0x34) & ~3U : 0;
    for (int left = 48; at >= 0x40 && left > 0; left--) {
        if (byte(at) != pci_express) {
            at = byte(at + 1) & ~3U;
            continue;
        }
        switch (byte(at + 2) >> 4) {
        case 7: // PCI Express to PCI
            return Bridge::first_below;
        case 8: // PCI to PCI Express
            return Bridge::own;
        default:
            return Bridge::keeps;
        }
    }
    return Bridge::own;
}

} // namespace

Result<std::vector<Bdf>> PciBus::requester_ids(const Bdf& bdf) const {
    std::error_code error;
    const auto path = std::filesystem::canonical(device_dir(paths_, bdf), error);
    if (error)
        return no_device("requester_ids", bdf);
    std::vector<Bdf> ids = {bdf};
    const auto add = [&](const Bdf& id) {
        if (std::ranges::find(ids, id) == ids.end())
            ids.push_back(id);
    };
    for (auto dir = path.parent_path();; dir = dir.parent_path()) {
        const auto bridge = Bdf::parse(dir.filename().string());
        if (!bridge)
            return ids;
        // sysfs shows users who are not root the first 64 bytes, without the capability.
        const auto config = file::read((dir / "config").string());
        constexpr std::size_t secondary_bus = 0x19;
        if (!config || config->size() <= 0x40)
            continue;
        switch (bridge_of(*config)) {
        case Bridge::keeps:
            break;
        case Bridge::own:
            add(*bridge);
            break;
        case Bridge::first_below:
            add({.domain = bridge->domain,
                 .bus = static_cast<std::uint8_t>((*config)[secondary_bus]),
                 .device = 0,
                 .function = 0});
            break;
        }
    }
}

bool PciBus::module_loaded() const {
    return file::exists(driver_dir(paths_, our_driver));
}

Result<std::vector<Bdf>> PciBus::bound() const {
    std::vector<Bdf> list;
    const auto names = file::list(driver_dir(paths_, our_driver));
    if (!names && names.error().code == ENOENT) // the module is not loaded
        return list;
    if (!names)
        return std::unexpected(names.error());
    for (const auto& name : *names) {
        if (const auto bdf = Bdf::parse(name))
            list.push_back(*bdf);
    }
    std::ranges::sort(list);
    return list;
}

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// PCI devices as sysfs shows them, and moving them between drivers.
#include <dmaprobe/pci.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <format>
#include <iterator>
#include <map>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <dmaprobe/engine.h>

#include "best_effort.h"
#include "file.h"

namespace dmaprobe {

namespace {

constexpr std::string_view our_driver = "dmaprobe";

std::string device_dir(const SystemPaths& paths, const Bdf& bdf) {
    return paths.sysfs + "/bus/pci/devices/" + bdf.to_string();
}

std::string driver_dir(const SystemPaths& paths, std::string_view driver) {
    return std::format("{}/bus/pci/drivers/{}", paths.sysfs, driver);
}

std::unexpected<Error> no_device(std::string_view op, const Bdf& bdf) {
    return std::unexpected(
        Error{ENODEV, op, std::format("there is no PCI device {}", bdf.to_string())});
}

std::string join(const std::vector<std::string>& parts, std::string_view between) {
    std::string text;
    for (const auto& part : parts)
        text.append(text.empty() ? "" : between).append(part);
    return text;
}

/// driver_override as text; sysfs says "(null)" when there is none.
std::string read_override(const std::string& dir) {
    auto text = file::read_line(dir + "/driver_override").value_or("");
    return text == "(null)" ? "" : text;
}

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
    if (!file::exists(dir))
        return std::unexpected(
            Error{ENOENT, "pci", std::format("{} does not exist: no PCI, or no sysfs", dir)});
    std::vector<PciDevice> list;
    for (const auto& name : file::names(dir)) {
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
    for (const auto& name : file::names(driver_dir(paths_, our_driver))) {
        if (const auto bdf = Bdf::parse(name))
            list.push_back(*bdf);
    }
    std::ranges::sort(list);
    return list;
}

// ---- what hangs on a device ----

namespace {

struct Mount {
    std::string dev; // "8:1"
    std::string target;
    std::string source;
};

/// proc writes space, tab, newline and backslash as three octal digits.
std::string unescape(std::string_view text) {
    std::string plain;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto octal = [&](std::size_t at) { return text[at] >= '0' && text[at] <= '7'; };
        if (text[i] == '\\' && i + 3 < text.size() && octal(i + 1) && octal(i + 2) &&
            octal(i + 3)) {
            plain.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                              (text[i + 3] - '0')));
            i += 3;
        } else {
            plain.push_back(text[i]);
        }
    }
    return plain;
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

/// proc_pid_mountinfo(5): id, parent, device, root, target, options, ..., "-", type, source, ...
std::vector<Mount> read_mounts(const std::string& procfs) {
    std::vector<Mount> mounts;
    const auto text = file::read(procfs + "/self/mountinfo");
    if (!text)
        return mounts;
    for (const auto line : split(*text, '\n')) {
        const auto fields = split(line, ' ');
        const auto dash = std::ranges::find(fields, "-");
        if (fields.size() < 6 || fields.end() - dash < 3)
            continue;
        mounts.push_back({std::string(fields[2]), unescape(fields[4]), unescape(dash[2])});
    }
    return mounts;
}

/// Names of the block devices that are swapped to; swap files are not of interest.
std::vector<std::string> read_swaps(const std::string& procfs) {
    std::vector<std::string> swaps;
    const auto text = file::read(procfs + "/swaps");
    if (!text)
        return swaps;
    for (const auto line : split(*text, '\n')) {
        if (line.starts_with("/dev/"))
            swaps.emplace_back(split(line, ' ').front().substr(5));
    }
    return swaps;
}

/// Which processes have which device nodes open: "qemu-system-x86 (123)".
std::multimap<std::string, std::string> read_open_nodes(const SystemPaths& paths) {
    std::multimap<std::string, std::string> open;
    for (const auto& pid : file::names(paths.procfs)) {
        if (pid.find_first_not_of("0123456789") != std::string::npos)
            continue;
        const std::string dir = paths.procfs + "/" + pid;
        std::set<std::string> nodes;
        for (const auto& fd : file::names(dir + "/fd")) {
            std::error_code error;
            const auto link = std::format("{}/fd/{}", dir, fd);
            const auto target = std::filesystem::read_symlink(link, error).string();
            if (!error && target.starts_with("/dev/") && nodes.insert(target).second)
                open.emplace(
                    target.substr(5),
                    std::format("{} ({})", file::read_line(dir + "/comm").value_or("?"), pid));
        }
    }
    return open;
}

/// Block devices that belong to a mounted btrfs; mounts name one of them only.
std::set<std::string> read_btrfs_members(const SystemPaths& paths) {
    std::set<std::string> members;
    const std::string dir = paths.sysfs + "/fs/btrfs";
    for (const auto& uuid : file::names(dir))
        for (const auto& name : file::names(std::format("{}/{}/devices", dir, uuid)))
            members.insert(name);
    return members;
}

/// Whether the kernel keeps a block device for something that no other file shows: a ZFS pool
/// for one.
bool is_kept(const std::string& node) {
    const file::Fd fd(::open(node.c_str(), O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC));
    return !fd && errno == EBUSY;
}

/// Collects what a device's driver offers and what is in use of it.
class UsageFinder {
public:
    UsageFinder(const SystemPaths& paths, Usage& usage)
        : paths_(paths), usage_(usage), mounts_(read_mounts(paths.procfs)),
          swaps_(read_swaps(paths.procfs)), open_nodes_(read_open_nodes(paths)),
          btrfs_members_(read_btrfs_members(paths)) {}

    /// Look at every class device below the function's directory.
    void walk(const std::string& dir) {
        namespace fs = std::filesystem;
        std::error_code error;
        const fs::path start = fs::canonical(dir, error);
        if (error)
            return;
        fs::recursive_directory_iterator at(start, fs::directory_options::skip_permission_denied,
                                            error);
        while (!error && at != fs::recursive_directory_iterator()) {
            std::error_code ignored;
            if (at->is_directory(ignored) && !at->is_symlink(ignored)) {
                if (at.depth() > 10)
                    at.disable_recursion_pending();
                visit(at->path().string(), at->path().filename().string());
            }
            at.increment(error);
        }
    }

private:
    void visit(const std::string& dir, const std::string& name) {
        const std::string subsystem = file::link_name(dir + "/subsystem");
        if (subsystem == "net") {
            constexpr unsigned long up = 1; // IFF_UP
            const bool is_up = (file::read_number(dir + "/flags").value_or(0) & up) != 0;
            const auto text = std::format("network interface {} ({})", name, is_up ? "up" : "down");
            (is_up ? usage_.losses : usage_.offers).push_back(text);
        } else if (subsystem == "block") {
            // With NVMe multipath, what is mounted is not the path below the controller
            // (nvme0c1n2) but the head of all paths (nvme0n2).
            const auto path_mark = name.find('c', 4);
            if (name.starts_with("nvme") && path_mark != std::string::npos &&
                name.find('n', path_mark) != std::string::npos) {
                block(name.substr(0, path_mark) + name.substr(name.find('n', path_mark)), true);
            } else {
                block(name, !file::exists(dir + "/partition"));
            }
        } else if (!subsystem.empty() && file::exists(dir + "/dev") && subsystem != "vfio-dev" &&
                   subsystem != our_driver) {
            usage_.offers.push_back(std::format("{} {}", subsystem, name));
        }
    }

    /// A whole disk or a partition. Disks are offered even when nothing uses them.
    void block(const std::string& name, bool disk) {
        if (!seen_.insert(name).second)
            return;
        const auto uses = uses_of(name, 0);
        if (!uses.empty())
            usage_.losses.push_back(std::format("{} {}", name, join(uses, ", ")));
        else if (disk)
            usage_.offers.push_back("disk " + name);
        // The head of NVMe's paths lies elsewhere, with its partitions.
        const std::string dir = paths_.sysfs + "/class/block/" + name;
        for (const auto& part : file::names(dir)) {
            if (disk && part.starts_with(name) &&
                file::exists(std::format("{}/{}/partition", dir, part)))
                block(part, false);
        }
    }

    std::vector<std::string> uses_of(const std::string& name, int depth) const {
        std::vector<std::string> uses;
        const std::string dir = paths_.sysfs + "/class/block/" + name;
        const auto dev = file::read_line(dir + "/dev");
        for (const Mount& mount : mounts_) {
            const bool is_it = (dev && mount.dev == *dev) || mount.source == "/dev/" + name;
            const std::string text = "mounted on " + mount.target;
            if (is_it && std::ranges::find(uses, text) == uses.end())
                uses.push_back(text);
        }
        if (std::ranges::find(swaps_, name) != swaps_.end())
            uses.emplace_back("used for swap");
        if (uses.empty() && btrfs_members_.contains(name))
            uses.emplace_back("part of a mounted btrfs");
        for (auto [at, end] = open_nodes_.equal_range(name); at != end; ++at)
            uses.push_back("open in " + at->second);
        for (const auto& holder : file::names(dir + "/holders")) {
            std::string text = "part of " + holder;
            if (depth < 4) {
                if (const auto above = uses_of(holder, depth + 1); !above.empty())
                    text += " (" + join(above, ", ") + ")";
            }
            uses.push_back(text);
        }
        if (uses.empty() && is_kept(paths_.dev + "/" + name))
            uses.emplace_back("kept by the kernel (part of a ZFS pool?)");
        return uses;
    }

    const SystemPaths& paths_;
    Usage& usage_;
    std::vector<Mount> mounts_;
    std::vector<std::string> swaps_;
    std::multimap<std::string, std::string> open_nodes_;
    std::set<std::string> btrfs_members_;
    std::set<std::string> seen_;
};

} // namespace

Result<Usage> PciBus::usage(const Bdf& bdf) const {
    const std::string dir = device_dir(paths_, bdf);
    if (!file::exists(dir))
        return no_device("pci", bdf);
    Usage usage;
    usage.driver = file::link_name(dir + "/driver");
    UsageFinder(paths_, usage).walk(dir);
    if (const auto functions = file::read_number(dir + "/sriov_numvfs").value_or(0))
        usage.losses.push_back(std::format("{} virtual functions (SR-IOV)", functions));
    std::ranges::sort(usage.offers);
    std::ranges::sort(usage.losses);
    return usage;
}

// ---- bind and unbind ----

namespace {

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

std::string_view in_sysfs(DefaultDomain domain) noexcept {
    switch (domain) {
    case DefaultDomain::strict:
        return "DMA";
    case DefaultDomain::lazy:
        return "DMA-FQ";
    case DefaultDomain::identity:
        return "identity";
    }
    return "";
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

std::string_view to_string(DefaultDomain domain) noexcept {
    switch (domain) {
    case DefaultDomain::strict:
        return "strict";
    case DefaultDomain::lazy:
        return "lazy";
    case DefaultDomain::identity:
        return "identity";
    }
    return "unknown";
}

Result<BindReport> PciBus::bind(const Bdf& bdf, bool force,
                                std::optional<DefaultDomain> domain) const {
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
        domain && in_sysfs(*domain) != found->group_type ? in_sysfs(*domain) : "";
    if (found->driver == our_driver) {
        if (!type.empty())
            return std::unexpected(
                Error{EBUSY, "bind",
                      std::format("{} is bound already, with a domain of type {}: unbind it first",
                                  name, found->group_type)});
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
            others.push_back(std::format("{} ({})", member.bdf.to_string(),
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

// SPDX-License-Identifier: MIT
// What hangs on a PCI device: who uses it, and what would be lost with its driver.
#include <dmaprobe/pci.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <format>
#include <map>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>

#include "file.h"
#include "pci_files.h"

namespace dmaprobe {

namespace {

using namespace pci;

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

    /// Whether processes have a device node open, which is called `text`; they are a loss then.
    bool open(const std::string& node, std::string_view text) {
        std::vector<std::string> who;
        for (auto [at, end] = open_nodes_.equal_range(node); at != end; ++at)
            who.push_back(at->second);
        if (!who.empty())
            usage_.losses.push_back(std::format("{} open in {}", text, join(who, ", ")));
        return !who.empty();
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
        } else if (!subsystem.empty() && file::exists(dir + "/dev") && subsystem != our_driver) {
            const auto text = std::format("{} {}", subsystem, name);
            if (!open(node_of(dir, name), text) && subsystem != "vfio-dev")
                usage_.offers.push_back(text);
        }
    }

    /// The name below /dev of what a class device is reached by.
    static std::string node_of(const std::string& dir, const std::string& name) {
        constexpr std::string_view key = "DEVNAME=";
        if (const auto uevent = file::read(dir + "/uevent"))
            for (const auto line : split(*uevent, '\n'))
                if (line.starts_with(key))
                    return std::string(line.substr(key.size()));
        return name;
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
    UsageFinder finder(paths_, usage);
    finder.walk(dir);
    if (const auto group = file::link_name(dir + "/iommu_group"); !group.empty())
        for (const char* kind : {"vfio/", "vfio/noiommu-"})
            finder.open(kind + group, "VFIO group " + group);
    if (const auto functions = file::read_number(dir + "/sriov_numvfs").value_or(0))
        usage.losses.push_back(std::format("{} virtual functions (SR-IOV)", functions));
    std::ranges::sort(usage.offers);
    std::ranges::sort(usage.losses);
    return usage;
}

} // namespace dmaprobe

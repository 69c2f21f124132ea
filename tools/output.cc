// SPDX-License-Identifier: GPL-2.0-only
// What the verbs share.
#include "output.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <format>
#include <fstream>
#include <limits>
#include <utility>

#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "names.h"

namespace tool {

using dmaprobe::Bdf;
using dmaprobe::Error;
using dmaprobe::PciBus;
using dmaprobe::PciDevice;
using dmaprobe::Size;

Failure failure(const Error& error, int exit) {
    // What the library explains in a detail is a sentence of its own; the operation would only be
    // noise in front of it.
    return {exit, error.detail.empty() ? error.message() : error.detail, error.code};
}

int fail(const Args& args, const Failure& failure) {
    const Json document = {
        {"error",
         {{"message", failure.message},
          {"errno", failure.code ? Json(dmaprobe::errno_name(failure.code)) : Json()},
          {"exit", failure.exit}}}};
    // On one line, since faults prints one document on each.
    if (args.json)
        print(document_text(document, -1) + "\n");
    if (!args.json_file.empty())
        std::ofstream(args.json_file) << document_text(document) << '\n';
    warn(failure.message);
    return failure.exit;
}

void print(std::string_view text) {
    clear_progress();
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
}

void warn(std::string_view text) {
    clear_progress();
    std::fflush(stdout);
    std::fputs(std::format("dmaprobe: {}\n", text).c_str(), stderr);
}

std::string document_text(const Json& document, int indent) {
    Json whole = {{"version", schema_version}};
    whole.update(document);
    // Device and kernel texts are not ours: whatever is no UTF-8 is replaced.
    return whole.dump(indent, ' ', false, Json::error_handler_t::replace);
}

void print_json(const Json& document) {
    print(document_text(document) + "\n");
}

namespace {

bool colours() {
    static const bool wanted = [] {
        const char* no = std::getenv("NO_COLOR"); // https://no-color.org
        const char* terminal = std::getenv("TERM");
        return ::isatty(STDOUT_FILENO) != 0 && (no == nullptr || *no == '\0') &&
               (terminal == nullptr || std::string_view(terminal) != "dumb");
    }();
    return wanted;
}

bool progress_shown = false;

} // namespace

std::string paint(Colour colour, std::string_view text) {
    if (!colours())
        return std::string(text);
    int code = 0;
    switch (colour) {
    case Colour::red:
        code = 31;
        break;
    case Colour::green:
        code = 32;
        break;
    case Colour::yellow:
        code = 33;
        break;
    case Colour::dim:
        code = 2;
        break;
    }
    return std::format("\x1b[{}m{}\x1b[0m", code, text);
}

std::string field(std::string_view label, std::string_view value) {
    return std::format("  {:<17} {}\n", label, value);
}

std::string columns(const std::vector<std::vector<std::string>>& rows) {
    std::vector<std::size_t> widths;
    for (const auto& row : rows) {
        widths.resize(std::max(widths.size(), row.size()));
        for (std::size_t i = 0; i < row.size(); ++i)
            widths[i] = std::max(widths[i], row[i].size());
    }
    std::string text;
    for (const auto& row : rows) {
        for (std::size_t i = 0; i + 1 < row.size(); ++i)
            text += std::format("{:<{}}  ", row[i], widths[i]);
        text += row.back();
        text.resize(text.find_last_not_of(' ') + 1); // the last may be empty
        text += '\n';
    }
    return text;
}

void show_progress(std::string_view text) {
    winsize size{};

    if (::isatty(STDERR_FILENO) == 0)
        return;
    // A line that wraps could not be removed.
    const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    const std::size_t room = known ? size.ws_col - 1U : 79U;
    std::fputs(std::format("\r\x1b[K{}", text.substr(0, room)).c_str(), stderr);
    progress_shown = true;
}

void clear_progress() {
    if (std::exchange(progress_shown, false))
        std::fputs("\r\x1b[K", stderr);
}

Json or_null(std::string_view text) {
    return text.empty() ? Json() : Json(text);
}

std::string hex(std::uint64_t value) {
    return std::format("{:#x}", value);
}

namespace {

bool is_unlimited(Size size) {
    return size.value() == std::numeric_limits<std::uint64_t>::max() ||
           size.value() == std::numeric_limits<std::uint32_t>::max();
}

} // namespace

Json size_json(Size size) {
    return is_unlimited(size) ? Json() : Json(size.value());
}

std::string size_text(Size size) {
    if (is_unlimited(size))
        return "unlimited";
    std::uint64_t value = size.value();
    std::string_view unit = "B";
    for (const std::string_view next : {"KiB", "MiB", "GiB", "TiB"}) {
        if (value == 0 || value % 1024 != 0)
            break;
        value /= 1024;
        unit = next;
    }
    return std::format("{} {}", value, unit);
}

Json device_json(const PciDevice& device) {
    Json group;
    if (device.group) {
        Json members = Json::array();
        for (const auto& member : device.group_members) {
            members.push_back({{"bdf", member.bdf.to_string()},
                               {"driver", or_null(member.driver)},
                               {"bridge", member.bridge}});
        }
        group = {{"id", *device.group}, {"type", or_null(device.group_type)}, {"members", members}};
    }
    const Names names = names_of(device);
    return {
        {"bdf", device.bdf.to_string()},
        {"vendor", std::format("{:04x}", device.vendor)},
        {"device", std::format("{:04x}", device.device)},
        {"class", std::format("{:06x}", device.class_code)},
        {"vendor_name", or_null(names.vendor)},
        {"device_name", or_null(names.device)},
        {"class_name", or_null(names.class_name)},
        {"driver", or_null(device.driver)},
        {"group", group},
        {"iommu", or_null(device.iommu)},
        {"iommu_driver", or_null(device.iommu_driver)},
        {"engine", or_null(device.engine)},
    };
}

std::vector<dmaprobe::Size> page_sizes(const dmaprobe::Domain& domain) {
    std::vector<dmaprobe::Size> sizes;
    for (std::uint64_t left = domain.pgsize_bitmap; left != 0; left &= left - 1)
        sizes.emplace_back(std::uint64_t{1} << std::countr_zero(left));
    return sizes;
}

Json domain_json(const dmaprobe::Domain& domain) {
    Json sizes = Json::array();
    for (const dmaprobe::Size size : page_sizes(domain))
        sizes.push_back(size.value());
    Json reserved = Json::array();
    for (const auto& region : domain.regions) {
        reserved.push_back({{"start", hex(region.start.value())},
                            {"length", region.length.value()},
                            {"type", to_string(region.type)}});
    }
    Json aperture;
    if (domain.type != dmaprobe::DomainType::none)
        aperture = {{"start", hex(domain.aperture_start.value())},
                    {"end", hex(domain.aperture_end.value())}};
    return {{"type", to_string(domain.type)},
            {"granule", domain.granule().value()},
            {"page_sizes", sizes},
            {"aperture", aperture},
            {"iommu", or_null(domain.iommu)},
            {"driver", or_null(domain.driver)},
            {"reserved", reserved}};
}

Json fault_json(const dmaprobe::Fault& fault) {
    return {{"time_us", fault.time.count()},
            {"bdf", fault.bdf ? Json(fault.bdf->to_string()) : Json()},
            {"iova", fault.iova ? Json(hex(fault.iova->value())) : Json()},
            {"access", to_string(fault.access)},
            {"reason", fault.reason},
            {"platform", fault.platform},
            {"raw", fault.raw}};
}

std::string virtual_machine() {
    std::string text;
    if (std::ifstream("/sys/class/dmi/id/sys_vendor") >> text && text == "QEMU")
        return "QEMU";
    if (std::ifstream("/sys/hypervisor/type") >> text)
        return text;
    // Arm's virtual machines of QEMU say it in their device tree.
    if (std::getline(std::ifstream("/proc/device-tree/compatible"), text, '\0') &&
        text == "linux,dummy-virt")
        return "QEMU";
    std::ifstream cpuinfo("/proc/cpuinfo");
    while (std::getline(cpuinfo, text)) {
        if (text.starts_with("flags") && (text + ' ').find(" hypervisor ") != std::string::npos)
            return "the CPU's hypervisor flag";
    }
    return {};
}

std::string kernel_release() {
    utsname name{};
    return ::uname(&name) == 0 ? name.release : "";
}

std::expected<Bdf, Failure> pick_device(const Args& args) {
    if (!args.bdf.empty()) {
        const auto bdf = Bdf::parse(args.bdf);
        if (!bdf)
            return std::unexpected(failure(bdf.error(), exit_code::usage));
        return *bdf;
    }
    const PciBus bus;
    if (!bus.module_loaded())
        return std::unexpected(Failure{
            exit_code::failed, "the dmaprobe module is not loaded: modprobe dmaprobe", ENOENT});
    const auto bound = bus.bound();
    if (!bound)
        return std::unexpected(failure(bound.error()));
    if (bound->empty())
        return std::unexpected(Failure{
            exit_code::failed,
            "no device is bound to dmaprobe: dmaprobe bind BDF first (dmaprobe list shows them)",
            ENODEV});
    if (bound->size() > 1) {
        std::string names;
        for (const Bdf& bdf : *bound)
            names += (names.empty() ? "" : ", ") + bdf.to_string();
        return std::unexpected(Failure{
            exit_code::usage,
            std::format("{} devices are bound, so one must be named: {}", bound->size(), names),
            EINVAL});
    }
    return bound->front();
}

} // namespace tool

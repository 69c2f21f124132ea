// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe info: what the kernel, the device and the IOMMU support. Its JSON obeys
// schema/info.schema.json.
#include <algorithm>
#include <bit>
#include <format>

#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>

#include <linux/dmaprobe.h>

#include "output.h"

namespace tool {

using dmaprobe::Call;
using dmaprobe::CallStatus;
using dmaprobe::DeviceAccess;
using dmaprobe::Domain;
using dmaprobe::DomainType;
using dmaprobe::Engine;
using dmaprobe::EngineTraits;
using dmaprobe::Intake;
using dmaprobe::Limits;
using dmaprobe::PciDevice;
using dmaprobe::Session;
using dmaprobe::Size;

namespace {

/// Everything that was found out, before any of it is printed.
struct Info {
    PciDevice device;
    dmaprobe::Info module;
    std::string route; // empty when the device could not be opened
    std::string why;   // why this route, or why none
    std::optional<EngineTraits> engine;
    std::string completion;   // empty when the engine did not answer
    std::string engine_error; // empty when the engine answered
    Limits limits;
    Domain domain;
    std::vector<Call> calls;
    std::string machine; // what makes it a virtual machine
};

std::expected<Info, Failure> gather(const Args& args) {
    const auto bdf = pick_device(args);
    if (!bdf)
        return std::unexpected(bdf.error());
    const auto session = Session::open(*bdf);
    if (!session)
        return std::unexpected(failure(session.error()));

    Info info;
    auto device = dmaprobe::PciBus().device(*bdf);
    if (!device)
        return std::unexpected(failure(device.error()));
    info.device = std::move(*device);
    const auto module = session->info();
    if (!module)
        return std::unexpected(failure(module.error()));
    info.module = *module;
    const auto limits = session->limits();
    if (!limits)
        return std::unexpected(failure(limits.error()));
    info.limits = *limits;
    auto domain = session->domain();
    if (!domain)
        return std::unexpected(failure(domain.error()));
    info.domain = std::move(*domain);
    info.calls = dmaprobe::kernel_calls(info.module);
    info.machine = virtual_machine();

    // Somebody else may have the device open; all the rest is worth showing then too.
    if (const auto* traits = Engine::find({.vendor = info.device.vendor,
                                           .device = info.device.device,
                                           .class_code = info.device.class_code}))
        info.engine = *traits;
    const auto access = DeviceAccess::open(*session);
    if (access) {
        info.route = to_string(access->route());
        info.why = access->why();
        if (info.engine) {
            if (const auto engine = Engine::probe(*session, *access)) {
                info.engine = (*engine)->traits();
                info.completion = to_string((*engine)->completion());
            } else {
                info.engine_error = failure(engine.error()).message;
            }
        }
    } else {
        info.why = failure(access.error()).message;
        info.engine_error = "the device cannot be reached";
    }
    return info;
}

Json engine_json(const Info& info) {
    if (!info.engine)
        return {};
    const EngineTraits& engine = *info.engine;
    return {{"name", engine.name},
            {"description", engine.description},
            {"ready", info.engine_error.empty()},
            {"error", or_null(info.engine_error)},
            {"emulated", engine.emulated},
            {"sees_read_faults", engine.sees_read_faults},
            {"sees_write_faults", engine.sees_write_faults},
            {"dma_mask", hex(engine.dma_mask)},
            {"max_transfer", engine.max_transfer.value()},
            {"alignment", engine.alignment},
            {"block", engine.block.value()},
            {"segment_edge", engine.segment_edge.value()},
            {"device_memory", engine.device_memory.value()},
            {"intake", to_string(engine.intake)},
            {"completion", or_null(info.completion)}};
}

Json limits_json(const Limits& limits) {
    return {{"coherent", limits.coherent},
            {"need_sync", limits.need_sync},
            {"need_unmap", limits.need_unmap},
            {"addressing_limited", limits.addressing_limited},
            {"iommu", limits.iommu},
            {"can_mmap", limits.can_mmap},
            {"dma_mask", hex(limits.dma_mask)},
            {"coherent_dma_mask", hex(limits.coherent_dma_mask)},
            {"required_mask", hex(limits.required_mask)},
            {"bus_dma_limit", limits.bus_dma_limit ? Json(hex(limits.bus_dma_limit)) : Json()},
            {"max_segment_size", size_json(limits.max_segment_size)},
            {"max_mapping_size", size_json(limits.max_mapping_size)},
            {"opt_mapping_size", size_json(limits.opt_mapping_size)},
            {"merge_boundary", hex(limits.merge_boundary)},
            {"segment_boundary_mask", hex(limits.segment_boundary_mask)},
            {"min_align_mask", hex(limits.min_align_mask)},
            {"cache_alignment", limits.cache_alignment.value()}};
}

Json to_json(const Info& info) {
    Json calls = Json::array();
    for (const Call& call : info.calls) {
        calls.push_back(
            {{"name", call.name}, {"status", to_string(call.status)}, {"detail", call.detail}});
    }
    return {{"device", device_json(info.device)},
            {"kernel", kernel_release()},
            {"virtual_machine", or_null(info.machine)},
            {"abi", {{"module", info.module.abi_version}, {"tool", DMAPROBE_ABI_VERSION}}},
            {"access", {{"route", or_null(info.route)}, {"why", info.why}}},
            {"engine", engine_json(info)},
            {"limits", limits_json(info.limits)},
            {"domain", domain_json(info.domain)},
            {"calls", calls}};
}

void line(std::string_view what, std::string_view value) {
    print(std::format("  {:<18} {}\n", what, value));
}

/// Of which accesses the device notices that the IOMMU stopped it.
std::string_view faults_text(const dmaprobe::EngineTraits& engine) {
    if (engine.sees_read_faults)
        return engine.sees_write_faults ? "of reads and writes" : "of reads";
    return engine.sees_write_faults ? "of writes" : "no";
}

std::string yes_no(bool value) {
    return value ? "yes" : "no";
}

std::string_view intake_text(Intake intake) {
    switch (intake) {
    case Intake::stores:
        return "the device stores there what it reads";
    case Intake::compares:
        return "the device compares what it reads with that";
    case Intake::none:
        break;
    }
    return "the device reads nothing";
}

void tell_engine(const Info& info) {
    print("\nEngine\n");
    if (!info.engine) {
        line("name", "none can drive this device");
        return;
    }
    const EngineTraits& engine = *info.engine;
    line("name", std::format("{}: {}{}", engine.name, engine.description,
                             engine.emulated ? " (emulated)" : ""));
    line("ready", info.engine_error.empty() ? "yes" : "no: " + info.engine_error);
    line("DMA mask",
         std::format("{:#x} ({} bits)", engine.dma_mask, std::bit_width(engine.dma_mask)));
    line("one transfer", std::format("up to {}, in steps of {}", size_text(engine.max_transfer),
                                     size_text(engine.block)));
    line("own memory",
         std::format("{}; {}", size_text(engine.device_memory), intake_text(engine.intake)));
    line("completion", info.completion.empty() ? "unknown" : info.completion);
    line("sees faults", faults_text(engine));
}

void tell_limits(const Limits& limits) {
    print("\nLimits, as the DMA API reports them\n");
    line("streaming mask", hex(limits.dma_mask));
    line("coherent mask", hex(limits.coherent_dma_mask));
    line("required mask", hex(limits.required_mask));
    line("bus limit", limits.bus_dma_limit ? hex(limits.bus_dma_limit) : "none");
    line("largest mapping", size_text(limits.max_mapping_size));
    line("optimal mapping", size_text(limits.opt_mapping_size));
    line("largest segment", size_text(limits.max_segment_size));
    line("segment boundary", hex(limits.segment_boundary_mask));
    line("merge boundary",
         limits.merge_boundary ? hex(limits.merge_boundary) : "0: DMA segments cannot be merged");
    line("alignment mask", hex(limits.min_align_mask));
    line("cache alignment", size_text(limits.cache_alignment));
    line("coherent", yes_no(limits.coherent));
    line("needs sync", yes_no(limits.need_sync));
    line("needs unmap", yes_no(limits.need_unmap));
    line("addressing limited", yes_no(limits.addressing_limited));
    line("IOMMU translates", yes_no(limits.iommu));
    line("coherent mmap", yes_no(limits.can_mmap));
}

void tell_domain(const Info& info) {
    const Domain& domain = info.domain;
    print("\nIOMMU domain\n");
    std::string_view meaning;
    switch (domain.type) {
    case DomainType::none:
        meaning = " (no IOMMU)";
        break;
    case DomainType::identity:
        meaning = " (addresses pass through)";
        break;
    case DomainType::dma:
        meaning = " (strict: translations are dropped at once)";
        break;
    case DomainType::dma_fq:
        meaning = " (lazy: translations may be dropped later)";
        break;
    case DomainType::other:
        break;
    }
    line("type", std::format("{}{}", to_string(domain.type), meaning));
    if (domain.type == DomainType::none)
        return;
    line("IOMMU", std::format("{} ({}){}", domain.iommu, domain.driver,
                              info.machine.empty()
                                  ? ""
                                  : std::format("; emulated, this is a virtual machine ({})",
                                                info.machine)));
    std::string sizes;
    for (const Size size : page_sizes(domain))
        sizes += (sizes.empty() ? "" : ", ") + size_text(size);
    line("page sizes", sizes.empty() ? "none" : sizes);
    if (domain.aperture_end != domain.aperture_start)
        line("aperture", std::format("{:#x} - {:#x}", domain.aperture_start.value(),
                                     domain.aperture_end.value()));
    for (const auto& region : domain.regions) {
        line("reserved",
             std::format("{:#x} - {:#x}  {}", region.start.value(),
                         region.start.value() + region.length.value() - 1, to_string(region.type)));
    }
}

void tell_calls(const std::vector<Call>& calls) {
    std::size_t width = 0;
    for (const Call& call : calls)
        width = std::max(width, call.name.size());
    struct Section {
        CallStatus status;
        std::string_view title;
    };
    for (const auto& [status, title] :
         {Section{CallStatus::offered, "Calls of the kernel that can be driven"},
          Section{CallStatus::missing, "Calls that this kernel lacks"},
          Section{CallStatus::not_driven, "Calls that no command drives"},
          Section{CallStatus::gone, "Calls of older kernels that are gone"}}) {
        if (std::ranges::find(calls, status, &Call::status) == calls.end())
            continue;
        print(std::format("\n{}\n", title));
        for (const Call& call : calls) {
            if (call.status == status)
                print(std::format("  {:<{}} {}\n", call.name, width, call.detail));
        }
    }
}

void show(const Info& info) {
    const PciDevice& device = info.device;
    print(std::format("Device {}\n", device.bdf.to_string()));
    line("id", std::format("{:04x}:{:04x}, class {:06x}", device.vendor, device.device,
                           device.class_code));
    line("kernel", kernel_release());
    line("ABI", std::format("module {}, tool {}", info.module.abi_version, DMAPROBE_ABI_VERSION));
    line("BARs through",
         std::format("{}: {}", info.route.empty() ? "nothing" : info.route, info.why));
    if (device.group) {
        std::string members;
        for (const auto& member : device.group_members)
            members += (members.empty() ? "; shared with " : ", ") + member.bdf.to_string();
        line("IOMMU group", std::format("{}{}", *device.group, members));
    }
    tell_engine(info);
    tell_limits(info.limits);
    tell_domain(info);
    tell_calls(info.calls);
}

} // namespace

int run_info(const Args& args) {
    const auto info = gather(args);
    if (!info)
        return fail(args, info.error());
    if (args.json)
        print_json(to_json(*info));
    else
        show(*info);
    return exit_code::ok;
}

} // namespace tool

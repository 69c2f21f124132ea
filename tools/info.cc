// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe info: what the kernel, the device and the IOMMU support. Its JSON obeys
// schema/info.schema.json.
#include <algorithm>
#include <bit>
#include <format>

#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>

#include <linux/dmaprobe.h>

#include "names.h"
#include "output.h"

namespace tool {

using dmaprobe::Call;
using dmaprobe::CallStatus;
using dmaprobe::DeviceAccess;
using dmaprobe::Domain;
using dmaprobe::DomainType;
using dmaprobe::Engine;
using dmaprobe::EngineTraits;
using dmaprobe::Limits;
using dmaprobe::PciDevice;
using dmaprobe::Session;
using dmaprobe::Size;

namespace {

/// Everything that was found out, before any of it is printed.
struct Info {
    PciDevice device;
    dmaprobe::Info module;
    std::string path; // empty when the device could not be opened
    std::string why;  // why this path, or why none
    std::optional<EngineTraits> engine;
    std::string completion;   // empty when the engine did not answer
    bool probed = true;       // whether the engine was asked
    std::string engine_error; // empty when the engine answered
    Limits limits;
    Domain domain;
    std::vector<Call> calls;
    std::string machine; // what makes it a virtual machine
};

/// Open the device and ask its engine. Somebody else may have the device open; all the rest is
/// worth showing then too.
void probe(Info& info, const Session& session) {
    const auto access = DeviceAccess::open(session);
    if (!access) {
        info.why = failure(access.error()).message;
        info.engine_error = "the device cannot be reached";
        return;
    }
    info.path = to_string(access->path());
    info.why = access->why();
    if (!info.engine)
        return;
    if (const auto engine = Engine::probe(session, *access)) {
        info.engine = (*engine)->traits();
        info.completion = to_string((*engine)->completion());
    } else {
        info.engine_error = failure(engine.error()).message;
    }
}

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

    if (const auto* traits = Engine::find({.vendor = info.device.vendor,
                                           .device = info.device.device,
                                           .class_code = info.device.class_code}))
        info.engine = *traits;
    // The table of calls needs no device.
    info.probed = !args.no_engine && (args.json || !args.calls);
    if (!info.probed)
        info.why = "not opened (--no-engine)";
    else
        probe(info, *session);
    return info;
}

Json engine_json(const Info& info) {
    if (!info.engine)
        return {};
    const EngineTraits& engine = *info.engine;
    return {{"name", engine.name},
            {"description", engine.description},
            {"ready", info.probed ? Json(info.engine_error.empty()) : Json()},
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
            {"read_effect", to_string(engine.read_effect)},
            {"completion", or_null(info.completion)}};
}

Json limits_json(const Limits& limits) {
    return {{"coherent", limits.coherent},
            {"need_sync", limits.need_sync},
            {"need_unmap", limits.need_unmap},
            {"addressing_limited", limits.addressing_limited},
            {"iommu", limits.iommu},
            {"can_mmap", limits.can_mmap},
            {"confined", limits.confined},
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
            {"access", {{"path", or_null(info.path)}, {"why", info.why}}},
            {"engine", engine_json(info)},
            {"limits", limits_json(info.limits)},
            {"domain", domain_json(info.domain)},
            {"calls", calls}};
}

/// Of which accesses the device notices that the IOMMU stopped it.
std::string_view faults_text(const EngineTraits& engine) {
    if (engine.sees_read_faults)
        return engine.sees_write_faults ? "it sees faults of reads and writes"
                                        : "it sees faults of reads";
    return engine.sees_write_faults ? "it sees faults of writes" : "it sees no faults";
}

std::string engine_text(const Info& info) {
    if (!info.engine)
        return field("engine", "none can drive this device");
    const EngineTraits& engine = *info.engine;
    const std::string state = !info.probed                ? "not probed"
                              : info.engine_error.empty() ? "ready"
                                                          : "not ready: " + info.engine_error;
    std::string text = field("engine", std::format("{}: {}{}; {}", engine.name, engine.description,
                                                   engine.emulated ? " (emulated)" : "", state));
    text += field("", std::format("reaches {} bits, moves up to {} in steps of {}",
                                  std::bit_width(engine.dma_mask), size_text(engine.max_transfer),
                                  size_text(engine.block)));
    text +=
        field("", std::format("{}{}", faults_text(engine),
                              info.completion.empty() ? "" : "; completion by " + info.completion));
    return text;
}

std::string limits_text(const Limits& limits) {
    std::string text =
        field("DMA mask", std::format("{:#x}, coherent {:#x}, required {:#x}{}", limits.dma_mask,
                                      limits.coherent_dma_mask, limits.required_mask,
                                      limits.bus_dma_limit
                                          ? std::format(", bus limit {:#x}", limits.bus_dma_limit)
                                          : ""));
    text +=
        field("largest mapping", std::format("{}, optimal {}", size_text(limits.max_mapping_size),
                                             size_text(limits.opt_mapping_size)));
    text += field("segments",
                  std::format("up to {}, boundary {:#x}, {}", size_text(limits.max_segment_size),
                              limits.segment_boundary_mask,
                              limits.merge_boundary
                                  ? std::format("merge boundary {:#x}", limits.merge_boundary)
                                  : "never merged"));
    text += field("coherent", std::format("{}; {}, {}{}", limits.coherent ? "yes" : "no",
                                          limits.need_sync ? "needs sync" : "needs no sync",
                                          limits.need_unmap ? "needs unmap" : "needs no unmap",
                                          limits.addressing_limited ? ", addressing limited" : ""));
    text +=
        field("confined", limits.confined
                              ? "yes: users can enable it (trust-boundary.rst)"
                              : "no: users need CAP_SYS_RAWIO to enable it (trust-boundary.rst)");
    return text;
}

std::string_view meaning(DomainType type) {
    switch (type) {
    case DomainType::none:
        return " (no IOMMU)";
    case DomainType::identity:
        return " (addresses pass through)";
    case DomainType::dma:
        return " (strict: translations are dropped at once)";
    case DomainType::dma_fq:
        return " (lazy: translations may be dropped later)";
    case DomainType::other:
        break;
    }
    return "";
}

std::string domain_text(const Info& info) {
    const Domain& domain = info.domain;
    std::string text =
        field("domain", std::format("{}{}", to_string(domain.type), meaning(domain.type)));
    if (domain.type == DomainType::none)
        return text;
    std::string sizes;
    for (const Size size : page_sizes(domain))
        sizes += (sizes.empty() ? "" : ", ") + size_text(size);
    text += field("page sizes", sizes.empty() ? "none" : sizes);
    if (domain.aperture_end != domain.aperture_start)
        text += field("aperture", std::format("{:#x} - {:#x}", domain.aperture_start.value(),
                                              domain.aperture_end.value()));
    for (const auto& region : domain.regions)
        text += field("reserved", std::format("{:#x} - {:#x} {}", region.start.value(),
                                              region.start.value() + region.length.value() - 1,
                                              to_string(region.type)));
    return text;
}

/// How many calls there are of each kind.
std::string count_calls(const std::vector<Call>& calls) {
    const auto count = [&](CallStatus status) {
        return std::ranges::count(calls, status, &Call::status);
    };
    return field("calls", std::format("{} can be driven; missing in this kernel: {}, driven by no "
                                      "command: {}, gone: {} (--calls names them)",
                                      count(CallStatus::offered), count(CallStatus::missing),
                                      count(CallStatus::not_driven), count(CallStatus::gone)));
}

void show_calls(const std::vector<Call>& calls) {
    std::string text;
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
        text += std::format("{}{}\n", text.empty() ? "" : "\n", title);
        for (const Call& call : calls) {
            if (call.status == status)
                text += std::format("  {:<{}} {}\n", call.name, width, call.detail);
        }
    }
    print(text);
}

void show(const Info& info) {
    const PciDevice& device = info.device;
    const std::string names = names_text(names_of(device));
    std::string text =
        std::format("{}  {:04x}:{:04x}, class {:06x}{}\n", device.bdf.to_string(), device.vendor,
                    device.device, device.class_code, names.empty() ? "" : "  " + names);
    text +=
        field("kernel", std::format("{}; ABI of the module {}, of the tool {}", kernel_release(),
                                    info.module.abi_version, DMAPROBE_ABI_VERSION));
    text += field("BARs through",
                  info.probed
                      ? std::format("{}: {}", info.path.empty() ? "nothing" : info.path, info.why)
                      : info.why);
    if (device.group) {
        std::string members;
        for (const auto& member : device.group_members)
            members += (members.empty() ? "; shared with " : ", ") + member.bdf.to_string();
        text += field("IOMMU group", std::format("{}{}", *device.group, members));
    }
    if (info.domain.type != DomainType::none)
        text += field("IOMMU",
                      std::format("{} ({}){}", info.domain.iommu, info.domain.driver,
                                  info.machine.empty()
                                      ? ""
                                      : std::format("; emulated, this is a virtual machine ({})",
                                                    info.machine)));
    print(text + domain_text(info) + limits_text(info.limits) + engine_text(info) +
          count_calls(info.calls));
}

} // namespace

int run_info(const Args& args) {
    const auto info = gather(args);
    if (!info)
        return fail(args, info.error());
    if (args.json)
        print_json(to_json(*info));
    else if (args.calls)
        show_calls(info->calls);
    else
        show(*info);
    return exit_code::ok;
}

} // namespace tool

// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe faults: follow what the IOMMU reports. Each line of its JSON obeys
// schema/faults.schema.json.
#include <cerrno>
#include <chrono>
#include <format>
#include <optional>
#include <utility>

#include <dmaprobe/fault.h>

#include "output.h"

namespace tool {

using dmaprobe::Bdf;
using dmaprobe::Fault;
using dmaprobe::FaultWatcher;
using std::chrono::milliseconds;

namespace {

std::string text_line(const Fault& fault) {
    const auto micros = static_cast<std::uint64_t>(fault.time.count());
    return std::format("{:>5}.{:06} {} {} {} {} ({})\n", micros / 1000000, micros % 1000000,
                       fault.bdf ? fault.bdf->to_string() : "?", to_string(fault.access),
                       fault.iova ? hex(fault.iova->value()) : "?", fault.reason, fault.platform);
}

} // namespace

int run_faults(const Args& args) {
    std::vector<Bdf> requesters;
    if (!args.bdf.empty()) {
        const auto bdf = Bdf::parse(args.bdf);
        if (!bdf)
            return fail(args, failure(bdf.error(), exit_code::usage));
        auto ids = dmaprobe::PciBus().requester_ids(*bdf);
        if (!ids)
            return fail(args, failure(ids.error()));
        requesters = std::move(*ids);
    }
    auto watcher = FaultWatcher::open();
    if (!watcher)
        return fail(args, failure(watcher.error()));

    using Clock = std::chrono::steady_clock;
    constexpr milliseconds forever(std::chrono::hours(1));
    auto overruns = watcher->overruns();
    const auto end = Clock::now() + std::chrono::seconds(args.seconds.value_or(0));
    for (unsigned seen = 0; !args.count || seen < *args.count;) {
        const auto left =
            args.seconds ? std::chrono::ceil<milliseconds>(end - Clock::now()) : forever;
        if (left < milliseconds(0))
            break;
        const auto fault =
            requesters.empty() ? watcher->wait(left) : watcher->wait(requesters, left);
        if (const auto lost = watcher->overruns(); lost != std::exchange(overruns, lost))
            warn("the kernel log was overwritten before it was read: faults may be missing");
        if (!fault) {
            if (fault.error().code == ETIMEDOUT)
                continue;
            return fail(args, failure(fault.error()));
        }
        seen++;
        // One document on each line, for what reads them as they come.
        print(args.json ? document_text(fault_json(*fault), -1) + "\n" : text_line(*fault));
    }
    return exit_code::ok;
}

} // namespace tool

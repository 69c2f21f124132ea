// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe list: the PCI devices of this machine. Its JSON obeys schema/list.schema.json.
#include <algorithm>
#include <format>
#include <string>
#include <vector>

#include "names.h"
#include "output.h"

namespace tool {

namespace {

std::string dash(const std::string& text) {
    return text.empty() ? "-" : text;
}

std::vector<std::string> row_of(const dmaprobe::PciDevice& device) {
    return {device.bdf.to_string(),
            std::format("{:04x}:{:04x}", device.vendor, device.device),
            std::format("{:06x}", device.class_code),
            dash(device.driver),
            device.group ? std::to_string(*device.group) : "-",
            dash(device.group_type),
            dash(device.iommu),
            dash(device.engine),
            names_text(names_of(device))};
}

} // namespace

int run_list(const Args& args) {
    const dmaprobe::PciBus bus;
    auto devices = bus.devices();
    if (!devices)
        return fail(args, failure(devices.error()));
    if (args.bound)
        std::erase_if(*devices, [](const auto& device) { return device.driver != "dmaprobe"; });

    if (args.json) {
        Json list = Json::array();
        for (const auto& device : *devices)
            list.push_back(device_json(device));
        print_json({{"module_loaded", bus.module_loaded()}, {"devices", list}});
        return exit_code::ok;
    }

    std::vector<std::vector<std::string>> rows{
        {"BDF", "ID", "CLASS", "DRIVER", "GROUP", "DOMAIN", "IOMMU", "ENGINE", "NAME"}};
    for (const auto& device : *devices)
        rows.push_back(row_of(device));
    // Without pci.ids there are none.
    if (std::all_of(rows.begin() + 1, rows.end(),
                    [](const auto& row) { return row.back().empty(); }))
        for (auto& row : rows)
            row.pop_back();
    print(columns(rows));
    return exit_code::ok;
}

} // namespace tool

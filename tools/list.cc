// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe list: the PCI devices of this machine.
#include <algorithm>
#include <array>
#include <format>

#include "output.h"

namespace tool {

namespace {

using Row = std::array<std::string, 8>;

std::string dash(const std::string& text) {
    return text.empty() ? "-" : text;
}

Row row_of(const dmaprobe::PciDevice& device) {
    return {device.bdf.to_string(),
            std::format("{:04x}:{:04x}", device.vendor, device.device),
            std::format("{:06x}", device.class_code),
            dash(device.driver),
            device.group ? std::to_string(*device.group) : "-",
            dash(device.group_type),
            dash(device.iommu),
            dash(device.engine)};
}

} // namespace

int run_list(const Args& args) {
    const dmaprobe::PciBus bus;
    const auto devices = bus.devices();
    if (!devices)
        return fail(args, failure(devices.error()));

    if (args.json) {
        Json list = Json::array();
        for (const auto& device : *devices)
            list.push_back(device_json(device));
        print_json({{"module_loaded", bus.module_loaded()}, {"devices", list}});
        return exit_code::ok;
    }

    std::vector<Row> rows{{"BDF", "ID", "CLASS", "DRIVER", "GROUP", "DOMAIN", "IOMMU", "ENGINE"}};
    for (const auto& device : *devices)
        rows.push_back(row_of(device));
    std::array<std::size_t, std::tuple_size_v<Row>> widths{};
    for (const Row& row : rows) {
        for (std::size_t i = 0; i < row.size(); ++i)
            widths[i] = std::max(widths[i], row[i].size());
    }
    for (const Row& row : rows) {
        std::string line;
        for (std::size_t i = 0; i < row.size(); ++i)
            line += i + 1 < row.size() ? std::format("{:<{}}  ", row[i], widths[i]) : row[i];
        print(line + "\n");
    }
    return exit_code::ok;
}

} // namespace tool

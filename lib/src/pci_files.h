// SPDX-License-Identifier: MIT
// Where the PCI bus is in sysfs, and how its files are read.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <dmaprobe/bdf.h>
#include <dmaprobe/pci.h>
#include <dmaprobe/result.h>

namespace dmaprobe::pci {

inline constexpr std::string_view our_driver = "dmaprobe";

std::string device_dir(const SystemPaths& paths, const Bdf& bdf);
std::string driver_dir(const SystemPaths& paths, std::string_view driver);
/// ENODEV for a function that does not exist.
std::unexpected<Error> no_device(std::string_view op, const Bdf& bdf);
/// driver_override as text; empty when there is none.
std::string read_override(const std::string& dir);
/// The parts with a text between them.
std::string join(const std::vector<std::string>& parts, std::string_view between);
/// The parts between a character, without empty ones.
std::vector<std::string_view> split(std::string_view text, char between);

} // namespace dmaprobe::pci

// SPDX-License-Identifier: MIT
// The address of a PCI function.
#pragma once

#include <compare>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>

#include <dmaprobe/result.h>

namespace dmaprobe {

/// A PCI function's address: domain (segment), bus, device and function.
struct Bdf {
    std::uint32_t domain = 0; ///< PCI domain; host bridges with domains of their own go past 0xffff
    std::uint8_t bus = 0;     ///< bus number
    std::uint8_t device = 0;  ///< device number, 0 to 31
    std::uint8_t function = 0; ///< function number, 0 to 7

    /// Read "0000:01:00.0" or, for domain 0, "01:00.0"; hexadecimal digits of either case, shorter
    /// forms such as "1:0.0" too. EINVAL for anything else, with what is wrong as detail.
    [[nodiscard]] static Result<Bdf> parse(std::string_view text);

    /// The kernel's own form, "0000:01:00.0": the name of its directory in sysfs.
    [[nodiscard]] std::string to_string() const;

    auto operator<=>(const Bdf&) const = default;
};

/// Print as Bdf::to_string() does.
std::ostream& operator<<(std::ostream& out, const Bdf& bdf);

} // namespace dmaprobe

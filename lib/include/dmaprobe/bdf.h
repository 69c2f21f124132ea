// SPDX-License-Identifier: MIT
// The address of a PCI function.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <format>
#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>

#include <dmaprobe/result.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// A PCI function's address: domain (segment), bus, device and function. std::format prints it as
/// to_string() does, with the options of a string.
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

/// Formats as Bdf::to_string().
template <>
struct std::formatter<dmaprobe::Bdf> : std::formatter<std::string_view> {
    /// Called by std::format.
    template <class Context>
    auto format(const dmaprobe::Bdf& bdf, Context& context) const {
        return std::formatter<std::string_view>::format(bdf.to_string(), context);
    }
};

/// For unordered containers.
template <>
struct std::hash<dmaprobe::Bdf> {
    /// The hash.
    std::size_t operator()(const dmaprobe::Bdf& bdf) const noexcept {
        return std::hash<std::uint64_t>()(std::uint64_t{bdf.domain} << 16 |
                                          std::uint64_t{bdf.bus} << 8 |
                                          std::uint64_t{bdf.device} << 3 | bdf.function);
    }
};

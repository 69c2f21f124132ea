// SPDX-License-Identifier: MIT
// Addresses and lengths that cannot be mixed up.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <format>
#include <functional>
#include <iosfwd>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

namespace [[gnu::visibility("default")]] dmaprobe {

/// A number of bytes: a length, or an offset inside an object.
///
/// Arithmetic never wraps: what does not fit is max(), be it a sum or product that is too large or
/// a difference below zero, and sums and differences of max() are max(). A range that has max()
/// bytes, or starts or ends there, is refused by every check of the module, so a slip cannot turn
/// into somebody else's address, nor into an empty range that passes. Use the checked_ functions to
/// find out.
///
/// std::format prints it as a number, with all options of one.
class Size {
public:
    /// Zero bytes.
    constexpr Size() noexcept = default;
    /// @param bytes the number of bytes
    constexpr explicit Size(std::uint64_t bytes) noexcept : value_(bytes) {}

    /// The number of bytes.
    [[nodiscard]] constexpr std::uint64_t value() const noexcept { return value_; }
    /// The largest number of bytes, which stands for what does not fit.
    [[nodiscard]] static constexpr Size max() noexcept {
        return Size(std::numeric_limits<std::uint64_t>::max());
    }

    constexpr auto operator<=>(const Size&) const noexcept = default;

private:
    std::uint64_t value_ = 0;
};

/// Sum, or nothing when it does not fit.
[[nodiscard]] constexpr std::optional<Size> checked_add(Size a, Size b) noexcept {
    if (b.value() > Size::max().value() - a.value())
        return std::nullopt;
    return Size(a.value() + b.value());
}
/// Difference, or nothing when it is below zero.
[[nodiscard]] constexpr std::optional<Size> checked_sub(Size a, Size b) noexcept {
    if (b > a)
        return std::nullopt;
    return Size(a.value() - b.value());
}
/// Product, or nothing when it does not fit.
[[nodiscard]] constexpr std::optional<Size> checked_mul(Size a, std::uint64_t n) noexcept {
    if (n != 0 && a.value() > Size::max().value() / n)
        return std::nullopt;
    return Size(a.value() * n);
}
/// Sum; Size::max() when it does not fit.
[[nodiscard]] constexpr Size operator+(Size a, Size b) noexcept {
    return checked_add(a, b).value_or(Size::max());
}
/// Difference; Size::max() when it is below zero, or `a` is that.
[[nodiscard]] constexpr Size operator-(Size a, Size b) noexcept {
    return a == Size::max() ? a : checked_sub(a, b).value_or(Size::max());
}
/// Product; Size::max() when it does not fit.
[[nodiscard]] constexpr Size operator*(Size a, std::uint64_t n) noexcept {
    return checked_mul(a, n).value_or(Size::max());
}
/// Product; Size::max() when it does not fit.
[[nodiscard]] constexpr Size operator*(std::uint64_t n, Size a) noexcept {
    return a * n;
}
/// Add to a size, as operator+().
constexpr Size& operator+=(Size& a, Size b) noexcept {
    return a = a + b;
}
/// Take from a size, as operator-().
constexpr Size& operator-=(Size& a, Size b) noexcept {
    return a = a - b;
}

/// An address of one address space. Addresses of different spaces do not mix, and two addresses
/// cannot be added. What does not fit is max(), as with Size. std::format prints it as to_string()
/// does, with the options of a string.
///
/// @tparam Space a type that names the address space
template <class Space>
class Address {
public:
    /// Address 0.
    constexpr Address() noexcept = default;
    /// @param value the address
    constexpr explicit Address(std::uint64_t value) noexcept : value_(value) {}

    /// The address as a number.
    [[nodiscard]] constexpr std::uint64_t value() const noexcept { return value_; }
    /// The highest address, which stands for what does not fit.
    [[nodiscard]] static constexpr Address max() noexcept {
        return Address(std::numeric_limits<std::uint64_t>::max());
    }
    /// The address rounded down to a multiple of a power of two.
    [[nodiscard]] constexpr Address align_down(Size granule) const noexcept {
        return Address(granule.value() ? value_ & ~(granule.value() - 1) : value_);
    }

    constexpr auto operator<=>(const Address&) const noexcept = default;

    /// Sum, or nothing when it does not fit.
    [[nodiscard]] friend constexpr std::optional<Address> checked_add(Address a, Size b) noexcept {
        if (b.value() > max().value() - a.value())
            return std::nullopt;
        return Address(a.value() + b.value());
    }
    /// Distance, or nothing when `b` lies above `a`.
    [[nodiscard]] friend constexpr std::optional<Size> checked_sub(Address a, Address b) noexcept {
        if (b > a)
            return std::nullopt;
        return Size(a.value() - b.value());
    }
    /// Sum; max() when it does not fit.
    [[nodiscard]] friend constexpr Address operator+(Address a, Size b) noexcept {
        return checked_add(a, b).value_or(max());
    }
    /// Sum; max() when it does not fit.
    [[nodiscard]] friend constexpr Address operator+(Size a, Address b) noexcept { return b + a; }
    /// Distance; Size::max() when `b` lies above `a`, or `a` is max().
    [[nodiscard]] friend constexpr Size operator-(Address a, Address b) noexcept {
        return a == max() ? Size::max() : checked_sub(a, b).value_or(Size::max());
    }
    /// Move an address up, as operator+().
    friend constexpr Address& operator+=(Address& a, Size b) noexcept { return a = a + b; }

private:
    std::uint64_t value_ = 0;
};

/// Names the device's address space.
struct IovaSpaceTag;
/// Names physical memory.
struct PhysSpaceTag;

/// An address as the device gives it to the bus: what the DMA API calls a dma_addr_t.
using Iova = Address<IovaSpaceTag>;
/// A physical address, as iommu_iova_to_phys() gives it. It is only ever looked at: no call takes
/// one.
using Phys = Address<PhysSpaceTag>;

/// A piece of the device's address space; `struct dmaprobe_segment`.
struct Segment {
    Iova addr;   ///< first address
    Size length; ///< bytes

    bool operator==(const Segment&) const = default;
};

/// Who writes the memory; the kernel's enum dma_data_direction.
enum class Direction : std::uint32_t {
    bidirectional = 0, ///< the device reads and writes
    to_device = 1,     ///< the device reads
    from_device = 2,   ///< the device writes
};

/// DMA attributes, or'ed; `enum dmaprobe_attrs`, which are the kernel's DMA_ATTR_* of these names
/// (include/linux/dma-mapping.h of the kernel).
///
/// Each call takes those that the kernel's own call takes. What it does not take is EINVAL; what
/// this kernel does not have, EOPNOTSUPP.
enum class Attr : std::uint64_t {
    none = 0,                   ///< none of them
    weak_ordering = 1 << 0,     ///< reads and writes may be weakly ordered
    write_combine = 1 << 1,     ///< the CPU's writes may be combined
    no_kernel_mapping = 1 << 2, ///< no kernel mapping of the memory is needed
    skip_cpu_sync = 1 << 3,     ///< mapping and unmapping synchronise nothing
    force_contiguous = 1 << 4,  ///< the memory is physically contiguous
    single_pages = 1 << 5,      ///< do not try for large pages (DMA_ATTR_ALLOC_SINGLE_PAGES)
    no_warn = 1 << 6,           ///< a failure is not logged
    privileged = 1 << 7,        ///< for the device's privileged accesses only
    mmio = 1 << 8,              ///< the range is memory-mapped I/O; Linux 6.18
    require_coherent = 1 << 9,  ///< fail where coherence needs bouncing; Linux 7.0
    cc_shared = 1 << 10,        ///< shared with the host of a confidential guest; Linux 7.0
};

/// All attributes of both.
[[nodiscard]] constexpr Attr operator|(Attr a, Attr b) noexcept {
    return Attr(static_cast<std::uint64_t>(a) | static_cast<std::uint64_t>(b));
}
/// The attributes that both have.
[[nodiscard]] constexpr Attr operator&(Attr a, Attr b) noexcept {
    return Attr(static_cast<std::uint64_t>(a) & static_cast<std::uint64_t>(b));
}
/// Add attributes.
constexpr Attr& operator|=(Attr& a, Attr b) noexcept {
    return a = a | b;
}
/// Whether all of these attributes are set.
[[nodiscard]] constexpr bool has(Attr set, Attr these) noexcept {
    return (set & these) == these;
}

/// "bidirectional", "to_device" or "from_device"; "unknown" for another value.
[[nodiscard]] std::string_view to_string(Direction direction) noexcept;
/// "none", or the attributes' names with '|' between them; bits without a name in hexadecimal.
[[nodiscard]] std::string to_string(Attr attrs);
/// The number of bytes in decimal.
[[nodiscard]] std::string to_string(Size size);
/// The address in hexadecimal with 0x.
[[nodiscard]] std::string to_string(Iova iova);
/// The address in hexadecimal with 0x.
[[nodiscard]] std::string to_string(Phys phys);

/// Print as to_string() does.
std::ostream& operator<<(std::ostream& out, Direction direction);
/// Print as to_string() does.
std::ostream& operator<<(std::ostream& out, Attr attrs);
/// Print as to_string() does.
std::ostream& operator<<(std::ostream& out, Size size);
/// Print as to_string() does.
std::ostream& operator<<(std::ostream& out, Iova iova);
/// Print as to_string() does.
std::ostream& operator<<(std::ostream& out, Phys phys);

/// Formats what has a to_string() as that prints it, with the options of a string.
///
/// @tparam T Iova, Phys, Direction, Attr, Extent
template <class T>
struct TextFormatter : std::formatter<std::string_view> {
    /// Called by std::format.
    template <class Context>
    auto format(const T& value, Context& context) const {
        return std::formatter<std::string_view>::format(to_string(value), context);
    }
};

/// `using namespace dmaprobe::literals;` gives 512_B, 4_KiB and 1_MiB as Size.
namespace literals {
/// Bytes.
[[nodiscard]] consteval Size operator""_B(unsigned long long n) {
    return Size(n);
}
/// Units of 1024 bytes.
[[nodiscard]] consteval Size operator""_KiB(unsigned long long n) {
    return Size(n) * 1024;
}
/// Units of 1024 KiB.
[[nodiscard]] consteval Size operator""_MiB(unsigned long long n) {
    return Size(n) * 1048576;
}
} // namespace literals

} // namespace dmaprobe

/// Formats as a number.
template <>
struct std::formatter<dmaprobe::Size> : std::formatter<std::uint64_t> {
    /// Called by std::format.
    template <class Context>
    auto format(dmaprobe::Size size, Context& context) const {
        return std::formatter<std::uint64_t>::format(size.value(), context);
    }
};
/// Formats as to_string().
template <class Space>
struct std::formatter<dmaprobe::Address<Space>>
    : dmaprobe::TextFormatter<dmaprobe::Address<Space>> {};
/// Formats as to_string().
template <>
struct std::formatter<dmaprobe::Direction> : dmaprobe::TextFormatter<dmaprobe::Direction> {};
/// Formats as to_string().
template <>
struct std::formatter<dmaprobe::Attr> : dmaprobe::TextFormatter<dmaprobe::Attr> {};

/// For unordered containers.
template <>
struct std::hash<dmaprobe::Size> {
    /// The hash.
    std::size_t operator()(dmaprobe::Size size) const noexcept {
        return std::hash<std::uint64_t>()(size.value());
    }
};
/// For unordered containers.
template <class Space>
struct std::hash<dmaprobe::Address<Space>> {
    /// The hash.
    std::size_t operator()(dmaprobe::Address<Space> address) const noexcept {
        return std::hash<std::uint64_t>()(address.value());
    }
};

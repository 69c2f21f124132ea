// SPDX-License-Identifier: MIT
// Errors, addresses and BDFs as text.
#include <dmaprobe/bdf.h>
#include <dmaprobe/query.h>
#include <dmaprobe/result.h>
#include <dmaprobe/types.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <format>
#include <ostream>
#include <utility>

#include <linux/dmaprobe.h>

namespace dmaprobe {

std::string errno_name(int code) {
    const char* name = ::strerrorname_np(code);
    return name != nullptr ? name : std::to_string(code);
}

std::string Error::message() const {
    std::string what = detail;
    if (what.empty()) {
        const char* text = ::strerrordesc_np(code);
        what = text != nullptr ? text : "unknown error";
    }
    return std::format("{}{}{} ({})", op, op.empty() ? "" : ": ", what, errno_name(code));
}

std::ostream& operator<<(std::ostream& out, const Error& error) {
    return out << error.message();
}

std::string_view to_string(Direction direction) noexcept {
    switch (direction) {
    case Direction::bidirectional:
        return "bidirectional";
    case Direction::to_device:
        return "to_device";
    case Direction::from_device:
        return "from_device";
    }
    return "unknown";
}

namespace {

using AttrName = std::pair<Attr, std::string_view>;

constexpr std::array attr_names{
    AttrName{Attr::weak_ordering, "weak_ordering"},
    AttrName{Attr::write_combine, "write_combine"},
    AttrName{Attr::no_kernel_mapping, "no_kernel_mapping"},
    AttrName{Attr::skip_cpu_sync, "skip_cpu_sync"},
    AttrName{Attr::force_contiguous, "force_contiguous"},
    AttrName{Attr::single_pages, "single_pages"},
    AttrName{Attr::no_warn, "no_warn"},
    AttrName{Attr::privileged, "privileged"},
    AttrName{Attr::mmio, "mmio"},
    AttrName{Attr::require_coherent, "require_coherent"},
    AttrName{Attr::cc_shared, "cc_shared"},
};

constexpr bool is(Attr attr, std::uint64_t abi) {
    return static_cast<std::uint64_t>(attr) == abi;
}

static_assert(is(Attr::weak_ordering, DMAPROBE_ATTR_WEAK_ORDERING));
static_assert(is(Attr::write_combine, DMAPROBE_ATTR_WRITE_COMBINE));
static_assert(is(Attr::no_kernel_mapping, DMAPROBE_ATTR_NO_KERNEL_MAPPING));
static_assert(is(Attr::skip_cpu_sync, DMAPROBE_ATTR_SKIP_CPU_SYNC));
static_assert(is(Attr::force_contiguous, DMAPROBE_ATTR_FORCE_CONTIGUOUS));
static_assert(is(Attr::single_pages, DMAPROBE_ATTR_ALLOC_SINGLE_PAGES));
static_assert(is(Attr::no_warn, DMAPROBE_ATTR_NO_WARN));
static_assert(is(Attr::privileged, DMAPROBE_ATTR_PRIVILEGED));
static_assert(is(Attr::mmio, DMAPROBE_ATTR_MMIO));
static_assert(is(Attr::require_coherent, DMAPROBE_ATTR_REQUIRE_COHERENT));
static_assert(is(Attr::cc_shared, DMAPROBE_ATTR_CC_SHARED));

} // namespace

std::string to_string(Attr attrs) {
    auto left = static_cast<std::uint64_t>(attrs);
    std::string text;
    const auto append = [&text](std::string_view word) {
        text.append(text.empty() ? "" : "|").append(word);
    };
    for (const auto& [attr, name] : attr_names) {
        if (!has(attrs, attr))
            continue;
        append(name);
        left &= ~static_cast<std::uint64_t>(attr);
    }
    if (left != 0)
        append(std::format("{:#x}", left));
    return text.empty() ? "none" : text;
}

std::string to_string(Size size) {
    return std::to_string(size.value());
}
std::string to_string(Iova iova) {
    return std::format("{:#x}", iova.value());
}
std::string to_string(Phys phys) {
    return std::format("{:#x}", phys.value());
}

std::ostream& operator<<(std::ostream& out, Direction direction) {
    return out << to_string(direction);
}
std::ostream& operator<<(std::ostream& out, Attr attrs) {
    return out << to_string(attrs);
}
std::ostream& operator<<(std::ostream& out, Size size) {
    return out << to_string(size);
}
std::ostream& operator<<(std::ostream& out, Iova iova) {
    return out << to_string(iova);
}
std::ostream& operator<<(std::ostream& out, Phys phys) {
    return out << to_string(phys);
}

std::string_view to_string(CallStatus status) noexcept {
    switch (status) {
    case CallStatus::offered:
        return "offered";
    case CallStatus::missing:
        return "missing";
    case CallStatus::gone:
        return "gone";
    case CallStatus::not_driven:
        return "not-driven";
    }
    return "unknown";
}

std::string_view to_string(DomainType type) noexcept {
    switch (type) {
    case DomainType::none:
        return "none";
    case DomainType::identity:
        return "identity";
    case DomainType::dma:
        return "DMA";
    case DomainType::dma_fq:
        return "DMA-FQ";
    case DomainType::other:
        return "other";
    }
    return "unknown";
}

std::string_view to_string(ReservedType type) noexcept {
    switch (type) {
    case ReservedType::direct:
        return "direct";
    case ReservedType::direct_relaxable:
        return "direct-relaxable";
    case ReservedType::reserved:
        return "reserved";
    case ReservedType::msi:
        return "msi";
    case ReservedType::sw_msi:
        return "sw-msi";
    }
    return "unknown";
}

namespace {

/// A hexadecimal number of 1 to `digits` digits that makes up all of `text`.
bool parse_hex(std::string_view text, std::size_t digits, std::uint32_t& value) {
    if (text.empty() || text.size() > digits)
        return false;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    return error == std::errc() && end == text.data() + text.size();
}

} // namespace

Result<Bdf> Bdf::parse(std::string_view text) {
    const auto bad = [text](std::string_view why) {
        return std::unexpected(Error{
            EINVAL, "bdf",
            std::format("'{}' is no PCI address: {}; it looks like 0000:01:00.0", text, why)});
    };

    const auto dot = text.rfind('.');
    if (dot == std::string_view::npos)
        return bad("no '.' before the function");
    const auto colon = text.rfind(':', dot);
    if (colon == std::string_view::npos)
        return bad("no ':' between bus and device");
    const auto first = text.find(':');

    std::uint32_t domain = 0;
    std::uint32_t bus = 0;
    std::uint32_t device = 0;
    std::uint32_t function = 0;
    const std::size_t bus_start = first == colon ? 0 : first + 1;
    if (first != colon && !parse_hex(text.substr(0, first), 8, domain))
        return bad("the domain is no hexadecimal number");
    if (!parse_hex(text.substr(bus_start, colon - bus_start), 2, bus))
        return bad("the bus is no number from 00 to ff");
    if (!parse_hex(text.substr(colon + 1, dot - colon - 1), 2, device) || device > 0x1f)
        return bad("the device is no number from 00 to 1f");
    if (!parse_hex(text.substr(dot + 1), 1, function) || function > 7)
        return bad("the function is no number from 0 to 7");

    return Bdf{domain, static_cast<std::uint8_t>(bus), static_cast<std::uint8_t>(device),
               static_cast<std::uint8_t>(function)};
}

std::string Bdf::to_string() const {
    return std::format("{:04x}:{:02x}:{:02x}.{:x}", domain, bus, device, function);
}

std::ostream& operator<<(std::ostream& out, const Bdf& bdf) {
    return out << bdf.to_string();
}

} // namespace dmaprobe

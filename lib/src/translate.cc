// SPDX-License-Identifier: MIT
// What the IOMMU's page tables say about a range.
#include <dmaprobe/translate.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <format>
#include <ostream>
#include <span>
#include <utility>

#include <linux/dmaprobe.h>

namespace dmaprobe {

std::string_view to_string(ExtentKind kind) noexcept {
    switch (kind) {
    case ExtentKind::hole:
        return "hole";
    case ExtentKind::buffer:
        return "buffer";
    case ExtentKind::foreign:
        return "foreign";
    }
    return "unknown";
}

std::string to_string(const Extent& extent) {
    std::string text =
        std::format("[{}, +{:#x}) {}", extent.iova, extent.length, to_string(extent.kind));
    if (extent.kind == ExtentKind::buffer)
        text += std::format(" {} + {:#x}", extent.buffer_id, extent.buffer_offset);
    if (extent.phys)
        text += std::format(" phys {}", *extent.phys);
    return text;
}

std::ostream& operator<<(std::ostream& out, const Extent& extent) {
    return out << to_string(extent);
}

namespace {

/// What one command is asked for at most: it bounds the time of one call.
constexpr std::uint64_t max_chunk = 4ULL << 30;

Extent from_abi(const dmaprobe_extent& raw, bool with_phys) {
    Extent extent;
    extent.iova = Iova(raw.iova);
    extent.length = Size(raw.length);
    extent.kind = static_cast<ExtentKind>(raw.kind);
    extent.buffer_id = raw.buffer_id;
    extent.buffer_offset = Size(raw.buffer_offset);
    if (with_phys && extent.kind != ExtentKind::hole)
        extent.phys = Phys(raw.phys);
    return extent;
}

/// Whether `next` continues `last`, by the rules that the module joins granules by. Inside one
/// answer it has done so; what an answer that was full cut is joined here.
///
/// Without physical addresses nothing shows whether two foreign extents are neighbours in memory,
/// so they stay two.
bool continues(const Extent& last, const Extent& next) {
    if (last.kind != next.kind || last.iova + last.length != next.iova)
        return false;
    switch (last.kind) {
    case ExtentKind::hole:
        return true;
    case ExtentKind::buffer:
        return last.buffer_id == next.buffer_id &&
               last.buffer_offset + last.length == next.buffer_offset &&
               (!last.phys || (next.phys && *last.phys + last.length == *next.phys));
    case ExtentKind::foreign:
        return last.phys && next.phys && *last.phys + last.length == *next.phys;
    }
    return false;
}

} // namespace

Result<std::vector<Extent>> translate(const Session& session, Iova iova, Size length,
                                      const TranslateOptions& options) {
    // The last byte must have an address; its successor need not.
    if (length.value() != 0 && !checked_add(iova, Size(length.value() - 1)))
        return std::unexpected(
            Error{EINVAL, "translate", "the range passes the end of the address space"});

    std::vector<Extent> extents;
    std::array<dmaprobe_extent, 256> room{};
    std::uint64_t at = iova.value();
    std::uint64_t left = length.value();
    do {
        dmaprobe_translate arg{};
        arg.flags = options.phys ? DMAPROBE_TRANSLATE_PHYS : 0;
        arg.iova = at;
        arg.length = std::min(left, max_chunk);
        arg.buffer_id = options.buffer_hint;
        arg.nr_extents = static_cast<std::uint32_t>(room.size());
        arg.extents = reinterpret_cast<std::uintptr_t>(room.data());
        if (auto done = session.call(DMAPROBE_TRANSLATE, "translate", arg); !done)
            return std::unexpected(std::move(done.error()));
        if (arg.translated == 0 || arg.translated > left || arg.nr_extents > room.size())
            return std::unexpected(Error{EPROTO, "translate", "the module made no progress"});

        for (const auto& raw : std::span(room).first(arg.nr_extents)) {
            const Extent extent = from_abi(raw, options.phys);
            if (!extents.empty() && continues(extents.back(), extent))
                extents.back().length += extent.length;
            else
                extents.push_back(extent);
        }
        at += arg.translated;
        left -= arg.translated;
    } while (left != 0);
    return extents;
}

} // namespace dmaprobe

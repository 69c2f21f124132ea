// SPDX-License-Identifier: MIT
// What the IOMMU's page tables say about a range of IOVA space.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// Where an extent leads; `enum dmaprobe_extent_kind`.
enum class ExtentKind : std::uint32_t {
    hole = 0,    ///< nowhere: nothing is mapped
    buffer = 1,  ///< into a buffer or an allocation of this session
    foreign = 2, ///< into memory that is none of these
};

/// "hole", "buffer", "foreign"; "unknown" for another value.
[[nodiscard]] std::string_view to_string(ExtentKind kind) noexcept;

/// A piece of IOVA space that is translated alike; `struct dmaprobe_extent`.
struct Extent {
    Iova iova;                          ///< first address
    Size length;                        ///< bytes
    ExtentKind kind = ExtentKind::hole; ///< where it leads
    std::uint32_t buffer_id = 0;        ///< the buffer or allocation, for ExtentKind::buffer
    Size buffer_offset;                 ///< where in that
    std::optional<Phys> phys;           ///< physical address, when asked for and not a hole

    bool operator==(const Extent&) const = default;
};

/// An extent in one line.
[[nodiscard]] std::string to_string(const Extent& extent);
/// Print as to_string() does.
std::ostream& operator<<(std::ostream& out, const Extent& extent);

/// What translate() is to do besides the usual.
struct TranslateOptions {
    std::uint32_t buffer_hint = 0; ///< id of the buffer to look into first, or 0; changes no result
    bool phys = false;             ///< report physical addresses too; EPERM without CAP_SYS_ADMIN
};

/// Ask iommu_iova_to_phys() for every granule of a range; DMAPROBE_TRANSLATE.
///
/// The extents cover the range without a gap, in order, and neighbours that belong together are one
/// extent, however many calls that takes. With physical addresses, each extent is physically
/// contiguous.
///
/// @param length bytes, at least 1
/// EOPNOTSUPP without an IOMMU; EINVAL when the range is empty or passes the end of the address
/// space; EBUSY when another driver has a function of the device's IOMMU group; EINTR when a signal
/// arrives.
[[nodiscard]] Result<std::vector<Extent>> translate(const Session& session, Iova iova, Size length,
                                                    const TranslateOptions& options = {});

} // namespace dmaprobe

/// Formats as to_string().
template <>
struct std::formatter<dmaprobe::Extent> : dmaprobe::TextFormatter<dmaprobe::Extent> {};

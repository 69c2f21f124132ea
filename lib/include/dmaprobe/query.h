// SPDX-License-Identifier: MIT
// What the module reports about itself, the kernel, the device and its IOMMU domain.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// The version of the ABI, and what the kernel offers; `struct dmaprobe_get_info`.
struct Info {
    std::uint32_t abi_version = 0; ///< DMAPROBE_ABI_VERSION of the module
    bool dma_iova = false;         ///< the kernel has the dma_iova_*() calls (Linux 6.16)
    bool map_phys = false;         ///< the kernel has dma_map_phys() (Linux 6.18)
    Attr attrs = Attr::none;       ///< the attributes that the kernel has
};

/// What becomes of a call of the kernel's DMA API.
enum class CallStatus : std::uint32_t {
    offered = 0,    ///< this kernel has it and a command drives it
    missing = 1,    ///< a command drives it, but this kernel does not have it
    gone = 2,       ///< older kernels had it
    not_driven = 3, ///< kernels have it, but no command drives it
};

/// A call of the kernel's DMA API.
struct Call {
    std::string name;                        ///< the kernel function
    CallStatus status = CallStatus::offered; ///< whether it can be driven
    std::string detail;                      ///< the command that drives it, or why there is none
};

/// The calls of the kernel's DMA API, old and new, as they are on a kernel that offers this. The
/// list is the library's own; Session::calls() gives that of the running kernel.
[[nodiscard]] std::vector<Call> kernel_calls(const Info& info);

/// What the DMA API says to a driver about the device; `struct dmaprobe_get_limits`.
struct Limits {
    bool coherent = false;               ///< DMA is coherent with the CPU caches
    bool need_sync = false;              ///< dma_dev_need_sync()
    bool need_unmap = false;             ///< dma_need_unmap()
    bool addressing_limited = false;     ///< dma_addressing_limited()
    bool iommu = false;                  ///< an IOMMU translates, so that IOVA spaces can be had
    bool can_mmap = false;               ///< dma_can_mmap(): coherent memory can be mmapped
    bool confined = false;               ///< as Session::enable() wants it without CAP_SYS_RAWIO
    Size max_segment_size;               ///< dma_get_max_seg_size()
    std::uint64_t dma_mask = 0;          ///< dma_get_mask()
    std::uint64_t coherent_dma_mask = 0; ///< coherent mask
    std::uint64_t required_mask = 0;     ///< dma_get_required_mask()
    std::uint64_t bus_dma_limit = 0;     ///< limit of the bus; 0 when there is none
    Size max_mapping_size;               ///< dma_max_mapping_size()
    Size opt_mapping_size;               ///< dma_opt_mapping_size()
    std::uint64_t merge_boundary = 0;    ///< dma_get_merge_boundary(): granule - 1, or 0
    std::uint64_t segment_boundary_mask = 0; ///< dma_get_seg_boundary()
    std::uint64_t min_align_mask = 0;        ///< dma_get_min_align_mask()
    Size cache_alignment;                    ///< dma_get_cache_alignment()
};

/// Limits of a segment that Session::set_segments() sets: those that are given.
struct SegmentLimits {
    /// The longest segment, at least a page; dma_set_max_seg_size().
    std::optional<Size> max_size = std::nullopt;
    /// Segments do not cross multiples of this plus one: ones from bit 0 up, at least the page
    /// size - 1; dma_set_seg_boundary().
    std::optional<std::uint64_t> boundary_mask = std::nullopt;
    /// Bits of an address that bouncing must keep: ones from bit 0 up, at most 11 of them, or 0;
    /// dma_set_min_align_mask().
    std::optional<std::uint32_t> min_align_mask = std::nullopt;
};

/// What a session holds; `struct dmaprobe_get_stats`.
struct Stats {
    std::uint32_t nr_buffers = 0;  ///< buffers
    std::uint32_t nr_mappings = 0; ///< mappings
    std::uint32_t nr_iovas = 0;    ///< IOVA spaces
    std::uint32_t nr_allocs = 0;   ///< allocations
    std::uint32_t nr_pools = 0;    ///< pools
    std::uint32_t nr_blocks = 0;   ///< blocks of pools
    Size charged;                  ///< bytes charged to the session's limit
    Size pinned;                   ///< bytes of user memory that it has pinned

    bool operator==(const Stats&) const = default;
};

/// Type of the IOMMU domain behind the DMA API; `enum dmaprobe_domain_type`.
enum class DomainType : std::uint32_t {
    none = 0,     ///< no IOMMU
    identity = 1, ///< addresses pass through
    dma = 2,      ///< translated, invalidated at once (strict)
    dma_fq = 3,   ///< translated, invalidated later (lazy)
    other = 4,    ///< none of these
};

/// Type of a reserved region; `enum dmaprobe_resv_type`.
enum class ReservedType : std::uint32_t {
    direct = 0,           ///< mapped one to one from boot on
    direct_relaxable = 1, ///< the same, unless the device is assigned
    reserved = 2,         ///< not usable
    msi = 3,              ///< MSI doorbells, not translated
    sw_msi = 4,           ///< MSI doorbells, mapped by software
};

/// A reserved region of IOVA space; `struct dmaprobe_resv_region`.
struct ReservedRegion {
    Iova start;                                 ///< first address
    Size length;                                ///< bytes
    ReservedType type = ReservedType::reserved; ///< why it is reserved
};

/// The IOMMU domain behind the device's DMA API; `struct dmaprobe_get_domain`.
struct Domain {
    DomainType type = DomainType::none;  ///< with none, all else is empty
    std::uint64_t pgsize_bitmap = 0;     ///< page sizes, or'ed
    Iova aperture_start;                 ///< first usable IOVA
    Iova aperture_end;                   ///< last usable IOVA (not one past it)
    std::string iommu;                   ///< the IOMMU instance, as under /sys/class/iommu
    std::string driver;                  ///< the IOMMU's driver
    std::vector<ReservedRegion> regions; ///< reserved regions of IOVA space

    /// The smallest page size: what a translation is made of. Zero without an IOMMU.
    [[nodiscard]] Size granule() const noexcept {
        return Size(pgsize_bitmap & (~pgsize_bitmap + 1));
    }
};

/// "offered", "missing", "gone", "not-driven"; "unknown" for another value.
[[nodiscard]] std::string_view to_string(CallStatus status) noexcept;
/// "identity", "DMA", "DMA-FQ" (the words of /sys/kernel/iommu_groups/N/type), "none", "other";
/// "unknown" for another value.
[[nodiscard]] std::string_view to_string(DomainType type) noexcept;
/// "direct", "direct-relaxable", "reserved", "msi", "sw-msi" (the words of sysfs); "unknown" for
/// another value.
[[nodiscard]] std::string_view to_string(ReservedType type) noexcept;

} // namespace dmaprobe

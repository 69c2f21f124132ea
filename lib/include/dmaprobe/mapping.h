// SPDX-License-Identifier: MIT
// Streaming mappings of buffers.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include <dmaprobe/buffer.h>
#include <dmaprobe/result.h>
#include <dmaprobe/types.h>

namespace dmaprobe {

/// The kernel call that maps; `enum dmaprobe_map_kind`.
enum class MapKind : std::uint32_t {
    single = 0, ///< dma_map_single()
    page = 1,   ///< dma_map_page()
    phys = 2,   ///< dma_map_phys(), where the kernel has it
};

/// "single", "page", "phys"; "unknown" for another value.
[[nodiscard]] std::string_view to_string(MapKind kind) noexcept;

/// One streaming mapping of a range of a buffer; DMAPROBE_MAP.
///
/// While it lives, the device may use the memory and the CPU only after sync_for_cpu(), as
/// Documentation/core-api/dma-api.rst of the kernel says. It is unmapped by unmap() or by the
/// destructor.
class Mapping {
public:
    /// Map a range of a buffer.
    ///
    /// @param buffer_offset start of the range in the buffer, bytes
    /// @param length bytes, at least 1; the range must be physically contiguous
    /// @param attrs DMA attributes; none is defined yet
    /// EINVAL: a bad range or direction. EOPNOTSUPP: this kernel lacks the call, or an unknown
    /// attribute. ENOMEM: the kernel answered with a mapping error. EIO: the device cannot reach
    /// the memory and nothing can bounce it.
    [[nodiscard]] static Result<Mapping> map(const Buffer& buffer, MapKind kind, Size buffer_offset,
                                             Size length, Direction direction,
                                             std::uint64_t attrs = 0);

    Mapping(Mapping&&) noexcept;
    Mapping& operator=(Mapping&&) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    /// Unmaps, best effort.
    ~Mapping();

    /// Unmap; DMAPROBE_UNMAP. After ENODEV and EBADF (device or session gone) the object is closed
    /// all the same. A second unmap is no error.
    Result<void> unmap();

    /// Make a range visible to the CPU; dma_sync_single_range_for_cpu().
    /// @param offset start of the range in the mapping
    /// @param length bytes, at least 1
    /// EINVAL when the range leaves the mapping.
    Result<void> sync_for_cpu(Size offset, Size length) const;
    /// The same for the whole mapping.
    Result<void> sync_for_cpu() const { return sync_for_cpu(Size(), length_); }
    /// Make a range visible to the device; dma_sync_single_range_for_device().
    Result<void> sync_for_device(Size offset, Size length) const;
    /// The same for the whole mapping.
    Result<void> sync_for_device() const { return sync_for_device(Size(), length_); }

    /// The id; 0 when unmapped.
    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
    /// The address to give to the device.
    [[nodiscard]] Iova dma_addr() const noexcept { return dma_addr_; }
    /// Bytes.
    [[nodiscard]] Size length() const noexcept { return length_; }
    /// The direction it was mapped with.
    [[nodiscard]] Direction direction() const noexcept { return direction_; }
    /// The call it was mapped with.
    [[nodiscard]] MapKind kind() const noexcept { return kind_; }
    /// Whether syncs have work to do; dma_need_sync().
    [[nodiscard]] bool need_sync() const noexcept { return need_sync_; }

private:
    Mapping() noexcept = default;
    Result<void> sync(std::uint32_t target, Size offset, Size length) const;

    std::shared_ptr<Channel> channel_;
    std::uint32_t id_ = 0;
    MapKind kind_ = MapKind::single;
    Direction direction_ = Direction::bidirectional;
    bool need_sync_ = false;
    Iova dma_addr_;
    Size length_;
};

} // namespace dmaprobe

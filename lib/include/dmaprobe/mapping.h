// SPDX-License-Identifier: MIT
// Streaming mappings: of buffers, of lists of them, of BARs and of dma-bufs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <dmaprobe/buffer.h>
#include <dmaprobe/result.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// How something is mapped. Mapping::map() takes the first three, `enum dmaprobe_map_kind`;
/// Mapping::kind() returns the others as well.
enum class MapKind : std::uint32_t {
    single = 0,       ///< dma_map_single()
    page = 1,         ///< dma_map_page()
    phys = 2,         ///< dma_map_phys(), where the kernel has it
    sg_list = 0x100,  ///< dma_map_sg_attrs(); Mapping::map_sg()
    sg_table = 0x101, ///< dma_map_sgtable(); Mapping::map_sg()
    resource = 0x200, ///< dma_map_resource(); Mapping::map_resource()
    dmabuf = 0x300,   ///< dma_buf_map_attachment(); Mapping::import_dmabuf()
};

/// The names of the enumerators; "unknown" for another value.
[[nodiscard]] std::string_view to_string(MapKind kind) noexcept;

/// The kernel call that maps a list; `enum dmaprobe_map_sg_kind`.
enum class SgKind : std::uint32_t {
    list = 0,  ///< dma_map_sg_attrs(), whose failure has no reason: EIO
    table = 1, ///< dma_map_sgtable()
};

/// A range of a buffer in a scatter-gather list; `struct dmaprobe_sg_entry`.
struct SgEntry {
    std::reference_wrapper<const Buffer> buffer; ///< the buffer
    Size offset;                                 ///< start of the range in it
    Size length; ///< bytes, at least 1; the range must be physically contiguous
};

/// One streaming mapping; DMAPROBE_MAP, DMAPROBE_MAP_SG, DMAPROBE_MAP_RESOURCE,
/// DMAPROBE_MAP_DMABUF.
///
/// While it lives, the device may use the memory and the CPU only after sync_for_cpu(), as
/// Documentation/core-api/dma-api.rst of the kernel says. It ends by unmap() or by the
/// destructor.
class Mapping {
public:
    /// Map a range of a buffer.
    ///
    /// @param buffer_offset start of the range in the buffer, bytes
    /// @param length bytes, at least 1; the range must be physically contiguous
    /// @param attrs weak_ordering, skip_cpu_sync, no_warn, privileged, require_coherent; also
    ///        cc_shared, which needs CAP_SYS_RAWIO (EPERM)
    /// EINVAL: a bad range, direction or attribute. EOPNOTSUPP: this kernel lacks the call or the
    /// attribute. ENOMEM: the kernel answered with a mapping error. EIO: the device cannot reach
    /// the memory and nothing can bounce it. EACCES: the buffer is read-only, and the device could
    /// write.
    [[nodiscard]] static Result<Mapping> map(const Buffer& buffer, MapKind kind, Size buffer_offset,
                                             Size length, Direction direction,
                                             Attr attrs = Attr::none);

    /// Map a scatter-gather list: ranges of buffers of one session, from 1 to 65536. The kernel may
    /// merge neighbours, so that there can be fewer segments() than entries.
    ///
    /// @param attrs as map(), without cc_shared
    /// EINVAL: an empty or too long list, more than 1 GiB, or what map() refuses; also an entry
    /// longer than Limits::max_segment_size, or than what fits between two segment boundaries.
    /// ENOENT: a buffer of another session. ENOMEM, EIO: as the kernel's call answers.
    [[nodiscard]] static Result<Mapping> map_sg(std::span<const SgEntry> entries, SgKind kind,
                                                Direction direction, Attr attrs = Attr::none);

    /// Map part of a memory BAR of the session's device.
    ///
    /// @param bar number of the BAR, 0 to 5
    /// @param offset start of the range in the BAR, bytes
    /// @param length bytes, at least 1
    /// @param attrs weak_ordering, skip_cpu_sync, no_warn, privileged
    /// ENXIO: no such memory BAR. ENOMEM: the kernel answered with a mapping error. EIO: the device
    /// cannot reach it.
    [[nodiscard]] static Result<Mapping> map_resource(const Session& session, unsigned bar,
                                                      Size offset, Size length, Direction direction,
                                                      Attr attrs = Attr::none);

    /// Attach the session's device to a dma-buf, and map that. The mapping holds the dma-buf; the
    /// descriptor stays the caller's to close. Who exported it can take the memory away: segments()
    /// are none then.
    ///
    /// EBADF: no open file. EINVAL: no dma-buf, or one that dmaprobe did not export and that is
    /// longer than the device's longest segment (Session::set_segments()). Otherwise as the
    /// exporter answers.
    [[nodiscard]] static Result<Mapping> import_dmabuf(const Session& session, int fd,
                                                       Direction direction);

    Mapping(Mapping&&) noexcept;
    Mapping& operator=(Mapping&&) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    /// Unmaps, best effort.
    ~Mapping();

    /// Unmap with the attributes it was mapped with; DMAPROBE_UNMAP. After ENODEV and EBADF (device
    /// or session gone) the object has ended all the same. A second unmap is no error.
    [[nodiscard]] Result<void> unmap() { return unmap(attrs_); }
    /// The same with other attributes.
    /// @param attrs those it was mapped with, of which skip_cpu_sync may differ; none for a dma-buf
    /// EINVAL: other ones; it stays mapped.
    [[nodiscard]] Result<void> unmap(Attr attrs);

    /// Make a range visible to the CPU; dma_sync_single_range_for_cpu(), and for a list
    /// dma_sync_sg_for_cpu() or dma_sync_sgtable_for_cpu(), which take the whole only.
    /// @param offset start of the range in the mapping
    /// @param length bytes, at least 1
    /// EINVAL: the range leaves the mapping, or is not all of a list. EOPNOTSUPP: a BAR or a
    /// dma-buf.
    [[nodiscard]] Result<void> sync_for_cpu(Size offset, Size length) const;
    /// The same for the whole mapping.
    [[nodiscard]] Result<void> sync_for_cpu() const { return sync_for_cpu(Size(), length_); }
    /// Make a range visible to the device; the counterparts of what sync_for_cpu() calls.
    [[nodiscard]] Result<void> sync_for_device(Size offset, Size length) const;
    /// The same for the whole mapping.
    [[nodiscard]] Result<void> sync_for_device() const { return sync_for_device(Size(), length_); }

    /// What the device is given, in order; DMAPROBE_GET_SEGMENTS.
    [[nodiscard]] Result<std::vector<Segment>> segments() const;

    /// The id; 0 when it has ended.
    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
    /// The address to give to the device. Lists and dma-bufs have segments() instead; 0 here.
    [[nodiscard]] Iova dma_addr() const noexcept { return dma_addr_; }
    /// Bytes, those of all entries together.
    [[nodiscard]] Size length() const noexcept { return length_; }
    /// How many segments there were when it was mapped; 1 but for lists and dma-bufs.
    [[nodiscard]] std::uint32_t nr_segments() const noexcept { return nr_segments_; }
    /// The direction it was mapped with.
    [[nodiscard]] Direction direction() const noexcept { return direction_; }
    /// The attributes it was mapped with.
    [[nodiscard]] Attr attrs() const noexcept { return attrs_; }
    /// The call it was mapped with.
    [[nodiscard]] MapKind kind() const noexcept { return kind_; }
    /// Whether syncs have work to do; dma_need_sync().
    [[nodiscard]] bool need_sync() const noexcept { return need_sync_; }

private:
    friend struct ChannelOf;
    template <class Object>
    friend class Ref;
    Mapping() noexcept = default;

    std::shared_ptr<Channel> channel_;
    std::uint32_t id_ = 0;
    MapKind kind_ = MapKind::single;
    Direction direction_ = Direction::bidirectional;
    Attr attrs_ = Attr::none;
    bool need_sync_ = false;
    std::uint32_t nr_segments_ = 1;
    Iova dma_addr_;
    Size length_;
};

} // namespace dmaprobe

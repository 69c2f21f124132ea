// SPDX-License-Identifier: MIT
// Memory that the DMA API allocates: mapped for the device from the start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <dmaprobe/dmabuf.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// The kernel call that allocates; `enum dmaprobe_alloc_kind`.
enum class AllocKind : std::uint32_t {
    coherent = 0,      ///< dma_alloc_attrs()
    noncoherent = 1,   ///< dma_alloc_noncoherent()
    pages = 2,         ///< dma_alloc_pages()
    noncontiguous = 3, ///< dma_alloc_noncontiguous()
};

/// "coherent", "noncoherent", "pages", "noncontiguous"; "unknown" for another value.
[[nodiscard]] std::string_view to_string(AllocKind kind) noexcept;

/// How to allocate.
struct AllocOptions {
    /// Who writes the memory; coherent memory is bidirectional.
    Direction direction = Direction::bidirectional;
    /// For coherent memory weak_ordering, write_combine, no_kernel_mapping, force_contiguous,
    /// single_pages, no_warn, privileged; for noncontiguous memory single_pages; otherwise none.
    Attr attrs = Attr::none;
    /// Whether to mmap it into the program, which some platforms cannot do (Limits::can_mmap).
    bool mmap = true;
};

/// A physically contiguous piece of an allocation; `struct dmaprobe_sgtable_entry`.
struct AllocPiece {
    Size length;              ///< bytes
    std::optional<Phys> phys; ///< physical address, when asked for
};

/// Memory allocated and mapped by the DMA API, zeroed; DMAPROBE_ALLOC.
///
/// It is one segment of the device's address space. It ends by free() or the destructor, the
/// latter best effort. When the device goes away, the memory goes as well: touching bytes() gives
/// SIGBUS.
class Alloc {
public:
    /// Allocate, and mmap (dma_mmap_attrs(), dma_mmap_pages(), dma_mmap_noncontiguous()).
    ///
    /// @param length bytes, from 1 to 256 MiB
    /// EINVAL: a bad length, or a direction or attribute that the kind does not take; also for
    /// noncontiguous memory longer than the device's longest segment (Session::set_segments()).
    /// EOPNOTSUPP: this kernel or the device's domain lacks the call. ENOMEM: no memory, or a
    /// limit. ENXIO and others of mmap(): the memory cannot be mmapped.
    [[nodiscard]] static Result<Alloc> create(const Session& session, AllocKind kind, Size length,
                                              const AllocOptions& options = {});
    /// Memory that CPU and device see alike; dma_alloc_coherent(), dma_alloc_attrs().
    [[nodiscard]] static Result<Alloc> coherent(const Session& session, Size length,
                                                Attr attrs = Attr::none) {
        return create(session, AllocKind::coherent, length, {.attrs = attrs});
    }

    Alloc(Alloc&&) noexcept;
    Alloc& operator=(Alloc&&) noexcept;
    Alloc(const Alloc&) = delete;
    Alloc& operator=(const Alloc&) = delete;
    /// Unmaps it from the program and frees it, best effort: while it is exported or mmapped
    /// elsewhere, it stays with the session.
    ~Alloc();

    /// Take it out of the program's memory and free it; DMAPROBE_DESTROY.
    ///
    /// No thread may use bytes() meanwhile. EBUSY while it is exported as a dma-buf or mmapped
    /// elsewhere: it then stays as it was, bytes() included. After ENODEV and EBADF (device or
    /// session gone) the object has ended all the same. A second free is no error.
    [[nodiscard]] Result<void> free();

    /// Make a range visible to the CPU; dma_sync_single_range_for_cpu(), and for noncontiguous
    /// memory dma_sync_sgtable_for_cpu(), which takes the whole only.
    /// EINVAL: the range leaves the allocation, or is not all of noncontiguous memory. EOPNOTSUPP:
    /// coherent memory.
    [[nodiscard]] Result<void> sync_for_cpu(Size offset, Size length) const;
    /// The same for all of it.
    [[nodiscard]] Result<void> sync_for_cpu() const { return sync_for_cpu(Size(), length_); }
    /// Make a range visible to the device; as sync_for_cpu().
    [[nodiscard]] Result<void> sync_for_device(Size offset, Size length) const;
    /// The same for all of it.
    [[nodiscard]] Result<void> sync_for_device() const { return sync_for_device(Size(), length_); }

    /// Copy bytes out by the kernel's own mapping of it (for noncontiguous memory,
    /// dma_vmap_noncontiguous()); DMAPROBE_COPY.
    /// EINVAL: no bytes, or the range leaves the allocation. EOPNOTSUPP: Attr::no_kernel_mapping.
    [[nodiscard]] Result<void> read(Size offset, std::span<std::byte> to) const;
    /// Copy bytes in; errors as read().
    [[nodiscard]] Result<void> write(Size offset, std::span<const std::byte> from) const;

    /// What the device is given: one segment; DMAPROBE_GET_SEGMENTS.
    [[nodiscard]] Result<std::vector<Segment>> segments() const;
    /// How it lies in physical memory; DMAPROBE_GET_SGTABLE, with dma_get_sgtable_attrs() behind it
    /// for coherent memory.
    /// @param phys report physical addresses too; EPERM without CAP_SYS_ADMIN
    /// ENXIO: the kernel does not know the pieces.
    [[nodiscard]] Result<std::vector<AllocPiece>> pieces(bool phys = false) const;

    /// Export it as a dma-buf, close-on-exec, a new one with each call. It can be mmapped, and
    /// imported by Mapping::import_dmabuf() in any session of a device that is as coherent as this
    /// one; its memory goes when this one's session is closed or its device goes away.
    /// ENXIO: the kernel does not know its pages.
    [[nodiscard]] Result<DmaBuf> export_dmabuf() const;

    /// The id; 0 when it has ended.
    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
    /// The address to give to the device.
    [[nodiscard]] Iova dma_addr() const noexcept { return dma_addr_; }
    /// Bytes asked for.
    [[nodiscard]] Size length() const noexcept { return length_; }
    /// The call it was allocated with.
    [[nodiscard]] AllocKind kind() const noexcept { return kind_; }
    /// The direction it was allocated with.
    [[nodiscard]] Direction direction() const noexcept { return direction_; }
    /// How many pieces() there are; 0 when the kernel does not know them.
    [[nodiscard]] std::uint32_t nr_pieces() const noexcept { return nr_pieces_; }
    /// The memory. Empty when it is not mmapped. Valid until free() or the destructor.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return memory_; }

private:
    friend struct ChannelOf;
    template <class Object>
    friend class Ref;
    Alloc() noexcept = default;
    [[nodiscard]] Result<void> map_memory();
    void unmap_memory() noexcept;
    void end() noexcept;

    std::shared_ptr<Channel> channel_;
    std::uint32_t id_ = 0;
    AllocKind kind_ = AllocKind::coherent;
    Direction direction_ = Direction::bidirectional;
    std::uint32_t nr_pieces_ = 0;
    Iova dma_addr_;
    Size length_;
    std::uint64_t mmap_offset_ = 0;
    std::span<std::byte> memory_;
};

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// IOVA space, linked piece by piece: the kernel's dma_iova_*() calls.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <dmaprobe/buffer.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// The kernel's state of an IOVA space and the module's record of it;
/// `struct dmaprobe_get_iova_state`.
struct IovaState {
    bool use = false;           ///< dma_use_iova()
    Iova addr;                  ///< first address
    Size length;                ///< dma_iova_size()
    Size linked;                ///< bytes linked
    std::uint32_t nr_links = 0; ///< number of links
    bool bounced = false;       ///< the kernel bounced part of a link
};

/// A range of IOVA space, and what is linked into it; DMAPROBE_IOVA_ALLOC.
///
/// The rules are those of dma_iova_link() and its siblings (Documentation/core-api/dma-api.rst of
/// the kernel, "Part Ie" and drivers/iommu/dma-iommu.c); the module refuses what would break them,
/// with the errnos that `<linux/dmaprobe.h>` lists per command.
///
/// It ends by destroy() or free(). The destructor unlinks what this object linked and frees the
/// space, best effort.
class IovaSpace {
public:
    /// Allocate space; dma_iova_try_alloc(), whose false answer is an error here.
    ///
    /// @param length bytes, from 1 to 2^62
    /// EOPNOTSUPP: no IOMMU translates for the device, or the kernel (before Linux 6.16) has no
    /// such call. ENOSPC: space or mask are exhausted. EPERM without CAP_SYS_RAWIO: more than 1
    /// GiB.
    [[nodiscard]] static Result<IovaSpace> alloc(const Session& session, Size length);
    /// Allocate space whose start lies in its granule as the memory of the first link does.
    /// @param first the buffer of the first link
    /// @param buffer_offset where in it the first link will start
    [[nodiscard]] static Result<IovaSpace> alloc(const Session& session, Size length,
                                                 const Buffer& first, Size buffer_offset);

    /// Try to allocate space; DMAPROBE_IOVA_ALLOC_TRY. This is how a driver begins that falls back
    /// to the streaming calls:
    ///
    ///     auto space = IovaSpace::try_alloc(session, length);
    ///     if (!space)
    ///         return std::unexpected(space.error());
    ///     if (space->use())
    ///         ...                           // link()
    ///     else
    ///         ...                           // Mapping::map()
    ///
    /// Where alloc() answers EOPNOTSUPP, or ENOSPC because space or mask are exhausted, an object
    /// is made all the same. It has no space: use() is false, link() and the other calls that need
    /// space answer EOPNOTSUPP, and free() ends it. Other errors as alloc().
    [[nodiscard]] static Result<IovaSpace> try_alloc(const Session& session, Size length);
    /// The same for memory whose first link lies in a granule as this does.
    [[nodiscard]] static Result<IovaSpace> try_alloc(const Session& session, Size length,
                                                     const Buffer& first, Size buffer_offset);

    IovaSpace(IovaSpace&&) noexcept;
    IovaSpace& operator=(IovaSpace&&) noexcept;
    IovaSpace(const IovaSpace&) = delete;
    IovaSpace& operator=(const IovaSpace&) = delete;
    /// Unlinks and frees, best effort.
    ~IovaSpace();

    /// Link a range of a buffer; dma_iova_link(). The device may use it after sync().
    /// @param buffer_offset start of the range in the buffer
    /// @param offset where in the space to link it
    /// @param length bytes, from 1 to 1 GiB; the range must be physically contiguous
    /// @param attrs weak_ordering, skip_cpu_sync, no_warn, privileged, require_coherent
    /// EACCES: the buffer is read-only, and the device could write.
    [[nodiscard]] Result<void> link(const Buffer& buffer, Size buffer_offset, Size offset,
                                    Size length, Direction direction, Attr attrs = Attr::none);
    /// Link a range of a memory BAR of the device; dma_iova_link() with Attr::mmio, which is added
    /// to `attrs` here, and which unlink() and destroy() have to be given too.
    /// @param bar number of the BAR, 0 to 5
    /// @param bar_offset start of the range in the BAR
    /// ENXIO: no such memory BAR. EOPNOTSUPP: before Linux 6.18. Otherwise as link().
    [[nodiscard]] Result<void> link_bar(unsigned bar, Size bar_offset, Size offset, Size length,
                                        Direction direction, Attr attrs = Attr::none);

    /// Make linked ranges known to the IOMMU, at most 1 GiB at a time; dma_iova_sync(). ENXIO when
    /// part is not linked.
    [[nodiscard]] Result<void> sync(Size offset, Size length) const;

    /// Unlink whole links, at most 1 GiB at a time; dma_iova_unlink().
    /// @param direction the one they were linked with
    /// @param attrs those they were linked with
    [[nodiscard]] Result<void> unlink(Size offset, Size length, Direction direction,
                                      Attr attrs = Attr::none);

    /// Free the space; dma_iova_free(). EBUSY while something is linked. After ENODEV and EBADF
    /// (device or session gone) the object has ended all the same. A second free or destroy is no
    /// error.
    [[nodiscard]] Result<void> free();

    /// Unlink all and free the space; dma_iova_destroy(). What is linked must be exactly the bytes
    /// from 0 to `mapped_len`, at most 1 GiB. Ends the object as free() does.
    [[nodiscard]] Result<void> destroy(Size mapped_len, Direction direction,
                                       Attr attrs = Attr::none);

    /// What the kernel and the module know about it; DMAPROBE_GET_IOVA_STATE.
    [[nodiscard]] Result<IovaState> state() const;
    /// Whether there is space to link into, as dma_use_iova() answered when it was allocated;
    /// always true after alloc().
    [[nodiscard]] bool use() const noexcept { return addr_ != Iova(); }

    /// The id; 0 when it has ended.
    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
    /// First address; 0 when there is no space. It stays readable when the object has ended.
    [[nodiscard]] Iova addr() const noexcept { return addr_; }
    /// Bytes asked for.
    [[nodiscard]] Size length() const noexcept { return length_; }

private:
    friend struct ChannelOf;
    template <class Object>
    friend class Ref;
    struct Link {
        Size offset;
        Size length;
        Direction direction;
        Attr attrs;
    };

    IovaSpace() noexcept = default;
    [[nodiscard]] static Result<IovaSpace> make(const Session& session, Size length,
                                                const Buffer* first, Size buffer_offset,
                                                std::uint32_t flags);
    [[nodiscard]] Result<void> link(std::uint32_t buffer_id, unsigned bar, Size start,
                                    const Link& where);
    void release() noexcept;
    void end() noexcept;

    std::shared_ptr<Channel> channel_;
    std::uint32_t id_ = 0;
    Iova addr_;
    Size length_;
    std::vector<Link> links_;
};

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// Pools of small blocks of coherent memory: the kernel's dma_pool_*() calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// A block out of a pool, zeroed; DMAPROBE_POOL_ALLOC.
///
/// It shares its page with other blocks, so the program reaches it by read() and write() only.
/// It ends by free() or the destructor.
class PoolBlock {
public:
    PoolBlock(PoolBlock&&) noexcept;
    PoolBlock& operator=(PoolBlock&&) noexcept;
    PoolBlock(const PoolBlock&) = delete;
    PoolBlock& operator=(const PoolBlock&) = delete;
    /// Frees it, best effort.
    ~PoolBlock();

    /// Free it, back to its pool; DMAPROBE_DESTROY, dma_pool_free(). After ENODEV and EBADF (device
    /// or session gone) the object has ended all the same. A second free is no error.
    [[nodiscard]] Result<void> free();

    /// Copy bytes out of the block; DMAPROBE_COPY. EINVAL: no bytes, or the range leaves the block.
    [[nodiscard]] Result<void> read(Size offset, std::span<std::byte> to) const;
    /// Copy bytes into the block; errors as read().
    [[nodiscard]] Result<void> write(Size offset, std::span<const std::byte> from) const;

    /// The id; 0 when it has ended.
    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
    /// The address to give to the device.
    [[nodiscard]] Iova dma_addr() const noexcept { return dma_addr_; }
    /// Bytes: the pool's block size.
    [[nodiscard]] Size length() const noexcept { return length_; }

private:
    friend struct ChannelOf;
    template <class Object>
    friend class Ref;
    friend class Pool;
    PoolBlock() noexcept = default;

    std::shared_ptr<Channel> channel_;
    std::uint32_t id_ = 0;
    Iova dma_addr_;
    Size length_;
};

/// A pool; DMAPROBE_POOL_CREATE (mm/dmapool.c of the kernel).
///
/// Blocks end before their pool: one that has blocks cannot be destroyed, and then stays with the
/// session until that closes.
class Pool {
public:
    /// Make a pool; dma_pool_create().
    ///
    /// @param block_size bytes of a block, from 1 to 1 MiB
    /// @param align alignment of the blocks, a power of two up to 1 MiB; 0 for none
    /// @param boundary blocks do not cross a multiple of it: a power of two, at least the block
    ///        size and at most 1 MiB; 0 for none
    /// EINVAL: other values. EPERM without CAP_SYS_RAWIO: the kernel keeps the list of free blocks
    /// in the blocks, where the device can write.
    [[nodiscard]] static Result<Pool> create(const Session& session, Size block_size,
                                             Size align = Size(), Size boundary = Size());

    Pool(Pool&&) noexcept;
    Pool& operator=(Pool&&) noexcept;
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;
    /// Destroys it, best effort.
    ~Pool();

    /// Take a zeroed block; dma_pool_zalloc().
    [[nodiscard]] Result<PoolBlock> alloc() const;

    /// Destroy the pool; DMAPROBE_DESTROY, dma_pool_destroy(). EBUSY while it has blocks. After
    /// ENODEV and EBADF (device or session gone) the object has ended all the same. A second
    /// destroy is no error.
    [[nodiscard]] Result<void> destroy();

    /// The id; 0 when it has ended.
    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
    /// Bytes of a block.
    [[nodiscard]] Size block_size() const noexcept { return block_size_; }

private:
    friend struct ChannelOf;
    template <class Object>
    friend class Ref;
    Pool() noexcept = default;

    std::shared_ptr<Channel> channel_;
    std::uint32_t id_ = 0;
    Size block_size_;
};

} // namespace dmaprobe

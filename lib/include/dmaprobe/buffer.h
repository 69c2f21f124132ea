// SPDX-License-Identifier: MIT
// Backing memory for DMA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// How a buffer lies in physical memory; `enum dmaprobe_buffer_kind`.
enum class BufferKind : std::uint32_t {
    contiguous = 0, ///< one physically contiguous range
    scattered = 1,  ///< pieces of 2^order pages, none followed by its physical neighbour
    kmalloc = 2,    ///< memory from kmalloc(), at any place of its page, as small objects lie
    pinned = ~0U,   ///< the program's own memory; made by Buffer::pin() only
};

/// "contiguous", "scattered", "kmalloc", "pinned"; "unknown" for another value.
[[nodiscard]] std::string_view to_string(BufferKind kind) noexcept;

/// Where a buffer's memory is to come from.
struct BufferOptions {
    /// The pieces of a scattered buffer are 2^order pages; 9 makes them 2 MiB on x86. The length is
    /// a multiple of the pieces' size then. 0 for the other kinds.
    std::uint32_t order = 0;
    /// The NUMA node it must come from; without one, any.
    std::optional<std::uint32_t> node = std::nullopt;
    /// Where in its page a kmalloc buffer starts: a multiple of 8 below the page size. 0 for the
    /// other kinds.
    Size offset{0};
};

/// Memory to map for DMA: zeroed kernel memory, mapped into the program (DMAPROBE_BUFFER_ALLOC), or
/// memory that the program has (DMAPROBE_BUFFER_PIN).
///
/// It ends by close() or, as far as that is possible, by the destructor: a buffer that is still
/// mapped for DMA or linked, or that the program has mmapped once more by itself, stays with the
/// session until that closes.
class Buffer {
public:
    /// Allocate memory and map it into the program.
    ///
    /// @param length bytes, at most 1 GiB, and but for kmalloc a multiple of the CPU's page size
    ///        (of the pieces' size for a scattered buffer). A contiguous buffer is bounded by the
    ///        page allocator (4 MiB on x86), a kmalloc buffer by 64 KiB.
    /// EINVAL: a bad length, kind or option, or no such node. ENOMEM: no memory, or a limit
    /// (RLIMIT_MEMLOCK, the module's session_max_mib).
    [[nodiscard]] static Result<Buffer> alloc(const Session& session, BufferKind kind, Size length,
                                              const BufferOptions& options = {});
    /// Allocate one physically contiguous range.
    [[nodiscard]] static Result<Buffer> contiguous(const Session& session, Size length) {
        return alloc(session, BufferKind::contiguous, length);
    }
    /// Allocate pieces of 2^order pages that are not neighbours.
    [[nodiscard]] static Result<Buffer> scattered(const Session& session, Size length,
                                                  std::uint32_t order = 0) {
        return alloc(session, BufferKind::scattered, length, {.order = order});
    }
    /// Allocate with kmalloc(), at this place of a page. The program reaches it by read() and
    /// write() only.
    [[nodiscard]] static Result<Buffer> kmalloc(const Session& session, Size length,
                                                Size offset = Size()) {
        return alloc(session, BufferKind::kmalloc, length, {.offset = offset});
    }

    /// Make a buffer of the program's own memory, at any byte: anonymous, huge pages, shared
    /// memory. Its pages stay pinned (pin_user_pages_fast(), FOLL_LONGTERM) until the buffer is
    /// closed or the session is, whatever becomes of the program's mapping of them. The memory
    /// stays the program's to unmap.
    ///
    /// EINVAL: no bytes, or more than 1 GiB. EFAULT: the memory is not there, may not be written,
    /// or is of a kind that the kernel does not pin for long (files of most file systems). ENOMEM:
    /// no memory, or a limit.
    [[nodiscard]] static Result<Buffer> pin(const Session& session, std::span<std::byte> memory);
    /// The same with memory that the program need not be allowed to write. It can be mapped with
    /// Direction::to_device only (otherwise EACCES), and bytes() gives none of it.
    [[nodiscard]] static Result<Buffer> pin_read_only(const Session& session,
                                                      std::span<const std::byte> memory);

    Buffer(Buffer&&) noexcept;
    Buffer& operator=(Buffer&&) noexcept;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    /// Closes the buffer if it is not in use, and takes it out of the program's memory in any case
    /// (but for pinned memory, which is the program's).
    ~Buffer();

    /// Take the buffer out of the program's memory and free it; DMAPROBE_DESTROY.
    ///
    /// No thread may use bytes() meanwhile. EBUSY while it is mapped, linked or mmapped elsewhere:
    /// it then stays as it was, bytes() included. After ENODEV and EBADF (device or session gone)
    /// the object has ended all the same. A second close is no error.
    [[nodiscard]] Result<void> close();

    /// The id, as extents of translate() name it; 0 when it has ended.
    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
    /// Bytes; 0 when it has ended.
    [[nodiscard]] Size length() const noexcept { return length_; }
    /// How it lies in physical memory.
    [[nodiscard]] BufferKind kind() const noexcept { return kind_; }
    /// What mmap() wants as offset on Session::fd(), to map it once more. 0 for kmalloc and pinned
    /// memory, which cannot be mmapped there.
    [[nodiscard]] std::uint64_t mmap_offset() const noexcept { return mmap_offset_; }
    /// The memory; of pinned memory, the caller's own span. Empty for kmalloc and for what was
    /// pinned to be read only. Valid until close() or the destructor.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return memory_; }
    /// Part of the memory; EINVAL when the range leaves bytes().
    [[nodiscard]] Result<std::span<std::byte>> bytes(Size offset, Size length) const;

    /// Copy bytes out of the buffer, by the kernel's own address of it; DMAPROBE_COPY.
    /// @param offset where in the buffer they start
    /// EINVAL: no bytes, or the range leaves the buffer. EOPNOTSUPP: pinned memory.
    [[nodiscard]] Result<void> read(Size offset, std::span<std::byte> to) const;
    /// Copy bytes into the buffer; errors as read().
    [[nodiscard]] Result<void> write(Size offset, std::span<const std::byte> from) const;

private:
    friend struct ChannelOf;
    template <class Object>
    friend class Ref;
    Buffer() noexcept = default;
    [[nodiscard]] static Result<Buffer> pin(const Session& session,
                                            std::span<const std::byte> memory, std::uint32_t flags);
    void release() noexcept;
    void unmap_memory() noexcept;
    void end() noexcept;

    std::shared_ptr<Channel> channel_;
    std::uint32_t id_ = 0;
    BufferKind kind_ = BufferKind::contiguous;
    std::uint64_t mmap_offset_ = 0;
    Size length_;
    std::span<std::byte> memory_;
};

} // namespace dmaprobe

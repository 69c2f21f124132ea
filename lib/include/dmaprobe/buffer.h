// SPDX-License-Identifier: MIT
// Backing memory for DMA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace dmaprobe {

/// How a buffer lies in physical memory; `enum dmaprobe_buffer_kind`.
enum class BufferKind : std::uint32_t {
    contiguous = 0, ///< one physically contiguous range
    scattered = 1,  ///< single pages, none followed by its physical neighbour
};

/// Zeroed kernel memory, mapped into the program; DMAPROBE_BUFFER_ALLOC.
///
/// Freed by close() or, as far as that is possible, by the destructor: a buffer that is still
/// mapped for DMA or linked stays with the session until that closes.
class Buffer {
public:
    /// Allocate memory and map it into the program.
    ///
    /// @param length bytes, a multiple of the CPU's page size, at most 1 GiB; contiguous buffers
    /// are
    ///        bounded by the page allocator (4 MiB on x86)
    /// EINVAL: a bad length or kind. ENOMEM: no memory, or a limit (RLIMIT_MEMLOCK, the module's
    /// session_max_mib).
    [[nodiscard]] static Result<Buffer> alloc(const Session& session, BufferKind kind, Size length);
    /// Allocate one physically contiguous range.
    [[nodiscard]] static Result<Buffer> contiguous(const Session& session, Size length) {
        return alloc(session, BufferKind::contiguous, length);
    }
    /// Allocate single pages that are not neighbours.
    [[nodiscard]] static Result<Buffer> scattered(const Session& session, Size length) {
        return alloc(session, BufferKind::scattered, length);
    }

    Buffer(Buffer&&) noexcept;
    Buffer& operator=(Buffer&&) noexcept;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    /// Frees the buffer if it is not in use, and takes it out of the program's memory in any case.
    ~Buffer();

    /// Free the buffer; DMAPROBE_BUFFER_FREE. EBUSY while it is mapped or linked: it then stays as
    /// it was. After ENODEV and EBADF (device or session gone) the object is closed all the same.
    /// A second close is no error.
    Result<void> close();

    /// The id, as extents of translate() name it; 0 when closed.
    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
    /// Bytes; 0 when closed.
    [[nodiscard]] Size length() const noexcept { return Size(memory_.size()); }
    /// How it lies in physical memory.
    [[nodiscard]] BufferKind kind() const noexcept { return kind_; }
    /// What mmap() wants as offset on Session::fd(), to map it once more.
    [[nodiscard]] std::uint64_t mmap_offset() const noexcept { return mmap_offset_; }
    /// The memory. Valid until close() or the destructor.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return memory_; }
    /// Part of the memory; EINVAL when the range leaves the buffer.
    [[nodiscard]] Result<std::span<std::byte>> bytes(Size offset, Size length) const;

    /// The open file, for what uses the buffer. Not part of the API.
    [[nodiscard]] const std::shared_ptr<Channel>& channel() const noexcept { return channel_; }

private:
    Buffer() noexcept = default;
    void release() noexcept;
    void forget() noexcept;

    std::shared_ptr<Channel> channel_;
    std::uint32_t id_ = 0;
    BufferKind kind_ = BufferKind::contiguous;
    std::uint64_t mmap_offset_ = 0;
    std::span<std::byte> memory_;
};

} // namespace dmaprobe

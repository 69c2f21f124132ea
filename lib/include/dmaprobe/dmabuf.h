// SPDX-License-Identifier: MIT
// The descriptor of a dma-buf.
#pragma once

#include <dmaprobe/result.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// The file descriptor of a dma-buf (Documentation/driver-api/dma-buf.rst of the kernel). It is
/// closed with its owner. The dma-buf lives on for as long as anybody has it open, mapped or
/// mmapped.
class DmaBuf {
public:
    /// None.
    DmaBuf() noexcept = default;
    /// Take a descriptor over, which somebody else exported.
    explicit DmaBuf(int fd) noexcept : fd_(fd) {}

    DmaBuf(DmaBuf&& other) noexcept : fd_(other.release()) {}
    DmaBuf& operator=(DmaBuf&& other) noexcept;
    DmaBuf(const DmaBuf&) = delete;
    DmaBuf& operator=(const DmaBuf&) = delete;
    /// Closes it.
    ~DmaBuf();

    /// The descriptor, -1 for none. It can be mmapped, and given to Mapping::import_dmabuf().
    [[nodiscard]] int fd() const noexcept { return fd_; }
    /// Give the descriptor away: the caller closes it.
    [[nodiscard]] int release() noexcept;
    /// Bytes. EBADF: none; ESPIPE: no dma-buf.
    [[nodiscard]] Result<Size> length() const;

    /// Before the program uses memory that it mmapped from the descriptor: DMA_BUF_IOCTL_SYNC with
    /// DMA_BUF_SYNC_START.
    /// @param access what the program will do: to_device writes, from_device reads
    /// ENOTTY: no dma-buf. Otherwise as the exporter answers.
    [[nodiscard]] Result<void> begin_cpu_access(Direction access) const;
    /// When it has done so; DMA_BUF_SYNC_END. Errors as begin_cpu_access().
    [[nodiscard]] Result<void> end_cpu_access(Direction access) const;

private:
    int fd_ = -1;
};

} // namespace dmaprobe

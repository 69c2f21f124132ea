// SPDX-License-Identifier: MIT
// The descriptor of a dma-buf.
#include <dmaprobe/dmabuf.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/dma-buf.h>

namespace dmaprobe {

namespace {

Result<void> sync(int fd, std::uint64_t when, Direction access) {
    dma_buf_sync arg{};
    arg.flags = when;
    if (access != Direction::from_device)
        arg.flags |= DMA_BUF_SYNC_WRITE;
    if (access != Direction::to_device)
        arg.flags |= DMA_BUF_SYNC_READ;
    // The kernel's documentation asks to repeat the call after these two.
    while (::ioctl(fd, DMA_BUF_IOCTL_SYNC, &arg) < 0) {
        if (errno != EINTR && errno != EAGAIN)
            return std::unexpected(Error{errno, "dma_buf_sync", {}});
    }
    return {};
}

} // namespace

DmaBuf& DmaBuf::operator=(DmaBuf&& other) noexcept {
    if (this != &other) {
        if (fd_ >= 0)
            ::close(fd_);
        fd_ = other.release();
    }
    return *this;
}

DmaBuf::~DmaBuf() {
    if (fd_ >= 0)
        ::close(fd_);
}

int DmaBuf::release() noexcept {
    return std::exchange(fd_, -1);
}

Result<Size> DmaBuf::length() const {
    const off_t end = ::lseek(fd_, 0, SEEK_END);
    if (end < 0)
        return std::unexpected(Error{errno, "dma_buf_length", {}});
    return Size(static_cast<std::uint64_t>(end));
}

Result<void> DmaBuf::begin_cpu_access(Direction access) const {
    return sync(fd_, DMA_BUF_SYNC_START, access);
}

Result<void> DmaBuf::end_cpu_access(Direction access) const {
    return sync(fd_, DMA_BUF_SYNC_END, access);
}

} // namespace dmaprobe

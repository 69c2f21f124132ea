// SPDX-License-Identifier: MIT
// Backing memory for DMA.
#include <dmaprobe/buffer.h>

#include <cerrno>
#include <utility>

#include <sys/mman.h>

#include <linux/dmaprobe.h>

#include "best_effort.h"
#include "channel.h"

namespace dmaprobe {

namespace {

Result<void> free_buffer(const Channel& channel, std::uint32_t id) {
    dmaprobe_buffer_free arg{};
    arg.id = id;
    return channel.call(DMAPROBE_BUFFER_FREE, "buffer_free", arg);
}

} // namespace

Result<Buffer> Buffer::alloc(const Session& session, BufferKind kind, Size length) {
    dmaprobe_buffer_alloc arg{};
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.length = length.value();
    if (auto done = session.call(DMAPROBE_BUFFER_ALLOC, "buffer_alloc", arg); !done)
        return std::unexpected(std::move(done.error()));

    void* memory = ::mmap(nullptr, length.value(), PROT_READ | PROT_WRITE, MAP_SHARED, session.fd(),
                          static_cast<off_t>(arg.mmap_offset));
    if (memory == MAP_FAILED) {
        const int code = errno;
        best_effort(free_buffer(*session.channel(), arg.id));
        return std::unexpected(Error{code, "buffer_mmap", {}});
    }

    Buffer buffer;
    buffer.channel_ = session.channel();
    buffer.id_ = arg.id;
    buffer.kind_ = kind;
    buffer.mmap_offset_ = arg.mmap_offset;
    buffer.memory_ = {static_cast<std::byte*>(memory), length.value()};
    return buffer;
}

Buffer::Buffer(Buffer&& other) noexcept
    : channel_(std::move(other.channel_)), id_(std::exchange(other.id_, 0)), kind_(other.kind_),
      mmap_offset_(other.mmap_offset_), memory_(std::exchange(other.memory_, {})) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
    if (this != &other) {
        release();
        channel_ = std::move(other.channel_);
        id_ = std::exchange(other.id_, 0);
        kind_ = other.kind_;
        mmap_offset_ = other.mmap_offset_;
        memory_ = std::exchange(other.memory_, {});
    }
    return *this;
}

Buffer::~Buffer() {
    release();
}

void Buffer::release() noexcept {
    if (id_ != 0)
        best_effort(free_buffer(*channel_, id_));
    forget();
}

void Buffer::forget() noexcept {
    if (!memory_.empty())
        ::munmap(memory_.data(), memory_.size());
    memory_ = {};
    id_ = 0;
    channel_.reset();
}

Result<void> Buffer::close() {
    if (id_ == 0)
        return {};
    auto done = free_buffer(*channel_, id_);
    if (done || is_gone(done.error()))
        forget();
    return done;
}

Result<std::span<std::byte>> Buffer::bytes(Size offset, Size length) const {
    const auto end = checked_add(offset, length);
    if (!end || *end > this->length())
        return std::unexpected(Error{EINVAL, "bytes", "the range leaves the buffer"});
    return memory_.subspan(offset.value(), length.value());
}

} // namespace dmaprobe

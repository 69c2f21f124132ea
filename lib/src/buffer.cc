// SPDX-License-Identifier: MIT
// Backing memory for DMA.
#include <dmaprobe/buffer.h>

#include <cerrno>
#include <utility>

#include <sys/mman.h>

#include <linux/dmaprobe.h>

#include "best_effort.h"
#include "channel.h"
#include "shared.h"

namespace dmaprobe {

namespace {

constexpr std::string_view gone = "the buffer is closed";

} // namespace

std::string_view to_string(BufferKind kind) noexcept {
    switch (kind) {
    case BufferKind::contiguous:
        return "contiguous";
    case BufferKind::scattered:
        return "scattered";
    case BufferKind::kmalloc:
        return "kmalloc";
    case BufferKind::pinned:
        return "pinned";
    }
    return "unknown";
}

Result<Buffer> Buffer::alloc(const Session& session, BufferKind kind, Size length,
                             const BufferOptions& options) {
    dmaprobe_buffer_alloc arg{};
    arg.flags = options.node ? DMAPROBE_BUFFER_ALLOC_NODE : 0;
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.length = length.value();
    arg.order = options.order;
    arg.node = options.node.value_or(0);
    arg.offset = options.offset.value();
    if (auto done = session.call(DMAPROBE_BUFFER_ALLOC, "buffer_alloc", arg); !done)
        return std::unexpected(std::move(done.error()));

    Buffer buffer;
    buffer.channel_ = ChannelOf::get(session);
    buffer.id_ = arg.id;
    buffer.kind_ = kind;
    buffer.length_ = length;
    // It cannot be mmapped.
    if (kind == BufferKind::kmalloc)
        return buffer;

    void* memory = ::mmap(nullptr, length.value(), PROT_READ | PROT_WRITE, MAP_SHARED, session.fd(),
                          static_cast<off_t>(arg.mmap_offset));
    // The destructor frees the buffer.
    if (memory == MAP_FAILED)
        return std::unexpected(Error{errno, "buffer_mmap", {}});
    buffer.mmap_offset_ = arg.mmap_offset;
    buffer.memory_ = {static_cast<std::byte*>(memory), length.value()};
    return buffer;
}

Result<Buffer> Buffer::pin(const Session& session, std::span<const std::byte> memory,
                           std::uint32_t flags) {
    dmaprobe_buffer_pin arg{};
    arg.flags = flags;
    arg.addr = reinterpret_cast<std::uintptr_t>(memory.data());
    arg.length = memory.size();
    if (auto done = session.call(DMAPROBE_BUFFER_PIN, "buffer_pin", arg); !done)
        return std::unexpected(std::move(done.error()));
    Buffer buffer;
    buffer.channel_ = ChannelOf::get(session);
    buffer.id_ = arg.id;
    buffer.kind_ = BufferKind::pinned;
    buffer.length_ = Size(memory.size());
    return buffer;
}

Result<Buffer> Buffer::pin(const Session& session, std::span<std::byte> memory) {
    auto buffer = pin(session, memory, 0);
    if (buffer)
        buffer->memory_ = memory;
    return buffer;
}

Result<Buffer> Buffer::pin_read_only(const Session& session, std::span<const std::byte> memory) {
    return pin(session, memory, DMAPROBE_BUFFER_PIN_READ_ONLY);
}

Buffer::Buffer(Buffer&& other) noexcept
    : channel_(std::move(other.channel_)), id_(std::exchange(other.id_, 0)), kind_(other.kind_),
      mmap_offset_(other.mmap_offset_), length_(std::exchange(other.length_, Size())),
      memory_(std::exchange(other.memory_, {})) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
    if (this != &other) {
        release();
        channel_ = std::move(other.channel_);
        id_ = std::exchange(other.id_, 0);
        kind_ = other.kind_;
        mmap_offset_ = other.mmap_offset_;
        length_ = std::exchange(other.length_, Size());
        memory_ = std::exchange(other.memory_, {});
    }
    return *this;
}

Buffer::~Buffer() {
    release();
}

void Buffer::release() noexcept {
    unmap_memory();
    if (id_ != 0)
        best_effort(destroy(*channel_, id_));
    end();
}

void Buffer::unmap_memory() noexcept {
    if (!memory_.empty() && kind_ != BufferKind::pinned)
        ::munmap(memory_.data(), memory_.size());
    memory_ = {};
}

void Buffer::end() noexcept {
    memory_ = {};
    length_ = Size();
    id_ = 0;
    channel_.reset();
}

Result<void> Buffer::close() {
    if (id_ == 0)
        return {};
    auto done = kind_ == BufferKind::pinned
                    ? destroy(*channel_, id_)
                    : destroy_mmapped(*channel_, id_, memory_, mmap_offset_);
    if (done || is_gone(done.error()))
        end();
    return done;
}

Result<std::span<std::byte>> Buffer::bytes(Size offset, Size length) const {
    const auto end = checked_add(offset, length);
    if (!end || *end > Size(memory_.size()))
        return std::unexpected(Error{EINVAL, "bytes", "the range leaves the buffer"});
    return memory_.subspan(offset.value(), length.value());
}

Result<void> Buffer::read(Size offset, std::span<std::byte> to) const {
    return copy_out(channel_.get(), id_, offset, to, gone);
}

Result<void> Buffer::write(Size offset, std::span<const std::byte> from) const {
    return copy_in(channel_.get(), id_, offset, from, gone);
}

} // namespace dmaprobe

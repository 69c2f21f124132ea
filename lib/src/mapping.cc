// SPDX-License-Identifier: MIT
// Streaming mappings of buffers.
#include <dmaprobe/mapping.h>

#include <cerrno>
#include <utility>

#include <linux/dmaprobe.h>

#include "best_effort.h"
#include "channel.h"

namespace dmaprobe {

std::string_view to_string(MapKind kind) noexcept {
    switch (kind) {
    case MapKind::single:
        return "single";
    case MapKind::page:
        return "page";
    case MapKind::phys:
        return "phys";
    }
    return "unknown";
}

Result<Mapping> Mapping::map(const Buffer& buffer, MapKind kind, Size buffer_offset, Size length,
                             Direction direction, std::uint64_t attrs) {
    if (buffer.id() == 0)
        return std::unexpected(Error{EBADF, "map", "the buffer is closed"});
    dmaprobe_map arg{};
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.buffer_id = buffer.id();
    arg.buffer_offset = buffer_offset.value();
    arg.length = length.value();
    arg.attrs = attrs;
    if (auto done = buffer.channel()->call(DMAPROBE_MAP, "map", arg); !done)
        return std::unexpected(std::move(done.error()));

    Mapping mapping;
    mapping.channel_ = buffer.channel();
    mapping.id_ = arg.id;
    mapping.kind_ = kind;
    mapping.direction_ = direction;
    mapping.need_sync_ = arg.need_sync != 0;
    mapping.dma_addr_ = Iova(arg.dma_addr);
    mapping.length_ = length;
    return mapping;
}

Mapping::Mapping(Mapping&& other) noexcept
    : channel_(std::move(other.channel_)), id_(std::exchange(other.id_, 0)), kind_(other.kind_),
      direction_(other.direction_), need_sync_(other.need_sync_), dma_addr_(other.dma_addr_),
      length_(other.length_) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    if (this != &other) {
        best_effort(unmap());
        channel_ = std::move(other.channel_);
        id_ = std::exchange(other.id_, 0);
        kind_ = other.kind_;
        direction_ = other.direction_;
        need_sync_ = other.need_sync_;
        dma_addr_ = other.dma_addr_;
        length_ = other.length_;
    }
    return *this;
}

Mapping::~Mapping() {
    best_effort(unmap());
}

Result<void> Mapping::unmap() {
    if (id_ == 0)
        return {};
    dmaprobe_unmap arg{};
    arg.id = id_;
    auto done = channel_->call(DMAPROBE_UNMAP, "unmap", arg);
    if (done || is_gone(done.error())) {
        id_ = 0;
        channel_.reset();
    }
    return done;
}

Result<void> Mapping::sync(std::uint32_t target, Size offset, Size length) const {
    if (id_ == 0)
        return std::unexpected(Error{EBADF, "sync", "the mapping is gone"});
    dmaprobe_sync arg{};
    arg.id = id_;
    arg.target = target;
    arg.offset = offset.value();
    arg.length = length.value();
    return channel_->call(DMAPROBE_SYNC, "sync", arg);
}

Result<void> Mapping::sync_for_cpu(Size offset, Size length) const {
    return sync(DMAPROBE_SYNC_FOR_CPU, offset, length);
}

Result<void> Mapping::sync_for_device(Size offset, Size length) const {
    return sync(DMAPROBE_SYNC_FOR_DEVICE, offset, length);
}

} // namespace dmaprobe

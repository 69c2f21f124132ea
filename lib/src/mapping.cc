// SPDX-License-Identifier: MIT
// Streaming mappings: of buffers, of lists of them, of BARs and of dma-bufs.
#include <dmaprobe/mapping.h>

#include <cerrno>
#include <format>
#include <utility>

#include <linux/dmaprobe.h>

#include "best_effort.h"
#include "channel.h"
#include "shared.h"

namespace dmaprobe {

namespace {

constexpr std::string_view gone = "the mapping is gone";

} // namespace

std::string_view to_string(MapKind kind) noexcept {
    switch (kind) {
    case MapKind::single:
        return "single";
    case MapKind::page:
        return "page";
    case MapKind::phys:
        return "phys";
    case MapKind::sg_list:
        return "sg_list";
    case MapKind::sg_table:
        return "sg_table";
    case MapKind::resource:
        return "resource";
    case MapKind::dmabuf:
        return "dmabuf";
    }
    return "unknown";
}

Result<Mapping> Mapping::map(const Buffer& buffer, MapKind kind, Size buffer_offset, Size length,
                             Direction direction, Attr attrs) {
    if (buffer.id() == 0)
        return std::unexpected(Error{EBADF, "map", "the buffer is closed"});
    dmaprobe_map arg{};
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.buffer_id = buffer.id();
    arg.buffer_offset = buffer_offset.value();
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    if (auto done = ChannelOf::get(buffer)->call(DMAPROBE_MAP, "map", arg); !done)
        return std::unexpected(std::move(done.error()));

    Mapping mapping;
    mapping.channel_ = ChannelOf::get(buffer);
    mapping.id_ = arg.id;
    mapping.kind_ = kind;
    mapping.direction_ = direction;
    mapping.attrs_ = attrs;
    mapping.need_sync_ = arg.need_sync != 0;
    mapping.dma_addr_ = Iova(arg.dma_addr);
    mapping.length_ = length;
    return mapping;
}

Result<Mapping> Mapping::map_sg(std::span<const SgEntry> entries, SgKind kind, Direction direction,
                                Attr attrs) {
    if (entries.empty() || entries.size() > DMAPROBE_MAP_SG_MAX)
        return std::unexpected(Error{EINVAL, "map_sg",
                                     std::format("a list has 1 to {} entries, not {}",
                                                 DMAPROBE_MAP_SG_MAX, entries.size())});
    const auto& channel = ChannelOf::get(entries.front().buffer.get());
    std::vector<dmaprobe_sg_entry> list;
    list.reserve(entries.size());
    Size length;
    for (const SgEntry& entry : entries) {
        const Buffer& buffer = entry.buffer;
        if (buffer.id() == 0)
            return std::unexpected(Error{EBADF, "map_sg", "a buffer is closed"});
        if (ChannelOf::get(buffer) != channel)
            return std::unexpected(Error{ENOENT, "map_sg", "a buffer is another session's"});
        list.push_back({.offset = entry.offset.value(),
                        .length = entry.length.value(),
                        .buffer_id = buffer.id(),
                        .__reserved = 0});
        length += entry.length;
    }
    dmaprobe_map_sg arg{};
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.entries = reinterpret_cast<std::uintptr_t>(list.data());
    arg.nr_entries = static_cast<std::uint32_t>(list.size());
    arg.attrs = static_cast<std::uint64_t>(attrs);
    if (auto done = channel->call(DMAPROBE_MAP_SG, "map_sg", arg); !done)
        return std::unexpected(std::move(done.error()));

    Mapping mapping;
    mapping.channel_ = channel;
    mapping.id_ = arg.id;
    mapping.kind_ = kind == SgKind::list ? MapKind::sg_list : MapKind::sg_table;
    mapping.direction_ = direction;
    mapping.attrs_ = attrs;
    mapping.need_sync_ = arg.need_sync != 0;
    mapping.nr_segments_ = arg.nr_segments;
    mapping.length_ = length;
    return mapping;
}

Result<Mapping> Mapping::map_resource(const Session& session, unsigned bar, Size offset,
                                      Size length, Direction direction, Attr attrs) {
    dmaprobe_map_resource arg{};
    arg.bar = bar;
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.offset = offset.value();
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    if (auto done = session.call(DMAPROBE_MAP_RESOURCE, "map_resource", arg); !done)
        return std::unexpected(std::move(done.error()));

    Mapping mapping;
    mapping.channel_ = ChannelOf::get(session);
    mapping.id_ = arg.id;
    mapping.kind_ = MapKind::resource;
    mapping.direction_ = direction;
    mapping.attrs_ = attrs;
    mapping.dma_addr_ = Iova(arg.dma_addr);
    mapping.length_ = length;
    return mapping;
}

Result<Mapping> Mapping::import_dmabuf(const Session& session, int fd, Direction direction) {
    dmaprobe_map_dmabuf arg{};
    arg.fd = fd;
    arg.dir = static_cast<std::uint32_t>(direction);
    if (auto done = session.call(DMAPROBE_MAP_DMABUF, "map_dmabuf", arg); !done)
        return std::unexpected(std::move(done.error()));

    Mapping mapping;
    mapping.channel_ = ChannelOf::get(session);
    mapping.id_ = arg.id;
    mapping.kind_ = MapKind::dmabuf;
    mapping.direction_ = direction;
    mapping.nr_segments_ = arg.nr_segments;
    mapping.length_ = Size(arg.length);
    return mapping;
}

Mapping::Mapping(Mapping&& other) noexcept
    : channel_(std::move(other.channel_)), id_(std::exchange(other.id_, 0)), kind_(other.kind_),
      direction_(other.direction_), attrs_(other.attrs_), need_sync_(other.need_sync_),
      nr_segments_(other.nr_segments_), dma_addr_(other.dma_addr_), length_(other.length_) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
    if (this != &other) {
        best_effort(unmap());
        channel_ = std::move(other.channel_);
        id_ = std::exchange(other.id_, 0);
        kind_ = other.kind_;
        direction_ = other.direction_;
        attrs_ = other.attrs_;
        need_sync_ = other.need_sync_;
        nr_segments_ = other.nr_segments_;
        dma_addr_ = other.dma_addr_;
        length_ = other.length_;
    }
    return *this;
}

Mapping::~Mapping() {
    best_effort(unmap());
}

Result<void> Mapping::unmap(Attr attrs) {
    if (id_ == 0)
        return {};
    dmaprobe_unmap arg{};
    arg.attrs = static_cast<std::uint64_t>(attrs);
    arg.id = id_;
    auto done = channel_->call(DMAPROBE_UNMAP, "unmap", arg);
    if (done || is_gone(done.error())) {
        id_ = 0;
        channel_.reset();
    }
    return done;
}

Result<void> Mapping::sync_for_cpu(Size offset, Size length) const {
    return sync_range(channel_.get(), id_, DMAPROBE_SYNC_FOR_CPU, offset, length, gone);
}

Result<void> Mapping::sync_for_device(Size offset, Size length) const {
    return sync_range(channel_.get(), id_, DMAPROBE_SYNC_FOR_DEVICE, offset, length, gone);
}

Result<std::vector<Segment>> Mapping::segments() const {
    return list_segments(channel_.get(), id_, nr_segments_, gone);
}

} // namespace dmaprobe

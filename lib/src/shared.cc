// SPDX-License-Identifier: MIT
// Calls that objects of several kinds share.
#include "shared.h"

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include <linux/dmaprobe.h>

namespace dmaprobe {

namespace {

std::unexpected<Error> ended(std::string_view op, std::string_view gone) {
    return std::unexpected(Error{EBADF, op, std::string(gone)});
}

Result<void> copy(const Channel* channel, std::uint32_t id, std::uint32_t dir, Size offset,
                  std::span<const std::byte> memory, std::string_view gone) {
    if (id == 0)
        return ended("copy", gone);
    dmaprobe_copy arg{};
    arg.id = id;
    arg.dir = dir;
    arg.offset = offset.value();
    arg.length = memory.size();
    arg.addr = reinterpret_cast<std::uintptr_t>(memory.data());
    return channel->call(DMAPROBE_COPY, "copy", arg);
}

} // namespace

Result<void> copy_out(const Channel* channel, std::uint32_t id, Size offset,
                      std::span<std::byte> to, std::string_view gone) {
    return copy(channel, id, DMAPROBE_COPY_READ, offset, to, gone);
}

Result<void> copy_in(const Channel* channel, std::uint32_t id, Size offset,
                     std::span<const std::byte> from, std::string_view gone) {
    return copy(channel, id, DMAPROBE_COPY_WRITE, offset, from, gone);
}

Result<void> sync_range(const Channel* channel, std::uint32_t id, std::uint32_t target, Size offset,
                        Size length, std::string_view gone) {
    if (id == 0)
        return ended("sync", gone);
    dmaprobe_sync arg{};
    arg.id = id;
    arg.target = target;
    arg.offset = offset.value();
    arg.length = length.value();
    return channel->call(DMAPROBE_SYNC, "sync", arg);
}

Result<std::vector<Segment>> list_segments(const Channel* channel, std::uint32_t id,
                                           std::size_t expected, std::string_view gone) {
    if (id == 0)
        return ended("segments", gone);
    std::vector<dmaprobe_segment> room(std::max<std::size_t>(expected, 1));
    for (;;) {
        dmaprobe_segments arg{};
        arg.id = id;
        arg.nr_segments = static_cast<std::uint32_t>(room.size());
        arg.segments = reinterpret_cast<std::uintptr_t>(room.data());
        if (auto done = channel->call(DMAPROBE_SEGMENTS, "segments", arg); !done)
            return std::unexpected(std::move(done.error()));
        // More of them than there was room for: once more, with enough.
        if (arg.nr_segments > room.size()) {
            room.resize(arg.nr_segments);
            continue;
        }
        std::vector<Segment> segments;
        segments.reserve(arg.nr_segments);
        for (const auto& raw : std::span(room).first(arg.nr_segments))
            segments.push_back({Iova(raw.dma_addr), Size(raw.length)});
        return segments;
    }
}

} // namespace dmaprobe

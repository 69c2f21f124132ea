// SPDX-License-Identifier: MIT
// Calls that objects of several kinds share.
#include "shared.h"

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include <sys/mman.h>

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
        return ended("get_segments", gone);
    std::vector<dmaprobe_segment> room(std::max<std::size_t>(expected, 1));
    for (;;) {
        dmaprobe_get_segments arg{};
        arg.id = id;
        arg.nr_segments = static_cast<std::uint32_t>(room.size());
        arg.segments = reinterpret_cast<std::uintptr_t>(room.data());
        if (auto done = channel->call(DMAPROBE_GET_SEGMENTS, "get_segments", arg); !done)
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

Result<void> destroy(const Channel& channel, std::uint32_t id) {
    dmaprobe_destroy arg{};
    arg.id = id;
    return channel.call(DMAPROBE_DESTROY, "destroy", arg);
}

Result<void> destroy_mmapped(const Channel& channel, std::uint32_t id, std::span<std::byte>& memory,
                             std::uint64_t mmap_offset) {
    if (memory.empty())
        return destroy(channel, id);
    // A mapping without access takes the place of the object's at once, so that nobody else gets
    // the addresses while the program may still have to be given the memory back.
    if (::mmap(memory.data(), memory.size(), PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        return std::unexpected(Error{errno, "destroy", "the memory cannot be unmapped"});
    auto done = destroy(channel, id);
    const bool stays = !done && !is_gone(done.error());
    if (stays &&
        ::mmap(memory.data(), memory.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
               channel.fd(), static_cast<off_t>(mmap_offset)) != MAP_FAILED)
        return done;
    ::munmap(memory.data(), memory.size());
    memory = {};
    return done;
}

} // namespace dmaprobe

// SPDX-License-Identifier: GPL-2.0-only

#include "target.h"

#include <algorithm>
#include <cerrno>
#include <unistd.h>
#include <utility>

namespace selftest {

namespace dp = dmaprobe;
using dp::Iova;
using dp::Result;
using dp::Segment;
using dp::Size;

std::string_view to_string(MemoryKind kind) {
    switch (kind) {
    case MemoryKind::single:
        return "single";
    case MemoryKind::page:
        return "page";
    case MemoryKind::phys:
        return "phys";
    case MemoryKind::sg:
        return "sg";
    case MemoryKind::linked:
        return "linked";
    case MemoryKind::coherent:
        return "coherent";
    case MemoryKind::noncoherent:
        return "noncoherent";
    case MemoryKind::pages:
        return "pages";
    case MemoryKind::noncontiguous:
        return "noncontiguous";
    case MemoryKind::pool:
        return "pool";
    case MemoryKind::dmabuf:
        return "dmabuf";
    }
    return "unknown";
}

namespace {

Size page() {
    return Size(static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)));
}

template <class T>
Result<void> take(std::optional<T>& to, Result<T>&& from) {
    if (!from)
        return std::unexpected(std::move(from.error()));
    to.emplace(std::move(*from));
    return {};
}

} // namespace

Result<void> Target::map(const dp::Session& session) {
    const bool list = kind_ == MemoryKind::sg;
    if (auto done =
            take(buffer_, list ? dp::Buffer::scattered(session, length_)
                               : dp::Buffer::alloc(session, dp::BufferKind::contiguous, length_));
        !done)
        return done;
    if (!list) {
        const auto call = kind_ == MemoryKind::single ? dp::MapKind::single
                          : kind_ == MemoryKind::page ? dp::MapKind::page
                                                      : dp::MapKind::phys;
        if (auto done =
                take(mapping_, dp::Mapping::map(*buffer_, call, Size(), length_, direction_));
            !done)
            return done;
        segments_ = {{mapping_->dma_addr(), length_}};
        return {};
    }
    std::vector<dp::SgEntry> entries;
    for (Size at; at < length_; at += page())
        entries.push_back({*buffer_, at, page()});
    if (auto done = take(mapping_, dp::Mapping::map_sg(entries, dp::SgKind::table, direction_));
        !done)
        return done;
    auto segments = mapping_->segments();
    if (!segments)
        return std::unexpected(std::move(segments.error()));
    segments_ = std::move(*segments);
    return {};
}

Result<void> Target::link(const dp::Session& session) {
    if (auto done = take(buffer_, dp::Buffer::scattered(session, length_)); !done)
        return done;
    if (auto done = take(space_, dp::IovaSpace::alloc(session, length_)); !done)
        return done;
    for (Size at; at < length_; at += page())
        if (auto done = space_->link(*buffer_, at, at, page(), direction_); !done)
            return done;
    segments_ = {{space_->addr(), length_}};
    return space_->sync(Size(), length_);
}

Result<void> Target::allocate(const dp::Session& session) {
    const auto call = kind_ == MemoryKind::noncoherent     ? dp::AllocKind::noncoherent
                      : kind_ == MemoryKind::pages         ? dp::AllocKind::pages
                      : kind_ == MemoryKind::noncontiguous ? dp::AllocKind::noncontiguous
                                                           : dp::AllocKind::coherent;
    if (kind_ == MemoryKind::noncontiguous) {
        const auto limits = session.limits();
        if (!limits)
            return std::unexpected(limits.error());
        length_ = std::min(length_, Size(limits->max_segment_size.value() & ~(page().value() - 1)));
    }
    dp::AllocOptions options;
    if (call != dp::AllocKind::coherent)
        options.direction = direction_;
    if (auto done = take(alloc_, dp::Alloc::create(session, call, length_, options)); !done)
        return done;
    segments_ = {{alloc_->dma_addr(), length_}};
    return {};
}

/// Exported, and imported again by the same session.
Result<void> Target::share(const dp::Session& session) {
    if (auto done = allocate(session); !done)
        return done;
    auto exported = alloc_->export_dmabuf();
    if (!exported)
        return std::unexpected(std::move(exported.error()));
    dmabuf_ = std::move(*exported);
    if (auto done = take(mapping_, dp::Mapping::import_dmabuf(session, dmabuf_.fd(), direction_));
        !done)
        return done;
    auto segments = mapping_->segments();
    if (!segments)
        return std::unexpected(std::move(segments.error()));
    segments_ = std::move(*segments);
    return {};
}

Result<Target> Target::make(const dp::Session& session, MemoryKind kind, Size length,
                            dp::Direction direction) {
    Target made(kind, length, direction);
    Result<void> done;

    switch (kind) {
    case MemoryKind::single:
    case MemoryKind::page:
    case MemoryKind::phys:
    case MemoryKind::sg:
        done = made.map(session);
        break;
    case MemoryKind::linked:
        done = made.link(session);
        break;
    case MemoryKind::coherent:
    case MemoryKind::noncoherent:
    case MemoryKind::pages:
    case MemoryKind::noncontiguous:
        done = made.allocate(session);
        break;
    case MemoryKind::dmabuf:
        done = made.share(session);
        break;
    case MemoryKind::pool:
        // The longest blocks there are.
        made.length_ = std::min(length, Size(1 << 20));
        done = take(made.pool_, dp::Pool::create(session, made.length_, page()));
        if (done)
            done = take(made.block_, made.pool_->alloc());
        if (done)
            made.segments_ = {{made.block_->dma_addr(), made.length_}};
        break;
    }
    if (!done)
        return std::unexpected(std::move(done.error()));
    return made;
}

std::span<std::byte> Target::bytes() const {
    return alloc_ ? alloc_->bytes() : buffer_->bytes();
}

Result<void> Target::sync(bool for_cpu) const {
    if (mapping_ && kind_ != MemoryKind::dmabuf)
        return for_cpu ? mapping_->sync_for_cpu() : mapping_->sync_for_device();
    if (alloc_ && alloc_->kind() != dp::AllocKind::coherent)
        return for_cpu ? alloc_->sync_for_cpu() : alloc_->sync_for_device();
    return {}; // coherent memory, or linked: dma_iova_*() has no sync for the CPU
}

Result<void> Target::put(std::size_t offset, std::span<const std::byte> from) {
    if (block_)
        return block_->write(Size(offset), from);
    std::ranges::copy(from, bytes().begin() + static_cast<std::ptrdiff_t>(offset));
    return sync(false);
}

Result<std::vector<std::byte>> Target::get(std::size_t offset, std::size_t length) const {
    std::vector<std::byte> got(length);
    if (block_) {
        if (auto done = block_->read(Size(offset), got); !done)
            return std::unexpected(std::move(done.error()));
        return got;
    }
    if (auto done = sync(true); !done)
        return std::unexpected(std::move(done.error()));
    std::ranges::copy(bytes().subspan(offset, length), got.begin());
    return got;
}

std::pair<const Segment*, Size> Target::find(std::size_t offset) const {
    Size left(offset);
    for (const Segment& segment : segments_) {
        if (left < segment.length)
            return {&segment, left};
        left -= segment.length;
    }
    return {nullptr, left};
}

Iova Target::at(std::size_t offset) const {
    const auto [segment, inside] = find(offset);
    return segment ? segment->addr + inside
                   : segments_.back().addr + segments_.back().length + inside;
}

std::size_t Target::contiguous(std::size_t offset) const {
    const auto [segment, inside] = find(offset);
    return segment ? (segment->length - inside).value() : 0;
}

Result<void> Target::end() {
    Result<void> done;
    if (mapping_) {
        done = mapping_->unmap();
        mapping_.reset();
    }
    if (space_) {
        done = space_->destroy(length_, direction_);
        space_.reset();
    }
    if (done && alloc_) {
        dmabuf_ = dp::DmaBuf();
        done = alloc_->free();
        alloc_.reset();
    }
    if (block_) {
        // A pool keeps its pages until it is destroyed.
        done = block_->free();
        block_.reset();
        if (done)
            done = pool_->destroy();
        pool_.reset();
    }
    return done;
}

} // namespace selftest

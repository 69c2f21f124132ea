// SPDX-License-Identifier: MIT
// Memory that the DMA API allocates.
#include <dmaprobe/alloc.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include <sys/mman.h>

#include <linux/dmaprobe.h>

#include "best_effort.h"
#include "channel.h"
#include "shared.h"

namespace dmaprobe {

namespace {

constexpr std::string_view gone = "the allocation is freed";

} // namespace

std::string_view to_string(AllocKind kind) noexcept {
    switch (kind) {
    case AllocKind::coherent:
        return "coherent";
    case AllocKind::noncoherent:
        return "noncoherent";
    case AllocKind::pages:
        return "pages";
    case AllocKind::noncontiguous:
        return "noncontiguous";
    }
    return "unknown";
}

Result<Alloc> Alloc::create(const Session& session, AllocKind kind, Size length,
                            const AllocOptions& options) {
    dmaprobe_alloc arg{};
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.dir = static_cast<std::uint32_t>(options.direction);
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(options.attrs);
    if (auto done = session.call(DMAPROBE_ALLOC, "alloc", arg); !done)
        return std::unexpected(std::move(done.error()));

    Alloc alloc;
    alloc.channel_ = ChannelOf::get(session);
    alloc.id_ = arg.id;
    alloc.kind_ = kind;
    alloc.direction_ = options.direction;
    alloc.nr_pieces_ = arg.nr_entries;
    alloc.dma_addr_ = Iova(arg.dma_addr);
    alloc.length_ = length;
    alloc.mmap_offset_ = arg.mmap_offset;
    // The destructor frees it.
    if (options.mmap)
        if (auto done = alloc.map_memory(); !done)
            return std::unexpected(std::move(done.error()));
    return alloc;
}

Result<void> Alloc::map_memory() {
    void* memory = ::mmap(nullptr, length_.value(), PROT_READ | PROT_WRITE, MAP_SHARED,
                          channel_->fd(), static_cast<off_t>(mmap_offset_));
    if (memory == MAP_FAILED)
        return std::unexpected(Error{errno, "alloc_mmap", {}});
    memory_ = {static_cast<std::byte*>(memory), length_.value()};
    return {};
}

void Alloc::unmap_memory() noexcept {
    if (!memory_.empty())
        ::munmap(memory_.data(), memory_.size());
    memory_ = {};
}

void Alloc::end() noexcept {
    id_ = 0;
    channel_.reset();
}

Alloc::Alloc(Alloc&& other) noexcept
    : channel_(std::move(other.channel_)), id_(std::exchange(other.id_, 0)), kind_(other.kind_),
      direction_(other.direction_), nr_pieces_(other.nr_pieces_), dma_addr_(other.dma_addr_),
      length_(other.length_), mmap_offset_(other.mmap_offset_),
      memory_(std::exchange(other.memory_, {})) {}

Alloc& Alloc::operator=(Alloc&& other) noexcept {
    if (this != &other) {
        Alloc old(std::move(*this));
        channel_ = std::move(other.channel_);
        id_ = std::exchange(other.id_, 0);
        kind_ = other.kind_;
        direction_ = other.direction_;
        nr_pieces_ = other.nr_pieces_;
        dma_addr_ = other.dma_addr_;
        length_ = other.length_;
        mmap_offset_ = other.mmap_offset_;
        memory_ = std::exchange(other.memory_, {});
    }
    return *this;
}

Alloc::~Alloc() {
    unmap_memory();
    if (id_ == 0)
        return;
    best_effort(destroy(*channel_, id_));
}

Result<void> Alloc::free() {
    if (id_ == 0)
        return {};
    auto done = destroy_mmapped(*channel_, id_, memory_, mmap_offset_);
    if (done || is_gone(done.error()))
        end();
    return done;
}

Result<void> Alloc::sync_for_cpu(Size offset, Size length) const {
    return sync_range(channel_.get(), id_, DMAPROBE_SYNC_FOR_CPU, offset, length, gone);
}

Result<void> Alloc::sync_for_device(Size offset, Size length) const {
    return sync_range(channel_.get(), id_, DMAPROBE_SYNC_FOR_DEVICE, offset, length, gone);
}

Result<void> Alloc::read(Size offset, std::span<std::byte> to) const {
    return copy_out(channel_.get(), id_, offset, to, gone);
}

Result<void> Alloc::write(Size offset, std::span<const std::byte> from) const {
    return copy_in(channel_.get(), id_, offset, from, gone);
}

Result<std::vector<Segment>> Alloc::segments() const {
    return list_segments(channel_.get(), id_, 1, gone);
}

Result<std::vector<AllocPiece>> Alloc::pieces(bool phys) const {
    if (id_ == 0)
        return std::unexpected(Error{EBADF, "get_sgtable", std::string(gone)});
    std::vector<dmaprobe_sgtable_entry> room(std::max(nr_pieces_, 1U));
    for (;;) {
        dmaprobe_get_sgtable arg{};
        arg.flags = phys ? DMAPROBE_SGTABLE_PHYS : 0;
        arg.id = id_;
        arg.nr_entries = static_cast<std::uint32_t>(room.size());
        arg.entries = reinterpret_cast<std::uintptr_t>(room.data());
        if (auto done = channel_->call(DMAPROBE_GET_SGTABLE, "get_sgtable", arg); !done)
            return std::unexpected(std::move(done.error()));
        // More of them than there was room for: once more, with enough.
        if (arg.nr_entries > room.size()) {
            room.resize(arg.nr_entries);
            continue;
        }
        std::vector<AllocPiece> pieces;
        pieces.reserve(arg.nr_entries);
        for (const auto& raw : std::span(room).first(arg.nr_entries))
            pieces.push_back(
                {Size(raw.length), phys ? std::optional(Phys(raw.phys)) : std::nullopt});
        return pieces;
    }
}

Result<DmaBuf> Alloc::export_dmabuf() const {
    if (id_ == 0)
        return std::unexpected(Error{EBADF, "export", std::string(gone)});
    dmaprobe_export arg{};
    arg.id = id_;
    if (auto done = channel_->call(DMAPROBE_EXPORT, "export", arg); !done)
        return std::unexpected(std::move(done.error()));
    return DmaBuf(arg.fd);
}

} // namespace dmaprobe

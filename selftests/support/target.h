/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Memory that a device is given, in one of the ways that the DMA API has for it, by
 * the library. Tests that hold for all of them are written once.
 */
#ifndef SELFTESTS_TARGET_H
#define SELFTESTS_TARGET_H

#include <dmaprobe/alloc.h>
#include <dmaprobe/buffer.h>
#include <dmaprobe/dmabuf.h>
#include <dmaprobe/iova.h>
#include <dmaprobe/mapping.h>
#include <dmaprobe/pool.h>
#include <dmaprobe/session.h>

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace selftest {

enum class MemoryKind {
    single,
    page,
    phys,
    sg,
    linked,
    coherent,
    noncoherent,
    pages,
    noncontiguous,
    pool,
    dmabuf
};

inline constexpr std::array all_memory_kinds = {
    MemoryKind::single,        MemoryKind::page,     MemoryKind::phys,        MemoryKind::sg,
    MemoryKind::linked,        MemoryKind::coherent, MemoryKind::noncoherent, MemoryKind::pages,
    MemoryKind::noncontiguous, MemoryKind::pool,     MemoryKind::dmabuf};

std::string_view to_string(MemoryKind kind);

class Target {
public:
    /*
     * Whole pages, zeroed; scattered ones where the way takes them. One block of a
     * pool, and noncontiguous memory, are as long as the device's limits allow.
     */
    static dmaprobe::Result<Target>
    make(const dmaprobe::Session& session, MemoryKind kind, dmaprobe::Size length,
         dmaprobe::Direction direction = dmaprobe::Direction::bidirectional);

    /* What the CPU writes and reads; the device sees it, and what the device wrote is seen. */
    dmaprobe::Result<void> put(std::size_t offset, std::span<const std::byte> bytes);
    dmaprobe::Result<std::vector<std::byte>> get(std::size_t offset, std::size_t length) const;

    /* What the device is given. */
    const std::vector<dmaprobe::Segment>& segments() const { return segments_; }
    /* The address of a byte, or one behind the last of them. */
    dmaprobe::Iova at(std::size_t offset) const;
    /* Bytes from this one on that lie in one segment. */
    std::size_t contiguous(std::size_t offset) const;
    dmaprobe::Size length() const { return length_; }
    MemoryKind kind() const { return kind_; }

    /* Take it from the device: unmap, destroy or free it. */
    dmaprobe::Result<void> end();
    /* Whether the memory is still there after end(), to be looked at by get(). */
    bool outlasts() const { return buffer_.has_value(); }

private:
    Target(MemoryKind kind, dmaprobe::Size length, dmaprobe::Direction direction)
        : kind_(kind), length_(length), direction_(direction) {}
    dmaprobe::Result<void> map(const dmaprobe::Session& session);
    dmaprobe::Result<void> link(const dmaprobe::Session& session);
    dmaprobe::Result<void> allocate(const dmaprobe::Session& session);
    dmaprobe::Result<void> share(const dmaprobe::Session& session);
    dmaprobe::Result<void> sync(bool for_cpu) const;
    std::span<std::byte> bytes() const;
    /* The segment that has a byte, and where in it; none past the end, and how far. */
    std::pair<const dmaprobe::Segment*, dmaprobe::Size> find(std::size_t offset) const;

    MemoryKind kind_;
    dmaprobe::Size length_;
    dmaprobe::Direction direction_;
    std::vector<dmaprobe::Segment> segments_;
    /* What maps stands behind what it maps, and so goes first. */
    std::optional<dmaprobe::Buffer> buffer_;
    std::optional<dmaprobe::Alloc> alloc_;
    std::optional<dmaprobe::Pool> pool_;
    std::optional<dmaprobe::PoolBlock> block_;
    dmaprobe::DmaBuf dmabuf_;
    std::optional<dmaprobe::Mapping> mapping_;
    std::optional<dmaprobe::IovaSpace> space_;
};

} // namespace selftest

#endif

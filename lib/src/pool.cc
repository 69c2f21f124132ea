// SPDX-License-Identifier: MIT
// Pools of small blocks of coherent memory.
#include <dmaprobe/pool.h>

#include <cerrno>
#include <utility>

#include <linux/dmaprobe.h>

#include "best_effort.h"
#include "channel.h"
#include "shared.h"

namespace dmaprobe {

namespace {

constexpr std::string_view gone = "the block is given back";

} // namespace

PoolBlock::PoolBlock(PoolBlock&& other) noexcept
    : channel_(std::move(other.channel_)), id_(std::exchange(other.id_, 0)),
      dma_addr_(other.dma_addr_), length_(other.length_) {}

PoolBlock& PoolBlock::operator=(PoolBlock&& other) noexcept {
    if (this != &other) {
        best_effort(free());
        channel_ = std::move(other.channel_);
        id_ = std::exchange(other.id_, 0);
        dma_addr_ = other.dma_addr_;
        length_ = other.length_;
    }
    return *this;
}

PoolBlock::~PoolBlock() {
    best_effort(free());
}

Result<void> PoolBlock::free() {
    if (id_ == 0)
        return {};
    auto done = dmaprobe::destroy(*channel_, id_);
    if (done || is_gone(done.error())) {
        id_ = 0;
        channel_.reset();
    }
    return done;
}

Result<void> PoolBlock::read(Size offset, std::span<std::byte> to) const {
    return copy_out(channel_.get(), id_, offset, to, gone);
}

Result<void> PoolBlock::write(Size offset, std::span<const std::byte> from) const {
    return copy_in(channel_.get(), id_, offset, from, gone);
}

Result<Pool> Pool::create(const Session& session, Size block_size, Size align, Size boundary) {
    dmaprobe_pool_create arg{};
    arg.block_size = block_size.value();
    arg.align = align.value();
    arg.boundary = boundary.value();
    if (auto done = session.call(DMAPROBE_POOL_CREATE, "pool_create", arg); !done)
        return std::unexpected(std::move(done.error()));
    Pool pool;
    pool.channel_ = ChannelOf::get(session);
    pool.id_ = arg.id;
    pool.block_size_ = block_size;
    return pool;
}

Pool::Pool(Pool&& other) noexcept
    : channel_(std::move(other.channel_)), id_(std::exchange(other.id_, 0)),
      block_size_(other.block_size_) {}

Pool& Pool::operator=(Pool&& other) noexcept {
    if (this != &other) {
        best_effort(destroy());
        channel_ = std::move(other.channel_);
        id_ = std::exchange(other.id_, 0);
        block_size_ = other.block_size_;
    }
    return *this;
}

Pool::~Pool() {
    best_effort(destroy());
}

Result<PoolBlock> Pool::alloc() const {
    if (id_ == 0)
        return std::unexpected(Error{EBADF, "pool_alloc", "the pool is destroyed"});
    dmaprobe_pool_alloc arg{};
    arg.pool_id = id_;
    if (auto done = channel_->call(DMAPROBE_POOL_ALLOC, "pool_alloc", arg); !done)
        return std::unexpected(std::move(done.error()));
    PoolBlock block;
    block.channel_ = channel_;
    block.id_ = arg.id;
    block.dma_addr_ = Iova(arg.dma_addr);
    block.length_ = block_size_;
    return block;
}

Result<void> Pool::destroy() {
    if (id_ == 0)
        return {};
    auto done = dmaprobe::destroy(*channel_, id_);
    if (done || is_gone(done.error())) {
        id_ = 0;
        channel_.reset();
    }
    return done;
}

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// Calls that are prepared first and made together later.
#include <dmaprobe/calls.h>

#include <cerrno>
#include <cstring>
#include <format>
#include <string>
#include <utility>

#include <linux/dmaprobe.h>

#include "calls.h"

namespace dmaprobe {

// The module reads the list as it is.
static_assert(sizeof(CallOp) == sizeof(dmaprobe_run_op));
static_assert(offsetof(CallOp, command) == offsetof(dmaprobe_run_op, cmd));
static_assert(offsetof(CallOp, result) == offsetof(dmaprobe_run_op, result));
static_assert(offsetof(CallOp, arg) == offsetof(dmaprobe_run_op, arg));

CallList::CallList(const Session& session, References references, std::size_t most)
    : state_(std::make_unique<State>()) {
    state_->channel = ChannelOf::get(session);
    state_->references = references;
    state_->most = most;
}

CallList::CallList(CallList&&) noexcept = default;
CallList& CallList::operator=(CallList&&) noexcept = default;
CallList::~CallList() = default;

std::size_t CallList::size() const noexcept {
    return state_ ? state_->ops.size() : 0;
}

void CallList::clear() noexcept {
    if (!state_)
        return;
    state_->ops.clear();
    state_->notes.clear();
    state_->wrong.reset();
    state_->chunk = 0;
    state_->used = 0;
    ++state_->generation;
}

void CallList::cancel() noexcept {
    if (state_)
        for (CallOp& op : state_->ops)
            op.result = -ECANCELED;
}

void CallList::refuse(int code, std::string_view op, std::string_view why) {
    if (!state_)
        return;
    if (!state_->wrong)
        state_->wrong = Error{code, op, std::format("call {}: {}", size(), why)};
}

void* CallList::place(unsigned long request, std::string_view op, std::size_t size) {
    // A list that was moved from: without a session, so ready() refuses.
    if (!state_)
        state_ = std::make_unique<State>();
    State& state = *state_;
    if (state.channel && state.ops.size() >= state.most)
        refuse(EINVAL, op, std::format("there is room for {} calls", state.most));

    constexpr std::size_t align = alignof(std::uint64_t);
    size = (size + align - 1) / align * align;
    if (state.used + size > State::chunk_size) {
        ++state.chunk;
        state.used = 0;
    }
    if (state.chunk >= state.chunks.size())
        state.chunks.push_back(std::make_unique<std::byte[]>(State::chunk_size));
    std::byte* arg = state.chunks[state.chunk].get() + state.used;
    std::memset(arg, 0, size);
    state.ops.push_back(
        {static_cast<std::uint32_t>(request), -ECANCELED, reinterpret_cast<std::uintptr_t>(arg)});
    state.notes.push_back({op});
    state.used += size;
    return arg;
}

std::uint32_t CallList::resolve(std::uint32_t id, const void* origin, std::string_view op) {
    if (!state_)
        return id;
    if (origin == state_.get()) {
        if (state_->references == References::no)
            refuse(EINVAL, op, "a batch cannot name what it makes itself: Run can");
    } else if (id == 0) {
        refuse(EBADF, op, "the object is closed");
    } else if (origin != nullptr && origin != state_->channel.get()) {
        refuse(ENOENT, op, "the object is another session's, or another list's");
    }
    return id;
}

template <class Object>
Ref<Object> CallList::made(const std::uint32_t& id, const std::uint64_t* addr) {
    const std::size_t call = size() - 1;
    state_->notes.back().id = &id;
    state_->notes.back().addr = addr;
    return {DMAPROBE_RUN_ID(static_cast<std::uint32_t>(call)), state_.get(), call};
}

Result<void> CallList::ready() const {
    if (!state_ || !state_->channel)
        return std::unexpected(Error{EBADF, "execute", "the list was moved away"});
    if (state_->wrong)
        return std::unexpected(*state_->wrong);
    if (state_->channel->fd() < 0)
        return std::unexpected(Error{EBADF, "execute", "the session is closed"});
    return {};
}

Result<void> CallList::outcome(std::size_t made) const {
    const auto& ops = state_->ops;
    for (std::size_t call = 0; call < made; ++call) {
        if (ops[call].result != 0) [[unlikely]]
            return result(call);
    }
    if (made < ops.size())
        return result(made);
    return {};
}

int CallList::code(std::size_t call) const noexcept {
    return call < size() ? -state_->ops[call].result : EINVAL;
}

Result<void> CallList::result(std::size_t call) const {
    if (call >= size())
        return std::unexpected(Error{EINVAL, "result", "there is no such call"});
    const int error = code(call);
    if (error == 0)
        return {};
    return std::unexpected(Error{error, state_->notes[call].op,
                                 error == ECANCELED
                                     ? std::format("call {} was not made", call)
                                     : std::string(explain(state_->ops[call].command, error))});
}

std::size_t CallList::index_of(const void* origin, std::size_t call) const noexcept {
    return origin == state_.get() ? call : none;
}

Result<std::uint32_t> CallList::id_of(std::size_t call) const {
    if (auto done = result(call); !done)
        return std::unexpected(std::move(done.error()));
    if (state_->notes[call].id == nullptr)
        return std::unexpected(Error{EINVAL, "id", std::format("call {} makes no object", call)});
    return *state_->notes[call].id;
}

Result<Iova> CallList::addr_of(std::size_t call) const {
    if (auto done = result(call); !done)
        return std::unexpected(std::move(done.error()));
    if (state_->notes[call].addr == nullptr)
        return std::unexpected(
            Error{EINVAL, "addr", std::format("call {} makes nothing with an address", call)});
    return Iova(*state_->notes[call].addr);
}

std::size_t CallList::nop() {
    add<dmaprobe_nop>(DMAPROBE_NOP, "nop");
    return size() - 1;
}

Ref<Buffer> CallList::buffer_alloc(BufferKind kind, Size length, const BufferOptions& options) {
    auto& arg = add<dmaprobe_buffer_alloc>(DMAPROBE_BUFFER_ALLOC, "buffer_alloc");
    arg.flags = options.node ? DMAPROBE_BUFFER_ALLOC_NODE : 0;
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.length = length.value();
    arg.order = options.order;
    arg.node = options.node.value_or(0);
    arg.offset = options.offset.value();
    return made<Buffer>(arg.id, nullptr);
}

Ref<Buffer> CallList::buffer_pin(std::span<std::byte> memory) {
    auto& arg = add<dmaprobe_buffer_pin>(DMAPROBE_BUFFER_PIN, "buffer_pin");
    arg.addr = reinterpret_cast<std::uintptr_t>(memory.data());
    arg.length = memory.size();
    return made<Buffer>(arg.id, nullptr);
}

std::size_t CallList::end(std::uint32_t id, std::string_view op) {
    add<dmaprobe_destroy>(DMAPROBE_DESTROY, op).id = id;
    return size() - 1;
}

Ref<Mapping> CallList::map(const Ref<Buffer>& buffer, MapKind kind, Size buffer_offset, Size length,
                           Direction direction, Attr attrs) {
    const std::uint32_t buffer_id = resolve(buffer, "map");
    auto& arg = add<dmaprobe_map>(DMAPROBE_MAP, "map");
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.buffer_id = buffer_id;
    arg.buffer_offset = buffer_offset.value();
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    return made<Mapping>(arg.id, reinterpret_cast<const std::uint64_t*>(&arg.dma_addr));
}

Ref<Mapping> CallList::map_resource(unsigned bar, Size offset, Size length, Direction direction,
                                    Attr attrs) {
    auto& arg = add<dmaprobe_map_resource>(DMAPROBE_MAP_RESOURCE, "map_resource");
    arg.bar = bar;
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.offset = offset.value();
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    return made<Mapping>(arg.id, reinterpret_cast<const std::uint64_t*>(&arg.dma_addr));
}

std::size_t CallList::unmap(const Ref<Mapping>& mapping, Attr attrs) {
    const std::uint32_t id = resolve(mapping, "unmap");
    auto& arg = add<dmaprobe_unmap>(DMAPROBE_UNMAP, "unmap");
    arg.id = id;
    arg.attrs = static_cast<std::uint64_t>(attrs);
    return size() - 1;
}

std::size_t CallList::sync(std::uint32_t id, std::uint32_t target, Size offset, Size length) {
    auto& arg = add<dmaprobe_sync>(DMAPROBE_SYNC, "sync");
    arg.id = id;
    arg.target = target;
    arg.offset = offset.value();
    arg.length = length.value();
    return size() - 1;
}

std::size_t CallList::sync_for_cpu(const Ref<Mapping>& mapping, Size offset, Size length) {
    return sync(resolve(mapping, "sync"), DMAPROBE_SYNC_FOR_CPU, offset, length);
}
std::size_t CallList::sync_for_device(const Ref<Mapping>& mapping, Size offset, Size length) {
    return sync(resolve(mapping, "sync"), DMAPROBE_SYNC_FOR_DEVICE, offset, length);
}
std::size_t CallList::sync_for_cpu(const Ref<Alloc>& alloc, Size offset, Size length) {
    return sync(resolve(alloc, "sync"), DMAPROBE_SYNC_FOR_CPU, offset, length);
}
std::size_t CallList::sync_for_device(const Ref<Alloc>& alloc, Size offset, Size length) {
    return sync(resolve(alloc, "sync"), DMAPROBE_SYNC_FOR_DEVICE, offset, length);
}

Ref<IovaSpace> CallList::iova_alloc(Size length, std::uint32_t buffer_id, Size buffer_offset) {
    auto& arg = add<dmaprobe_iova_alloc>(DMAPROBE_IOVA_ALLOC, "iova_alloc");
    arg.buffer_id = buffer_id;
    arg.buffer_offset = buffer_offset.value();
    arg.length = length.value();
    return made<IovaSpace>(arg.id, reinterpret_cast<const std::uint64_t*>(&arg.addr));
}

Ref<IovaSpace> CallList::iova_alloc(Size length) {
    return iova_alloc(length, 0, Size());
}

Ref<IovaSpace> CallList::iova_alloc(Size length, const Ref<Buffer>& first, Size buffer_offset) {
    return iova_alloc(length, resolve(first, "iova_alloc"), buffer_offset);
}

std::size_t CallList::iova_link(const Ref<IovaSpace>& space, const Ref<Buffer>& buffer,
                                Size buffer_offset, Size offset, Size length, Direction direction,
                                Attr attrs) {
    const std::uint32_t buffer_id = resolve(buffer, "iova_link");
    const std::uint32_t id = resolve(space, "iova_link");
    auto& arg = add<dmaprobe_iova_link>(DMAPROBE_IOVA_LINK, "iova_link");
    arg.id = id;
    arg.buffer_id = buffer_id;
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.buffer_offset = buffer_offset.value();
    arg.offset = offset.value();
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    return size() - 1;
}

std::size_t CallList::iova_link_bar(const Ref<IovaSpace>& space, unsigned bar, Size bar_offset,
                                    Size offset, Size length, Direction direction, Attr attrs) {
    const std::uint32_t id = resolve(space, "iova_link");
    auto& arg = add<dmaprobe_iova_link>(DMAPROBE_IOVA_LINK, "iova_link");
    arg.id = id;
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.bar = bar;
    arg.buffer_offset = bar_offset.value();
    arg.offset = offset.value();
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(attrs | Attr::mmio);
    return size() - 1;
}

std::size_t CallList::iova_sync(const Ref<IovaSpace>& space, Size offset, Size length) {
    const std::uint32_t id = resolve(space, "iova_sync");
    auto& arg = add<dmaprobe_iova_sync>(DMAPROBE_IOVA_SYNC, "iova_sync");
    arg.id = id;
    arg.offset = offset.value();
    arg.length = length.value();
    return size() - 1;
}

std::size_t CallList::iova_unlink(const Ref<IovaSpace>& space, Size offset, Size length,
                                  Direction direction, Attr attrs) {
    const std::uint32_t id = resolve(space, "iova_unlink");
    auto& arg = add<dmaprobe_iova_unlink>(DMAPROBE_IOVA_UNLINK, "iova_unlink");
    arg.id = id;
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.offset = offset.value();
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    return size() - 1;
}

std::size_t CallList::iova_free(const Ref<IovaSpace>& space) {
    add<dmaprobe_iova_free>(DMAPROBE_IOVA_FREE, "iova_free").id = resolve(space, "iova_free");
    return size() - 1;
}

std::size_t CallList::iova_destroy(const Ref<IovaSpace>& space, Size mapped_len,
                                   Direction direction, Attr attrs) {
    const std::uint32_t id = resolve(space, "iova_destroy");
    auto& arg = add<dmaprobe_iova_destroy>(DMAPROBE_IOVA_DESTROY, "iova_destroy");
    arg.id = id;
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.mapped_len = mapped_len.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    return size() - 1;
}

Ref<Alloc> CallList::alloc(AllocKind kind, Size length, const AllocOptions& options) {
    auto& arg = add<dmaprobe_alloc>(DMAPROBE_ALLOC, "alloc");
    arg.kind = static_cast<std::uint32_t>(kind);
    arg.dir = static_cast<std::uint32_t>(options.direction);
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(options.attrs);
    return made<Alloc>(arg.id, reinterpret_cast<const std::uint64_t*>(&arg.dma_addr));
}

Ref<Pool> CallList::pool_create(Size block_size, Size align, Size boundary) {
    auto& arg = add<dmaprobe_pool_create>(DMAPROBE_POOL_CREATE, "pool_create");
    arg.block_size = block_size.value();
    arg.align = align.value();
    arg.boundary = boundary.value();
    return made<Pool>(arg.id, nullptr);
}

Ref<PoolBlock> CallList::pool_alloc(const Ref<Pool>& pool) {
    const std::uint32_t pool_id = resolve(pool, "pool_alloc");
    auto& arg = add<dmaprobe_pool_alloc>(DMAPROBE_POOL_ALLOC, "pool_alloc");
    arg.pool_id = pool_id;
    return made<PoolBlock>(arg.id, reinterpret_cast<const std::uint64_t*>(&arg.dma_addr));
}

std::size_t CallList::copy(std::uint32_t id, std::uint32_t dir, Size offset,
                           std::span<const std::byte> memory) {
    auto& arg = add<dmaprobe_copy>(DMAPROBE_COPY, "copy");
    arg.id = id;
    arg.dir = dir;
    arg.offset = offset.value();
    arg.length = memory.size();
    arg.addr = reinterpret_cast<std::uintptr_t>(memory.data());
    return size() - 1;
}

std::size_t CallList::read(const Ref<Buffer>& from, Size offset, std::span<std::byte> to) {
    return copy(resolve(from, "copy"), DMAPROBE_COPY_READ, offset, to);
}
std::size_t CallList::read(const Ref<Alloc>& from, Size offset, std::span<std::byte> to) {
    return copy(resolve(from, "copy"), DMAPROBE_COPY_READ, offset, to);
}
std::size_t CallList::read(const Ref<PoolBlock>& from, Size offset, std::span<std::byte> to) {
    return copy(resolve(from, "copy"), DMAPROBE_COPY_READ, offset, to);
}
std::size_t CallList::write(const Ref<Buffer>& to, Size offset, std::span<const std::byte> from) {
    return copy(resolve(to, "copy"), DMAPROBE_COPY_WRITE, offset, from);
}
std::size_t CallList::write(const Ref<Alloc>& to, Size offset, std::span<const std::byte> from) {
    return copy(resolve(to, "copy"), DMAPROBE_COPY_WRITE, offset, from);
}
std::size_t CallList::write(const Ref<PoolBlock>& to, Size offset,
                            std::span<const std::byte> from) {
    return copy(resolve(to, "copy"), DMAPROBE_COPY_WRITE, offset, from);
}

} // namespace dmaprobe

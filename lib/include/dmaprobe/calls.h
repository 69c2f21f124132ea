// SPDX-License-Identifier: MIT
// Calls that are prepared first and made together later: what Run and Batch have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>

#include <dmaprobe/alloc.h>
#include <dmaprobe/buffer.h>
#include <dmaprobe/iova.h>
#include <dmaprobe/mapping.h>
#include <dmaprobe/pool.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// An object that a prepared call names: one that there is, or one that an earlier call of the same
/// list makes.
///
/// @tparam Object Buffer, Mapping, IovaSpace, Alloc, Pool or PoolBlock
template <class Object>
class Ref {
public:
    /// An object of the list's session. It must not have ended when the calls are made; that would
    /// be ENOENT.
    Ref(const Object& object) noexcept // NOLINT(google-explicit-constructor)
        : id_(object.id()), origin_(object.channel_.get()) {}
    /// An object of the session by its id, such as one that another list has made.
    explicit Ref(std::uint32_t id) noexcept : id_(id) {}

    /// The number of the call that makes the object, as CallList::result() takes it. Without
    /// meaning for an object that there is.
    [[nodiscard]] std::size_t call() const noexcept { return call_; }

private:
    friend class CallList;
    Ref(std::uint32_t id, const void* origin, std::size_t call) noexcept
        : id_(id), origin_(origin), call_(call) {}

    std::uint32_t id_;
    const void* origin_ = nullptr; // the channel of the object, or the list of the call
    std::size_t call_ = ~std::size_t{0};
};

/// Calls, in the order in which they were added, that a Run or a Batch makes together; again and
/// again if need be. Adding a call takes memory, making the calls does not.
///
/// A wrong use while adding (an object that has ended, one of another session or another list, too
/// many calls) is reported when the calls are to be made: none of them is then.
///
/// Objects that the calls make belong to the session; no C++ object ends them. They end by further
/// calls, or with the session.
///
/// Each function adds one call. The arguments are those of the functions of the same names that
/// Buffer, Mapping, IovaSpace, Alloc, Pool and PoolBlock have. Those that make an object give a
/// Ref; the others give the number of the call, from 0 on.
class CallList {
public:
    CallList(const CallList&) = delete;
    CallList& operator=(const CallList&) = delete;

    /// How many calls there are.
    [[nodiscard]] std::size_t size() const noexcept;
    /// Whether there are none.
    [[nodiscard]] bool empty() const noexcept { return size() == 0; }
    /// Forget all calls, and what was wrong with them; the memory is kept. (A list that was moved
    /// from takes calls, and refuses to make them: EBADF.) What was given out for
    /// the calls before (Refs, structs, numbers) must not be used any more.
    void clear() noexcept;

    /// Any call of the ABI.
    ///
    /// @tparam Arg the command's struct, out of `<linux/dmaprobe.h>`
    /// @param request the command, such as DMAPROBE_GET_IOVA_STATE
    /// @param op name for errors, with static storage
    /// @return the struct, zero but for `size`: fill it in before the calls are made, and read it
    ///         afterwards. It stays where it is until clear(). Members that are both in and out are
    ///         the caller's to set again before each time.
    template <class Arg>
        requires std::is_trivially_copyable_v<Arg>
    Arg& add(unsigned long request, std::string_view op) {
        auto* arg = static_cast<Arg*>(place(request, op, sizeof(Arg)));
        arg->size = sizeof(Arg);
        return *arg;
    }

    /// Session::nop()
    std::size_t nop();
    /// Buffer::alloc(), no mmap
    Ref<Buffer> buffer_alloc(BufferKind kind, Size length, const BufferOptions& options = {});
    /// Buffer::pin()
    Ref<Buffer> buffer_pin(std::span<std::byte> memory);
    /// Buffer::close(), without the munmap()
    std::size_t close(const Ref<Buffer>& buffer) { return end(resolve(buffer, "close"), "close"); }

    /// Mapping::map()
    Ref<Mapping> map(const Ref<Buffer>& buffer, MapKind kind, Size buffer_offset, Size length,
                     Direction direction, Attr attrs = Attr::none);
    /// Mapping::map_resource()
    Ref<Mapping> map_resource(unsigned bar, Size offset, Size length, Direction direction,
                              Attr attrs = Attr::none);
    /// Mapping::unmap(); a list does not remember the attributes it mapped with
    std::size_t unmap(const Ref<Mapping>& mapping, Attr attrs = Attr::none);
    /// Mapping::sync_for_cpu()
    std::size_t sync_for_cpu(const Ref<Mapping>& mapping, Size offset, Size length);
    /// Mapping::sync_for_device()
    std::size_t sync_for_device(const Ref<Mapping>& mapping, Size offset, Size length);

    /// IovaSpace::alloc()
    Ref<IovaSpace> iova_alloc(Size length);
    /// IovaSpace::alloc()
    Ref<IovaSpace> iova_alloc(Size length, const Ref<Buffer>& first, Size buffer_offset);
    /// IovaSpace::link()
    std::size_t iova_link(const Ref<IovaSpace>& space, const Ref<Buffer>& buffer,
                          Size buffer_offset, Size offset, Size length, Direction direction,
                          Attr attrs = Attr::none);
    /// IovaSpace::link_bar()
    std::size_t iova_link_bar(const Ref<IovaSpace>& space, unsigned bar, Size bar_offset,
                              Size offset, Size length, Direction direction,
                              Attr attrs = Attr::none);
    /// IovaSpace::sync()
    std::size_t iova_sync(const Ref<IovaSpace>& space, Size offset, Size length);
    /// IovaSpace::unlink()
    std::size_t iova_unlink(const Ref<IovaSpace>& space, Size offset, Size length,
                            Direction direction, Attr attrs = Attr::none);
    /// IovaSpace::free()
    std::size_t iova_free(const Ref<IovaSpace>& space);
    /// IovaSpace::destroy()
    std::size_t iova_destroy(const Ref<IovaSpace>& space, Size mapped_len, Direction direction,
                             Attr attrs = Attr::none);

    /// Alloc::create(), no mmap
    Ref<Alloc> alloc(AllocKind kind, Size length, const AllocOptions& options = {});
    /// Alloc::sync_for_cpu()
    std::size_t sync_for_cpu(const Ref<Alloc>& alloc, Size offset, Size length);
    /// Alloc::sync_for_device()
    std::size_t sync_for_device(const Ref<Alloc>& alloc, Size offset, Size length);

    /// Alloc::free(), without the munmap()
    std::size_t free(const Ref<Alloc>& alloc) { return end(resolve(alloc, "free"), "free"); }

    /// Pool::create()
    Ref<Pool> pool_create(Size block_size, Size align = Size(), Size boundary = Size());
    /// Pool::alloc()
    Ref<PoolBlock> pool_alloc(const Ref<Pool>& pool);
    /// PoolBlock::free()
    std::size_t free(const Ref<PoolBlock>& block) { return end(resolve(block, "free"), "free"); }
    /// Pool::destroy()
    std::size_t destroy(const Ref<Pool>& pool) { return end(resolve(pool, "destroy"), "destroy"); }

    /// Buffer::read()
    std::size_t read(const Ref<Buffer>& from, Size offset, std::span<std::byte> to);
    /// Alloc::read()
    std::size_t read(const Ref<Alloc>& from, Size offset, std::span<std::byte> to);
    /// PoolBlock::read()
    std::size_t read(const Ref<PoolBlock>& from, Size offset, std::span<std::byte> to);
    /// Buffer::write()
    std::size_t write(const Ref<Buffer>& to, Size offset, std::span<const std::byte> from);
    /// Alloc::write()
    std::size_t write(const Ref<Alloc>& to, Size offset, std::span<const std::byte> from);
    /// PoolBlock::write()
    std::size_t write(const Ref<PoolBlock>& to, Size offset, std::span<const std::byte> from);

    /// What became of a call the last time. ECANCELED when it was not made; EINVAL when there is no
    /// such call.
    [[nodiscard]] Result<void> result(std::size_t call) const;
    /// What became of the call that makes an object. EINVAL when that is not a call of this list.
    template <class Object>
    [[nodiscard]] Result<void> result(const Ref<Object>& made) const {
        return result(call_of(made));
    }
    /// The same as a number: 0 or an errno value.
    [[nodiscard]] int code(std::size_t call) const noexcept;

    /// The id of an object that a call of this list has made the last time; errors as result().
    template <class Object>
    [[nodiscard]] Result<std::uint32_t> id(const Ref<Object>& made) const {
        return id_of(call_of(made));
    }
    /// The device's address of an object that a call of this list has made the last time: a
    /// mapping, an IOVA space, an allocation or a block. Errors as result().
    template <class Object>
        requires(!std::is_same_v<Object, Buffer> && !std::is_same_v<Object, Pool>)
    [[nodiscard]] Result<Iova> addr(const Ref<Object>& made) const {
        return addr_of(call_of(made));
    }

protected: // of the library alone
    struct State;
    /// Whether calls can name what earlier ones make.
    enum class References { yes, no };

    CallList(const Session& session, References references, std::size_t most);
    CallList(CallList&&) noexcept;
    CallList& operator=(CallList&&) noexcept;
    ~CallList();

    /// What keeps the calls from being made, if anything does.
    [[nodiscard]] Result<void> ready() const;
    /// Give no call a result: those that the list holds are of another time.
    void cancel() noexcept;
    /// All is well, or the error of the first call that was not.
    [[nodiscard]] Result<void> outcome(std::size_t made) const;

    std::unique_ptr<State> state_; ///< the calls

private:
    void* place(unsigned long request, std::string_view op, std::size_t size);
    void refuse(int code, std::string_view op, std::string_view why);
    std::uint32_t resolve(std::uint32_t id, const void* origin, std::string_view op);
    template <class Object>
    std::uint32_t resolve(const Ref<Object>& ref, std::string_view op) {
        return resolve(ref.id_, ref.origin_, op);
    }
    static constexpr std::size_t none = std::numeric_limits<std::size_t>::max();
    [[nodiscard]] std::size_t index_of(const void* origin, std::size_t call) const noexcept;
    template <class Object>
    [[nodiscard]] std::size_t call_of(const Ref<Object>& made) const noexcept {
        return index_of(made.origin_, made.call_);
    }
    template <class Object>
    Ref<Object> made(const std::uint32_t& id, const std::uint64_t* addr);
    std::size_t end(std::uint32_t id, std::string_view op);
    std::size_t sync(std::uint32_t id, std::uint32_t target, Size offset, Size length);
    std::size_t copy(std::uint32_t id, std::uint32_t dir, Size offset,
                     std::span<const std::byte> memory);
    Ref<IovaSpace> iova_alloc(Size length, std::uint32_t buffer_id, Size buffer_offset);
    [[nodiscard]] Result<std::uint32_t> id_of(std::size_t call) const;
    [[nodiscard]] Result<Iova> addr_of(std::size_t call) const;
};

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// IOVA space, linked piece by piece.
#include <dmaprobe/iova.h>

#include <cerrno>
#include <utility>

#include <linux/dmaprobe.h>

#include "best_effort.h"
#include "channel.h"

namespace dmaprobe {

namespace {

std::unexpected<Error> ended(std::string_view op) {
    return std::unexpected(Error{EBADF, op, "the IOVA space is gone"});
}

Result<void> unlink_range(const Channel& channel, std::uint32_t id, Size offset, Size length,
                          Direction direction, Attr attrs) {
    dmaprobe_iova_unlink arg{};
    arg.id = id;
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.offset = offset.value();
    arg.length = length.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    return channel.call(DMAPROBE_IOVA_UNLINK, "iova_unlink", arg);
}

} // namespace

Result<IovaSpace> IovaSpace::make(const Session& session, Size length, const Buffer* first,
                                  Size buffer_offset, std::uint32_t flags) {
    if (first != nullptr && first->id() == 0)
        return std::unexpected(Error{EBADF, "iova_alloc", "the buffer is closed"});
    if (first != nullptr && ChannelOf::get(*first) != ChannelOf::get(session))
        return std::unexpected(Error{ENOENT, "iova_alloc", "the buffer is another session's"});
    dmaprobe_iova_alloc arg{};
    arg.flags = flags;
    arg.buffer_id = first != nullptr ? first->id() : 0;
    arg.buffer_offset = buffer_offset.value();
    arg.length = length.value();
    if (auto done = session.call(DMAPROBE_IOVA_ALLOC, "iova_alloc", arg); !done)
        return std::unexpected(std::move(done.error()));
    IovaSpace space;
    space.channel_ = ChannelOf::get(session);
    space.id_ = arg.id;
    space.addr_ = Iova(arg.addr);
    space.length_ = length;
    return space;
}

Result<IovaSpace> IovaSpace::alloc(const Session& session, Size length) {
    return make(session, length, nullptr, Size(), 0);
}

Result<IovaSpace> IovaSpace::alloc(const Session& session, Size length, const Buffer& first,
                                   Size buffer_offset) {
    return make(session, length, &first, buffer_offset, 0);
}

Result<IovaSpace> IovaSpace::try_alloc(const Session& session, Size length) {
    return make(session, length, nullptr, Size(), DMAPROBE_IOVA_ALLOC_TRY);
}

Result<IovaSpace> IovaSpace::try_alloc(const Session& session, Size length, const Buffer& first,
                                       Size buffer_offset) {
    return make(session, length, &first, buffer_offset, DMAPROBE_IOVA_ALLOC_TRY);
}

IovaSpace::IovaSpace(IovaSpace&& other) noexcept
    : channel_(std::move(other.channel_)), id_(std::exchange(other.id_, 0)), addr_(other.addr_),
      length_(other.length_), links_(std::move(other.links_)) {}

IovaSpace& IovaSpace::operator=(IovaSpace&& other) noexcept {
    if (this != &other) {
        release();
        channel_ = std::move(other.channel_);
        id_ = std::exchange(other.id_, 0);
        addr_ = other.addr_;
        length_ = other.length_;
        links_ = std::move(other.links_);
    }
    return *this;
}

IovaSpace::~IovaSpace() {
    release();
}

void IovaSpace::release() noexcept {
    if (id_ == 0)
        return;
    for (const Link& link : links_)
        best_effort(
            unlink_range(*channel_, id_, link.offset, link.length, link.direction, link.attrs));
    best_effort(free());
    end();
}

void IovaSpace::end() noexcept {
    id_ = 0;
    links_.clear();
    channel_.reset();
}

Result<void> IovaSpace::link(std::uint32_t buffer_id, unsigned bar, Size start, const Link& where) {
    dmaprobe_iova_link arg{};
    arg.id = id_;
    arg.buffer_id = buffer_id;
    arg.dir = static_cast<std::uint32_t>(where.direction);
    arg.bar = bar;
    arg.buffer_offset = start.value();
    arg.offset = where.offset.value();
    arg.length = where.length.value();
    arg.attrs = static_cast<std::uint64_t>(where.attrs);
    auto done = channel_->call(DMAPROBE_IOVA_LINK, "iova_link", arg);
    if (done)
        links_.push_back(where);
    return done;
}

Result<void> IovaSpace::link(const Buffer& buffer, Size buffer_offset, Size offset, Size length,
                             Direction direction, Attr attrs) {
    if (id_ == 0)
        return ended("iova_link");
    if (buffer.id() == 0)
        return std::unexpected(Error{EBADF, "iova_link", "the buffer is closed"});
    if (ChannelOf::get(buffer) != channel_)
        return std::unexpected(Error{ENOENT, "iova_link", "the buffer is another session's"});
    return link(buffer.id(), 0, buffer_offset, {offset, length, direction, attrs});
}

Result<void> IovaSpace::link_bar(unsigned bar, Size bar_offset, Size offset, Size length,
                                 Direction direction, Attr attrs) {
    if (id_ == 0)
        return ended("iova_link");
    return link(0, bar, bar_offset, {offset, length, direction, attrs | Attr::mmio});
}

Result<void> IovaSpace::sync(Size offset, Size length) const {
    if (id_ == 0)
        return ended("iova_sync");
    dmaprobe_iova_sync arg{};
    arg.id = id_;
    arg.offset = offset.value();
    arg.length = length.value();
    return channel_->call(DMAPROBE_IOVA_SYNC, "iova_sync", arg);
}

Result<void> IovaSpace::unlink(Size offset, Size length, Direction direction, Attr attrs) {
    if (id_ == 0)
        return ended("iova_unlink");
    auto done = unlink_range(*channel_, id_, offset, length, direction, attrs);
    if (done) {
        // The module takes whole links only.
        std::erase_if(links_, [=](const Link& link) {
            return link.offset >= offset && link.offset < offset + length;
        });
    }
    return done;
}

Result<void> IovaSpace::free() {
    if (id_ == 0)
        return {};
    dmaprobe_iova_free arg{};
    arg.id = id_;
    auto done = channel_->call(DMAPROBE_IOVA_FREE, "iova_free", arg);
    if (done || is_gone(done.error()))
        end();
    return done;
}

Result<void> IovaSpace::destroy(Size mapped_len, Direction direction, Attr attrs) {
    if (id_ == 0)
        return {};
    dmaprobe_iova_destroy arg{};
    arg.id = id_;
    arg.dir = static_cast<std::uint32_t>(direction);
    arg.mapped_len = mapped_len.value();
    arg.attrs = static_cast<std::uint64_t>(attrs);
    auto done = channel_->call(DMAPROBE_IOVA_DESTROY, "iova_destroy", arg);
    if (done || is_gone(done.error()))
        end();
    return done;
}

Result<IovaState> IovaSpace::state() const {
    if (id_ == 0)
        return ended("get_iova_state");
    dmaprobe_get_iova_state arg{};
    arg.id = id_;
    if (auto done = channel_->call(DMAPROBE_GET_IOVA_STATE, "get_iova_state", arg); !done)
        return std::unexpected(std::move(done.error()));
    return IovaState{arg.use != 0,     Iova(arg.addr), Size(arg.length),
                     Size(arg.linked), arg.nr_links,   arg.bounced != 0};
}

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// An io_uring that carries commands of the module.
#include "ring.h"

#include <array>
#include <cerrno>
#include <string>
#include <utility>

namespace dmaprobe {

namespace {

std::string explain(int code) {
    switch (code) {
    case ENOSYS:
        return "this kernel has no io_uring";
    case EPERM:
        return "io_uring is not allowed here (kernel.io_uring_disabled)";
    case ENOMEM:
        return "no memory for a ring";
    case EEXIST:
        return "the ring belongs to the thread that made it";
    default:
        return {};
    }
}

void prepare(io_uring_sqe& sqe, int fd, std::uint32_t command, std::uint64_t arg) {
    // The module wants all that is not named here to be zero.
    io_uring_prep_rw(IORING_OP_URING_CMD, &sqe, fd, nullptr, 0, 0);
    sqe.cmd_op = command;
    sqe.addr = arg;
}

} // namespace

Result<std::unique_ptr<Ring>> Ring::make(unsigned entries, unsigned flags) {
    std::unique_ptr<Ring> ring(new Ring);
    if (const int error = io_uring_queue_init(entries, &ring->ring_, flags); error < 0) {
        ring->ring_.ring_fd = -1;
        return std::unexpected(Error{-error, "ring", explain(-error)});
    }
    return ring;
}

Result<std::unique_ptr<Ring>> Ring::shared() {
    return make(4, IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN);
}

Result<std::unique_ptr<Ring>> Ring::single(int fd, unsigned entries) {
    auto ring = make(entries, IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER |
                                  IORING_SETUP_DEFER_TASKRUN);
    if (!ring)
        return ring;
    if (const int error = io_uring_register_files(&(*ring)->ring_, &fd, 1); error < 0)
        return std::unexpected(Error{-error, "ring", explain(-error)});
    (*ring)->registered_ = true;
    return ring;
}

Ring::~Ring() {
    if (ring_.ring_fd < 0)
        return;
    // The kernel takes a ring apart later, in a worker. The session's file is to be let go now.
    if (registered_)
        io_uring_unregister_files(&ring_);
    io_uring_queue_exit(&ring_);
}

Result<void> Ring::submit(unsigned count, std::span<CallOp> ops, std::string_view op) {
    unsigned submitted = 0;
    unsigned completed = 0;
    int broken = 0;
    while (completed < count && (broken == 0 || completed < submitted)) {
        const unsigned wanted = (broken == 0 ? count : submitted) - completed;
        io_uring_cqe* cqe = nullptr;
        const int done = broken == 0 ? io_uring_submit_and_wait(&ring_, wanted)
                                     : io_uring_wait_cqe_nr(&ring_, &cqe, wanted);
        if (done > 0 && broken == 0)
            submitted += static_cast<unsigned>(done);
        // Short of memory, or full of completions: once more, when those have been taken. A signal
        // ends the waiting, but not the commands.
        else if (done < 0 && done != -EINTR && done != -EAGAIN && done != -EBUSY)
            broken = -done;

        unsigned head = 0;
        unsigned seen = 0;
        io_uring_for_each_cqe(&ring_, head, cqe) {
            ops[cqe->user_data].result = cqe->res;
            ++seen;
        }
        io_uring_cq_advance(&ring_, seen);
        completed += seen;
    }
    if (broken == 0)
        return {};
    // What was not submitted has no result, and must not go with the next.
    for (CallOp& call : ops.subspan(submitted))
        call.result = -ECANCELED;
    ring_.sq.sqe_tail -= count - submitted;
    ready_ = 0;
    return std::unexpected(Error{broken, op, explain(broken)});
}

Result<void> Ring::call(int fd, unsigned long request, std::string_view op, void* arg) {
    const std::lock_guard lock(mutex_);
    std::array<CallOp, 2> calls{
        CallOp{static_cast<std::uint32_t>(request), 0, reinterpret_cast<std::uintptr_t>(arg)}};
    io_uring_sqe& sqe = *io_uring_get_sqe(&ring_);
    prepare(sqe, fd, calls[0].command, calls[0].arg);
    // What a worker of the ring calls holds the file for a moment longer than it takes to answer.
    // What is linked to it begins when that is over, so that close() finds the file free.
    sqe.flags = IOSQE_IO_HARDLINK;
    sqe.user_data = 0;
    io_uring_sqe& after = *io_uring_get_sqe(&ring_);
    io_uring_prep_nop(&after);
    after.user_data = 1;
    if (auto done = submit(2, calls, op); !done)
        return done;
    if (calls[0].result < 0)
        return std::unexpected(Error{-calls[0].result, op, {}});
    return {};
}

Result<void> Ring::run(std::span<CallOp> ops, bool link, bool unchanged) {
    const auto count = static_cast<unsigned>(ops.size());
    // The kernel only reads the entries: a run that fills the ring finds those of the last one in
    // their places.
    if (unchanged && count == entries() && ready_ == count) {
        ring_.sq.sqe_tail += count;
    } else {
        for (unsigned i = 0; i < count; ++i) {
            io_uring_sqe& sqe = *io_uring_get_sqe(&ring_);
            prepare(sqe, 0, ops[i].command, ops[i].arg);
            sqe.flags = IOSQE_FIXED_FILE;
            if (link && i + 1 < count)
                sqe.flags |= IOSQE_IO_LINK;
            sqe.user_data = i;
        }
        ready_ = count;
    }
    return submit(count, ops, "batch");
}

} // namespace dmaprobe

// SPDX-License-Identifier: GPL-2.0-only

#include "uring.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <format>
#include <ostream>

namespace selftest {

void PrintTo(const Completion& completion, std::ostream* out) {
    *out << completion.tag << ": ";
    if (completion.result < 0)
        *out << strerrorname_np(-completion.result);
    else
        *out << completion.result;
}

void Uring::Exit::operator()(io_uring* ring) const {
    io_uring_queue_exit(ring);
    delete ring;
}

Uring::Uring(unsigned entries, unsigned flags) {
    auto ring = std::make_unique<io_uring>();

    error_ = -io_uring_queue_init(entries, ring.get(), flags);
    if (!error_)
        ring_.reset(ring.release());
}

io_uring_sqe& Uring::sqe() const {
    io_uring_sqe* sqe = io_uring_get_sqe(ring_.get());

    // The tests make their rings large enough.
    if (!sqe)
        std::abort();
    memset(sqe, 0, ring_->flags & IORING_SETUP_SQE128 ? 2 * sizeof(*sqe) : sizeof(*sqe));
    return *sqe;
}

io_uring_sqe& Uring::command(int fd, unsigned long command, const void* op, uint64_t tag) const {
    io_uring_sqe& s = sqe();

    s.opcode = IORING_OP_URING_CMD;
    s.fd = fd;
    s.cmd_op = static_cast<uint32_t>(command);
    s.addr = reinterpret_cast<uintptr_t>(op);
    s.user_data = tag;
    return s;
}

io_uring_sqe& Uring::nop(uint64_t tag) const {
    io_uring_sqe& s = sqe();

    s.opcode = IORING_OP_NOP;
    s.fd = -1;
    s.user_data = tag;
    return s;
}

io_uring_sqe& Uring::cancel(uint64_t tag_of_other, uint64_t tag) const {
    io_uring_sqe& s = sqe();

    s.opcode = IORING_OP_ASYNC_CANCEL;
    s.fd = -1;
    s.addr = tag_of_other;
    s.user_data = tag;
    return s;
}

int Uring::submit() const {
    int ret = 0;

    do
        ret = io_uring_submit(ring_.get());
    while (ret == -EINTR);
    return ret;
}

bool Uring::wait(Completion& out, std::chrono::milliseconds timeout) const {
    const auto end = std::chrono::steady_clock::now() + timeout;
    io_uring_cqe* cqe = nullptr;

    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(
                              end - std::chrono::steady_clock::now())
                              .count();
        if (left <= 0)
            return false;
        __kernel_timespec ts = {.tv_sec = left / 1'000'000'000, .tv_nsec = left % 1'000'000'000};
        const int ret = io_uring_wait_cqe_timeout(ring_.get(), &cqe, &ts);

        if (ret == 0)
            break;
        if (ret != -EINTR && ret != -EAGAIN && ret != -ETIME)
            return false;
    }
    out = {.tag = cqe->user_data, .result = cqe->res};
    io_uring_cqe_seen(ring_.get(), cqe);
    return true;
}

} // namespace selftest

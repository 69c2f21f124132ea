/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A ring of io_uring for tests, by liburing. The kernel's side of it is documented
 * in io_uring(7) and io_uring_enter(2).
 */
#ifndef SELFTESTS_URING_H
#define SELFTESTS_URING_H

#include <liburing.h>

#include <chrono>
#include <cstdint>
#include <memory>

namespace selftest {

/* What a request answered: cqe->res and the user_data of its SQE. */
struct Completion {
    uint64_t tag = 0;
    int result = 0;

    bool operator==(const Completion&) const = default;
};
void PrintTo(const Completion& completion, std::ostream* out);

class Uring {
public:
    /* No ring; error() is 0. */
    Uring() = default;
    /* error() says whether there is one now. */
    explicit Uring(unsigned entries, unsigned flags = 0);

    int error() const { return error_; }
    explicit operator bool() const { return ring_ != nullptr; }
    io_uring* get() const { return ring_.get(); }

    /* An SQE that makes a call, to be changed further as the test likes. */
    io_uring_sqe& command(int fd, unsigned long command, const void* op, uint64_t tag = 0) const;
    io_uring_sqe& nop(uint64_t tag = 0) const;
    io_uring_sqe& cancel(uint64_t tag_of_other, uint64_t tag = 0) const;

    /* Hand over all SQEs. How many, or a negative errno. */
    int submit() const;
    /* The next completion; false when none came in time. */
    bool wait(Completion& out, std::chrono::milliseconds timeout = std::chrono::seconds(20)) const;

private:
    struct Exit {
        void operator()(io_uring* ring) const;
    };
    io_uring_sqe& sqe() const;

    std::unique_ptr<io_uring, Exit> ring_;
    int error_ = 0;
};

} // namespace selftest

#endif

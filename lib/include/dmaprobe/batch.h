// SPDX-License-Identifier: MIT
// A batch: many calls under way at a time, by io_uring.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include <dmaprobe/calls.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>

namespace [[gnu::visibility("default")]] dmaprobe {

class Ring; // the library's

/// In which order a batch makes its calls.
enum class Order : std::uint32_t {
    any = 0,    ///< in any, those under way beside each other
    linked = 1, ///< one after the other; those behind one that failed are cancelled
};

/// How a batch works.
struct BatchOptions {
    unsigned depth = 128;     ///< calls that are under way at most: 1 to 4096
    Order order = Order::any; ///< in which order they are made
};

/// Calls that are submitted together through an io_uring of the batch's own, whatever transport the
/// session has, and waited for. Calls cannot name what others of the same batch make, since a ring
/// has no way to hand that on: Run has.
///
/// More calls than `depth` are made in portions of that many.
///
/// A batch belongs to the thread that makes it, and keeps the session's file open for as long as it
/// lives. It must not outlive fork() in the child.
class Batch : public CallList {
public:
    /// Make a batch without calls.
    ///
    /// EINVAL: a bad depth. ENOSYS, EPERM: no io_uring, or not allowed. ENOMEM: no memory. EBADF:
    /// the session is closed.
    [[nodiscard]] static Result<Batch> create(const Session& session,
                                              const BatchOptions& options = {});

    Batch(Batch&&) noexcept;
    Batch& operator=(Batch&&) noexcept;
    ~Batch();

    /// Make the calls, and wait until all of them are done. A signal does not end the waiting.
    ///
    /// @return the error of the first call that failed, or of the batch itself (EEXIST: another
    ///         thread's batch, or an error of adding); result() returns each call's outcome
    [[nodiscard]] Result<void> execute();

    /// How many calls are under way at most: the depth asked for.
    [[nodiscard]] unsigned depth() const noexcept { return depth_; }

private:
    Batch(const Session& session, const BatchOptions& options, std::unique_ptr<Ring> ring);

    std::unique_ptr<Ring> ring_;
    unsigned depth_;
    Order order_;
    // What the ring has seen last: so many calls, after so many times of clear().
    std::size_t known_ = 0;
    std::uint64_t generation_ = 0;
};

} // namespace dmaprobe

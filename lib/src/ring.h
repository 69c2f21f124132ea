// SPDX-License-Identifier: MIT
// An io_uring that carries commands of the module.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>

#include <liburing.h>

#include <dmaprobe/result.h>

namespace dmaprobe {

/// A prepared call; lies in memory as `struct dmaprobe_run_op` does.
struct CallOp {
    std::uint32_t command;
    std::int32_t result; ///< 0 or a negative errno
    std::uint64_t arg;   ///< address of the command's struct
};

/// A ring, and what it takes to wait for all that it was given: the kernel writes into the callers'
/// structs until a command has completed, so nothing here returns before that.
class [[gnu::visibility("hidden")]] Ring {
public:
    /// For single calls by any thread.
    static Result<std::unique_ptr<Ring>> shared();
    /// For many calls at a time by the thread that makes it, with the session's file registered.
    /// @param entries what fits in at a time; rounded up to a power of two
    static Result<std::unique_ptr<Ring>> single(int fd, unsigned entries);

    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    ~Ring();

    /// One command, waited for. Calls of several threads go one after the other.
    Result<void> call(int fd, unsigned long request, std::string_view op, void* arg);

    /// As many commands as entries() at most, submitted together and waited for. Only for a ring
    /// made by single().
    /// @param link each begins when the one before has succeeded, and is cancelled when it failed
    /// @param unchanged the same commands as last time, nothing of them changed
    Result<void> run(std::span<CallOp> ops, bool link, bool unchanged);

    /// What fits in at a time.
    [[nodiscard]] unsigned entries() const noexcept { return ring_.sq.ring_entries; }

private:
    Ring() noexcept = default;
    static Result<std::unique_ptr<Ring>> make(unsigned entries, unsigned flags);
    Result<void> submit(unsigned count, std::span<CallOp> ops, std::string_view op);

    std::mutex mutex_;
    io_uring ring_{};
    bool registered_ = false;
    std::size_t ready_ = 0; // entries that still hold the last run, or 0
};

} // namespace dmaprobe

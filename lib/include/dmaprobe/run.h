// SPDX-License-Identifier: MIT
// A vectored run: many calls in one.
#pragma once

#include <cstddef>
#include <cstdint>

#include <dmaprobe/calls.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// What a run does after a call that failed.
enum class OnError : std::uint32_t {
    stop = 0,     ///< nothing more
    carry_on = 1, ///< the next call
};

/// Calls that the module makes one after the other, in one call of its own; DMAPROBE_RUN. A later
/// call can name what an earlier one makes:
///
///     Run run(session);
///     const auto mapping = run.map(buffer, MapKind::page, 0_B, 4_KiB, Direction::to_device);
///     run.sync_for_device(mapping, 0_B, 4_KiB);
///     run.unmap(mapping);
///     if (auto done = run.execute(); !done)
///         return done;                      // the error of the call that failed
///     std::cout << *run.addr(mapping);      // where it was
///
/// One thread at a time. After the session's close() a run answers EBADF.
class Run : public CallList {
public:
    /// How many calls a run can have.
    static constexpr std::size_t max_calls = 4096;

    /// A run without calls.
    explicit Run(const Session& session);
    Run(Run&&) noexcept = default;
    Run& operator=(Run&&) noexcept = default;
    ~Run() = default;

    /// Make the calls, each as if it were alone. What was made before a failure stays.
    ///
    /// @return the error of the first call that failed, or of the run itself (EINVAL: more than
    ///         max_calls, or an error of adding); result() returns each call's outcome
    [[nodiscard]] Result<void> execute(OnError on_error = OnError::stop);

    /// How many calls were made the last time, the one that failed included.
    [[nodiscard]] std::size_t done() const noexcept { return done_; }

private:
    std::size_t done_ = 0;
};

} // namespace dmaprobe

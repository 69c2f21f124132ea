// SPDX-License-Identifier: MIT
// Waiting for a descriptor, with a deadline and a way to stop.
#pragma once

#include <cerrno>
#include <chrono>
#include <stop_token>
#include <string_view>

#include <dmaprobe/result.h>

#include "file.h"

namespace dmaprobe {

/// A wait for what a descriptor brings. Around a loop of look(), a look at it, and sleep().
class Wait {
public:
    /// @param op name for errors, with static storage
    /// @param missing what did not happen when time is up, with static storage
    /// @param deadline how long to wait; a year or more is for ever
    Wait(std::string_view op, std::string_view missing, std::chrono::milliseconds deadline,
         std::stop_token stop);

    /// To be called before each look, so that what came in time is found however late it is.
    void look() noexcept;
    /// After a look that found nothing: sleep until `fd` is readable, or time is up, or a stop is
    /// requested. ETIMEDOUT, ECANCELED: that was so already before the look.
    [[nodiscard]] Result<void> sleep(int fd) const;

private:
    using Clock = std::chrono::steady_clock;
    struct Ring {
        int fd;
        void operator()() const noexcept;
    };

    std::string_view op_;
    std::string_view missing_;
    std::chrono::milliseconds deadline_;
    Clock::time_point end_;
    bool late_ = false;
    bool stopped_ = false;
    std::stop_token stop_;
    file::Fd wake_; // an eventfd that the stop writes to; none when nobody can stop this
    int no_wake_;   // errno value: why there is none
    std::stop_callback<Ring> on_stop_;
};

} // namespace dmaprobe

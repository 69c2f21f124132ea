// SPDX-License-Identifier: MIT
// Waiting for a descriptor, with a deadline and a way to stop.
#include "wait.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <format>
#include <limits>
#include <tuple>
#include <utility>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace dmaprobe {

void Wait::Ring::operator()() const noexcept {
    const std::uint64_t one = 1;
    std::ignore = ::write(fd, &one, sizeof(one));
}

Wait::Wait(std::string_view op, std::string_view missing, std::chrono::milliseconds deadline,
           std::stop_token stop)
    : op_(op), missing_(missing), deadline_(deadline),
      end_(deadline >= std::chrono::years(1)
               ? Clock::time_point::max()
               : Clock::now() + std::max(deadline, std::chrono::milliseconds(0))),
      stop_(std::move(stop)), wake_(stop_.stop_possible() ? ::eventfd(0, EFD_CLOEXEC) : -1),
      no_wake_(errno), on_stop_(stop_, Ring{wake_.get()}) {}

void Wait::look() noexcept {
    late_ = Clock::now() >= end_;
    stopped_ = stop_.stop_requested();
}

Result<void> Wait::sleep(int fd) const {
    if (stopped_)
        return std::unexpected(Error{ECANCELED, op_, "the wait was stopped"});
    if (late_)
        return std::unexpected(
            Error{ETIMEDOUT, op_, std::format("{} in {} ms", missing_, deadline_.count())});
    if (stop_.stop_possible() && !wake_)
        return std::unexpected(Error{no_wake_, op_, "no eventfd to stop the wait by"});
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end_ - Clock::now()).count();
    std::array<pollfd, 2> polled{{{.fd = fd, .events = POLLIN, .revents = 0},
                                  {.fd = wake_.get(), .events = POLLIN, .revents = 0}}};
    // poll() passes over descriptors below 0.
    if (::poll(polled.data(), polled.size(),
               static_cast<int>(
                   std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max()))) < 0 &&
        errno != EINTR)
        return std::unexpected(Error{errno, op_, {}});
    return {};
}

} // namespace dmaprobe

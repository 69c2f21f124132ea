// SPDX-License-Identifier: MIT
// Following the kernel log for IOMMU faults.
#include <dmaprobe/fault.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "file.h"
#include "kmsg.h"
#include "wait.h"

namespace dmaprobe {

Result<FaultWatcher> FaultWatcher::open(const std::string& path) {
    file::Fd fd(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (!fd) {
        const int code = errno;
        return std::unexpected(Error{code, "fault_open",
                                     code == EACCES || code == EPERM
                                         ? "no permission to read the kernel log " + path +
                                               " (with kernel.dmesg_restrict=1 it takes CAP_SYSLOG)"
                                         : path});
    }
    if (::lseek(fd.get(), 0, SEEK_END) < 0)
        return std::unexpected(Error{errno, "fault_open", path});
    return FaultWatcher(fd.release());
}

FaultWatcher::FaultWatcher(FaultWatcher&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), parser_(std::move(other.parser_)),
      pending_(std::move(other.pending_)), other_lines_(std::move(other.other_lines_)),
      overruns_(other.overruns_) {}

FaultWatcher& FaultWatcher::operator=(FaultWatcher&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(parser_, other.parser_);
    std::swap(pending_, other.pending_);
    std::swap(other_lines_, other.other_lines_);
    std::swap(overruns_, other.overruns_);
    return *this;
}

FaultWatcher::~FaultWatcher() {
    if (fd_ >= 0)
        ::close(fd_);
}

/// Read what is there, without waiting.
Result<void> FaultWatcher::read_all() {
    // One read gives one record; the kernel's longest is about 2 KiB.
    std::array<char, 8192> record{};
    constexpr std::size_t most_other_lines = 16;
    for (;;) {
        const ssize_t got = ::read(fd_, record.data(), record.size());
        if (got > 0) {
            const std::string_view line(record.data(), static_cast<std::size_t>(got));
            if (parser_.take(line, pending_))
                continue;
            std::chrono::microseconds time{0};
            other_lines_.emplace_back(record_text(line, time));
            if (other_lines_.size() > most_other_lines)
                other_lines_.pop_front();
            continue;
        }
        if (got == 0 || errno == EAGAIN)
            return {};
        if (errno == EPIPE) {
            // The log was overwritten under the reader, who goes on with the oldest record left.
            ++overruns_;
            continue;
        }
        if (errno != EINTR)
            return std::unexpected(Error{errno, "fault_read", {}});
    }
}

template <class Match>
Result<Fault> FaultWatcher::wait_for(const Match& match, std::chrono::milliseconds deadline,
                                     std::stop_token stop) {
    Wait wait("fault_wait", "no fault was reported", deadline, std::move(stop));
    for (;;) {
        wait.look();
        if (auto done = read_all(); !done)
            return std::unexpected(std::move(done.error()));
        const auto found = std::ranges::find_if(pending_, match);
        if (found != pending_.end()) {
            Fault fault = std::move(*found);
            pending_.erase(found);
            return fault;
        }
        if (auto awake = wait.sleep(fd_); !awake)
            return std::unexpected(std::move(awake.error()));
    }
}

Result<Fault> FaultWatcher::wait(const Bdf& bdf, std::chrono::milliseconds deadline,
                                 std::stop_token stop) {
    return wait(std::span(&bdf, 1), deadline, std::move(stop));
}

Result<Fault> FaultWatcher::wait(std::span<const Bdf> requesters,
                                 std::chrono::milliseconds deadline, std::stop_token stop) {
    return wait_for([&](const Fault& fault) { return fault.is_from(requesters); }, deadline,
                    std::move(stop));
}

Result<Fault> FaultWatcher::wait(std::chrono::milliseconds deadline, std::stop_token stop) {
    return wait_for([](const Fault&) { return true; }, deadline, std::move(stop));
}

std::vector<std::string> FaultWatcher::take_other_lines() {
    std::vector<std::string> lines(std::make_move_iterator(other_lines_.begin()),
                                   std::make_move_iterator(other_lines_.end()));
    other_lines_.clear();
    return lines;
}

Result<std::vector<Fault>> FaultWatcher::drain() {
    if (auto done = read_all(); !done)
        return std::unexpected(std::move(done.error()));
    std::vector<Fault> faults(std::make_move_iterator(pending_.begin()),
                              std::make_move_iterator(pending_.end()));
    pending_.clear();
    return faults;
}

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// The open file of a session, shared by the session and the objects made in it.
#pragma once

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include <dmaprobe/bdf.h>
#include <dmaprobe/result.h>

namespace dmaprobe {

/// Every command leaves through call(): another transport (a ring) would take its place here, and
/// nothing above would change.
class Channel {
public:
    Channel(int fd, Bdf bdf, std::string path) : fd_(fd), bdf_(bdf), path_(std::move(path)) {}
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;
    ~Channel();

    Result<void> call(unsigned long request, std::string_view op, void* arg) const;

    /// Fill in the struct's size, and call.
    template <class Arg>
    Result<void> call(unsigned long request, std::string_view op, Arg& arg) const {
        arg.size = sizeof(Arg);
        return call(request, op, static_cast<void*>(&arg));
    }

    Result<void> close();

    [[nodiscard]] int fd() const noexcept { return fd_; }
    [[nodiscard]] const Bdf& bdf() const noexcept { return bdf_; }
    [[nodiscard]] const std::string& path() const noexcept { return path_; }

private:
    int fd_;
    Bdf bdf_;
    std::string path_;
};

/// Whether an error says that device or session are gone, and with them all objects.
inline bool is_gone(const Error& error) noexcept {
    return error.code == ENODEV || error.code == EBADF;
}

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// The open file of a session, shared by the session and the objects made in it.
#pragma once

#include <cerrno>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <dmaprobe/bdf.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>

namespace dmaprobe {

class Ring;

/// Every single command leaves through call(), by ioctl() or by the channel's ring.
class [[gnu::visibility("hidden")]] Channel {
public:
    /// @param ring the ring to call by, or null for ioctl()
    Channel(int fd, Bdf bdf, std::string path, std::unique_ptr<Ring> ring);
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
    [[nodiscard]] Transport transport() const noexcept { return transport_; }

private:
    int fd_;
    Bdf bdf_;
    std::string path_;
    Transport transport_;
    std::unique_ptr<Ring> ring_;
};

/// The channel of a session or of one of its objects.
struct ChannelOf {
    template <class Object>
    static const std::shared_ptr<Channel>& get(const Object& object) noexcept {
        return object.channel_;
    }
};

/// What a command's errno means where that is more than the errno says, above all which capability
/// the caller lacks. Empty where it is not. @param request the command
std::string_view explain(unsigned long request, int code) noexcept;

/// Whether an error says that device or session are gone, and with them all objects.
inline bool is_gone(const Error& error) noexcept {
    return error.code == ENODEV || error.code == EBADF;
}

} // namespace dmaprobe

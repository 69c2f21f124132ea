// SPDX-License-Identifier: MIT
// An open session with the module: every call to it passes through here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <dmaprobe/bdf.h>
#include <dmaprobe/query.h>
#include <dmaprobe/result.h>

namespace dmaprobe {

/// The open file behind a session, shared with the objects made in it. Not part of the API.
class Channel;

/// Which of the device's masks Session::set_mask() sets; `enum dmaprobe_set_mask_flags`.
enum class Mask : std::uint32_t {
    streaming = 1, ///< dma_set_mask()
    coherent = 2,  ///< dma_set_coherent_mask()
    both = 3,      ///< both of them
};

/// A session: an open file on `/dev/dmaprobe/<BDF>`.
///
/// Buffers, mappings and IOVA spaces are made in a session and belong to it. The kernel tears them
/// all down, in dependency order, when the session's file is closed and none of its buffers is
/// mmapped any more, that is when the last Buffer has gone too. After close() the C++ objects stay
/// valid, but every call through them answers EBADF; after the device was unbound or unplugged,
/// which tears everything down at once, ENODEV.
///
/// A session keeps the device powered. Its calls may be made by several threads; close() and moving
/// it must not run beside them.
class Session {
public:
    /// Open the session of a bound device.
    ///
    /// ENOENT: no node: the module is not loaded, there is no such device, or the device is not
    /// bound; the detail says which. EACCES: the node is root's. EBUSY, ENODEV: as the module
    /// answers.
    [[nodiscard]] static Result<Session> open(const Bdf& bdf);
    /// The same by name, in every form that Bdf::parse() takes.
    [[nodiscard]] static Result<Session> open(std::string_view bdf);
    /// Open a node by its path, whose last part is the BDF.
    [[nodiscard]] static Result<Session> open_path(const std::string& path);

    Session(Session&&) noexcept;
    Session& operator=(Session&&) noexcept;
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    /// Closes the session.
    ~Session();

    /// Close the file now: the kernel tears down what the session holds. A second close is no
    /// error.
    Result<void> close();

    /// The device.
    [[nodiscard]] const Bdf& bdf() const noexcept;
    /// The node's path.
    [[nodiscard]] const std::string& path() const noexcept;
    /// The file descriptor, -1 when closed. It stays the session's.
    [[nodiscard]] int fd() const noexcept;

    /// The version of the ABI; DMAPROBE_VERSION.
    [[nodiscard]] Result<Version> version() const;
    /// The calls of the kernel's DMA API that the module knows about; DMAPROBE_CALL.
    [[nodiscard]] Result<std::vector<Call>> calls() const;
    /// The entry of one kernel function. ENOENT when the module does not know it.
    [[nodiscard]] Result<Call> find_call(std::string_view kernel_function) const;
    /// What the DMA API tells about the device; DMAPROBE_LIMITS.
    [[nodiscard]] Result<Limits> limits() const;
    /// The IOMMU domain with all its reserved regions; DMAPROBE_DOMAIN.
    [[nodiscard]] Result<Domain> domain() const;

    /// Set DMA masks; DMAPROBE_SET_MASK.
    ///
    /// @param mask ones from bit 0 up, at least 12 of them
    /// EBUSY while any session of the device holds a mapping or an IOVA space; EIO when the
    /// platform cannot serve the mask. The masks are the device's, and go back to what they were
    /// when its last session closes.
    Result<void> set_mask(std::uint64_t mask, Mask which = Mask::both) const;

    /// Enable memory decoding and bus mastering, or give that up; DMAPROBE_ENABLE.
    ///
    /// DeviceAccess does this itself where it is needed. EBUSY while the VFIO device is open.
    Result<void> enable(bool on) const;

    /// Make any call of the ABI: the one place where commands leave for the module.
    ///
    /// @param request the command, such as DMAPROBE_LIMITS
    /// @param op name for errors, with static storage
    /// @param arg the command's struct, `size` member and all
    /// The error carries the module's errno; EBADF after close().
    Result<void> call(unsigned long request, std::string_view op, void* arg) const;

    /// The same with a struct of the ABI, whose `size` is filled in.
    template <class Arg>
        requires std::is_class_v<Arg>
    Result<void> call(unsigned long request, std::string_view op, Arg& arg) const {
        arg.size = sizeof(Arg);
        return call(request, op, static_cast<void*>(&arg));
    }

    /// The open file, for the objects of the session. Not part of the API.
    [[nodiscard]] const std::shared_ptr<Channel>& channel() const noexcept { return channel_; }

private:
    explicit Session(std::shared_ptr<Channel> channel) noexcept;

    std::shared_ptr<Channel> channel_;
};

} // namespace dmaprobe

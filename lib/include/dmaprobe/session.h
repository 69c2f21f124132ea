// SPDX-License-Identifier: MIT
// An open session with the module: every call to it passes through here.
// The versions 0.x of the library promise no ABI: build a program anew for each.
#pragma once

#include <chrono>
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

namespace [[gnu::visibility("default")]] dmaprobe {

class Channel;    // the open file behind a session, shared with the objects made in it
struct ChannelOf; // the library's way to it

/// A buffer (buffer.h).
class Buffer;

/// The way by which calls go to the module.
enum class Transport : std::uint32_t {
    ioctl = 0, ///< ioctl() on the session's file
    ring = 1,  ///< IORING_OP_URING_CMD on an io_uring of the session
};

/// "ioctl", "ring"; "unknown" for another value.
[[nodiscard]] std::string_view to_string(Transport transport) noexcept;

/// How to open a session.
struct SessionOptions {
    Transport transport = Transport::ioctl; ///< the way by which its calls go
};

/// Which of the device's masks Session::set_mask() sets; `enum dmaprobe_set_mask_flags`.
enum class Mask : std::uint32_t {
    streaming = 1, ///< dma_set_mask()
    coherent = 2,  ///< dma_set_coherent_mask()
    both = 3,      ///< both of them
};

/// A session: a file on `/dev/dmaprobe/<BDF>`, open for reading and writing.
///
/// Buffers, mappings and IOVA spaces are made in a session and belong to it. The kernel tears them
/// all down, in dependency order, when the session's file is closed and none of its buffers is
/// mmapped any more, that is when the last Buffer has gone too. After close() the C++ objects stay
/// valid, but every call through them answers EBADF; after the device was unbound or unplugged,
/// which tears everything down at once, ENODEV.
///
/// A session keeps the device powered. Its calls may be made by several threads; close() and moving
/// it must not run beside them.
///
/// Both transports answer alike. A session that goes by ring owns one: calls of several threads
/// pass through it one after the other, so that a long one holds the others up, and a call is
/// always waited for (for many calls at a time there are Batch and Run). After fork(), the child
/// must not touch the session nor its objects, their destructors included: it shares the ring with
/// the parent.
class Session {
public:
    /// Open the session of a bound device.
    ///
    /// ENOENT: no node: the module is not loaded, there is no such device, or the device is not
    /// bound; the detail says which. EACCES: the node is root's. EBUSY, ENODEV: as the module
    /// answers. With Transport::ring also ENOSYS and EPERM: the kernel has no io_uring, or does not
    /// allow it.
    [[nodiscard]] static Result<Session> open(const Bdf& bdf, const SessionOptions& options = {});
    /// The same by name, in every form that Bdf::parse() takes.
    [[nodiscard]] static Result<Session> open(std::string_view bdf,
                                              const SessionOptions& options = {});
    /// Open a node by its path, whose last part is the BDF.
    [[nodiscard]] static Result<Session> open_path(const std::string& path,
                                                   const SessionOptions& options = {});

    Session(Session&&) noexcept;
    Session& operator=(Session&&) noexcept;
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    /// Closes the session.
    ~Session();

    /// Close the file now: the kernel tears down what the session holds. A second close is no
    /// error.
    [[nodiscard]] Result<void> close();

    /// The device.
    [[nodiscard]] const Bdf& bdf() const noexcept;
    /// The node's path.
    [[nodiscard]] const std::string& path() const noexcept;
    /// The file descriptor, -1 when closed. It stays the session's.
    [[nodiscard]] int fd() const noexcept;
    /// The way by which its calls go.
    [[nodiscard]] Transport transport() const noexcept;

    /// The version of the ABI, and what the kernel offers; DMAPROBE_GET_INFO.
    [[nodiscard]] Result<Info> info() const;
    /// The calls of the kernel's DMA API, and which of them the running kernel has: kernel_calls()
    /// of info().
    [[nodiscard]] Result<std::vector<Call>> calls() const;
    /// The entry of one kernel function. ENOENT when the list has none.
    [[nodiscard]] Result<Call> find_call(std::string_view kernel_function) const;
    /// What the DMA API says about the device; DMAPROBE_GET_LIMITS.
    [[nodiscard]] Result<Limits> limits() const;
    /// The IOMMU domain with all its reserved regions; DMAPROBE_GET_DOMAIN.
    [[nodiscard]] Result<Domain> domain() const;

    /// Set DMA masks; DMAPROBE_SET_MASK.
    ///
    /// The masks belong to the device. When its last session closes, they go back to what the
    /// device had when it was bound, or to the module's unprivileged_mask_bits (32) if that was
    /// more.
    ///
    /// @param mask ones from bit 0 up, at least 32 pages - 1
    /// EPERM without CAP_SYS_RAWIO when the mask has more than unprivileged_mask_bits, or fewer
    /// than when it was bound and the IOMMU group has other functions. EBUSY while any session of
    /// the device holds a DMA address; EIO when the platform cannot serve the mask.
    [[nodiscard]] Result<void> set_mask(std::uint64_t mask, Mask which = Mask::both) const;

    /// Set DMA masks as wide as this session may: those asked for, or unprivileged_mask_bits of
    /// them when the rest needs CAP_SYS_RAWIO.
    ///
    /// @return the mask that was set; errors as set_mask()
    [[nodiscard]] Result<std::uint64_t> set_mask_up_to(std::uint64_t mask,
                                                       Mask which = Mask::both) const;

    /// Set what the device can take in a scatter-gather list; DMAPROBE_SET_SEGMENTS. Like the
    /// masks, this belongs to the device and is put back when its last session closes.
    ///
    /// EINVAL: nothing to set, or a value out of its range. EPERM without CAP_SYS_RAWIO. EBUSY
    /// while any session of the device holds a DMA address.
    [[nodiscard]] Result<void> set_segments(const SegmentLimits& limits) const;

    /// What the session holds at this moment; DMAPROBE_GET_STATS.
    [[nodiscard]] Result<Stats> stats() const;

    /// Do nothing; DMAPROBE_NOP. What a call costs without the DMA API in it.
    [[nodiscard]] Result<void> nop() const;

    /// Do nothing in a loop inside the module; DMAPROBE_BENCH. How long all rounds took together.
    /// @param rounds 1 to 10 million
    /// EINVAL: another number. EINTR: a signal arrived.
    [[nodiscard]] Result<std::chrono::nanoseconds> bench_nop(std::uint64_t rounds) const;
    /// Map and unmap the first page of a buffer in such a loop (dma_map_page_attrs(),
    /// dma_unmap_page_attrs()).
    [[nodiscard]] Result<std::chrono::nanoseconds> bench_map(const Buffer& buffer,
                                                             std::uint64_t rounds) const;

    /// Enable bus mastering, or give that up; DMAPROBE_ENABLE.
    ///
    /// DeviceAccess does this itself where it is needed. EPERM without CAP_SYS_RAWIO when another
    /// user had the device enabled last and it cannot be reset, or when no IOMMU confines its DMA
    /// and its interrupts, to this driver's functions alone. EBUSY while VFIO has open a function
    /// that it resets together with this one, or another VFIO driver has it, or somebody is
    /// opening, closing or resetting one of them.
    [[nodiscard]] Result<void> enable(bool on) const;

    /// Make any call of the ABI: the one place where commands leave for the module.
    ///
    /// @param request the command, such as DMAPROBE_GET_LIMITS
    /// @param op name for errors, with static storage
    /// @param arg the command's struct, `size` member and all
    /// The error carries the module's errno; EBADF after close().
    [[nodiscard]] Result<void> call(unsigned long request, std::string_view op, void* arg) const;

    /// The same with a struct of the ABI, whose `size` is filled in.
    template <class Arg>
        requires std::is_class_v<Arg>
    [[nodiscard]] Result<void> call(unsigned long request, std::string_view op, Arg& arg) const {
        arg.size = sizeof(Arg);
        return call(request, op, static_cast<void*>(&arg));
    }

private:
    friend struct ChannelOf;
    explicit Session(std::shared_ptr<Channel> channel) noexcept;

    std::shared_ptr<Channel> channel_;
};

} // namespace dmaprobe

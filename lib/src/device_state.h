// SPDX-License-Identifier: MIT
// An open device, and the one interface to the ways by which it is reached.
#pragma once

#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <dmaprobe/bdf.h>
#include <dmaprobe/device.h>
#include <dmaprobe/result.h>

#include "channel.h"
#include "file.h"

namespace dmaprobe {

/// A device's config space, as a range of a file.
struct ConfigSpace {
    file::Fd file;
    std::uint64_t start = 0; ///< where it starts in the file
    std::uint64_t size = 0;  ///< bytes

    Result<void> read(std::uint64_t offset, std::span<std::byte> out) const;
    Result<void> write(std::uint64_t offset, std::span<const std::byte> in) const;
    Result<std::uint16_t> read16(std::uint64_t offset) const;
    Result<std::uint32_t> read32(std::uint64_t offset) const;
    Result<void> write16(std::uint64_t offset, std::uint16_t value) const;
};

/// A way by which a device is reached, open from its making to its end. DeviceAccess documents what
/// the functions do.
class DeviceBackend {
public:
    DeviceBackend() = default;
    DeviceBackend(const DeviceBackend&) = delete;
    DeviceBackend& operator=(const DeviceBackend&) = delete;
    virtual ~DeviceBackend() = default;

    [[nodiscard]] virtual const ConfigSpace& config() const noexcept = 0;
    virtual Result<Bar> bar(unsigned index) const = 0;
    virtual Result<Interrupts> interrupts(unsigned vectors) const = 0;
    virtual Result<void> enable(bool on) const = 0;
    /// Reset the function, which is not enabled afterwards.
    virtual Result<void> reset() const = 0;
};

/// The path of the device's VFIO node, or why there is none.
/// @param dir the device in sysfs
std::expected<std::string, std::string> vfio_node(const std::string& dir);
/// @param channel the session's, to see whether the device is still there
Result<std::unique_ptr<DeviceBackend>> open_vfio(const std::string& node, const Channel& channel);
/// @param channel the session's, which enables the device
/// @param why why this is the path, for errors
Result<std::unique_ptr<DeviceBackend>>
open_sysfs(const std::string& dir, std::shared_ptr<Channel> channel, std::string why);
/// What it means that a file of the device cannot be opened.
std::string explain_device_file(int code, const std::string& path);

/// What a DeviceAccess and the engines that use its device share. It is closed with the
/// DeviceAccess, whoever else still has it.
struct [[gnu::visibility("hidden")]] DeviceState {
    Bdf bdf;
    AccessPath path = AccessPath::sysfs;
    std::string why; ///< why this path
    DeviceIds ids;
    std::shared_ptr<Channel> channel;       ///< keeps the device powered; null when closed
    std::unique_ptr<DeviceBackend> backend; ///< null when closed

    /// The backend; EBADF when closed.
    Result<const DeviceBackend*> opened(std::string_view op) const;
    Result<void> check_present(std::string_view op) const;
    Result<void> reset() const;
    Result<void> close();
};

} // namespace dmaprobe

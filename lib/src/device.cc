// SPDX-License-Identifier: MIT
// Access to a device: its config space, its BARs and its interrupts.
#include <dmaprobe/device.h>

#include <cerrno>
#include <utility>

#include <endian.h>
#include <unistd.h>

#include <linux/dmaprobe.h>
#include <linux/pci_regs.h>

#include "best_effort.h"
#include "channel.h"
#include "device_state.h"

namespace dmaprobe {

std::string_view to_string(AccessPath path) noexcept {
    return path == AccessPath::vfio ? "vfio" : "sysfs";
}

std::string explain_device_file(int code, const std::string& path) {
    switch (code) {
    case EBUSY:
        return path + " is in use: another program has it open, or a session has the device "
                      "enabled, or a function that VFIO resets together with it";
    case EAGAIN:
        return path + ": somebody else is resetting or removing the device";
    case EACCES:
    case EPERM:
        return "no permission to open " + path;
    default:
        return path;
    }
}

// ---- config space ----

Result<void> ConfigSpace::read(std::uint64_t offset, std::span<std::byte> out) const {
    constexpr std::string_view op = "read_config";
    if (out.size() > size || offset > size - out.size())
        return std::unexpected(Error{ERANGE, op, "the range leaves config space"});
    const ssize_t got =
        ::pread(file.get(), out.data(), out.size(), static_cast<off_t>(start + offset));
    if (got < 0)
        return std::unexpected(Error{errno, op, {}});
    if (static_cast<std::size_t>(got) != out.size())
        return std::unexpected(Error{EIO, op, "config space could not be read in full"});
    return {};
}

Result<void> ConfigSpace::write(std::uint64_t offset, std::span<const std::byte> in) const {
    constexpr std::string_view op = "write_config";
    if (in.size() > size || offset > size - in.size())
        return std::unexpected(Error{ERANGE, op, "the range leaves config space"});
    const ssize_t put =
        ::pwrite(file.get(), in.data(), in.size(), static_cast<off_t>(start + offset));
    if (put < 0)
        return std::unexpected(Error{errno, op, {}});
    if (static_cast<std::size_t>(put) != in.size())
        return std::unexpected(Error{EIO, op, "config space could not be written in full"});
    return {};
}

Result<std::uint16_t> ConfigSpace::read16(std::uint64_t offset) const {
    std::uint16_t value = 0;
    if (auto done = read(offset, std::as_writable_bytes(std::span(&value, 1))); !done)
        return std::unexpected(std::move(done.error()));
    return le16toh(value);
}

Result<std::uint32_t> ConfigSpace::read32(std::uint64_t offset) const {
    std::uint32_t value = 0;
    if (auto done = read(offset, std::as_writable_bytes(std::span(&value, 1))); !done)
        return std::unexpected(std::move(done.error()));
    return le32toh(value);
}

Result<void> ConfigSpace::write16(std::uint64_t offset, std::uint16_t value) const {
    const std::uint16_t raw = htole16(value);
    return write(offset, std::as_bytes(std::span(&raw, 1)));
}

// ---- DeviceState ----

Result<const DeviceBackend*> DeviceState::opened(std::string_view op) const {
    if (!backend)
        return std::unexpected(Error{EBADF, op, "the device is closed"});
    return backend.get();
}

Result<void> DeviceState::check_present(std::string_view op) const {
    if (auto open = opened(op); !open)
        return std::unexpected(std::move(open.error()));
    dmaprobe_nop arg{};
    return channel->call(DMAPROBE_NOP, op, arg);
}

Result<void> DeviceState::reset() const {
    const auto open = opened("reset");
    if (!open)
        return std::unexpected(open.error());
    if (auto done = (*open)->reset(); !done)
        return done;
    return (*open)->enable(true);
}

Result<void> DeviceState::close() {
    if (!backend)
        return {};
    auto done = backend->enable(false);
    backend.reset();
    channel.reset();
    // A device or session that is gone has nothing left to switch off.
    if (!done && is_gone(done.error()))
        return {};
    return done;
}

// ---- DeviceAccess ----

DeviceAccess::DeviceAccess(std::shared_ptr<DeviceState> state) noexcept
    : state_(std::move(state)) {}
DeviceAccess::DeviceAccess(DeviceAccess&&) noexcept = default;

DeviceAccess& DeviceAccess::operator=(DeviceAccess&& other) noexcept {
    if (this != &other) {
        best_effort(close());
        state_ = std::move(other.state_);
    }
    return *this;
}

DeviceAccess::~DeviceAccess() {
    best_effort(close());
}

Result<DeviceAccess> DeviceAccess::open(const Session& session, std::optional<AccessPath> force,
                                        const std::string& sysfs) {
    constexpr std::string_view op = "device_open";
    if (session.fd() < 0)
        return std::unexpected(Error{EBADF, op, "the session is closed"});

    auto state = std::make_shared<DeviceState>();
    state->channel = ChannelOf::get(session);
    state->bdf = session.bdf();
    const std::string dir = sysfs + "/bus/pci/devices/" + session.bdf().to_string();

    const auto node = vfio_node(dir);
    if (force == AccessPath::vfio && !node)
        return std::unexpected(
            Error{EOPNOTSUPP, op, "the VFIO path is not there: " + node.error()});
    const bool by_vfio = node && force != AccessPath::sysfs;
    state->path = by_vfio ? AccessPath::vfio : AccessPath::sysfs;
    state->why = force ? "asked for" : by_vfio ? *node + " and /dev/iommu exist" : node.error();
    auto backend =
        by_vfio ? open_vfio(*node, *state->channel) : open_sysfs(dir, state->channel, state->why);
    if (!backend)
        return std::unexpected(std::move(backend.error()));
    state->backend = std::move(*backend);

    // From here on, the destructor undoes what was done.
    DeviceAccess access(std::move(state));
    if (auto done = access.enable(true); !done)
        return std::unexpected(std::move(done.error()));
    const auto vendor = access.read_config16(PCI_VENDOR_ID);
    if (!vendor)
        return std::unexpected(vendor.error());
    const auto device = access.read_config16(PCI_DEVICE_ID);
    if (!device)
        return std::unexpected(device.error());
    if (*vendor == 0xffff)
        return std::unexpected(Error{EIO, op, "config space reads as all ones"});
    const auto revision = access.read_config32(PCI_CLASS_REVISION);
    if (!revision)
        return std::unexpected(revision.error());
    access.state_->ids = {.vendor = *vendor, .device = *device, .class_code = *revision >> 8};
    return access;
}

Result<void> DeviceAccess::close() {
    return state_ ? state_->close() : Result<void>();
}

/// Of what was moved from, that of nothing.
const DeviceState& DeviceAccess::state() const noexcept {
    static const DeviceState none;
    return state_ ? *state_ : none;
}

const Bdf& DeviceAccess::bdf() const noexcept {
    return state().bdf;
}
AccessPath DeviceAccess::path() const noexcept {
    return state().path;
}
const std::string& DeviceAccess::why() const noexcept {
    return state().why;
}
const DeviceIds& DeviceAccess::ids() const noexcept {
    return state().ids;
}

Result<void> DeviceAccess::check_present(std::string_view op) const {
    return state().check_present(op);
}

Result<void> DeviceAccess::reset() const {
    return state().reset();
}

Result<void> DeviceAccess::enable(bool on) const {
    return state().opened("enable").and_then(
        [&](const DeviceBackend* backend) { return backend->enable(on); });
}

Result<Bar> DeviceAccess::bar(unsigned index) const {
    constexpr std::string_view op = "bar";
    const auto open = state().opened(op);
    if (!open)
        return std::unexpected(open.error());
    if (index > 5)
        return std::unexpected(Error{EINVAL, op, "BARs are numbered from 0 to 5"});
    return (*open)->bar(index);
}

Result<Interrupts> DeviceAccess::interrupts(unsigned vectors) const {
    return state().opened("interrupts").and_then([&](const DeviceBackend* backend) {
        return backend->interrupts(vectors);
    });
}

Result<void> DeviceAccess::read_config(std::uint64_t offset, std::span<std::byte> out) const {
    return state().opened("read_config").and_then([&](const DeviceBackend* backend) {
        return backend->config().read(offset, out);
    });
}

Result<void> DeviceAccess::write_config(std::uint64_t offset, std::span<const std::byte> in) const {
    return state().opened("write_config").and_then([&](const DeviceBackend* backend) {
        return backend->config().write(offset, in);
    });
}

Result<std::uint16_t> DeviceAccess::read_config16(std::uint64_t offset) const {
    return state().opened("read_config").and_then([&](const DeviceBackend* backend) {
        return backend->config().read16(offset);
    });
}

Result<void> DeviceAccess::write_config16(std::uint64_t offset, std::uint16_t value) const {
    return state().opened("write_config").and_then([&](const DeviceBackend* backend) {
        return backend->config().write16(offset, value);
    });
}

Result<std::uint32_t> DeviceAccess::read_config32(std::uint64_t offset) const {
    return state().opened("read_config").and_then([&](const DeviceBackend* backend) {
        return backend->config().read32(offset);
    });
}

} // namespace dmaprobe

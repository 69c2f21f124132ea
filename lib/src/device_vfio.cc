// SPDX-License-Identifier: MIT
// A device by its VFIO node, bound to an iommufd.
#include <cerrno>
#include <chrono>
#include <format>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <sys/ioctl.h>

#include <linux/dmaprobe.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "device_state.h"

namespace dmaprobe {

namespace {

constexpr const char* iommu_node = "/dev/iommu";

Result<vfio_region_info> region(int device, std::uint32_t index) {
    vfio_region_info info{};
    info.argsz = sizeof(info);
    info.index = index;
    if (::ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
        return std::unexpected(
            Error{errno, "vfio_region_info", std::format("VFIO region {}", index)});
    return info;
}

} // namespace

class [[gnu::visibility("hidden")]] VfioBackend final : public DeviceBackend {
public:
    /// @param config of VFIO's device
    VfioBackend(file::Fd iommufd, ConfigSpace config)
        : iommufd_(std::move(iommufd)), config_(std::move(config)) {}

    [[nodiscard]] const ConfigSpace& config() const noexcept override { return config_; }

    Result<Bar> bar(unsigned index) const override {
        const auto info = region(device(), VFIO_PCI_BAR0_REGION_INDEX + index);
        if (!info)
            return std::unexpected(info.error());
        if (info->size == 0)
            return std::unexpected(Error{ENXIO, "bar", std::format("there is no BAR {}", index)});
        if ((info->flags & VFIO_REGION_INFO_FLAG_MMAP) == 0)
            return std::unexpected(
                Error{EOPNOTSUPP, "bar", std::format("BAR {} cannot be mapped by VFIO", index)});
        return Bar::map(device(), info->offset, 0, info->size);
    }

    Result<Interrupts> interrupts(unsigned vectors) const override {
        return Interrupts::open(device(), vectors);
    }

    Result<void> enable(bool on) const override {
        const auto command = config_.read16(PCI_COMMAND);
        if (!command)
            return std::unexpected(command.error());
        constexpr unsigned bits = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
        return config_.write16(PCI_COMMAND,
                               static_cast<std::uint16_t>(on ? *command | bits : *command & ~bits));
    }

    Result<void> reset() const override {
        if (::ioctl(device(), VFIO_DEVICE_RESET) < 0) {
            const int code = errno == EINVAL || errno == ENOTTY ? EOPNOTSUPP : errno;
            return std::unexpected(Error{code, "reset", "VFIO_DEVICE_RESET failed"});
        }
        return {};
    }

private:
    [[nodiscard]] int device() const noexcept { return config_.file.get(); }

    file::Fd iommufd_;
    ConfigSpace config_;
};

std::expected<std::string, std::string> vfio_node(const std::string& dir) {
    const auto names = file::names(dir + "/vfio-dev");
    if (names.empty())
        return std::unexpected("the device has no VFIO device in sysfs");
    const std::string& name = names.front();
    if (!file::exists(dir + "/vfio-dev/" + name + "/dev"))
        return std::unexpected(
            "the kernel gives VFIO devices no node of their own (CONFIG_VFIO_DEVICE_CDEV)");
    std::string node = "/dev/vfio/devices/" + name;
    if (!file::exists(node))
        return std::unexpected(node + " does not exist");
    if (!file::exists(iommu_node))
        return std::unexpected("/dev/iommu does not exist (CONFIG_IOMMUFD)");
    return node;
}

Result<std::unique_ptr<DeviceBackend>> open_vfio(const std::string& node, const Channel& channel) {
    file::Fd iommufd(::open(iommu_node, O_RDWR | O_CLOEXEC));
    if (!iommufd) {
        const int code = errno;
        return std::unexpected(Error{code, "open", explain_device_file(code, iommu_node)});
    }
    file::Fd device(::open(node.c_str(), O_RDWR | O_CLOEXEC));
    if (!device) {
        const int code = errno;
        return std::unexpected(Error{code, "open", explain_device_file(code, node)});
    }
    // The device is opened by this, not by open(): EBUSY comes from here, and EINVAL when another
    // file has it open (the kernel's vfio_df_open()). No address space is attached; the module's
    // VFIO driver leaves DMA to the kernel's DMA API.
    vfio_device_bind_iommufd bind{};
    bind.argsz = sizeof(bind);
    bind.iommufd = iommufd.get();
    // EAGAIN: the function cannot be reset now, because somebody is about to reset or to remove it.
    constexpr std::chrono::milliseconds patience(5000);
    const auto end = std::chrono::steady_clock::now() + patience;
    while (::ioctl(device.get(), VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0) {
        const int code = errno == EINVAL ? EBUSY : errno;
        if (code != EAGAIN || std::chrono::steady_clock::now() >= end) {
            std::string detail = explain_device_file(code, node);
            if (code == EPERM)
                detail += ": no IOMMU confines the device's DMA and its interrupts, or another "
                          "driver has a function of its IOMMU group, which takes CAP_SYS_RAWIO";
            return std::unexpected(Error{code, "vfio_bind_iommufd", std::move(detail)});
        }
        dmaprobe_nop nop{};
        if (auto there = channel.call(DMAPROBE_NOP, "vfio_bind_iommufd", nop); !there)
            return std::unexpected(std::move(there.error()));
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    const auto config = region(device.get(), VFIO_PCI_CONFIG_REGION_INDEX);
    if (!config)
        return std::unexpected(config.error());
    return std::make_unique<VfioBackend>(
        std::move(iommufd),
        ConfigSpace{.file = std::move(device), .start = config->offset, .size = config->size});
}

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// A device's interrupts, counted in eventfds by VFIO.
#include <dmaprobe/device.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <format>
#include <span>
#include <utility>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "file.h"
#include "wait.h"

namespace dmaprobe {

std::string_view to_string(InterruptKind kind) noexcept {
    return kind == InterruptKind::msi_x ? "MSI-X" : "MSI";
}

namespace {

/// VFIO_DEVICE_SET_IRQS with an eventfd for each vector; without any, the interrupts are off.
int set_irqs(int device, InterruptKind kind, std::span<const int> events) {
    std::vector<std::byte> memory(sizeof(vfio_irq_set) + events.size_bytes());
    vfio_irq_set set{};
    set.argsz = static_cast<std::uint32_t>(memory.size());
    set.flags = (events.empty() ? VFIO_IRQ_SET_DATA_NONE : VFIO_IRQ_SET_DATA_EVENTFD) |
                VFIO_IRQ_SET_ACTION_TRIGGER;
    set.index = kind == InterruptKind::msi_x ? VFIO_PCI_MSIX_IRQ_INDEX : VFIO_PCI_MSI_IRQ_INDEX;
    set.count = static_cast<std::uint32_t>(events.size());
    std::memcpy(memory.data(), &set, sizeof(set));
    std::ranges::copy(std::as_bytes(events), memory.begin() + sizeof(set));
    return ::ioctl(device, VFIO_DEVICE_SET_IRQS, memory.data());
}

} // namespace

Interrupts::Interrupts(Interrupts&& other) noexcept
    : device_(std::exchange(other.device_, -1)), events_(std::move(other.events_)),
      kind_(other.kind_) {}

Interrupts& Interrupts::operator=(Interrupts&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(events_, other.events_);
    std::swap(kind_, other.kind_);
    return *this;
}

Interrupts::~Interrupts() {
    if (device_ < 0)
        return;
    set_irqs(device_, kind_, {});
    for (const int event : events_)
        ::close(event);
    ::close(device_);
}

Result<Interrupts> Interrupts::open(int vfio_device, unsigned vectors) {
    constexpr std::string_view op = "interrupts";
    if (vectors == 0)
        return std::unexpected(Error{EINVAL, op, "at least one vector"});
    unsigned best = 0;
    for (const auto& [kind, index] :
         {std::pair{InterruptKind::msi_x, unsigned{VFIO_PCI_MSIX_IRQ_INDEX}},
          {InterruptKind::msi, VFIO_PCI_MSI_IRQ_INDEX}}) {
        vfio_irq_info info{};
        info.argsz = sizeof(info);
        info.index = index;
        if (::ioctl(vfio_device, VFIO_DEVICE_GET_IRQ_INFO, &info) < 0)
            return std::unexpected(Error{errno, "vfio_irq_info", {}});
        best = std::max(best, info.count);
        if (info.count < vectors)
            continue;
        std::vector<file::Fd> events;
        for (unsigned i = 0; i < vectors; i++) {
            events.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
            if (!events.back())
                return std::unexpected(Error{errno, "eventfd", {}});
        }
        file::Fd device(::fcntl(vfio_device, F_DUPFD_CLOEXEC, 0));
        if (!device)
            return std::unexpected(Error{errno, op, {}});
        std::vector<int> numbers;
        numbers.reserve(events.size());
        for (const file::Fd& event : events)
            numbers.push_back(event.get());
        if (set_irqs(device.get(), kind, numbers) < 0)
            return std::unexpected(Error{
                errno, "vfio_set_irqs", std::format("{} vectors of {}", vectors, to_string(kind))});
        Interrupts made;
        made.kind_ = kind;
        made.device_ = device.release();
        for (file::Fd& event : events)
            made.events_.push_back(event.release());
        return made;
    }
    return std::unexpected(
        Error{EOPNOTSUPP, op, std::format("the device has {} vectors of MSI-X or MSI", best)});
}

int Interrupts::fd(unsigned vector) const noexcept {
    return vector < events_.size() ? events_[vector] : -1;
}

Result<std::uint64_t> Interrupts::wait(unsigned vector, std::chrono::milliseconds deadline,
                                       std::stop_token stop) const {
    constexpr std::string_view op = "interrupt_wait";
    if (vector >= events_.size())
        return std::unexpected(
            Error{EINVAL, op, std::format("there are {} vectors", events_.size())});
    Wait wait(op, "no interrupt came", deadline, std::move(stop));
    for (;;) {
        wait.look();
        std::uint64_t count = 0;
        if (::read(events_[vector], &count, sizeof(count)) == sizeof(count))
            return count;
        if (errno != EAGAIN && errno != EINTR)
            return std::unexpected(Error{errno, op, {}});
        if (auto awake = wait.sleep(events_[vector]); !awake)
            return std::unexpected(std::move(awake.error()));
    }
}

} // namespace dmaprobe

// SPDX-License-Identifier: MIT
// A device's config space and BARs, by VFIO or by sysfs.
#include <dmaprobe/device.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <format>
#include <limits>
#include <thread>
#include <utility>

#include <endian.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/dmaprobe.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "best_effort.h"
#include "channel.h"
#include "file.h"

namespace dmaprobe {

std::string_view to_string(Route route) noexcept {
    return route == Route::vfio ? "vfio" : "sysfs";
}

// ---- Bar ----

Bar::Bar(Bar&& other) noexcept
    : map_(std::exchange(other.map_, {})), base_(std::exchange(other.base_, nullptr)),
      length_(std::exchange(other.length_, 0)) {}

Bar& Bar::operator=(Bar&& other) noexcept {
    std::swap(map_, other.map_);
    std::swap(base_, other.base_);
    std::swap(length_, other.length_);
    return *this;
}

Bar::~Bar() {
    if (!map_.empty())
        ::munmap(map_.data(), map_.size());
}

Result<void> Bar::check(std::uint64_t offset, std::size_t width, std::string_view op) const {
    if (width > length_ || offset > length_ - width)
        return std::unexpected(
            Error{ERANGE, op,
                  std::format("{} bytes at {:#x} leave the BAR of {:#x}", width, offset, length_)});
    if (offset % width != 0)
        return std::unexpected(
            Error{EINVAL, op, std::format("{:#x} is not a multiple of {}", offset, width)});
    return {};
}

namespace {

/// What was written to memory before is there for the device before it sees the register written,
/// and what is read from memory afterwards is read after the register: as the kernel's writel() and
/// readl() do it. x86 keeps this order by itself.
inline void order_before_write() noexcept {
#if defined(__aarch64__)
    asm volatile("dmb oshst" ::: "memory");
#elif defined(__x86_64__)
    asm volatile("" ::: "memory");
#else
    std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

inline void order_after_read() noexcept {
#if defined(__aarch64__)
    asm volatile("dmb oshld" ::: "memory");
#elif defined(__x86_64__)
    asm volatile("" ::: "memory");
#else
    std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

} // namespace

Result<std::uint32_t> Bar::read32(std::uint64_t offset) const {
    if (auto ok = check(offset, 4, "read32"); !ok)
        return std::unexpected(std::move(ok.error()));
    const std::uint32_t raw = *reinterpret_cast<const volatile std::uint32_t*>(base_ + offset);
    order_after_read();
    return le32toh(raw);
}

Result<std::uint64_t> Bar::read64(std::uint64_t offset) const {
    if (auto ok = check(offset, 8, "read64"); !ok)
        return std::unexpected(std::move(ok.error()));
    const std::uint64_t raw = *reinterpret_cast<const volatile std::uint64_t*>(base_ + offset);
    order_after_read();
    return le64toh(raw);
}

Result<void> Bar::write32(std::uint64_t offset, std::uint32_t value) const {
    if (auto ok = check(offset, 4, "write32"); !ok)
        return ok;
    order_before_write();
    *reinterpret_cast<volatile std::uint32_t*>(base_ + offset) = htole32(value);
    return {};
}

Result<void> Bar::write64(std::uint64_t offset, std::uint64_t value) const {
    if (auto ok = check(offset, 8, "write64"); !ok)
        return ok;
    order_before_write();
    *reinterpret_cast<volatile std::uint64_t*>(base_ + offset) = htole64(value);
    return {};
}

// ---- Interrupts ----

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

Result<std::uint64_t> Interrupts::wait(unsigned vector, std::chrono::milliseconds deadline) const {
    if (vector >= events_.size())
        return std::unexpected(
            Error{EINVAL, "interrupt_wait", std::format("there are {} vectors", events_.size())});
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + deadline;
    for (;;) {
        const bool late = Clock::now() >= end;
        std::uint64_t count = 0;
        if (::read(events_[vector], &count, sizeof(count)) == sizeof(count))
            return count;
        if (errno != EAGAIN && errno != EINTR)
            return std::unexpected(Error{errno, "interrupt_wait", {}});
        if (late)
            return std::unexpected(
                Error{ETIMEDOUT, "interrupt_wait",
                      std::format("no interrupt came in {} ms", deadline.count())});
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
        pollfd poll{.fd = events_[vector], .events = POLLIN, .revents = 0};
        if (::poll(&poll, 1,
                   static_cast<int>(
                       std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max()))) < 0 &&
            errno != EINTR)
            return std::unexpected(Error{errno, "interrupt_wait", {}});
    }
}

// ---- DeviceAccess ----

struct DeviceAccess::State {
    std::shared_ptr<Channel> channel; // keeps the device powered and, by sysfs, enabled
    Bdf bdf;
    Route route = Route::sysfs;
    std::string why;
    std::string dir;               // the device in sysfs
    file::Fd iommufd;              // VFIO only
    file::Fd device;               // VFIO's device, or sysfs' config
    std::uint64_t config_at = 0;   // where config space starts in `device`
    std::uint64_t config_size = 0; // bytes
    DeviceIds ids;
    bool open = false;

    Result<void> session_enable(bool on) const;
    Result<void> session_present(std::string_view op) const;
    Result<vfio_region_info> region(std::uint32_t index) const;
    Result<void> open_vfio(const std::string& name);
    Result<void> open_sysfs();
    Result<Bar> map(int fd, std::uint64_t offset, std::uint64_t start, std::uint64_t length) const;
    Result<Bar> vfio_bar(unsigned index) const;
    Result<Bar> sysfs_bar(unsigned index) const;
};

namespace {

constexpr const char* iommu_node = "/dev/iommu";

/// The name of the device's VFIO node, or why there is none.
std::expected<std::string, std::string> find_vfio(const std::string& dir) {
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

std::string explain_node(int code, const std::string& path) {
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

} // namespace

Result<void> DeviceAccess::State::session_enable(bool on) const {
    dmaprobe_enable arg{};
    arg.enable = on ? 1 : 0;
    return channel->call(DMAPROBE_ENABLE, "enable", arg);
}

Result<void> DeviceAccess::State::session_present(std::string_view op) const {
    dmaprobe_nop arg{};
    return channel->call(DMAPROBE_NOP, op, arg);
}

Result<vfio_region_info> DeviceAccess::State::region(std::uint32_t index) const {
    vfio_region_info info{};
    info.argsz = sizeof(info);
    info.index = index;
    if (::ioctl(device.get(), VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
        return std::unexpected(
            Error{errno, "vfio_region_info", std::format("VFIO region {}", index)});
    return info;
}

Result<void> DeviceAccess::State::open_vfio(const std::string& node) {
    iommufd = file::Fd(::open(iommu_node, O_RDWR | O_CLOEXEC));
    if (!iommufd) {
        const int code = errno;
        return std::unexpected(Error{code, "open", explain_node(code, iommu_node)});
    }
    device = file::Fd(::open(node.c_str(), O_RDWR | O_CLOEXEC));
    if (!device) {
        const int code = errno;
        return std::unexpected(Error{code, "open", explain_node(code, node)});
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
        if (code != EAGAIN || std::chrono::steady_clock::now() >= end)
            return std::unexpected(Error{code, "vfio_bind_iommufd", explain_node(code, node)});
        if (auto there = session_present("vfio_bind_iommufd"); !there)
            return there;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    const auto config = region(VFIO_PCI_CONFIG_REGION_INDEX);
    if (!config)
        return std::unexpected(config.error());
    config_at = config->offset;
    config_size = config->size;
    return {};
}

Result<void> DeviceAccess::State::open_sysfs() {
    const std::string path = dir + "/config";
    device = file::Fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!device) {
        const int code = errno;
        return std::unexpected(Error{code, "open", explain_node(code, path)});
    }
    struct stat st{};
    if (::fstat(device.get(), &st) != 0)
        return std::unexpected(Error{errno, "stat", path});
    config_size = static_cast<std::uint64_t>(st.st_size);
    return {};
}

DeviceAccess::DeviceAccess(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
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

Result<DeviceAccess> DeviceAccess::open(const Session& session, std::optional<Route> force,
                                        const std::string& sysfs) {
    if (session.fd() < 0)
        return std::unexpected(Error{EBADF, "device_open", "the session is closed"});

    auto state = std::make_unique<State>();
    state->channel = session.channel();
    state->bdf = session.bdf();
    state->dir = sysfs + "/bus/pci/devices/" + session.bdf().to_string();

    const auto node = find_vfio(state->dir);
    if (force == Route::vfio && !node)
        return std::unexpected(
            Error{EOPNOTSUPP, "device_open", "the VFIO route is not there: " + node.error()});
    if (node && force != Route::sysfs) {
        state->route = Route::vfio;
        state->why = force ? "asked for" : *node + " and /dev/iommu exist";
    } else {
        state->route = Route::sysfs;
        state->why = force ? "asked for" : node.error();
    }

    auto opened = state->route == Route::vfio ? state->open_vfio(*node) : state->open_sysfs();
    if (!opened)
        return std::unexpected(std::move(opened.error()));
    state->open = true;

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
        return std::unexpected(Error{EIO, "device_open", "config space reads as all ones"});
    const auto revision = access.read_config32(PCI_CLASS_REVISION);
    if (!revision)
        return std::unexpected(revision.error());
    access.state_->ids = {.vendor = *vendor, .device = *device, .class_code = *revision >> 8};
    return access;
}

Result<void> DeviceAccess::close() {
    if (!state_ || !state_->open)
        return {};
    auto done = enable(false);
    state_->open = false;
    state_->device.reset();
    state_->iommufd.reset();
    state_->channel.reset();
    // A device or session that is gone has nothing left to switch off.
    if (!done && is_gone(done.error()))
        return {};
    return done;
}

/// Of what was moved from, that of nothing.
const DeviceAccess::State& DeviceAccess::state() const noexcept {
    static const State none;
    return state_ ? *state_ : none;
}

const Bdf& DeviceAccess::bdf() const noexcept {
    return state().bdf;
}
Route DeviceAccess::route() const noexcept {
    return state().route;
}
const std::string& DeviceAccess::why() const noexcept {
    return state().why;
}
const DeviceIds& DeviceAccess::ids() const noexcept {
    return state().ids;
}

Result<void> DeviceAccess::enable(bool on) const {
    if (!state_ || !state_->open)
        return std::unexpected(Error{EBADF, "enable", "the device is closed"});
    if (state_->route == Route::sysfs)
        return state_->session_enable(on);

    const auto command = read_config16(PCI_COMMAND);
    if (!command)
        return std::unexpected(command.error());
    constexpr unsigned bits = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    return write_config16(PCI_COMMAND,
                          static_cast<std::uint16_t>(on ? *command | bits : *command & ~bits));
}

Result<void> DeviceAccess::check_present(std::string_view op) const {
    if (!state_ || !state_->open)
        return std::unexpected(Error{EBADF, op, "the device is closed"});
    return state_->session_present(op);
}

Result<void> DeviceAccess::reset() const {
    if (!state_ || !state_->open)
        return std::unexpected(Error{EBADF, "reset", "the device is closed"});
    if (state_->route == Route::vfio) {
        if (::ioctl(state_->device.get(), VFIO_DEVICE_RESET) < 0) {
            const int code = errno == EINVAL || errno == ENOTTY ? EOPNOTSUPP : errno;
            return std::unexpected(Error{code, "reset", "VFIO_DEVICE_RESET failed"});
        }
    } else {
        auto done = file::write(state_->dir + "/reset", "1");
        if (!done) {
            const int code = done.error().code == ENOENT ? EOPNOTSUPP : done.error().code;
            return std::unexpected(Error{code, "reset", "the function cannot be reset by sysfs"});
        }
    }
    return enable(true);
}

Result<Interrupts> DeviceAccess::interrupts(unsigned vectors) const {
    constexpr std::string_view op = "interrupts";
    if (!state_ || !state_->open)
        return std::unexpected(Error{EBADF, op, "the device is closed"});
    if (vectors == 0)
        return std::unexpected(Error{EINVAL, op, "at least one vector"});
    if (state_->route != Route::vfio)
        return std::unexpected(
            Error{EOPNOTSUPP, op, "interrupts come by VFIO only: " + state_->why});
    Interrupts made;
    unsigned best = 0;
    for (const auto& [kind, index] :
         {std::pair{InterruptKind::msi_x, unsigned{VFIO_PCI_MSIX_IRQ_INDEX}},
          {InterruptKind::msi, VFIO_PCI_MSI_IRQ_INDEX}}) {
        vfio_irq_info info{};
        info.argsz = sizeof(info);
        info.index = index;
        if (::ioctl(state_->device.get(), VFIO_DEVICE_GET_IRQ_INFO, &info) < 0)
            return std::unexpected(Error{errno, "vfio_irq_info", {}});
        best = std::max(best, info.count);
        if (info.count < vectors)
            continue;
        made.kind_ = kind;
        std::vector<file::Fd> events;
        for (unsigned i = 0; i < vectors; i++) {
            events.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
            if (!events.back())
                return std::unexpected(Error{errno, "eventfd", {}});
        }
        file::Fd device(::fcntl(state_->device.get(), F_DUPFD_CLOEXEC, 0));
        if (!device)
            return std::unexpected(Error{errno, op, {}});
        std::vector<int> numbers;
        numbers.reserve(events.size());
        for (const file::Fd& event : events)
            numbers.push_back(event.get());
        if (set_irqs(device.get(), kind, numbers) < 0)
            return std::unexpected(Error{
                errno, "vfio_set_irqs", std::format("{} vectors of {}", vectors, to_string(kind))});
        made.device_ = device.release();
        for (file::Fd& event : events)
            made.events_.push_back(event.release());
        return made;
    }
    return std::unexpected(
        Error{EOPNOTSUPP, op, std::format("the device has {} vectors of MSI-X or MSI", best)});
}

// ---- config space ----

Result<void> DeviceAccess::read_config(std::uint64_t offset, std::span<std::byte> out) const {
    if (!state_ || !state_->open)
        return std::unexpected(Error{EBADF, "read_config", "the device is closed"});
    if (out.size() > state_->config_size || offset > state_->config_size - out.size())
        return std::unexpected(Error{ERANGE, "read_config", "the range leaves config space"});
    const ssize_t got = ::pread(state_->device.get(), out.data(), out.size(),
                                static_cast<off_t>(state_->config_at + offset));
    if (got < 0)
        return std::unexpected(Error{errno, "read_config", {}});
    if (static_cast<std::size_t>(got) != out.size())
        return std::unexpected(Error{EIO, "read_config", "config space could not be read in full"});
    return {};
}

Result<void> DeviceAccess::write_config(std::uint64_t offset, std::span<const std::byte> in) const {
    if (!state_ || !state_->open)
        return std::unexpected(Error{EBADF, "write_config", "the device is closed"});
    if (in.size() > state_->config_size || offset > state_->config_size - in.size())
        return std::unexpected(Error{ERANGE, "write_config", "the range leaves config space"});
    const ssize_t put = ::pwrite(state_->device.get(), in.data(), in.size(),
                                 static_cast<off_t>(state_->config_at + offset));
    if (put < 0)
        return std::unexpected(Error{errno, "write_config", {}});
    if (static_cast<std::size_t>(put) != in.size())
        return std::unexpected(
            Error{EIO, "write_config", "config space could not be written in full"});
    return {};
}

Result<std::uint16_t> DeviceAccess::read_config16(std::uint64_t offset) const {
    std::uint16_t value = 0;
    if (auto done = read_config(offset, std::as_writable_bytes(std::span(&value, 1))); !done)
        return std::unexpected(std::move(done.error()));
    return le16toh(value);
}

Result<void> DeviceAccess::write_config16(std::uint64_t offset, std::uint16_t value) const {
    const std::uint16_t raw = htole16(value);
    return write_config(offset, std::as_bytes(std::span(&raw, 1)));
}

Result<std::uint32_t> DeviceAccess::read_config32(std::uint64_t offset) const {
    std::uint32_t value = 0;
    if (auto done = read_config(offset, std::as_writable_bytes(std::span(&value, 1))); !done)
        return std::unexpected(std::move(done.error()));
    return le32toh(value);
}

// ---- BARs ----

/// Map `length` bytes whose physical address starts at `start`.
Result<Bar> DeviceAccess::State::map(int fd, std::uint64_t offset, std::uint64_t start,
                                     std::uint64_t length) const {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::uint64_t inside = start & (page - 1);
    const std::uint64_t whole = (inside + length + page - 1) & ~(page - 1);
    void* base =
        ::mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset));
    if (base == MAP_FAILED) {
        const int code = errno;
        std::string detail = "the BAR cannot be mapped";
        if (route == Route::sysfs && code == EINVAL)
            detail += "; a kernel with CONFIG_IO_STRICT_DEVMEM may need iomem=relaxed";
        return std::unexpected(Error{code, "bar", std::move(detail)});
    }
    return Bar(std::span(static_cast<std::byte*>(base), whole), inside, length);
}

Result<Bar> DeviceAccess::State::vfio_bar(unsigned index) const {
    const auto info = region(VFIO_PCI_BAR0_REGION_INDEX + index);
    if (!info)
        return std::unexpected(info.error());
    if (info->size == 0)
        return std::unexpected(Error{ENXIO, "bar", std::format("there is no BAR {}", index)});
    if ((info->flags & VFIO_REGION_INFO_FLAG_MMAP) == 0)
        return std::unexpected(
            Error{EOPNOTSUPP, "bar", std::format("BAR {} cannot be mapped by VFIO", index)});
    return map(device.get(), info->offset, 0, info->size);
}

Result<Bar> DeviceAccess::State::sysfs_bar(unsigned index) const {
    // One line for each resource: first address, last address, flags.
    const auto text = file::read(dir + "/resource");
    if (!text)
        return std::unexpected(text.error());
    std::string_view rest = *text;
    for (unsigned skip = 0; skip < index && !rest.empty(); ++skip)
        rest.remove_prefix(std::min(rest.find('\n'), rest.size() - 1) + 1);
    std::array<std::uint64_t, 3> numbers{};
    for (auto& number : numbers) {
        rest = rest.substr(std::min(rest.find("0x"), rest.size()));
        if (rest.size() < 3)
            return std::unexpected(Error{EPROTO, "bar", "sysfs' resource has another form"});
        rest.remove_prefix(2);
        std::from_chars(rest.data(), rest.data() + rest.size(), number, 16);
    }
    const auto [first, last, flags] = numbers;
    constexpr std::uint64_t memory = 0x200; // IORESOURCE_MEM
    if (flags == 0 || last <= first)
        return std::unexpected(Error{ENXIO, "bar", std::format("there is no BAR {}", index)});
    if ((flags & memory) == 0)
        return std::unexpected(Error{ENXIO, "bar", std::format("BAR {} is no memory", index)});

    const std::string path = std::format("{}/resource{}", dir, index);
    const file::Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd) {
        const int code = errno;
        std::string detail = explain_node(code, path);
        if (code == EPERM)
            detail += " (kernel lockdown forbids it)";
        return std::unexpected(Error{code, "bar", std::move(detail)});
    }
    return map(fd.get(), 0, first, last - first + 1);
}

Result<Bar> DeviceAccess::bar(unsigned index) const {
    if (!state_ || !state_->open)
        return std::unexpected(Error{EBADF, "bar", "the device is closed"});
    if (index > 5)
        return std::unexpected(Error{EINVAL, "bar", "BARs are numbered from 0 to 5"});
    return state_->route == Route::vfio ? state_->vfio_bar(index) : state_->sysfs_bar(index);
}

} // namespace dmaprobe

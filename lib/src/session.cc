// SPDX-License-Identifier: MIT
// The session, and the place where commands leave for the module.
#include <dmaprobe/session.h>

#include <dmaprobe/buffer.h>

#include <algorithm>
#include <cerrno>
#include <format>
#include <limits>
#include <span>
#include <utility>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/dmaprobe.h>

#include "best_effort.h"
#include "channel.h"
#include "file.h"
#include "ring.h"

namespace dmaprobe {

Channel::Channel(int fd, Bdf bdf, std::string path, std::unique_ptr<Ring> ring)
    : fd_(fd), bdf_(bdf), path_(std::move(path)),
      transport_(ring ? Transport::ring : Transport::ioctl), ring_(std::move(ring)) {}

Channel::~Channel() {
    if (fd_ >= 0)
        ::close(fd_);
}

Result<void> Channel::close() {
    if (fd_ < 0)
        return {};
    ring_.reset();
    // Linux closes the file also when close() reports an error, so it is never repeated.
    if (::close(std::exchange(fd_, -1)) != 0)
        return std::unexpected(Error{errno, "close", path_});
    return {};
}

Result<void> Channel::call(unsigned long request, std::string_view op, void* arg) const {
    if (fd_ < 0)
        return std::unexpected(Error{EBADF, op, "the session is closed"});
    Result<void> done;
    if (ring_)
        done = ring_->call(fd_, request, op, arg);
    else if (::ioctl(fd_, request, arg) < 0)
        done = std::unexpected(Error{errno, op, {}});
    if (!done && done.error().code == ENODEV)
        done.error().detail = std::format("{} was unplugged, or unbound from dmaprobe", bdf_);
    else if (!done && done.error().detail.empty())
        done.error().detail = explain(request, done.error().code);
    return done;
}

std::string_view explain(unsigned long request, int code) noexcept {
    if (code == EBUSY) {
        switch (request) {
        case DMAPROBE_TRANSLATE:
            return "another driver has a function of the device's IOMMU group";
        case DMAPROBE_ENABLE:
            return "VFIO has open a function that it resets together with this one, or another "
                   "VFIO driver has it, or somebody is opening, closing or resetting one of them";
        case DMAPROBE_SET_MASK:
        case DMAPROBE_SET_SEGMENTS:
            return "a session of the device holds DMA addresses";
        default:
            return {};
        }
    }
    if (code == EOPNOTSUPP && request == DMAPROBE_IOVA_ALLOC)
        return "IOVA spaces take Linux 6.16 and an IOMMU that translates for the device";
    if (code != EPERM)
        return {};
    constexpr std::string_view widened =
        "the device is not coherent, or a privileged session has widened its limits, until the "
        "last session closes; an address then needs CAP_SYS_RAWIO";
    switch (request) {
    case DMAPROBE_SET_MASK:
        return "a mask of more bits than the module's unprivileged_mask_bits (32) needs "
               "CAP_SYS_RAWIO, and a narrower one than the device was bound with, where other "
               "functions share its IOMMU group";
    case DMAPROBE_SET_SEGMENTS:
        return "setting the limits of segments needs CAP_SYS_RAWIO";
    case DMAPROBE_ENABLE:
        return "enabling a device needs CAP_SYS_RAWIO when no IOMMU confines its DMA and its "
               "interrupts (the latter, the module's allow_unsafe_interrupts=1 lets pass), when "
               "another driver has a function of its IOMMU group, or when another user had it "
               "enabled last and it cannot be reset";
    case DMAPROBE_TRANSLATE:
    case DMAPROBE_GET_SGTABLE:
        return "physical addresses need CAP_SYS_ADMIN";
    case DMAPROBE_POOL_CREATE:
        return "a pool needs CAP_SYS_RAWIO";
    case DMAPROBE_IOVA_ALLOC:
        return "more than 1 GiB of IOVA space needs CAP_SYS_RAWIO, and so does any of it when the "
               "device is not coherent or a privileged session has widened its limits";
    case DMAPROBE_MAP:
        return "the attribute cc_shared needs CAP_SYS_RAWIO, and so does any mapping when the "
               "device "
               "is not coherent or a privileged session has widened its limits";
    case DMAPROBE_MAP_SG:
    case DMAPROBE_MAP_RESOURCE:
    case DMAPROBE_MAP_DMABUF:
    case DMAPROBE_ALLOC:
    case DMAPROBE_POOL_ALLOC:
        return widened;
    case DMAPROBE_IOVA_LINK:
        return "part of the range must be bounced, which the attributes forbid; or the device is "
               "not "
               "coherent or has widened limits, so that a link needs CAP_SYS_RAWIO";
    default:
        return {};
    }
}

std::string_view to_string(Transport transport) noexcept {
    switch (transport) {
    case Transport::ioctl:
        return "ioctl";
    case Transport::ring:
        return "ring";
    }
    return "unknown";
}

namespace {

constexpr std::string_view node_dir = "/dev/dmaprobe/";

/// What to say when a device's node cannot be opened.
std::string explain_open(int code, const Bdf& bdf, const std::string& path) {
    const std::string name = bdf.to_string();
    switch (code) {
    case ENOENT:
    case ENXIO:
        if (!file::exists("/sys/bus/pci/devices/" + name))
            return std::format("there is no PCI device {}", name);
        if (!file::exists("/sys/bus/pci/drivers/dmaprobe"))
            return "the dmaprobe module is not loaded: modprobe dmaprobe";
        return std::format("{} is not bound to dmaprobe: dmaprobe bind {}", name, name);
    case EACCES:
    case EPERM:
        return std::format("no permission to open {}: it is root's", path);
    case EBUSY:
        return std::format("{} is in use by somebody else", path);
    case ENODEV:
        return std::format("{} is being unbound or unplugged", name);
    default:
        return path;
    }
}

} // namespace

Session::Session(std::shared_ptr<Channel> channel) noexcept : channel_(std::move(channel)) {}
Session::Session(Session&&) noexcept = default;

Session& Session::operator=(Session&& other) noexcept {
    if (this != &other) {
        if (channel_)
            best_effort(channel_->close());
        channel_ = std::move(other.channel_);
    }
    return *this;
}

Session::~Session() {
    // The objects share the channel; the file is the session's to close.
    if (channel_)
        best_effort(channel_->close());
}

Result<Session> Session::open(const Bdf& bdf, const SessionOptions& options) {
    return open_path(std::string(node_dir) + bdf.to_string(), options);
}

Result<Session> Session::open(std::string_view bdf, const SessionOptions& options) {
    auto parsed = Bdf::parse(bdf);
    if (!parsed)
        return std::unexpected(std::move(parsed.error()));
    return open(*parsed, options);
}

Result<Session> Session::open_path(const std::string& path, const SessionOptions& options) {
    const auto bdf = Bdf::parse(std::string_view(path).substr(path.rfind('/') + 1));
    if (!bdf)
        return std::unexpected(bdf.error());
    file::Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd) {
        const int code = errno;
        return std::unexpected(Error{code, "open", explain_open(code, *bdf, path)});
    }
    std::unique_ptr<Ring> ring;
    if (options.transport == Transport::ring) {
        auto made = Ring::shared();
        if (!made)
            return std::unexpected(std::move(made.error()));
        ring = std::move(*made);
    }
    return Session(std::make_shared<Channel>(fd.release(), *bdf, path, std::move(ring)));
}

Result<void> Session::close() {
    return channel_ ? channel_->close() : Result<void>();
}

const Bdf& Session::bdf() const noexcept {
    static constexpr Bdf none{};
    return channel_ ? channel_->bdf() : none;
}

const std::string& Session::path() const noexcept {
    static const std::string none;
    return channel_ ? channel_->path() : none;
}

int Session::fd() const noexcept {
    return channel_ ? channel_->fd() : -1;
}

Transport Session::transport() const noexcept {
    return channel_ ? channel_->transport() : Transport::ioctl;
}

Result<void> Session::call(unsigned long request, std::string_view op, void* arg) const {
    if (!channel_)
        return std::unexpected(Error{EBADF, op, "the session was moved away"});
    return channel_->call(request, op, arg);
}

Result<Info> Session::info() const {
    dmaprobe_get_info arg{};
    if (auto done = call(DMAPROBE_GET_INFO, "get_info", arg); !done)
        return std::unexpected(std::move(done.error()));
    return Info{.abi_version = arg.abi_version,
                .dma_iova = (arg.features & DMAPROBE_FEATURE_DMA_IOVA) != 0,
                .map_phys = (arg.features & DMAPROBE_FEATURE_MAP_PHYS) != 0,
                .attrs = Attr(arg.attrs)};
}

namespace {

/// Text of an array that the kernel filled, NUL-terminated or not.
template <std::size_t n>
std::string text(const char (&array)[n]) {
    return {array, std::find(array, array + n, '\0')};
}

} // namespace

Result<std::vector<Call>> Session::calls() const {
    const auto offered = info();
    if (!offered)
        return std::unexpected(offered.error());
    return kernel_calls(*offered);
}

Result<Call> Session::find_call(std::string_view kernel_function) const {
    auto list = calls();
    if (!list)
        return std::unexpected(std::move(list.error()));
    const auto found = std::ranges::find(*list, kernel_function, &Call::name);
    if (found == list->end())
        return std::unexpected(
            Error{ENOENT, "find_call",
                  std::format("{} is not in the list of the kernel's calls", kernel_function)});
    return std::move(*found);
}

Result<Limits> Session::limits() const {
    dmaprobe_get_limits arg{};
    if (auto done = call(DMAPROBE_GET_LIMITS, "get_limits", arg); !done)
        return std::unexpected(std::move(done.error()));
    Limits limits;
    limits.coherent = (arg.props & DMAPROBE_DEVICE_COHERENT) != 0;
    limits.need_sync = (arg.props & DMAPROBE_DEVICE_NEED_SYNC) != 0;
    limits.need_unmap = (arg.props & DMAPROBE_DEVICE_NEED_UNMAP) != 0;
    limits.addressing_limited = (arg.props & DMAPROBE_DEVICE_ADDRESSING_LIMITED) != 0;
    limits.iommu = (arg.props & DMAPROBE_DEVICE_IOMMU) != 0;
    limits.can_mmap = (arg.props & DMAPROBE_DEVICE_CAN_MMAP) != 0;
    limits.confined = (arg.props & DMAPROBE_DEVICE_CONFINED) != 0;
    limits.max_segment_size = Size(arg.max_segment_size);
    limits.dma_mask = arg.dma_mask;
    limits.coherent_dma_mask = arg.coherent_dma_mask;
    limits.required_mask = arg.required_mask;
    limits.bus_dma_limit = arg.bus_dma_limit;
    limits.max_mapping_size = Size(arg.max_mapping_size);
    limits.opt_mapping_size = Size(arg.opt_mapping_size);
    limits.merge_boundary = arg.merge_boundary;
    limits.segment_boundary_mask = arg.segment_boundary_mask;
    limits.min_align_mask = arg.min_align_mask;
    limits.cache_alignment = Size(arg.cache_alignment);
    return limits;
}

Result<Domain> Session::domain() const {
    std::vector<dmaprobe_resv_region> room(16);
    for (;;) {
        dmaprobe_get_domain arg{};
        arg.nr_regions = static_cast<std::uint32_t>(room.size());
        arg.regions = reinterpret_cast<std::uintptr_t>(room.data());
        if (auto done = call(DMAPROBE_GET_DOMAIN, "get_domain", arg); !done)
            return std::unexpected(std::move(done.error()));
        // More of them than there was room for: once more, with enough.
        if (arg.nr_regions > room.size()) {
            room.resize(arg.nr_regions);
            continue;
        }

        Domain domain;
        domain.type = static_cast<DomainType>(arg.type);
        domain.pgsize_bitmap = arg.pgsize_bitmap;
        domain.aperture_start = Iova(arg.aperture_start);
        domain.aperture_end = Iova(arg.aperture_end);
        domain.iommu = text(arg.iommu);
        domain.driver = text(arg.driver);
        for (const auto& region : std::span(room).first(arg.nr_regions))
            domain.regions.push_back(
                {Iova(region.start), Size(region.length), static_cast<ReservedType>(region.type)});
        return domain;
    }
}

Result<void> Session::set_mask(std::uint64_t mask, Mask which) const {
    dmaprobe_set_mask arg{};
    arg.flags = static_cast<std::uint32_t>(which);
    arg.mask = mask;
    return call(DMAPROBE_SET_MASK, "set_mask", arg);
}

Result<std::uint64_t> Session::set_mask_up_to(std::uint64_t mask, Mask which) const {
    auto done = set_mask(mask, which);
    if (!done && done.error().code == EPERM) {
        const auto bits =
            file::read_number("/sys/module/dmaprobe/parameters/unprivileged_mask_bits");
        mask = std::min(mask, ~std::uint64_t{0} >> (64 - std::clamp(bits.value_or(32), 1UL, 64UL)));
        done = set_mask(mask, which);
    }
    if (!done)
        return std::unexpected(std::move(done.error()));
    return mask;
}

Result<void> Session::set_segments(const SegmentLimits& limits) const {
    dmaprobe_set_segments arg{};
    if (limits.max_size) {
        if (limits.max_size->value() > std::numeric_limits<std::uint32_t>::max())
            return std::unexpected(Error{EINVAL, "set_segments", "the size takes 32 bits"});
        arg.flags |= DMAPROBE_SET_SEGMENTS_MAX_SIZE;
        arg.max_segment_size = static_cast<std::uint32_t>(limits.max_size->value());
    }
    if (limits.boundary_mask) {
        arg.flags |= DMAPROBE_SET_SEGMENTS_BOUNDARY;
        arg.segment_boundary_mask = *limits.boundary_mask;
    }
    if (limits.min_align_mask) {
        arg.flags |= DMAPROBE_SET_SEGMENTS_MIN_ALIGN;
        arg.min_align_mask = *limits.min_align_mask;
    }
    return call(DMAPROBE_SET_SEGMENTS, "set_segments", arg);
}

Result<Stats> Session::stats() const {
    dmaprobe_get_stats arg{};
    if (auto done = call(DMAPROBE_GET_STATS, "get_stats", arg); !done)
        return std::unexpected(std::move(done.error()));
    return Stats{arg.nr_buffers, arg.nr_mappings, arg.nr_iovas,      arg.nr_allocs,
                 arg.nr_pools,   arg.nr_blocks,   Size(arg.charged), Size(arg.pinned)};
}

Result<void> Session::nop() const {
    dmaprobe_nop arg{};
    return call(DMAPROBE_NOP, "nop", arg);
}

namespace {

Result<std::chrono::nanoseconds> bench(const Session& session, std::uint32_t kind,
                                       std::uint32_t buffer_id, std::uint64_t rounds) {
    dmaprobe_bench arg{};
    arg.kind = kind;
    arg.buffer_id = buffer_id;
    arg.count = rounds;
    if (auto done = session.call(DMAPROBE_BENCH, "bench", arg); !done)
        return std::unexpected(std::move(done.error()));
    return std::chrono::nanoseconds(arg.ns);
}

} // namespace

Result<std::chrono::nanoseconds> Session::bench_nop(std::uint64_t rounds) const {
    return bench(*this, DMAPROBE_BENCH_NOP, 0, rounds);
}

Result<std::chrono::nanoseconds> Session::bench_map(const Buffer& buffer,
                                                    std::uint64_t rounds) const {
    if (buffer.id() == 0)
        return std::unexpected(Error{EBADF, "bench", "the buffer is closed"});
    if (ChannelOf::get(buffer) != channel_)
        return std::unexpected(Error{ENOENT, "bench", "the buffer is another session's"});
    return bench(*this, DMAPROBE_BENCH_MAP_PAGE, buffer.id(), rounds);
}

Result<void> Session::enable(bool on) const {
    dmaprobe_enable arg{};
    arg.enable = on ? 1 : 0;
    return call(DMAPROBE_ENABLE, "enable", arg);
}

} // namespace dmaprobe

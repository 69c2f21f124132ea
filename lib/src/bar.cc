// SPDX-License-Identifier: MIT
// A device's registers, mapped into the program.
#include <dmaprobe/device.h>

#include <atomic>
#include <cerrno>
#include <format>
#include <utility>

#include <endian.h>
#include <sys/mman.h>
#include <unistd.h>

namespace dmaprobe {

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

Result<Bar> Bar::map(int fd, std::uint64_t offset, std::uint64_t start, std::uint64_t length) {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    const std::uint64_t inside = start & (page - 1);
    const std::uint64_t whole = (inside + length + page - 1) & ~(page - 1);
    void* base =
        ::mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset));
    if (base == MAP_FAILED)
        return std::unexpected(Error{errno, "bar", "the BAR cannot be mapped"});
    return Bar(std::span(static_cast<std::byte*>(base), whole), inside, length);
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

} // namespace dmaprobe

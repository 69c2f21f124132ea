/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests against the module share: calls by the bare ABI, so that a
 * mistake of the library cannot hide one of the module; memory with page
 * protections; a fixture that opens a session.
 */
#ifndef SELFTESTS_FIXTURE_H
#define SELFTESTS_FIXTURE_H

#include <linux/dmaprobe.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fcntl.h>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace selftest {

/* An errno that GoogleTest prints by its name. 0 is success. */
struct Errno {
    int value;

    bool operator==(const Errno&) const = default;
};
void PrintTo(const Errno& err, std::ostream* out);

#define EXPECT_ERRNO(expr, err) EXPECT_EQ(::selftest::Errno{expr}, ::selftest::Errno{err})
#define ASSERT_ERRNO(expr, err) ASSERT_EQ(::selftest::Errno{expr}, ::selftest::Errno{err})
#define EXPECT_OK(expr) EXPECT_ERRNO(expr, 0)
#define ASSERT_OK(expr) ASSERT_ERRNO(expr, 0)

/* A file descriptor that is closed with its owner. */
class Fd {
public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Fd() { close(); }

    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    /* 0 or errno. */
    int close();

private:
    int fd_ = -1;
};

/* An mmapped range that is unmapped with its owner. */
class Memory {
public:
    Memory() = default;
    Memory(void* start, size_t length, size_t fence = 0)
        : start_(start), length_(length), fence_(fence) {}
    Memory(Memory&& other) noexcept { *this = std::move(other); }
    Memory& operator=(Memory&& other) noexcept {
        std::swap(start_, other.start_);
        std::swap(length_, other.length_);
        std::swap(fence_, other.fence_);
        return *this;
    }
    ~Memory() { unmap(); }

    /* Private zeroed pages, the page behind them not accessible. */
    static Memory fenced(size_t length);

    std::byte* data() const { return static_cast<std::byte*>(start_); }
    size_t size() const { return length_; }
    std::span<std::byte> bytes() const { return {data(), length_}; }
    uint64_t address() const { return reinterpret_cast<uintptr_t>(start_); }
    bool protect(int prot) const;
    void unmap();
    explicit operator bool() const { return start_ != nullptr; }

private:
    void* start_ = nullptr;
    size_t length_ = 0;
    size_t fence_ = 0;
};

size_t page_size();

/*
 * The one way by which tests reach the module: by ioctl(), by a ring of io_uring, or
 * by a run of one call, as the environment's DMAPROBE_TRANSPORT (ioctl, ring, run)
 * says. 0 or errno.
 */
int submit(int fd, unsigned long command, void* op);
/* The name of the transport; ends the program when the environment names none. */
std::string_view transport();

/* Give the rest of a test as much time as a test has: for one of many parts, in each. */
void restart_deadline(std::chrono::seconds deadline = std::chrono::seconds(120));

template <class T>
struct CommandOf;
#define SELFTEST_COMMAND(type, command)                                                            \
    template <>                                                                                    \
    struct CommandOf<struct dmaprobe_##type> {                                                     \
        static constexpr unsigned long value = DMAPROBE_##command;                                 \
        static constexpr unsigned number = _IOC_NR(DMAPROBE_##command);                            \
        static constexpr const char* name = #type;                                                 \
    }
SELFTEST_COMMAND(get_info, GET_INFO);
SELFTEST_COMMAND(get_limits, GET_LIMITS);
SELFTEST_COMMAND(get_domain, GET_DOMAIN);
SELFTEST_COMMAND(set_mask, SET_MASK);
SELFTEST_COMMAND(enable, ENABLE);
SELFTEST_COMMAND(buffer_alloc, BUFFER_ALLOC);
SELFTEST_COMMAND(destroy, DESTROY);
SELFTEST_COMMAND(map, MAP);
SELFTEST_COMMAND(unmap, UNMAP);
SELFTEST_COMMAND(sync, SYNC);
SELFTEST_COMMAND(iova_alloc, IOVA_ALLOC);
SELFTEST_COMMAND(iova_free, IOVA_FREE);
SELFTEST_COMMAND(iova_link, IOVA_LINK);
SELFTEST_COMMAND(iova_sync, IOVA_SYNC);
SELFTEST_COMMAND(iova_unlink, IOVA_UNLINK);
SELFTEST_COMMAND(iova_destroy, IOVA_DESTROY);
SELFTEST_COMMAND(get_iova_state, GET_IOVA_STATE);
SELFTEST_COMMAND(translate, TRANSLATE);
SELFTEST_COMMAND(nop, NOP);
SELFTEST_COMMAND(get_stats, GET_STATS);
SELFTEST_COMMAND(run, RUN);
SELFTEST_COMMAND(bench, BENCH);
SELFTEST_COMMAND(set_segments, SET_SEGMENTS);
SELFTEST_COMMAND(buffer_pin, BUFFER_PIN);
SELFTEST_COMMAND(copy, COPY);
SELFTEST_COMMAND(map_sg, MAP_SG);
SELFTEST_COMMAND(map_resource, MAP_RESOURCE);
SELFTEST_COMMAND(map_dmabuf, MAP_DMABUF);
SELFTEST_COMMAND(get_segments, GET_SEGMENTS);
SELFTEST_COMMAND(alloc, ALLOC);
SELFTEST_COMMAND(get_sgtable, GET_SGTABLE);
SELFTEST_COMMAND(export, EXPORT);
SELFTEST_COMMAND(pool_create, POOL_CREATE);
SELFTEST_COMMAND(pool_alloc, POOL_ALLOC);
#undef SELFTEST_COMMAND

/* Call with a struct of the size this program knows. 0 or errno. */
template <class T>
int call(int fd, T& op) {
    op.size = sizeof(op);
    return submit(fd, CommandOf<T>::value, &op);
}

/* An extent without its physical address, comparable and printable. */
struct Extent {
    uint64_t iova = 0;
    uint64_t length = 0;
    uint32_t kind = DMAPROBE_EXTENT_HOLE;
    uint32_t buffer_id = 0;
    uint64_t buffer_offset = 0;

    bool operator==(const Extent&) const = default;
};
void PrintTo(const Extent& extent, std::ostream* out);

struct Buffer {
    uint32_t id = 0;
    uint64_t length = 0;
    uint64_t mmap_offset = 0;
};

/* A session by the bare ABI. What it answers is 0 or errno. */
class Raw {
public:
    Raw() = default;
    /* On failure error() says why. */
    static Raw open(const std::string& bdf, int mode = O_RDWR);

    int fd() const { return fd_.get(); }
    int error() const { return error_; }
    explicit operator bool() const { return static_cast<bool>(fd_); }
    int close() { return fd_.close(); }

    template <class T>
    int operator()(T& op) const {
        return call(fd(), op);
    }

    /* The usual calls, with all that a test seldom names left out. */
    int alloc(Buffer& out, uint64_t length, uint32_t kind = DMAPROBE_BUFFER_KIND_CONTIGUOUS) const;
    /* A buffer, an allocation, a pool or a block. */
    int destroy(uint32_t id) const;
    int free(const Buffer& buffer) const { return destroy(buffer.id); }
    /* Bytes of the program's own memory as a buffer. */
    int pin(Buffer& out, const void* start, uint64_t length, uint32_t flags = 0) const;
    /* Between an object and the program's memory, whichever way @dir says. */
    int copy(uint32_t id, uint32_t dir, uint64_t offset, std::span<std::byte> bytes) const;
    /* The buffer's memory, or an empty one (errno says why). */
    Memory mmap(const Buffer& buffer) const;
    int unmap(uint32_t mapping, uint64_t attrs = 0) const;
    int iova_alloc(dmaprobe_iova_alloc& out, uint64_t length, uint32_t flags = 0) const;
    int iova_free(uint32_t iova) const;
    int link(uint32_t iova, uint64_t offset, const Buffer& buffer, uint64_t buffer_offset,
             uint64_t length, uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL) const;
    int iova_sync(uint32_t iova, uint64_t offset, uint64_t length) const;
    int unlink(uint32_t iova, uint64_t offset, uint64_t length,
               uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL) const;
    int iova_destroy(uint32_t iova, uint64_t mapped_len,
                     uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL) const;
    int set_mask(uint64_t mask, uint32_t flags = DMAPROBE_SET_MASK_STREAMING) const;

    int map_sg(dmaprobe_map_sg& out, std::span<const dmaprobe_sg_entry> entries,
               uint32_t kind = DMAPROBE_MAP_SG_KIND_LIST, uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL,
               uint64_t attrs = 0) const;
    /* Whether the kernel bounces whatever is mapped (`swiotlb=force`). */
    bool bounces() const;
    /* All segments of a mapping. */
    int segments(std::vector<dmaprobe_segment>& out, uint32_t id) const;
    int set_segments(uint32_t flags, uint32_t max_size, uint64_t boundary_mask = 0,
                     uint32_t min_align_mask = 0) const;

    /* All extents of a range; asks again until the whole range was reported. */
    int translate(std::vector<Extent>& out, uint64_t iova, uint64_t length) const;

    dmaprobe_get_info info() const;
    dmaprobe_get_limits limits() const;
    dmaprobe_get_domain domain() const;
    dmaprobe_get_stats stats() const;
    /* The IOMMU's granule; the page size without an IOMMU. */
    uint64_t granule() const;
    bool translated() const;
    // Why the library cannot read the faults of the device's IOMMU, or nothing.
    std::string no_faults() const;
    /* Why this kernel does not offer what enum dmaprobe_features names, or nothing when it does. */
    std::optional<std::string> missing(uint32_t feature) const;

private:
    Fd fd_;
    int error_ = 0;
};

/* An environment variable, or an empty string. */
std::string env(const char* name);
/* The number that it begins with, or another one. */
uint64_t env_number(const char* name, uint64_t otherwise);
std::string node_path(const std::string& bdf);
/* Whether the running kernel is of this version or newer. */
bool kernel_is_at_least(unsigned major, unsigned minor);

/* Poll until the condition holds or the time is over; returns which. */
bool wait_for(const std::function<bool()>& condition, std::chrono::milliseconds timeout);

/*
 * Alive while faults are provoked; waits first where it must. The kernel limits
 * its reports of faults to 10 lines in 5 s, and each one of VT-d uses up three
 * of them (drivers/iommu/intel/dmar.c, dmar_fault()).
 */
class Faults {
public:
    /* As many as the kernel reports. */
    static constexpr size_t all = SIZE_MAX;

    explicit Faults(size_t count);
    Faults(const Faults&) = delete;
    Faults& operator=(const Faults&) = delete;
    ~Faults();

private:
    size_t count_;
};

/* A session on the device that DMAPROBE_BDF names; skips without one. */
class DeviceTest : public testing::Test {
protected:
    void SetUp() override;

    /* All granules of [iova, iova + length) lead to this place of the buffer. */
    void expect_leads_to(uint64_t iova, uint64_t length, const Buffer& buffer,
                         uint64_t buffer_offset) const;
    void expect_hole(uint64_t iova, uint64_t length) const;
    void expect_extents(const std::vector<Extent>& want, uint64_t iova, uint64_t length) const;

    std::string bdf;
    Raw s;
    bool iommu = false; // one translates for the device
    uint64_t granule = 0;
};

/* The same where the kernel has dma_iova_*() and an IOMMU; skips elsewhere. */
class IovaTest : public DeviceTest {
protected:
    void SetUp() override;
};

} // namespace selftest

#endif

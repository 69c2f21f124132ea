// SPDX-License-Identifier: GPL-2.0-only

#include "fixture.h"

#include "uring.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fcntl.h>
#include <format>
#include <iomanip>
#include <ostream>
#include <print>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <thread>
#include <unistd.h>

namespace selftest {

void PrintTo(const Errno& err, std::ostream* out) {
    const char* name = err.value ? strerrorname_np(err.value) : "success";

    *out << (name ? name : "unknown") << " (" << err.value << ")";
}

void PrintTo(const Extent& e, std::ostream* out) {
    static const char* const kinds[] = {"hole", "buffer", "foreign"};

    *out << std::format("{:#x}+{:#x} ", e.iova, e.length)
         << (e.kind < std::size(kinds) ? kinds[e.kind] : "?");
    if (e.kind == DMAPROBE_EXTENT_BUFFER)
        *out << std::format(" {}+{:#x}", e.buffer_id, e.buffer_offset);
}

int Fd::close() {
    const int fd = std::exchange(fd_, -1);

    return fd >= 0 && ::close(fd) ? errno : 0;
}

size_t page_size() {
    static const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));

    return size;
}

Memory Memory::fenced(size_t length) {
    const size_t pages = (length + page_size() - 1) / page_size() * page_size();
    void* start = ::mmap(nullptr, pages + page_size(), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (start == MAP_FAILED)
        return {};
    // The fence stays with the range so that nobody else's mapping lands there.
    if (mprotect(static_cast<std::byte*>(start) + pages, page_size(), PROT_NONE)) {
        munmap(start, pages + page_size());
        return {};
    }
    return {start, pages, page_size()};
}

bool Memory::protect(int prot) const {
    return mprotect(start_, length_, prot) == 0;
}

void Memory::unmap() {
    if (start_)
        munmap(start_, length_ + fence_);
    start_ = nullptr;
    length_ = 0;
    fence_ = 0;
}

namespace {

int by_ioctl(int fd, unsigned long command, void* op) {
    return ioctl(fd, command, op) < 0 ? errno : 0;
}

// One ring per thread, and a new one in a forked child: the old one is its parent's.
int by_ring(int fd, unsigned long command, void* op) {
    static thread_local Uring ring;
    static thread_local pid_t owner = 0;

    if (owner != getpid()) {
        ring = Uring(4);
        owner = getpid();
    }
    if (!ring)
        return ring.error();

    // A request that a worker made holds its file for a moment longer than it
    // takes to answer. One that is linked to it starts when that has passed, so
    // that a test that goes on with close() knows whose the last reference is.
    ring.command(fd, command, op, 1).flags = IOSQE_IO_HARDLINK;
    ring.nop(2);
    if (ring.submit() < 0)
        return EPROTO;
    Completion first;
    Completion second;
    if (!ring.wait(first, std::chrono::minutes(2)) || !ring.wait(second) || first.tag != 1)
        return EPROTO;
    return first.result > 0 ? EPROTO : -first.result;
}

// A run cannot be part of a run.
int by_run(int fd, unsigned long command, void* op) {
    if (command == DMAPROBE_RUN)
        return by_ioctl(fd, command, op);

    dmaprobe_run_op one = {};
    dmaprobe_run run = {};

    one.cmd = static_cast<uint32_t>(command);
    one.arg = reinterpret_cast<uintptr_t>(op);
    run.size = sizeof(run);
    run.nr_ops = 1;
    run.ops = reinterpret_cast<uintptr_t>(&one);
    if (const int err = by_ioctl(fd, DMAPROBE_RUN, &run))
        return err;
    return run.done != 1 || one.result > 0 ? EPROTO : -one.result;
}

struct Transport {
    std::string_view name;
    int (*submit)(int fd, unsigned long command, void* op);
};

constexpr Transport transports[] = {{"ioctl", by_ioctl}, {"ring", by_ring}, {"run", by_run}};

const Transport& transport_in_use() {
    static const Transport& chosen = [] -> const Transport& {
        const std::string wanted = env("DMAPROBE_TRANSPORT");

        for (const Transport& t : transports)
            if (wanted == t.name || wanted.empty())
                return t;
        std::println(stderr, "DMAPROBE_TRANSPORT={}: not one of ioctl, ring, run", wanted);
        exit(2);
    }();

    return chosen;
}

} // namespace

std::string_view transport() {
    return transport_in_use().name;
}

int submit(int fd, unsigned long command, void* op) {
    return transport_in_use().submit(fd, command, op);
}

std::string env(const char* name) {
    const char* value = std::getenv(name);

    return value ? value : "";
}

uint64_t env_number(const char* name, uint64_t otherwise) {
    const std::string text = env(name);
    uint64_t value = otherwise;

    std::from_chars(text.data(), text.data() + text.size(), value);
    return value;
}

std::string node_path(const std::string& bdf) {
    return "/dev/dmaprobe/" + bdf;
}

bool wait_for(const std::function<bool()>& condition, std::chrono::milliseconds timeout) {
    const auto end = std::chrono::steady_clock::now() + timeout;

    for (;;) {
        if (condition())
            return true;
        if (std::chrono::steady_clock::now() >= end)
            return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
}

// When the last faults were reported, in order.
static std::deque<std::chrono::steady_clock::time_point> reported;

Faults::Faults(size_t count) {
    // How many the kernel reports in an interval, and some less where there are more.
    static const size_t burst = access("/sys/class/iommu/dmar0", F_OK) == 0 ? 3 : 8;
    constexpr auto interval = std::chrono::milliseconds(5200);

    count_ = std::min(count, burst);
    for (; !reported.empty() && reported.size() + count_ > burst; reported.pop_front())
        std::this_thread::sleep_until(reported.front() + interval);
}

Faults::~Faults() {
    reported.insert(reported.end(), count_, std::chrono::steady_clock::now());
}

Raw Raw::open(const std::string& bdf, int mode) {
    Raw raw;
    const int fd = ::open(node_path(bdf).c_str(), mode | O_CLOEXEC);

    raw.error_ = fd < 0 ? errno : 0;
    raw.fd_ = Fd(fd);
    return raw;
}

int Raw::alloc(Buffer& out, uint64_t length, uint32_t kind) const {
    dmaprobe_buffer_alloc op = {};

    op.kind = kind;
    op.length = length;
    const int err = (*this)(op);
    if (!err)
        out = {.id = op.id, .length = length, .mmap_offset = op.mmap_offset};
    return err;
}

int Raw::destroy(uint32_t id) const {
    dmaprobe_destroy op = {};

    op.id = id;
    return (*this)(op);
}

int Raw::pin(Buffer& out, const void* start, uint64_t length, uint32_t flags) const {
    dmaprobe_buffer_pin op = {};

    op.flags = flags;
    op.addr = reinterpret_cast<uintptr_t>(start);
    op.length = length;
    const int err = (*this)(op);
    if (!err)
        out = {.id = op.id, .length = length};
    return err;
}

int Raw::copy(uint32_t id, uint32_t dir, uint64_t offset, std::span<std::byte> bytes) const {
    dmaprobe_copy op = {};

    op.id = id;
    op.dir = dir;
    op.offset = offset;
    op.length = bytes.size();
    op.addr = reinterpret_cast<uintptr_t>(bytes.data());
    return (*this)(op);
}

Memory Raw::mmap(const Buffer& buffer) const {
    void* start = ::mmap(nullptr, buffer.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd(),
                         static_cast<off_t>(buffer.mmap_offset));

    return start == MAP_FAILED ? Memory{} : Memory{start, buffer.length};
}

int Raw::unmap(uint32_t mapping, uint64_t attrs) const {
    dmaprobe_unmap op = {};

    op.id = mapping;
    op.attrs = attrs;
    return (*this)(op);
}

int Raw::iova_alloc(dmaprobe_iova_alloc& out, uint64_t length, uint32_t flags) const {
    out = {};
    out.flags = flags;
    out.length = length;
    return (*this)(out);
}

int Raw::iova_free(uint32_t iova) const {
    dmaprobe_iova_free op = {};

    op.id = iova;
    return (*this)(op);
}

int Raw::link(uint32_t iova, uint64_t offset, const Buffer& buffer, uint64_t buffer_offset,
              uint64_t length, uint32_t dir) const {
    dmaprobe_iova_link op = {};

    op.id = iova;
    op.buffer_id = buffer.id;
    op.dir = dir;
    op.buffer_offset = buffer_offset;
    op.offset = offset;
    op.length = length;
    return (*this)(op);
}

int Raw::iova_sync(uint32_t iova, uint64_t offset, uint64_t length) const {
    dmaprobe_iova_sync op = {};

    op.id = iova;
    op.offset = offset;
    op.length = length;
    return (*this)(op);
}

int Raw::unlink(uint32_t iova, uint64_t offset, uint64_t length, uint32_t dir) const {
    dmaprobe_iova_unlink op = {};

    op.id = iova;
    op.dir = dir;
    op.offset = offset;
    op.length = length;
    return (*this)(op);
}

int Raw::iova_destroy(uint32_t iova, uint64_t mapped_len, uint32_t dir) const {
    dmaprobe_iova_destroy op = {};

    op.id = iova;
    op.dir = dir;
    op.mapped_len = mapped_len;
    return (*this)(op);
}

int Raw::set_mask(uint64_t mask, uint32_t flags) const {
    dmaprobe_set_mask op = {};

    op.flags = flags;
    op.mask = mask;
    return (*this)(op);
}

int Raw::translate(std::vector<Extent>& out, uint64_t iova, uint64_t length) const {
    std::vector<dmaprobe_extent> room(64);

    out.clear();
    while (length) {
        dmaprobe_translate op = {};

        op.iova = iova;
        op.length = length;
        op.nr_extents = static_cast<uint32_t>(room.size());
        op.extents = reinterpret_cast<uintptr_t>(room.data());
        if (const int err = (*this)(op))
            return err;
        if (!op.translated || op.translated > length || op.nr_extents > room.size())
            return EPROTO;
        for (const dmaprobe_extent& e : std::span(room).first(op.nr_extents)) {
            const Extent next = {.iova = e.iova,
                                 .length = e.length,
                                 .kind = e.kind,
                                 .buffer_id = e.buffer_id,
                                 .buffer_offset = e.buffer_offset};

            out.push_back(next);
        }
        iova += op.translated;
        length -= op.translated;
    }
    return 0;
}

int Raw::map_sg(dmaprobe_map_sg& out, std::span<const dmaprobe_sg_entry> entries, uint32_t kind,
                uint32_t dir, uint64_t attrs) const {
    out = {};
    out.kind = kind;
    out.dir = dir;
    out.entries = reinterpret_cast<uintptr_t>(entries.data());
    out.nr_entries = static_cast<uint32_t>(entries.size());
    out.attrs = attrs;
    return (*this)(out);
}

bool Raw::bounces() const {
    dmaprobe_map map = {};
    Buffer b;

    if (translated())
        return false;
    EXPECT_OK(alloc(b, page_size()));
    map.buffer_id = b.id;
    map.length = b.length;
    EXPECT_OK((*this)(map));
    EXPECT_OK(unmap(map.id));
    EXPECT_OK(free(b));
    return map.need_sync;
}

int Raw::segments(std::vector<dmaprobe_segment>& out, uint32_t id) const {
    dmaprobe_get_segments op = {};

    out.clear();
    op.id = id;
    if (const int err = (*this)(op))
        return err;
    out.resize(op.nr_segments);
    op.segments = reinterpret_cast<uintptr_t>(out.data());
    if (const int err = (*this)(op))
        return err;
    return op.nr_segments == out.size() ? 0 : EPROTO;
}

int Raw::set_segments(uint32_t flags, uint32_t max_size, uint64_t boundary_mask,
                      uint32_t min_align_mask) const {
    dmaprobe_set_segments op = {};

    op.flags = flags;
    op.max_segment_size = max_size;
    op.segment_boundary_mask = boundary_mask;
    op.min_align_mask = min_align_mask;
    return (*this)(op);
}

dmaprobe_get_info Raw::info() const {
    dmaprobe_get_info op = {};

    EXPECT_OK((*this)(op));
    return op;
}

dmaprobe_get_stats Raw::stats() const {
    dmaprobe_get_stats op = {};

    EXPECT_OK((*this)(op));
    return op;
}

dmaprobe_get_limits Raw::limits() const {
    dmaprobe_get_limits op = {};

    EXPECT_OK((*this)(op));
    return op;
}

dmaprobe_get_domain Raw::domain() const {
    dmaprobe_get_domain op = {};

    EXPECT_OK((*this)(op));
    return op;
}

bool Raw::translated() const {
    return limits().props & DMAPROBE_DEVICE_IOMMU;
}

std::string Raw::no_faults() const {
    const dmaprobe_get_domain d = domain();
    const std::string driver = static_cast<const char*>(d.driver);

    if (driver == "intel-iommu" || driver == "amd-iommu" || driver == "virtio_iommu" ||
        driver == "arm-smmu-v3")
        return "";
    return "the library cannot read the faults of " + driver + " yet";
}

uint64_t Raw::granule() const {
    const uint64_t sizes = domain().pgsize_bitmap;

    return sizes ? uint64_t{1} << std::countr_zero(sizes) : page_size();
}

std::optional<std::string> Raw::missing(uint32_t feature) const {
    if ((info().features & feature) == feature)
        return std::nullopt;
    return feature == DMAPROBE_FEATURE_DMA_IOVA
               ? "dma_iova_*(): this kernel is older than Linux 6.16"
               : "dma_map_phys(): this kernel is older than Linux 6.18";
}

bool kernel_is_at_least(unsigned major, unsigned minor) {
    utsname name = {};
    unsigned running[2] = {};

    if (uname(&name))
        return false;
    const char* at = name.release;
    const char* const end = at + strlen(at);
    for (unsigned& number : running) {
        const auto [next, err] = std::from_chars(at, end, number);

        if (err != std::errc{})
            return false;
        at = next == end ? end : next + 1;
    }
    return std::pair(running[0], running[1]) >= std::pair(major, minor);
}

void DeviceTest::SetUp() {
    bdf = env("DMAPROBE_BDF");
    if (bdf.empty())
        GTEST_SKIP() << "no device: DMAPROBE_BDF is not set";
    s = Raw::open(bdf);
    ASSERT_TRUE(s) << node_path(bdf) << ": " << strerror(s.error());
    iommu = s.translated();
    granule = s.granule();
}

void DeviceTest::expect_extents(const std::vector<Extent>& want, uint64_t iova,
                                uint64_t length) const {
    std::vector<Extent> got;

    EXPECT_OK(s.translate(got, iova, length));
    EXPECT_EQ(got, want);
}

void DeviceTest::expect_leads_to(uint64_t iova, uint64_t length, const Buffer& buffer,
                                 uint64_t buffer_offset) const {
    expect_extents({{.iova = iova,
                     .length = length,
                     .kind = DMAPROBE_EXTENT_BUFFER,
                     .buffer_id = buffer.id,
                     .buffer_offset = buffer_offset}},
                   iova, length);
}

void DeviceTest::expect_hole(uint64_t iova, uint64_t length) const {
    expect_extents({{.iova = iova, .length = length}}, iova, length);
}

void IovaTest::SetUp() {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure())
        return;
    if (const auto reason = s.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << *reason;
    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates for the device";
}

} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// The boundary: ids that nobody was given, files in any order, mmap() of anything, values
// that cannot be. The other boundary_*.cc are about page tables, time, charges, and the
// device itself.

#include "boundary.h"

#include "support/alloc.h"
#include "support/ops.h"
#include "support/unbind.h"

#include <linux/dma-heap.h>
#include <linux/pci_regs.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <list>
#include <sstream>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>

namespace selftest {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// --- what the tests of the boundary share ------------------------------------------

void as_user(uid_t uid, const std::function<void()>& act) {
    std::thread([&] {
        // The C library's calls would change all threads.
        if (syscall(SYS_setgroups, 0, nullptr) || syscall(SYS_setresgid, uid, uid, uid) ||
            syscall(SYS_setresuid, uid, uid, uid)) {
            ADD_FAILURE() << "cannot become user " << uid << ": " << strerror(errno);
            return;
        }
        act();
    }).join();
    // Another identity takes the program's files in /proc from it.
    prctl(PR_SET_DUMPABLE, 1);
}

uint16_t command_of(const std::string& bdf) {
    uint16_t value = 0;
    const Fd config(open((pci_path(bdf) + "/config").c_str(), O_RDONLY | O_CLOEXEC));

    EXPECT_EQ(pread(config.get(), &value, sizeof(value), PCI_COMMAND), sizeof(value));
    return value;
}

void set_command(const std::string& bdf, unsigned value) {
    const auto word = static_cast<uint16_t>(value);
    const Fd config(open((pci_path(bdf) + "/config").c_str(), O_WRONLY | O_CLOEXEC));

    EXPECT_EQ(pwrite(config.get(), &word, sizeof(word), PCI_COMMAND), sizeof(word));
}

OpenNode::OpenNode(const std::string& bdf) : path_(node_path(bdf)) {
    EXPECT_EQ(stat(path_.c_str(), &had_), 0);
    EXPECT_EQ(chmod(path_.c_str(), 0666), 0);
}

OpenNode::~OpenNode() {
    // A device that was bound again has a new one.
    if (exists(path_)) {
        EXPECT_EQ(chmod(path_.c_str(), had_.st_mode & 07777), 0);
    }
}

LockedMemory::LockedMemory(uint64_t bytes) {
    EXPECT_EQ(getrlimit(RLIMIT_MEMLOCK, &had_), 0);
    const rlimit now = {bytes, had_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_MEMLOCK, &now), 0);
}

LockedMemory::~LockedMemory() {
    EXPECT_EQ(setrlimit(RLIMIT_MEMLOCK, &had_), 0);
}

Setting::Setting(std::string path, const std::string& value)
    : path_(std::move(path)), had_(read_text(path_)) {
    if (const auto open = had_.find('['), end = had_.find(']');
        open != std::string::npos && end != std::string::npos)
        had_ = had_.substr(open + 1, end - open - 1);
    error_ = write_text(path_, value);
}

Setting::~Setting() {
    if (!error_)
        write_text(path_, had_);
}

KernelLog::KernelLog() : kmsg_(open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
    EXPECT_TRUE(kmsg_) << "/dev/kmsg: " << strerror(errno);
    lseek(kmsg_.get(), 0, SEEK_END);
}

std::string KernelLog::news() {
    static constexpr std::array marks = {"dmaprobe", "swiotlb", "DMA-API", "DMAR",
                                         "AMD-Vi",   "WARNING", "BUG:"};
    std::array<char, 8192> record{};
    std::string all;

    // A record is "priority,number,time,flags;text"; those of programs have a facility.
    for (;;) {
        const ssize_t n = read(kmsg_.get(), record.data(), record.size());
        if (n < 0 && errno == EPIPE) // overwritten before it was read
            continue;
        if (n <= 0)
            return all;
        const std::string line(record.data(), static_cast<size_t>(n));
        const size_t text = line.find(';');
        if (text == std::string::npos || strtoul(line.c_str(), nullptr, 10) >= 8)
            continue;
        if (std::ranges::any_of(marks, [&](const char* mark) { return line.contains(mark); }))
            all += line.substr(text + 1);
    }
}

int64_t meminfo(std::string_view name) {
    std::istringstream lines(read_text("/proc/meminfo"));
    std::string key;
    int64_t value = 0;

    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);

        if (words >> key >> value && key == std::string(name) + ":")
            return value * 1024;
    }
    return -1;
}

milliseconds time_of(const std::function<void()>& act) {
    const auto began = steady_clock::now();

    act();
    return std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);
}

static std::string kind_of(const std::string& bdf) {
    return read_text(pci_path(bdf) + "/vendor") + read_text(pci_path(bdf) + "/device");
}

static int bind_dmaprobe(const std::string& bdf) {
    if (driver_of(bdf) == driver_name)
        return 0;
    if (!driver_of(bdf).empty())
        unbind_driver(bdf);
    if (const int err = write_text(pci_path(bdf) + "/driver_override", driver_name))
        return err;
    if (const int err = probe_driver(bdf))
        return err;
    return driver_of(bdf) == driver_name ? 0 : ENODEV;
}

TwoFunctions::TwoFunctions(const std::string& bdf) {
    std::error_code none;
    std::vector<std::string> all;

    for (const auto& entry : fs::directory_iterator("/sys/bus/pci/devices", none))
        if (kind_of(entry.path().filename().string()) == kind_of(bdf))
            all.push_back(entry.path().filename().string());
    std::ranges::sort(all);
    // Those of one slot differ in what follows the dot.
    const auto slot = [](const std::string& name) { return name.substr(0, name.rfind('.')); };
    const auto pair = std::ranges::adjacent_find(all, {}, slot);
    if (pair == all.end()) {
        why_ = "no two functions of the device's kind are in one slot";
        return;
    }
    first_ = *pair;
    second_ = *std::next(pair);
    keep_first_.emplace(first_);
    keep_second_.emplace(second_);
    for (const std::string& one : {first_, second_})
        if (const int err = bind_dmaprobe(one))
            why_ = std::format("{} cannot be bound: {}", one, strerror(err));
}

uint64_t largest(uint64_t most, const std::function<int(uint64_t)>& make) {
    for (; most >= page_size(); most /= 2)
        if (make(most) == 0)
            return most;
    return 0;
}

int map_often(const Raw& session, const Buffer& buffer, size_t count, size_t* made,
              std::vector<uint32_t>* ids) {
    const auto end = steady_clock::now() + seconds(15);
    std::vector<dmaprobe_map> maps(std::min<size_t>(count, DMAPROBE_RUN_MAX));
    std::vector<dmaprobe_run_op> ops(maps.size());

    for (size_t done = 0; done < count;) {
        const size_t n = std::min(count - done, maps.size());
        dmaprobe_run run = {};

        restart_deadline();
        for (size_t i = 0; i < n; i++) {
            maps[i] = {};
            maps[i].size = sizeof(maps[i]);
            maps[i].kind = DMAPROBE_MAP_KIND_PAGE;
            maps[i].dir = DMAPROBE_DIR_TO_DEVICE;
            maps[i].buffer_id = buffer.id;
            maps[i].length = page_size();
            ops[i] = {
                .cmd = DMAPROBE_MAP, .result = 0, .arg = reinterpret_cast<uintptr_t>(&maps[i])};
        }
        run.nr_ops = static_cast<uint32_t>(n);
        run.ops = reinterpret_cast<uintptr_t>(ops.data());
        if (const int err = session(run))
            return err;
        for (size_t i = 0; i < run.done; i++) {
            if (ops[i].result)
                return -ops[i].result;
            if (ids)
                ids->push_back(maps[i].id);
        }
        done += run.done;
        if (made)
            *made = done;
        if (made && steady_clock::now() >= end)
            break;
    }
    return 0;
}

int map_range(const Raw& s, dmaprobe_map& op, const Buffer& b, uint64_t length) {
    op = {};
    op.kind = DMAPROBE_MAP_KIND_PAGE;
    op.buffer_id = b.id;
    op.length = length;
    return s(op);
}

int scattered(const Raw& s, Buffer& out, uint64_t length, uint64_t piece) {
    dmaprobe_buffer_alloc op = {};

    op.kind = DMAPROBE_BUFFER_KIND_SCATTERED;
    op.length = length;
    op.order = static_cast<uint32_t>(std::countr_zero(piece / page_size()));
    const int err = s(op);
    out = {.id = op.id, .length = length, .mmap_offset = op.mmap_offset};
    return err;
}

namespace {

// --- mmap() of whatever ------------------------------------------------------------

class BoundaryMmap : public Unbinding<DeviceTest> {};

// Ids of all kinds are mmapped while the device goes: only what is memory gives some.
TEST_F(BoundaryMmap, EveryKindOfIdAgainstUnbind) {
    for (int round = 0; round < 6; round++) {
        Live live(bdf);
        std::set<uint32_t> memory;
        std::atomic<bool> stop = false;
        std::atomic<int> odd = 0;
        std::atomic<uint32_t> odd_id = 0;
        std::atomic<uint64_t> mapped = 0;

        SCOPED_TRACE(std::format("round {}", round));
        for (const Kind kind : all_kinds)
            live.live(kind);
        live.iova(true);
        memory.insert(live.buffer());
        memory.insert(live.alloc());
        for (const uint32_t kind : {DMAPROBE_ALLOC_KIND_COHERENT, DMAPROBE_ALLOC_KIND_NONCOHERENT,
                                    DMAPROBE_ALLOC_KIND_PAGES, DMAPROBE_ALLOC_KIND_NONCONTIGUOUS}) {
            Allocation a;

            ASSERT_OK(allocate(live.s, a, {"", kind}, live.length));
            memory.insert(a.id);
        }
        for (int i = 0; i < 4; i++) {
            const dmaprobe_sg_entry entry = {
                .offset = 0, .length = live.length, .buffer_id = live.buffer(), .__reserved = 0};
            dmaprobe_map_sg list = {};
            dmaprobe_map_dmabuf import = {};

            ASSERT_OK(live.s.map_sg(list, {&entry, 1}));
            import.fd = live.dmabuf();
            live.s(import); // where the device can reach it
        }
        {
            std::list<std::jthread> threads;

            for (int t = 0; t < 3; t++) {
                threads.emplace_back([&] {
                    while (!stop) {
                        for (uint32_t id = 1; id <= 32; id++) {
                            const bool is_memory = memory.contains(id);
                            void* at = mmap(nullptr, page_size(), PROT_READ, MAP_SHARED,
                                            live.s.fd(), static_cast<off_t>(uint64_t{id} << 32));
                            const int err = at == MAP_FAILED ? errno : 0;

                            if (!err)
                                munmap(at, page_size());
                            mapped += !err;
                            if (err != ENODEV && err != ENOENT && (err || !is_memory)) {
                                odd = err ? err : EPROTO;
                                odd_id = id;
                            }
                        }
                    }
                });
            }
            wait_for([&] { return mapped > 50; }, seconds(5));
            EXPECT_OK(unbind_driver(bdf));
            std::this_thread::sleep_for(milliseconds(10));
            stop = true;
        }
        EXPECT_ERRNO(odd.load(), 0) << "of id " << odd_id;
        EXPECT_GT(mapped.load(), 50u);
        EXPECT_OK(live.s.close());
        EXPECT_OK(s.close());
        ASSERT_NO_FATAL_FAILURE(come_back());
    }
}

// --- what can be opened, set and given ---------------------------------------------

class Boundary : public DeviceTest {
protected:
    int map(dmaprobe_map& op, const Buffer& b, uint64_t attrs) const {
        op = {};
        op.kind = DMAPROBE_MAP_KIND_PAGE;
        op.buffer_id = b.id;
        op.length = page_size();
        op.attrs = attrs;
        return s(op);
    }
};

// With all values right, and with objects: the mode decides first.
TEST_F(Boundary, OpenedForReading) {
    Live live(bdf);
    const Raw reader = Raw::open(bdf, O_RDONLY);

    ASSERT_TRUE(reader);
    for (const Op& op : ops()) {
        std::vector<std::byte> bytes(op.size);

        op.sample(live, bytes.data());
        const int err = submit(reader.fd(), op.command, bytes.data());
        // A run is made by ioctl() here, and is itself refused.
        if (transport() == "run" && op.command != DMAPROBE_RUN) {
            EXPECT_ERRNO(err, EBADF) << op.name;
        } else if (only_reads(op)) {
            EXPECT_NE(err, EBADF) << op.name;
        } else {
            EXPECT_ERRNO(err, EBADF) << op.name;
        }
    }
    EXPECT_EQ(mmap(nullptr, page_size(), PROT_READ | PROT_WRITE, MAP_SHARED, reader.fd(),
                   static_cast<off_t>(uint64_t{1} << 32)),
              MAP_FAILED);
    EXPECT_ERRNO(errno, EACCES);
}

// A device with dma_map_ops of its own, which the module does not take, is not to be had here.
TEST_F(Boundary, LimitsThatCannotBe) {
    const uint64_t page = page_size();

    for (uint64_t mask = 0; mask < page - 1; mask = mask * 2 + 1)
        EXPECT_ERRNO(s.set_mask(mask), EINVAL) << mask;
    EXPECT_ERRNO(s.set_mask(page), EINVAL) << "not ones from bit 0 up";
    for (uint64_t mask = 1; mask < page - 1; mask = mask * 2 + 1)
        EXPECT_ERRNO(s.set_segments(DMAPROBE_SET_SEGMENTS_BOUNDARY, 0, mask), EINVAL) << mask;
    for (uint64_t size = 1; size < page; size *= 2)
        EXPECT_ERRNO(s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, static_cast<uint32_t>(size)),
                     EINVAL)
            << size;
    EXPECT_ERRNO(s.set_segments(DMAPROBE_SET_SEGMENTS_MIN_ALIGN, 0, 0, 0xfff), EINVAL);
    EXPECT_OK(s.set_segments(DMAPROBE_SET_SEGMENTS_BOUNDARY, 0, page - 1));
}

// The descriptor is how its owner gave permission.
TEST_F(Boundary, DmaBufOpenedForReading) {
    const Fd heap(open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC));
    dma_heap_allocation_data made = {};

    if (!heap)
        GTEST_SKIP() << "no /dev/dma_heap/system";
    made.len = page_size();
    made.fd_flags = O_RDONLY | O_CLOEXEC;
    ASSERT_EQ(ioctl(heap.get(), DMA_HEAP_IOCTL_ALLOC, &made), 0) << strerror(errno);
    const Fd readable(static_cast<int>(made.fd));
    for (const uint32_t dir :
         {DMAPROBE_DIR_BIDIRECTIONAL, DMAPROBE_DIR_FROM_DEVICE, DMAPROBE_DIR_TO_DEVICE}) {
        dmaprobe_map_dmabuf op = {};

        op.fd = readable.get();
        op.dir = dir;
        const int err = s(op);
        // Older kernels map for both directions, whatever is asked for.
        if (dir != DMAPROBE_DIR_TO_DEVICE || !kernel_is_at_least(6, 17)) {
            EXPECT_ERRNO(err, EACCES) << dir;
        } else if (iommu) {
            EXPECT_OK(err);
        } else {
            EXPECT_NE(err, EACCES);
        }
    }
}

// What was synchronised by hand need not be synchronised once more; nothing else changes.
TEST_F(Boundary, UnmapWithOtherAttributes) {
    constexpr uint64_t skip = DMAPROBE_ATTR_SKIP_CPU_SYNC;
    constexpr uint64_t weak = DMAPROBE_ATTR_WEAK_ORDERING;
    struct Case {
        uint64_t map;
        uint64_t unmap;
        int expected;
    };
    Buffer b;

    ASSERT_OK(s.alloc(b, page_size()));
    for (const Case& c :
         {Case{0, skip, 0}, Case{skip, 0, 0}, Case{skip, skip, 0}, Case{weak, weak | skip, 0},
          Case{0, weak, EINVAL}, Case{weak, 0, EINVAL}, Case{weak | skip, skip, EINVAL},
          Case{0, DMAPROBE_ATTR_NO_WARN, EINVAL}, Case{0, DMAPROBE_ATTR_WRITE_COMBINE, EINVAL},
          Case{0, uint64_t{1} << 40, EOPNOTSUPP}}) {
        const dmaprobe_sg_entry entry = {
            .offset = 0, .length = page_size(), .buffer_id = b.id, .__reserved = 0};
        dmaprobe_map one = {};
        dmaprobe_map_sg list = {};

        SCOPED_TRACE(std::format("mapped with {:#x}, unmapped with {:#x}", c.map, c.unmap));
        ASSERT_OK(map(one, b, c.map));
        ASSERT_OK(s.map_sg(list, {&entry, 1}, DMAPROBE_MAP_SG_KIND_TABLE,
                           DMAPROBE_DIR_BIDIRECTIONAL, c.map));
        for (const uint32_t id : {one.id, list.id}) {
            EXPECT_ERRNO(s.unmap(id, c.unmap), c.expected);
            if (c.expected) {
                EXPECT_OK(s.unmap(id, c.map)) << "it was refused, so it is still there";
            }
        }
    }
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// The boundary: time. Nobody waits long for another's call, whatever that is: not who
// unbinds the device, who changes its limits, or who just asks; and what is killed ends.

#include "boundary.h"

#include "support/alloc.h"
#include "support/unbind.h"

#include <linux/udmabuf.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <memory>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t mib = uint64_t{1} << 20;
constexpr uint64_t gib = uint64_t{1} << 30;

// What is measured is reported. What is asserted is generous: the machine is emulated, and
// may have other things to do.
const seconds soon(checkers ? 60 : 10);
const seconds at_once(checkers ? 30 : 2);

// --- long calls --------------------------------------------------------------------

// A session with what a long call needs.
class Job {
public:
    explicit Job(const std::string& bdf) : s(Raw::open(bdf)) {}
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;
    virtual ~Job() = default;

    // 0 or errno; skip says why it cannot be.
    virtual int prepare() = 0;
    // The call. 0 or errno.
    virtual int call() = 0;

    Raw s;
    std::string skip;
};

using MakeJob = std::unique_ptr<Job> (*)(const std::string& bdf);

template <class T>
std::unique_ptr<Job> make_job(const std::string& bdf) {
    return std::make_unique<T>(bdf);
}

// The longest list there may be: 1 GiB in 65536 entries.
std::vector<dmaprobe_sg_entry> longest_list(const Buffer& b) {
    constexpr uint64_t piece = gib / DMAPROBE_MAP_SG_MAX;
    std::vector<dmaprobe_sg_entry> entries(DMAPROBE_MAP_SG_MAX);

    for (uint64_t i = 0; i < entries.size(); i++)
        entries[i] = {
            .offset = i * piece % b.length, .length = piece, .buffer_id = b.id, .__reserved = 0};
    return entries;
}

// A power of two that the machine can spare, at most @most.
uint64_t spare(uint64_t most) {
    const int64_t there = meminfo("MemAvailable");

    while (most > mib && static_cast<int64_t>(most) > there / 2)
        most /= 2;
    return most;
}

// As much contiguous memory as there can be.
int contiguous(const Raw& s, Buffer& b) {
    return largest(4 * mib, [&](uint64_t length) { return s.alloc(b, length); }) ? 0 : ENOMEM;
}

// 4 GiB, of which one is mapped by another session; each granule is searched in 2000 buffers.
class Translate : public Job {
public:
    using Job::Job;

    int prepare() override {
        std::vector<dmaprobe_sg_entry> entries;
        dmaprobe_map_sg list = {};
        Buffer b;

        if (!s.translated()) {
            skip = "no IOMMU translates for the device";
            return 0;
        }
        for (int i = 0; i < 2000; i++)
            if (const int err = s.alloc(b, page_size()))
                return err;
        other_ = Raw::open(env("DMAPROBE_BDF"));
        if (const int err = contiguous(other_, b))
            return err;
        // Above 4 GiB there is room for it.
        if (const int err = other_.set_mask((uint64_t{1} << 40) - 1))
            return err;
        entries = longest_list(b);
        if (const int err = other_.map_sg(list, entries))
            return err;
        std::vector<dmaprobe_segment> segments;
        const int err = other_.segments(segments, list.id);
        if (!err)
            iova_ = segments.front().dma_addr;
        return err;
    }

    int call() override {
        dmaprobe_translate op = {};

        op.iova = iova_;
        op.length = 4 * gib;
        op.nr_extents = static_cast<uint32_t>(room_.size());
        op.extents = reinterpret_cast<uintptr_t>(room_.data());
        return s(op);
    }

private:
    std::vector<dmaprobe_extent> room_{2048};
    Raw other_;
    uint64_t iova_ = 0;
};

class MapSg : public Job {
public:
    using Job::Job;

    int prepare() override {
        if (const int err = s.set_mask((uint64_t{1} << 40) - 1))
            return err;
        if (const int err = contiguous(s, buffer_))
            return err;
        entries_ = longest_list(buffer_);
        // As long as something is mapped, the mask stays.
        const int err = map_often(s, buffer_, 1);
        return err ? err : call();
    }

    int call() override {
        dmaprobe_map_sg list = {};

        if (const int err = s.map_sg(list, entries_))
            return err;
        return s.unmap(list.id);
    }

private:
    Buffer buffer_;
    std::vector<dmaprobe_sg_entry> entries_;
};

class GetSegments : public Job {
public:
    using Job::Job;

    int prepare() override {
        dmaprobe_map_sg list = {};
        Buffer b;

        if (const int err = s.set_mask((uint64_t{1} << 40) - 1))
            return err;
        if (const int err = contiguous(s, b))
            return err;
        const int err = s.map_sg(list, longest_list(b));
        id_ = list.id;
        return err;
    }

    int call() override {
        std::vector<dmaprobe_segment> segments;

        return s.segments(segments, id_);
    }

private:
    uint32_t id_ = 0;
};

class Alloc : public Job {
public:
    using Job::Job;

    int prepare() override {
        length_ = largest(spare(256 * mib), [&](uint64_t length) { return call(length); });
        return length_ ? 0 : ENOMEM;
    }
    int call() override { return call(length_); }

private:
    int call(uint64_t length) const {
        Allocation a;

        if (const int err = allocate(s, a, {"", DMAPROBE_ALLOC_KIND_COHERENT}, length))
            return err;
        return release(s, a);
    }

    uint64_t length_ = 0;
};

class BufferAlloc : public Job {
public:
    using Job::Job;

    int prepare() override {
        length_ = largest(spare(gib), [&](uint64_t length) { return call(length); });
        return length_ ? 0 : ENOMEM;
    }
    int call() override { return call(length_); }

private:
    int call(uint64_t length) const {
        Buffer b;

        if (const int err = s.alloc(b, length, DMAPROBE_BUFFER_KIND_SCATTERED))
            return err;
        return s.free(b);
    }

    uint64_t length_ = 0;
};

class BufferPin : public Job {
public:
    using Job::Job;

    int prepare() override {
        const uint64_t length = largest(spare(128 * mib), [&](uint64_t most) {
            void* at = mmap(nullptr, most, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

            if (at == MAP_FAILED)
                return errno;
            memory_ = Memory(at, most);
            return 0;
        });
        return length ? 0 : ENOMEM;
    }

    int call() override {
        Buffer b;

        if (const int err = s.pin(b, memory_.data(), memory_.size()))
            return err;
        return s.free(b);
    }

private:
    Memory memory_;
};

// A buffer is copied onto itself, by what is mmapped of it.
class Copy : public Job {
public:
    using Job::Job;

    int prepare() override {
        const uint64_t length = largest(spare(gib), [&](uint64_t most) {
            return s.alloc(buffer_, most, DMAPROBE_BUFFER_KIND_SCATTERED);
        });
        memory_ = s.mmap(buffer_);
        return length && memory_ ? 0 : ENOMEM;
    }

    int call() override { return s.copy(buffer_.id, DMAPROBE_COPY_READ, 0, memory_.bytes()); }

private:
    Buffer buffer_;
    Memory memory_;
};

class Bench : public Job {
public:
    using Job::Job;

    int prepare() override { return s.alloc(buffer_, page_size()); }
    int call() override {
        dmaprobe_bench op = {};

        op.kind = DMAPROBE_BENCH_MAP_PAGE;
        op.buffer_id = buffer_.id;
        op.count = 10'000'000;
        return s(op);
    }

private:
    Buffer buffer_;
};

// As many calls as can be, each of them long.
class Run : public Job {
public:
    using Job::Job;

    int prepare() override {
        bench_.size = sizeof(bench_);
        bench_.kind = DMAPROBE_BENCH_MAP_PAGE;
        bench_.count = 10'000'000;
        ops_.resize(DMAPROBE_RUN_MAX);
        for (dmaprobe_run_op& op : ops_)
            op = {.cmd = DMAPROBE_BENCH, .result = 0, .arg = reinterpret_cast<uintptr_t>(&bench_)};
        const int err = s.alloc(buffer_, page_size());
        bench_.buffer_id = buffer_.id;
        return err;
    }

    int call() override {
        dmaprobe_run op = {};

        op.flags = DMAPROBE_RUN_CONTINUE;
        op.nr_ops = static_cast<uint32_t>(ops_.size());
        op.ops = reinterpret_cast<uintptr_t>(ops_.data());
        const int err = s(op);
        return err ? err : -ops_.back().result;
    }

private:
    Buffer buffer_;
    dmaprobe_bench bench_ = {};
    std::vector<dmaprobe_run_op> ops_;
};

// A gigabyte in pages of 4 KiB: the memory and the addresses never lie alike in 2 MiB.
class IovaDestroy : public Job {
public:
    using Job::Job;

    int prepare() override {
        Buffer b;

        if (!s.translated() || s.missing(DMAPROBE_FEATURE_DMA_IOVA)) {
            skip = "no dma_iova_*() here";
            return 0;
        }
        if (const int err = s.set_mask((uint64_t{1} << 40) - 1))
            return err;
        if (const int err = contiguous(s, b))
            return err;
        if (const int err = s.iova_alloc(space_, gib))
            return err;
        const uint64_t piece = b.length - page_size();
        for (; linked_ + piece <= gib; linked_ += piece)
            if (const int err = s.link(space_.id, linked_, b, page_size(), piece))
                return err;
        return 0;
    }

    int call() override { return s.iova_destroy(space_.id, linked_); }

private:
    dmaprobe_iova_alloc space_ = {};
    uint64_t linked_ = 0;
};

// As many links as an unprivileged user can have.
class IovaDestroyManyLinks : public Job {
public:
    using Job::Job;

    int prepare() override {
        const uint64_t page = page_size();
        std::vector<dmaprobe_iova_link> links(DMAPROBE_RUN_MAX);
        std::vector<dmaprobe_run_op> ops(links.size());
        Buffer b;

        if (!s.translated() || s.missing(DMAPROBE_FEATURE_DMA_IOVA)) {
            skip = "no dma_iova_*() here";
            return 0;
        }
        if (const int err = s.alloc(b, page))
            return err;
        if (const int err = s.iova_alloc(space_, many * page))
            return err;
        for (; linked_ < many * page; linked_ += links.size() * page) {
            dmaprobe_run run = {};

            restart_deadline();
            for (size_t i = 0; i < links.size(); i++) {
                links[i] = {};
                links[i].size = sizeof(links[i]);
                links[i].id = space_.id;
                links[i].buffer_id = b.id;
                links[i].offset = linked_ + i * page;
                links[i].length = page;
                ops[i] = {.cmd = DMAPROBE_IOVA_LINK,
                          .result = 0,
                          .arg = reinterpret_cast<uintptr_t>(&links[i])};
            }
            run.nr_ops = static_cast<uint32_t>(ops.size());
            run.ops = reinterpret_cast<uintptr_t>(ops.data());
            if (const int err = s(run))
                return err;
            if (ops.back().result)
                return -ops.back().result;
        }
        return 0;
    }

    int call() override { return s.iova_destroy(space_.id, linked_); }

private:
    static constexpr uint64_t many = 65536 - 4096;
    dmaprobe_iova_alloc space_ = {};
    uint64_t linked_ = 0;
};

// The session ends with 100,000 mappings.
class CloseOfMappings : public Job {
public:
    using Job::Job;

    int prepare() override {
        Buffer b;

        const int err = s.alloc(b, page_size());
        return err ? err : map_often(s, b, 100'000, &made_);
    }
    int call() override { return s.close(); }

private:
    size_t made_ = 0;
};

// It ends with as much of everything else as there can be.
class CloseOfLargeObjects : public Job {
public:
    using Job::Job;

    int prepare() override {
        dmaprobe_map_sg list = {};
        Allocation a;
        Buffer b;

        if (const int err = s.set_mask((uint64_t{1} << 40) - 1))
            return err;
        if (const int err = contiguous(s, b))
            return err;
        if (const int err = s.map_sg(list, longest_list(b)))
            return err;
        if (!largest(64 * mib,
                     [&](uint64_t n) {
                         return allocate(s, a, {"", DMAPROBE_ALLOC_KIND_COHERENT}, n);
                     }) ||
            !largest(spare(512 * mib),
                     [&](uint64_t n) { return s.alloc(b, n, DMAPROBE_BUFFER_KIND_SCATTERED); }))
            return ENOMEM;
        return 0;
    }
    int call() override { return s.close(); }
};

// A large dma-buf of another driver.
class MapDmaBuf : public Job {
public:
    using Job::Job;

    int prepare() override {
        constexpr uint64_t length = 32 * mib;
        const Fd driver(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
        const Fd file(memfd_create("udmabuf", MFD_CLOEXEC | MFD_ALLOW_SEALING));
        udmabuf_create op = {};

        if (!driver) {
            skip = "no /dev/udmabuf";
            return 0;
        }
        if (!s.translated()) {
            skip = "no IOMMU translates for the device";
            return 0;
        }
        if (ftruncate(file.get(), length) || fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK))
            return errno;
        op.memfd = static_cast<uint32_t>(file.get());
        op.flags = UDMABUF_FLAGS_CLOEXEC;
        op.size = length;
        fd_ = Fd(ioctl(driver.get(), UDMABUF_CREATE, &op));
        if (!fd_)
            return errno;
        return s.set_segments(DMAPROBE_SET_SEGMENTS_MAX_SIZE, 0x80000000);
    }

    int call() override {
        dmaprobe_map_dmabuf op = {};

        op.fd = fd_.get();
        if (const int err = s(op))
            return err;
        return s.unmap(op.id);
    }

private:
    Fd fd_;
};

struct LongCall {
    const char* name;
    MakeJob make;
    bool once = false; // it ends what it was prepared with
};

void PrintTo(const LongCall& call, std::ostream* out) {
    *out << call.name;
}

constexpr std::array repeated_calls = {
    LongCall{"translate", make_job<Translate>},
    LongCall{"map_sg", make_job<MapSg>},
    LongCall{"get_segments", make_job<GetSegments>},
    LongCall{"alloc", make_job<Alloc>},
    LongCall{"buffer_alloc", make_job<BufferAlloc>},
    LongCall{"buffer_pin", make_job<BufferPin>},
    LongCall{"copy", make_job<Copy>},
    LongCall{"bench", make_job<Bench>},
    LongCall{"run", make_job<Run>},
    LongCall{"map_dmabuf", make_job<MapDmaBuf>},
};

constexpr std::array last_calls = {
    LongCall{"iova_destroy", make_job<IovaDestroy>, true},
    LongCall{"iova_destroy_many_links", make_job<IovaDestroyManyLinks>, true},
    LongCall{"close_of_mappings", make_job<CloseOfMappings>, true},
    LongCall{"close_of_large_objects", make_job<CloseOfLargeObjects>, true},
};

// Somebody makes a short call again and again until the device is gone, and keeps the
// longest it took.
class Bystander {
public:
    Bystander(const std::string& bdf, int (*call)(const Raw& s), std::initializer_list<int> legal)
        : s_(Raw::open(bdf)), legal_(legal), thread_([this, call] {
              while (!stop_) {
                  int err = 0;
                  const milliseconds took = time_of([&] { err = call(s_); });

                  longest_ = std::max(longest_, took);
                  if (err == ENODEV)
                      return;
                  if (!std::ranges::contains(legal_, err))
                      odd_ = err;
                  calls_++;
                  std::this_thread::sleep_for(milliseconds(1));
              }
          }) {}
    Bystander(const Bystander&) = delete;
    Bystander& operator=(const Bystander&) = delete;
    ~Bystander() { stop(); }

    // The longest call.
    milliseconds stop() {
        stop_ = true;
        if (thread_.joinable())
            thread_.join();
        return longest_;
    }
    int odd() const { return odd_; }
    int calls() const { return calls_; }

private:
    Raw s_;
    std::vector<int> legal_;
    std::atomic<bool> stop_ = false;
    milliseconds longest_{};
    int odd_ = 0;
    std::atomic<int> calls_ = 0;
    std::thread thread_;
};

// A call that blocks and is woken as those are that wait for the module, but waits for nobody: what
// a busy machine takes for itself.
int nothing(const Raw&) {
    return poll(nullptr, 0, 1) < 0 ? errno : 0;
}

int ask(const Raw& s) {
    dmaprobe_get_info op = {};

    return s(op);
}

int set_mask(const Raw& s) {
    return s.set_mask(0xffffffff);
}

class BoundaryTime : public Unbinding<DeviceTest>, public testing::WithParamInterface<LongCall> {
protected:
    void SetUp() override {
        Unbinding<DeviceTest>::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        bounced = s.bounces();
        // The job may set limits that belong to the device.
        ASSERT_OK(s.close());
    }

    // A job that is prepared, or none.
    std::unique_ptr<Job> prepared() {
        restart_deadline();
        auto job = GetParam().make(bdf);
        if (!job->s) {
            ADD_FAILURE() << strerror(job->s.error());
            return nullptr;
        }
        const int err = job->prepare();
        if (err && bounced) {
            job->skip = std::format("the bounce buffer is too small: {}", strerrorname_np(err));
            return job;
        }
        EXPECT_OK(err);
        return err ? nullptr : std::move(job);
    }

    void report(const char* what, milliseconds took) {
        RecordProperty(std::format("{}_ms", what), static_cast<int>(took.count()));
    }

    bool bounced = false;
};

// While the call runs, another session asks for the version and one sets the mask. Then the
// device is unbound.
TEST_P(BoundaryTime, NobodyWaitsFor) {
    milliseconds unbind{};
    milliseconds mask{};
    milliseconds version{};
    milliseconds least{};
    const bool once = GetParam().once;
    const int rounds = once ? 1 : 3;

    for (int round = 0; round < rounds; round++) {
        const std::unique_ptr<Job> job = prepared();
        std::atomic<bool> began = false;
        int err = 0;

        ASSERT_TRUE(job);
        if (!job->skip.empty())
            GTEST_SKIP() << job->skip;
        Bystander asker(bdf, ask, {0});
        Bystander setter(bdf, set_mask, {0, EBUSY});
        Bystander idle(bdf, nothing, {0});
        // The first time they run, the program's pages are not there yet.
        ASSERT_TRUE(wait_for([&] { return asker.calls() > 1 && setter.calls() > 1; }, soon));
        std::thread caller([&] {
            began = true;
            do
                err = job->call();
            while (!err && !once);
        });
        wait_for([&] { return began.load(); }, seconds(5));
        std::this_thread::sleep_for(once ? milliseconds(2) : milliseconds(100 + 37 * round));
        unbind = std::max(unbind, time_of([&] { EXPECT_OK(unbind_driver(bdf)); }));
        const milliseconds ended = time_of([&] { caller.join(); });
        EXPECT_TRUE(err == ENODEV || (once && !err)) << strerrorname_np(err);
        EXPECT_LT(ended, soon) << "the call goes on without the device";
        version = std::max(version, asker.stop());
        mask = std::max(mask, setter.stop());
        least = std::max(least, idle.stop());
        EXPECT_ERRNO(asker.odd(), 0);
        EXPECT_ERRNO(setter.odd(), 0);
        job->s.close();
        ASSERT_OK(probe_driver(bdf));
    }
    report("unbind", unbind);
    report("set_mask", mask);
    report("get_info", version);
    EXPECT_LT(unbind, soon);
    EXPECT_LT(mask, soon);
    EXPECT_LT(version, at_once + 10 * least);
}

INSTANTIATE_TEST_SUITE_P(All, BoundaryTime, testing::ValuesIn(repeated_calls),
                         [](const auto& call) { return call.param.name; });
INSTANTIATE_TEST_SUITE_P(Ends, BoundaryTime, testing::ValuesIn(last_calls),
                         [](const auto& call) { return call.param.name; });

// As before, but the device stays, and the call ends by itself.
class BoundaryTimeOfEnds : public BoundaryTime {};

TEST_P(BoundaryTimeOfEnds, OthersAreServed) {
    const std::unique_ptr<Job> job = prepared();

    ASSERT_TRUE(job);
    if (!job->skip.empty())
        GTEST_SKIP() << job->skip;
    Bystander asker(bdf, ask, {0});
    Bystander setter(bdf, set_mask, {0, EBUSY});
    Bystander idle(bdf, nothing, {0});
    ASSERT_TRUE(wait_for([&] { return asker.calls() > 1 && setter.calls() > 1; }, soon));
    report("call", time_of([&] { EXPECT_OK(job->call()); }));
    const milliseconds version = asker.stop();
    const milliseconds mask = setter.stop();
    const milliseconds least = idle.stop();
    EXPECT_ERRNO(asker.odd(), 0);
    EXPECT_ERRNO(setter.odd(), 0);
    report("set_mask", mask);
    report("get_info", version);
    EXPECT_LT(mask, soon);
    EXPECT_LT(version, at_once + 10 * least);
}

INSTANTIATE_TEST_SUITE_P(All, BoundaryTimeOfEnds, testing::ValuesIn(last_calls),
                         [](const auto& call) { return call.param.name; });

// The process that makes the call is killed.
class BoundaryTimeOfKill : public BoundaryTime {};

TEST_P(BoundaryTimeOfKill, EndsTheCall) {
    const std::unique_ptr<Job> job = prepared();
    int status = 0;

    ASSERT_TRUE(job);
    if (!job->skip.empty())
        GTEST_SKIP() << job->skip;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        while (job->call() == 0)
            ;
        _exit(1);
    }
    std::this_thread::sleep_for(milliseconds(150));
    kill(child, SIGKILL);
    const milliseconds took =
        time_of([&] { EXPECT_TRUE(wait_for_child(child, seconds(60), status)); });
    EXPECT_TRUE(WIFSIGNALED(status)) << "it had ended by itself";
    report("kill", took);
    EXPECT_LT(took, soon);
}

INSTANTIATE_TEST_SUITE_P(All, BoundaryTimeOfKill, testing::ValuesIn(repeated_calls),
                         [](const auto& call) { return call.param.name; });

// --- many threads -------------------------------------------------------------------

class BoundaryTimeOfThreads : public Unbinding<DeviceTest> {
protected:
    void TearDown() override {
        end_threads();
        Unbinding<DeviceTest>::TearDown();
    }

    // Have many threads walk page tables, until end_threads() or the device goes.
    void walk(uint64_t iova, int many) {
        threads.reserve(static_cast<size_t>(many));
        for (int i = 0; i < many; i++)
            threads.emplace_back([this, iova] {
                while (!stop) {
                    dmaprobe_extent room = {};
                    dmaprobe_translate op = {};

                    op.iova = iova;
                    op.length = 16 * mib;
                    op.nr_extents = 1;
                    op.extents = reinterpret_cast<uintptr_t>(&room);
                    if (walker(op))
                        return;
                    walked++;
                }
            });
        EXPECT_TRUE(wait_for([&] { return walked > 0; }, soon));
    }

    void end_threads() {
        stop = true;
        threads.clear();
    }

    std::atomic<bool> stop = false;
    Raw walker;
    std::atomic<int> walked = 0;
    std::vector<std::jthread> threads;
};

// However many threads want the device for themselves, the others wait for one of them.
TEST_F(BoundaryTimeOfThreads, WalkPageTables) {
    constexpr int many = 400;
    walker = Raw::open(bdf);

    if (s.domain().type == DMAPROBE_DOMAIN_NONE)
        GTEST_SKIP() << "no IOMMU";
    walk(0, many);
    Bystander asker(bdf, ask, {0});
    Bystander idle(bdf, nothing, {0});
    std::this_thread::sleep_for(seconds(3));
    const milliseconds longest = asker.stop();
    const milliseconds least = idle.stop();
    const milliseconds unbind = time_of([&] { EXPECT_OK(unbind_driver(bdf)); });
    end_threads();
    RecordProperty("get_info_ms", static_cast<int>(longest.count()));
    RecordProperty("unbind_ms", static_cast<int>(unbind.count()));
    EXPECT_LT(longest, at_once + 10 * least);
    EXPECT_LT(unbind, soon);
    ASSERT_OK(probe_driver(bdf));
}

// Nor does the last close of another function of the group wait for all of them.
TEST_F(BoundaryTimeOfThreads, WalkPageTablesOfTheOtherFunction) {
    constexpr int many = 800;
    ASSERT_OK(s.close());
    const TwoFunctions pair(bdf);

    if (!pair.why().empty())
        GTEST_SKIP() << pair.why();
    walker = Raw::open(pair.second());

    ASSERT_TRUE(walker);
    if (!walker.translated())
        GTEST_SKIP() << "no IOMMU translates for the device";
    walk(256 * mib, many);
    Bystander idle(pair.second(), nothing, {0}); // the other one is closed for the last time
    milliseconds longest(0);
    for (int round = 0; round < 5; round++) {
        Raw one = Raw::open(pair.first());

        ASSERT_TRUE(one);
        longest = std::max(longest, time_of([&] { one.close(); }));
    }
    const milliseconds least = idle.stop();
    end_threads();
    RecordProperty("close_ms", static_cast<int>(longest.count()));
    EXPECT_LT(longest, at_once + 10 * least);
}

// Who asks for the segments of an import does not wait for the dma-buf's own lock, which others
// queue for, and so do not those who wait behind.
TEST_F(BoundaryTimeOfThreads, PollADmaBuf) {
    constexpr int many = 400;
    std::atomic<int> polls = 0;
    dmaprobe_export out = {};
    dmaprobe_map_dmabuf in = {};
    Allocation a;

    ASSERT_OK(allocate(s, a, {"", DMAPROBE_ALLOC_KIND_PAGES}, page_size()));
    out.id = a.id;
    ASSERT_OK(s(out));
    const Fd fd(out.fd);
    in.fd = fd.get();
    ASSERT_OK(s(in));
    threads.reserve(many + 1);
    for (int i = 0; i < many; i++)
        threads.emplace_back([&] {
            while (!stop) {
                pollfd one = {.fd = fd.get(), .events = POLLIN | POLLOUT, .revents = 0};

                poll(&one, 1, 0);
                polls++;
            }
        });
    EXPECT_TRUE(wait_for([&] { return polls > 0; }, soon));
    threads.emplace_back([&] {
        std::vector<dmaprobe_segment> segments;

        while (!stop)
            if (s.segments(segments, in.id))
                return;
    });
    Bystander asker(bdf, ask, {0});
    Bystander setter(bdf, set_mask, {0, EBUSY});
    Bystander idle(bdf, nothing, {0});
    std::this_thread::sleep_for(seconds(3));
    const milliseconds longest = asker.stop();
    const milliseconds mask = setter.stop();
    const milliseconds least = idle.stop();
    end_threads();
    RecordProperty("get_info_ms", static_cast<int>(longest.count()));
    RecordProperty("set_mask_ms", static_cast<int>(mask.count()));
    EXPECT_LT(longest, at_once + 10 * least);
    EXPECT_LT(mask, at_once + 10 * least);
}

// --- mmaps --------------------------------------------------------------------------

class BoundaryTimeOfMmaps : public Unbinding<DeviceTest> {
protected:
    static constexpr AllocWay way = {.name = "coherent", .kind = DMAPROBE_ALLOC_KIND_COHERENT};
    static constexpr unsigned most = 1024;
};

TEST_F(BoundaryTimeOfMmaps, AnAllocationHasSoMany) {
    std::vector<Memory> views;
    Allocation a;

    ASSERT_OK(allocate(s, a, way, page_size()));
    views.reserve(most);
    for (unsigned i = 0; i < most; i++) {
        views.push_back(map_allocation(s, a));
        ASSERT_TRUE(views.back()) << i << ": " << strerror(errno);
    }
    EXPECT_FALSE(map_allocation(s, a));
    EXPECT_EQ(errno, ENOMEM);
    views.pop_back();
    EXPECT_TRUE(map_allocation(s, a)) << strerror(errno);
}

// Keeps the lock of its mm: mprotect() of gigabytes takes long.
[[noreturn]] void keep_mmap_lock(const Raw& session, const AllocWay& way, unsigned views,
                                 const Fd& ready) {
    const size_t length = checkers ? gib / 8 : 4 * gib;
    char* zeroes = static_cast<char*>(
        mmap(nullptr, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    std::vector<Memory> keep;
    Allocation a;

    if (zeroes == MAP_FAILED || allocate(session, a, way, page_size()))
        _exit(1);
    keep.reserve(views);
    for (unsigned i = 0; i < views; i++)
        keep.push_back(map_allocation(session, a));
    madvise(zeroes, length, MADV_NOHUGEPAGE);
    madvise(zeroes, length, MADV_POPULATE_READ);
    for (int i = 0; i < 8; i++)
        std::thread([&] {
            for (;;) {
                mprotect(zeroes, length, PROT_READ | PROT_WRITE);
                mprotect(zeroes, length, PROT_READ);
            }
        }).detach();
    if (!keep.back() || write(ready.get(), "r", 1) != 1)
        _exit(1);
    for (;;)
        pause();
}

TEST_F(BoundaryTimeOfMmaps, UnbindWaitsForNoMmapLock) {
    char letter = 0;
    int status = 0;
    int pipe_[2];

    ASSERT_EQ(pipe2(pipe_, O_CLOEXEC), 0);
    const Fd from(pipe_[0]);
    Fd to(pipe_[1]);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0)
        keep_mmap_lock(s, way, most, to);
    to = Fd();
    EXPECT_EQ(read(from.get(), &letter, 1), 1) << "the child has not come so far";
    const milliseconds took = time_of([&] { EXPECT_OK(unbind_driver(bdf)); });
    kill(child, SIGKILL);
    EXPECT_TRUE(wait_for_child(child, seconds(60), status));
    EXPECT_TRUE(WIFSIGNALED(status)) << "it had ended by itself";
    RecordProperty("unbind_ms", static_cast<int>(took.count()));
    EXPECT_LT(took, soon);
    come_back();
}

} // namespace
} // namespace selftest

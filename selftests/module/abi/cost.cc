// SPDX-License-Identifier: GPL-2.0-only
// What a call costs, in instructions. Only where the guest's clock counts those
// (QEMU's -icount shift=0, one CPU), which DMAPROBE_ICOUNT=1 says.

#include "support/fixture.h"
#include "support/uring.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <format>
#include <fstream>
#include <sstream>
#include <sys/ioctl.h>
#include <thread>

namespace selftest {
namespace {

using Clock = std::chrono::steady_clock;

class Cost : public DeviceTest {
protected:
    void SetUp() override {
        if (env("DMAPROBE_ICOUNT") != "1")
            GTEST_SKIP() << "the clock does not count instructions: DMAPROBE_ICOUNT is not 1";
        DeviceTest::SetUp();
        // What a machine does in its first seconds is not what a call costs.
        std::this_thread::sleep_until(Clock::time_point(std::chrono::seconds(10)));
    }

    // The least of several rounds of `count` each, per one. The timer's interrupts and
    // other tasks only ever add to it.
    template <class Do>
    static double least(unsigned count, Do act) {
        double best = 1e30;

        for (int round = 0; round < 8; round++) {
            const auto start = Clock::now();

            act();
            const std::chrono::duration<double, std::nano> took = Clock::now() - start;
            best = std::min(best, took.count() / count);
        }
        return best;
    }

    static void report(const std::string& what, double cost) {
        RecordProperty(what, std::format("{:.1f}", cost));
    }
};

TEST_F(Cost, NoOp) {
    constexpr unsigned n = 4096;
    constexpr unsigned depth = 32;
    const int fd = s.fd();
    dmaprobe_nop nop = {.size = sizeof(nop), .flags = 0};
    bool fine = true;

    const double enotty = least(n, [&] {
        for (unsigned i = 0; i < n; i++)
            ioctl(fd, _IO(DMAPROBE_IOC_MAGIC, 255), &nop);
    });
    const double by_ioctl = least(n, [&] {
        for (unsigned i = 0; i < n; i++)
            fine = ioctl(fd, DMAPROBE_NOP, &nop) == 0 && fine;
    });

    std::vector<dmaprobe_run_op> ops(
        n, {.cmd = DMAPROBE_NOP, .result = 0, .arg = reinterpret_cast<uintptr_t>(&nop)});
    dmaprobe_run run = {.size = sizeof(run),
                        .flags = 0,
                        .nr_ops = n,
                        .done = 0,
                        .ops = reinterpret_cast<uintptr_t>(ops.data())};
    const double by_run = least(n, [&] { fine = !ioctl(fd, DMAPROBE_RUN, &run) && fine; });

    const Uring ring(depth, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    ASSERT_TRUE(ring);
    ASSERT_EQ(io_uring_register_files(ring.get(), &fd, 1), 0);
    const double by_ring = least(n, [&] {
        for (unsigned i = 0; i < n / depth; i++) {
            io_uring_cqe* cqe = nullptr;
            unsigned head = 0;

            for (unsigned j = 0; j < depth; j++) {
                io_uring_sqe* sqe = io_uring_get_sqe(ring.get());

                io_uring_prep_rw(IORING_OP_URING_CMD, sqe, 0, &nop, 0, 0);
                sqe->cmd_op = DMAPROBE_NOP;
                sqe->flags = IOSQE_FIXED_FILE;
            }
            fine = io_uring_submit_and_wait(ring.get(), depth) == depth && fine;
            io_uring_for_each_cqe(ring.get(), head, cqe) fine = cqe->res == 0 && fine;
            io_uring_cq_advance(ring.get(), depth);
        }
    });
    EXPECT_TRUE(fine) << "a call failed";

    report("an ioctl answered ENOTTY", enotty);
    report("a no-op by ioctl", by_ioctl);
    report("a no-op by run", by_run);
    report("a no-op by ring, depth 32", by_ring);
    EXPECT_LE(by_ioctl - enotty, 200);
    EXPECT_LT(by_run, by_ioctl);
    EXPECT_LE(by_ring, by_ioctl);
}

// --- many mappings --------------------------------------------------------------

// The kernel's memory in use in slabs, in bytes: what objects take, not what their
// slabs do.
uint64_t slab_bytes() {
    std::ifstream file("/proc/slabinfo");
    uint64_t sum = 0;

    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string name;
        uint64_t active = 0;
        uint64_t all = 0;
        uint64_t size = 0;

        if (words >> name >> active >> all >> size)
            sum += active * size;
    }
    return sum;
}

class ManyMappings : public Cost {
protected:
    static constexpr unsigned rounds = 500;

    void make(unsigned count) {
        for (unsigned i = 0; i < count; i++)
            ASSERT_OK(s(map));
    }

    // What each call costs, with the clock's own share in it.
    struct Each {
        double map = 1e30;
        double translate = 1e30;
        double unmap = 1e30;
    };

    // One more mapping, looked at and unmapped, at this many others: the least of
    // several rounds.
    Each cycle(uint32_t hint) {
        bool fine = true;
        Each best;

        for (int round = 0; round < 8; round++) {
            Clock::duration map_took{};
            Clock::duration translate_took{};
            Clock::duration unmap_took{};

            for (unsigned i = 0; i < rounds; i++) {
                const auto start = Clock::now();
                fine = !ioctl(s.fd(), DMAPROBE_MAP, &map) && fine;
                const auto mapped = Clock::now();
                translate.iova = map.dma_addr;
                translate.buffer_id = hint;
                translate.nr_extents = 1;
                fine = !ioctl(s.fd(), DMAPROBE_TRANSLATE, &translate) && fine &&
                       extent.buffer_id == map.buffer_id;
                const auto translated = Clock::now();
                unmap.id = map.id;
                fine = !ioctl(s.fd(), DMAPROBE_UNMAP, &unmap) && fine;
                map_took += mapped - start;
                translate_took += translated - mapped;
                unmap_took += Clock::now() - translated;
            }
            best.map = std::min(best.map, per_round(map_took));
            best.translate = std::min(best.translate, per_round(translate_took));
            best.unmap = std::min(best.unmap, per_round(unmap_took));
        }
        EXPECT_TRUE(fine) << "a call failed";
        return best;
    }

    static double per_round(Clock::duration took) {
        return std::chrono::duration<double, std::nano>(took).count() / rounds;
    }

    dmaprobe_map map = {};
    dmaprobe_unmap unmap = {
        .size = sizeof(unmap), .flags = 0, .attrs = 0, .id = 0, .__reserved = 0};
    dmaprobe_extent extent = {};
    dmaprobe_translate translate = {.size = sizeof(translate),
                                    .flags = 0,
                                    .iova = 0,
                                    .length = 4096,
                                    .buffer_id = 0,
                                    .nr_extents = 1,
                                    .extents = reinterpret_cast<uintptr_t>(&extent),
                                    .translated = 0};
};

TEST_F(ManyMappings, CostTheSame) {
    constexpr unsigned few = 100;
    constexpr unsigned many = 100'000;
    Buffer b;

    if (!s.translated())
        GTEST_SKIP() << "no IOMMU translates for the device";
    ASSERT_OK(s.alloc(b, page_size()));
    map.size = sizeof(map);
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    map.length = page_size();

    ASSERT_NO_FATAL_FAILURE(make(few));
    const Each few_hint = cycle(b.id);
    const Each few_search = cycle(0);
    const uint64_t before = slab_bytes();
    ASSERT_NO_FATAL_FAILURE(make(many - few));
    const uint64_t after = slab_bytes();
    const Each many_hint = cycle(b.id);
    const Each many_search = cycle(0);

    const struct {
        const char* what;
        double few;
        double many;
    } rows[] = {
        {"map", few_hint.map, many_hint.map},
        {"translate, with a hint", few_hint.translate, many_hint.translate},
        {"translate, without a hint", few_search.translate, many_search.translate},
        {"unmap", few_hint.unmap, many_hint.unmap},
    };
    for (const auto& row : rows) {
        report(std::format("{}, 100 live", row.what), row.few);
        report(std::format("{}, 100,000 live", row.what), row.many);
        EXPECT_LE(row.many, row.few * 1.1) << row.what;
    }
    // The kernel has a struct iova for each, in a slab of 64 bytes.
    const double bytes = static_cast<double>(after - before) / (many - few);
    report("bytes of slabs per mapping, 64 of them the kernel's own", bytes);
    EXPECT_LE(bytes, 256 + 64);
}

} // namespace
} // namespace selftest

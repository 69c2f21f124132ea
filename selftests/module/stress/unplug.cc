// SPDX-License-Identifier: GPL-2.0-only
// The device itself goes, in the middle of calls and of DMA, and comes back: by sysfs, or
// out of its slot, where there is a lab outside that does it.

#include "support/alloc.h"
#include "support/arena.h"
#include "support/fixture.h"
#include "support/system.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <functional>
#include <poll.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

enum class How : uint8_t { sysfs, slot };

// Ask the lab for something. Nothing when it is done, otherwise why not.
std::string ask_lab(const std::string& request) {
    const Fd port(open(env("DMAPROBE_LAB_PORT").c_str(), O_RDWR | O_CLOEXEC));
    const std::string line = request + "\n";
    std::string answer;

    if (!port)
        return std::format("the lab's port: {}", strerror(errno));
    if (write(port.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
        return "the lab cannot be asked";
    while (!answer.ends_with('\n')) {
        pollfd ready = {port.get(), POLLIN, 0};
        std::array<char, 256> piece{};

        if (poll(&ready, 1, 95'000) != 1)
            return "the lab does not answer";
        const ssize_t n = read(port.get(), piece.data(), piece.size());
        if (n <= 0)
            return "the lab does not answer";
        answer.append(piece.data(), static_cast<size_t>(n));
    }
    return answer == "ok\n" ? "" : answer;
}

class Unplug : public DeviceTest, public testing::WithParamInterface<How> {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (transport() != "ioctl")
            GTEST_SKIP() << "once is enough: races.cc unbinds under calls by each transport";
        if (GetParam() == How::slot && env("DMAPROBE_LAB_PORT").empty())
            GTEST_SKIP() << "there is no lab that takes the device out of its slot "
                            "(DMAPROBE_LAB_PORT)";
        std::error_code none;
        if (GetParam() == How::slot && std::filesystem::is_empty("/sys/bus/pci/slots", none))
            GTEST_SKIP() << "this kernel does not control the slots";
        ready = true;
    }

    void TearDown() override {
        s.close();
        if (ready) {
            EXPECT_EQ(bring_back(), "");
        }
    }

    // Returns when the device has gone, or why it has not.
    std::string take_away() const {
        if (GetParam() == How::slot)
            return ask_lab("device_del edu1");
        const int err = write_text(pci_path(bdf) + "/remove", "1");
        return err ? strerror(err) : "";
    }

    // What a child does, and how it ends.
    enum End { noticed, other_error, no_engine, no_rig, no_session, no_memory, no_map, unlucky };
    End dma_until_it_goes(const Fd& begun) const {
        const uint64_t page = page_size();
        Rig rig(bdf);
        const Raw mine = Raw::open(bdf);
        Buffer b;
        dmaprobe_map map = {};

        if (!rig)
            return rig.known() ? no_rig : no_engine;
        if (!mine)
            return no_session;
        if (mine.alloc(b, 2 * page))
            return no_memory;
        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.buffer_id = b.id;
        map.length = 2 * page;
        if (mine(map) || write(begun.get(), "x", 1) != 1)
            return no_map;
        for (;;) {
            const auto done = rig.engine().copy(dmaprobe::Iova(map.dma_addr + page),
                                                dmaprobe::Iova(map.dma_addr), dmaprobe::Size(page));

            if (!done)
                return done.error().code == ENODEV ? noticed : other_error;
        }
    }

    // Bound as before; or why not.
    std::string bring_back() const {
        restart_deadline();
        if (!exists(pci_path(bdf))) {
            if (GetParam() == How::slot) {
                if (const std::string why = ask_lab("device_add edu1"); !why.empty())
                    return why;
            } else if (const int err = write_text("/sys/bus/pci/rescan", "1")) {
                return strerror(err);
            }
            if (!wait_for([&] { return exists(pci_path(bdf) + "/driver_override"); }, seconds(20)))
                return "the device does not appear again";
        }
        if (driver_of(bdf) == driver_name)
            return "";
        // What was plugged in has its place in sysfs before it has its addresses.
        Outcome bound;
        const bool done = wait_for(
            [&] {
                bound = run({"dmaprobe", "bind", bdf});
                return bound.code == 0;
            },
            seconds(20));
        if (!done)
            return bound.err;
        return wait_for([&] { return exists(node_path(bdf)); }, seconds(5)) ? "" : "no node";
    }

    // All of it: calls, page tables, DMA.
    void expect_works() {
        const uint64_t page = page_size();
        Rig rig(bdf);
        s = Raw::open(bdf);
        ASSERT_TRUE(s) << strerror(s.error());
        Arena arena(bdf);
        ASSERT_OK(arena.error());
        Dice dice(3);
        for (int i = 0; i < 300; i++)
            arena.turn(dice);
        EXPECT_EQ(arena.odd(), "");
        EXPECT_EQ(arena.left_over(), arena.live());
        EXPECT_FALSE(arena.gone());
        if (!rig || (!iommu && rig.engine().dma_mask() < s.limits().required_mask))
            return;
        Buffer b;
        dmaprobe_map map = {};
        ASSERT_OK(s.alloc(b, 2 * page));
        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.buffer_id = b.id;
        map.length = 2 * page;
        ASSERT_OK(s(map));
        const Memory m = s.mmap(b);
        ASSERT_TRUE(m);
        memset(m.data(), 0x6d, page);
        ASSERT_TRUE(rig.move(map.dma_addr + page, map.dma_addr, page));
        EXPECT_EQ(memcmp(m.data(), m.data() + page, page), 0);
    }

    bool ready = false;
};

INSTANTIATE_TEST_SUITE_P(By, Unplug, testing::Values(How::sysfs, How::slot), [](const auto& how) {
    return how.param == How::sysfs ? "Sysfs" : "Slot";
});

TEST_P(Unplug, UnderAllCalls) {
    const int rounds = GetParam() == How::sysfs ? 5 : 1;

    for (int round = 0; round < rounds; round++) {
        SCOPED_TRACE(std::format("round {}", round));
        {
            Arena arena(bdf);
            std::vector<std::thread> threads;

            ASSERT_OK(arena.error());
            threads.reserve(4);
            for (unsigned t = 0; t < 4; t++) {
                threads.emplace_back([&, t] {
                    Dice dice(t);

                    while (!arena.gone())
                        arena.turn(dice);
                });
            }
            std::this_thread::sleep_for(milliseconds(50));
            const std::string why = take_away();
            if (!why.empty())
                arena.close(); // or they would never end
            for (std::thread& thread : threads)
                thread.join();
            ASSERT_EQ(why, "");
            EXPECT_FALSE(exists(pci_path(bdf)));
            EXPECT_FALSE(exists(node_path(bdf)));
            EXPECT_EQ(arena.odd(), "");
            dmaprobe_get_info info = {};
            EXPECT_ERRNO(s(info), ENODEV);
            // Every other time, the old sessions are still open when the device is back.
            if (round % 2) {
                ASSERT_EQ(bring_back(), "");
            }
        }
        EXPECT_ERRNO(Raw::open(bdf).error(), round % 2 ? 0 : ENOENT);
        EXPECT_OK(s.close());
        ASSERT_EQ(bring_back(), "");
        ASSERT_NO_FATAL_FAILURE(expect_works());
    }
}

// A program that does nothing but DMA notices that its device goes, and lets go of it. A look at a
// register in the moment when it goes is SIGBUS all the same.
TEST_P(Unplug, InMidDma) {
    int status = unlucky << 8;

    ASSERT_OK(s.close());
    for (int attempt = 0; attempt < 5 && status == unlucky << 8; attempt++) {
        std::array<int, 2> ends{};

        ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
        const Fd out(ends[0]);
        Fd in(ends[1]);
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            signal(SIGBUS, [](int) { _exit(unlucky); });
            _exit(dma_until_it_goes(in));
        }
        in.close();
        char byte = 0;
        const bool begun = read(out.get(), &byte, 1) == 1;
        std::string why;
        if (begun) {
            std::this_thread::sleep_for(milliseconds(130));
            why = take_away();
        }
        const bool ended = wait_for_child(child, seconds(20), status);
        if (!ended) {
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
        }
        if (begun) {
            EXPECT_TRUE(ended) << "the program does not notice";
            EXPECT_EQ(why, "");
            EXPECT_FALSE(exists(pci_path(bdf)));
        }
        ASSERT_EQ(bring_back(), "");
        ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
        const int end = WEXITSTATUS(status);
        if (end == no_engine || (!iommu && (end == no_rig || end == no_map)))
            GTEST_SKIP() << "no engine that reaches memory";
    }
    EXPECT_EQ(WEXITSTATUS(status), noticed);
    expect_works();
}

// The tool ends by itself, says what became of the device, and exits with 1.
TEST_P(Unplug, UnderTheDemo) {
    bool in_the_middle = false;
    // Where the kernel keeps its reports back, the demo waits for each of its faults.
    const auto demo = [&] {
        restart_deadline();
        return run({"dmaprobe", "demo", bdf}, seconds(90));
    };

    if (const std::string why = s.no_faults(); !why.empty())
        GTEST_SKIP() << why;
    EXPECT_OK(s.close());
    const Outcome first = demo();
    if (first.code == 4)
        GTEST_SKIP() << first.err;
    ASSERT_EQ(first.code, 0) << first.out << first.err;
    for (int round = 0; round < (GetParam() == How::sysfs ? 2 : 1); round++) {
        std::string why;

        SCOPED_TRACE(std::format("round {}", round));
        std::thread taker([&] {
            // Somewhere in the middle, in another place each time.
            std::this_thread::sleep_for(milliseconds(150 + 340 * round));
            why = take_away();
        });
        Outcome last;
        for (int i = 0; i < 100; i++) {
            last = demo();
            if (last.code != 0 || last.signal)
                break;
        }
        taker.join();
        ASSERT_EQ(why, "");
        EXPECT_EQ(last.signal, 0) << last.out << last.err;
        EXPECT_FALSE(last.late);
        EXPECT_EQ(last.code, 1) << last.out << last.err;
        // It can begin when the device has lost its driver, and is still there.
        EXPECT_TRUE(last.err.find("unplugged") != std::string::npos ||
                    last.err.find("is not bound to") != std::string::npos ||
                    last.err.find("there is no PCI device") != std::string::npos)
            << last.err;
        in_the_middle |= last.err.find("stopped") != std::string::npos;
        // Now that it has gone for good.
        last = demo();
        EXPECT_EQ(last.code, 1);
        EXPECT_NE(last.err, "");
        ASSERT_EQ(bring_back(), "");
        last = demo();
        EXPECT_EQ(last.code, 0) << last.out << last.err;
    }
    RecordProperty("in_the_middle", in_the_middle ? "yes" : "no");
    expect_works();
}

} // namespace
} // namespace selftest

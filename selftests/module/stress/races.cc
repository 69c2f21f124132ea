// SPDX-License-Identifier: GPL-2.0-only
// What happens at the same time: threads on the same objects, ends of files, of
// processes and of the driver while calls run. Each test ends by count or by time.

#include "support/alloc.h"
#include "support/arena.h"
#include "support/fixture.h"
#include "support/system.h"
#include "support/unbind.h"
#include "support/uring.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <functional>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <tuple>
#include <unistd.h>

namespace selftest {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

std::string module_users() {
    return read_text("/sys/module/dmaprobe/refcnt");
}

// EBUSY while any session of the device holds a mapping.
int set_mask(const Raw& s) {
    return s.set_mask(0xffffffff);
}

class Threads {
public:
    template <class F>
    void add(F&& f) {
        threads_.emplace_back(std::forward<F>(f));
    }
    void join() {
        for (std::thread& t : threads_)
            t.join();
        threads_.clear();
    }
    ~Threads() { join(); }
    Threads() = default;
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

private:
    std::vector<std::thread> threads_;
};

class Races : public Unbinding<DeviceTest> {
protected:
    void SetUp() override {
        Unbinding<DeviceTest>::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        pinned_before = pinned_pages();
        users_before = module_users();
    }

    // Nothing is left of sessions other than the fixture's own.
    void expect_nothing_left() const {
        EXPECT_TRUE(wait_for([&] { return set_mask(s) == 0; }, seconds(10)))
            << "something is still mapped";
        EXPECT_TRUE(wait_for([&] { return pinned_pages() == pinned_before; }, seconds(10)))
            << pinned_pages() - pinned_before << " pages are still pinned";
        EXPECT_TRUE(wait_for([&] { return module_users() == users_before; }, seconds(10)))
            << "the module has " << module_users() << " users, not " << users_before;
    }

    int64_t pinned_before = 0;
    std::string users_before;
};

// --- the same ids -----------------------------------------------------------------

class RacesOf : public Races, public testing::WithParamInterface<Make> {};

void play(Arena& arena, milliseconds time, const std::function<void(Dice&)>& turn) {
    const auto end = steady_clock::now() + time;
    Threads threads;

    for (unsigned t = 0; t < 4; t++) {
        threads.add([&, t] {
            Dice dice(t);

            // However slow the machine, some calls have to be made.
            while ((steady_clock::now() < end || arena.good() <= 20) && !arena.gone())
                turn(dice);
        });
    }
}

void expect_counted(Arena& arena) {
    EXPECT_EQ(arena.odd(), "");
    EXPECT_GT(arena.good(), 20u);
    EXPECT_EQ(arena.left_over(), arena.live()) << "the module counts otherwise";
    arena.clear();
    EXPECT_EQ(arena.live(), 0);
    EXPECT_EQ(arena.left_over(), 0);
    // The pool that is there from the start keeps the one or two pages it ever needed.
    EXPECT_GE(arena.charged(), 0);
    EXPECT_LE(arena.charged(), static_cast<int64_t>(2 * page_size()));
}

// Four threads make, use and destroy objects of one kind by the same few ids.
TEST_P(RacesOf, TheSameIds) {
    Arena arena(bdf);

    ASSERT_OK(arena.error());
    if (!arena.offers(GetParam()))
        GTEST_SKIP() << "no such objects here";
    play(arena, milliseconds(350), [&](Dice& dice) { arena.turn(GetParam(), dice); });
    expect_counted(arena);
    ASSERT_OK(arena.close());
    expect_nothing_left();
}

std::vector<Make> all_makes() {
    std::vector<Make> all;

    all.reserve(nr_makes);
    for (unsigned i = 0; i < nr_makes; i++)
        all.push_back(static_cast<Make>(i));
    return all;
}

INSTANTIATE_TEST_SUITE_P(All, RacesOf, testing::ValuesIn(all_makes()),
                         [](const auto& made) { return std::string(name_of(made.param)); });

// Objects of all kinds, so that an id is now of one and now of another kind.
TEST_F(Races, ObjectsOfAllKinds) {
    Arena arena(bdf);

    ASSERT_OK(arena.error());
    play(arena, milliseconds(1500), [&](Dice& dice) { arena.turn(dice); });
    expect_counted(arena);
    ASSERT_OK(arena.close());
    expect_nothing_left();
}

// Calls whose answer cannot be written take back what they made, while other threads guess
// its id: nobody ever finds it.
TEST_F(Races, CallsThatCannotBeAnswered) {
    const auto end = steady_clock::now() + milliseconds(1000);
    Arena arena(bdf);
    std::atomic<int> guessed = 0;

    ASSERT_OK(arena.error());
    {
        Threads threads;

        for (unsigned t = 0; t < 4; t++) {
            threads.add([&, t] {
                Dice dice(t);

                // In the end nobody guesses any more.
                while (steady_clock::now() < end + milliseconds(t ? 0 : 50)) {
                    if (t == 0)
                        arena.turn_unanswered(dice);
                    else
                        guessed += arena.guess(dice);
                }
            });
        }
    }
    EXPECT_EQ(arena.odd(), "");
    EXPECT_EQ(arena.left_over(), 0) << "what nobody knows of is left";
    EXPECT_EQ(guessed.load(), 0) << "found before its maker had the answer";
    ASSERT_OK(arena.close());
    expect_nothing_left();
}

// Two threads take the first blocks of a pool at once: it grows once, and is charged once.
TEST_F(Races, PoolGrowsOnceForTwo) {
    const auto end = steady_clock::now() + milliseconds(800);
    const uint64_t page = page_size();
    const Raw own = Raw::open(bdf);
    dmaprobe_pool_create pool = {};
    std::atomic<uint32_t> of = 0;
    std::atomic<uint32_t> taken = 0;
    std::atomic<bool> stop = false;
    std::atomic<int> odd = 0;

    ASSERT_TRUE(own);
    pool.block_size = 64;
    if (const int err = own(pool))
        GTEST_SKIP() << "no pools here: " << strerror(err);
    const auto take = [&](uint32_t from) {
        dmaprobe_pool_alloc op = {};

        op.pool_id = from;
        if (const int err = own(op))
            odd = err;
        return op.id;
    };
    std::thread second([&] {
        while (!stop)
            if (const uint32_t from = of.exchange(0))
                taken = take(from);
    });
    int rounds = 0;
    for (; (steady_clock::now() < end || rounds <= 20) && !odd; rounds++) {
        dmaprobe_get_stats stats = {};

        of = pool.id;
        const uint32_t first = take(pool.id);
        while (!taken && !odd)
            std::this_thread::yield();
        EXPECT_OK(own(stats));
        EXPECT_EQ(stats.charged, page);
        for (const uint32_t id : {first, taken.exchange(0)})
            EXPECT_OK(own.destroy(id));
        if (HasFailure() || own.destroy(pool.id) || own(pool))
            break;
    }
    stop = true;
    second.join();
    EXPECT_ERRNO(odd.load(), 0);
    EXPECT_GT(rounds, 20);
}

// --- files come and go ------------------------------------------------------------

// Sessions begin and end at the same time. All are listed at the device, which SET_MASK asks.
TEST_F(Races, SessionsComeAndGo) {
    const auto end = steady_clock::now() + milliseconds(800);
    std::atomic<int> odd = 0;
    std::atomic<int> opened = 0;
    {
        Threads threads;

        for (int t = 0; t < 4; t++) {
            threads.add([&] {
                while (steady_clock::now() < end || opened <= 100) {
                    const Raw one = Raw::open(bdf);

                    if (!one)
                        odd = one.error();
                    opened++;
                }
            });
        }
    }
    EXPECT_ERRNO(odd.load(), 0);
    EXPECT_GT(opened.load(), 100);
    RecordProperty("opened", opened.load());
    expect_nothing_left();
}

// The session of a descriptor is replaced by a new one again and again, while other
// threads make calls by it. A call that has begun ends with the session it began with.
TEST_F(Races, TheFileIsReplacedUnderCalls) {
    const auto end = steady_clock::now() + milliseconds(1200);
    Raw other = Raw::open(bdf);
    std::atomic<int> odd = 0;
    std::atomic<int> good = 0;
    int rounds = 0;

    ASSERT_TRUE(other);
    const int fd = other.fd();
    {
        Threads threads;

        for (unsigned t = 0; t < 3; t++) {
            threads.add([&, t] {
                const uint64_t page = page_size();
                const auto fine = [&](int err) {
                    if (err && err != ENOENT && err != EBUSY && err != EBADF)
                        odd = err;
                    good += err == 0;
                };

                while (steady_clock::now() < end || good <= 20) {
                    dmaprobe_buffer_alloc alloc = {};
                    dmaprobe_map map = {};
                    dmaprobe_unmap unmap = {};
                    dmaprobe_bench bench = {};

                    alloc.length = (1 + t) * page;
                    fine(call(fd, alloc));
                    map.kind = DMAPROBE_MAP_KIND_PAGE;
                    map.buffer_id = alloc.id;
                    map.length = page;
                    fine(call(fd, map));
                    bench.kind = DMAPROBE_BENCH_MAP_PAGE;
                    bench.buffer_id = alloc.id;
                    bench.count = 200;
                    fine(call(fd, bench));
                    unmap.id = map.id;
                    fine(call(fd, unmap));
                }
            });
        }
        for (; steady_clock::now() < end || rounds <= 20; rounds++) {
            const Raw next = Raw::open(bdf);

            if (!next || dup2(next.fd(), fd) != fd)
                odd = errno;
            std::this_thread::sleep_for(milliseconds(rounds % 3));
        }
    }
    EXPECT_ERRNO(odd.load(), 0);
    EXPECT_GT(good.load(), 20);
    EXPECT_GT(rounds, 20);
    ASSERT_OK(other.close());
    expect_nothing_left();
}

// A call that takes long outlasts the last descriptor.
TEST_F(Races, LastDescriptorIsClosedUnderALongCall) {
    for (int round = 0; round < 6; round++) {
        Raw other = Raw::open(bdf);
        Buffer b;
        std::atomic<int> began = 0;
        int err = -1;

        SCOPED_TRACE(std::format("round {}", round));
        ASSERT_TRUE(other);
        ASSERT_OK(other.alloc(b, 4 * page_size()));
        Fd twin(dup(other.fd()));
        const int fd = other.fd();
        std::thread caller([&] {
            dmaprobe_bench op = {};

            op.kind = DMAPROBE_BENCH_MAP_PAGE;
            op.buffer_id = b.id;
            op.count = 30'000;
            began = 1;
            err = call(fd, op);
        });
        EXPECT_TRUE(wait_for([&] { return began.load() == 1; }, seconds(5)));
        std::this_thread::sleep_for(milliseconds(round));
        // One of two descriptors, and then the last one.
        EXPECT_OK(round % 2 ? other.close() : twin.close());
        std::this_thread::sleep_for(milliseconds(round));
        EXPECT_OK(round % 2 ? twin.close() : other.close());
        caller.join();
        // Begun too late, it does not find the file.
        if (err != EBADF) {
            EXPECT_ERRNO(err, 0);
        }
        expect_nothing_left();
    }
}

// A ring and its session go at once, whatever is under way; which of the two goes
// first changes from round to round.
TEST_F(Races, RingAndSessionGoWithCallsUnderWay) {
    Uring probe(4);

    if (!probe)
        GTEST_SKIP() << "io_uring: " << strerror(probe.error());
    for (unsigned round = 0; round < 24; round++) {
        Raw other = Raw::open(bdf);
        std::array<dmaprobe_bench, 4> busy = {};
        std::array<dmaprobe_buffer_alloc, 4> made = {};
        std::array<dmaprobe_map, 16> maps = {};
        Uring ring(64);
        Buffer b;

        SCOPED_TRACE(std::format("round {}", round));
        ASSERT_TRUE(other && ring);
        ASSERT_OK(other.alloc(b, page_size()));
        for (dmaprobe_map& map : maps) {
            map.size = sizeof(map);
            map.kind = DMAPROBE_MAP_KIND_PAGE;
            map.buffer_id = b.id;
            map.length = page_size();
            ring.command(other.fd(), DMAPROBE_MAP, &map);
        }
        for (dmaprobe_bench& op : busy) {
            op.size = sizeof(op);
            op.kind = DMAPROBE_BENCH_MAP_PAGE;
            op.buffer_id = b.id;
            op.count = 1'000'000;
            ring.command(other.fd(), DMAPROBE_BENCH, &op).flags = round % 3 ? 0 : IOSQE_ASYNC;
        }
        for (dmaprobe_buffer_alloc& op : made) {
            op.size = sizeof(op);
            op.length = page_size();
            ring.command(other.fd(), DMAPROBE_BUFFER_ALLOC, &op).flags = IOSQE_ASYNC;
        }
        ASSERT_GE(ring.submit(), 0);
        std::this_thread::sleep_for(milliseconds(round % 5));
        if (round % 2) {
            EXPECT_OK(other.close());
        }
        ring = {};
        EXPECT_OK(other.close());
        // The kernel ends a ring in its own time; the structs must stay until then.
        expect_nothing_left();
    }
}

// --- processes --------------------------------------------------------------------

// Runs until it is killed. The caller shares the program's memory with nobody.
[[noreturn]] void work_until_killed(const std::string& bdf, unsigned seed) {
    for (;;) {
        Arena arena(bdf);

        if (arena.error())
            _exit(1);
        play(arena, seconds(1), [&](Dice& dice) { arena.turn(dice); });
        if (!arena.odd().empty())
            _exit(2);
        seed++;
    }
}

// Processes with several threads each are killed at any moment of their work.
TEST_F(Races, StormOfKilledProcesses) {
    Dice dice(7);

    for (int wave = 0; wave < 8; wave++) {
        std::vector<pid_t> children;

        for (unsigned i = 0; i < 3; i++) {
            const pid_t child = fork();

            ASSERT_GE(child, 0);
            if (child == 0)
                work_until_killed(bdf, i);
            children.push_back(child);
        }
        for (const pid_t child : children) {
            std::this_thread::sleep_for(milliseconds(10 + dice(60)));
            kill(child, SIGKILL);
        }
        for (const pid_t child : children) {
            int status = -1;

            ASSERT_TRUE(wait_for_child(child, seconds(20), status)) << "the child does not end";
            EXPECT_TRUE(WIFSIGNALED(status))
                << "the child ended by itself, with " << WEXITSTATUS(status);
        }
    }
    expect_nothing_left();
    EXPECT_EQ(count_objects(s), 0);
}

// What killed processes were charged is their user's again, to the page.
TEST_F(Races, KilledProcessesGiveTheirChargeBack) {
    const uint64_t page = page_size();
    const rlimit limit = {64 * page, 64 * page};
    const uid_t user = 54321;

    ASSERT_EQ(chmod(node_path(bdf).c_str(), 0666), 0);
    for (int round = 0; round < 12; round++) {
        const bool last = round == 11;
        const pid_t child = fork();

        ASSERT_GE(child, 0);
        if (child == 0) {
            if (setrlimit(RLIMIT_MEMLOCK, &limit) || setuid(user))
                _exit(1);
            const Raw mine = Raw::open(bdf);
            const Memory own = Memory::fenced(16 * page);
            Buffer b;

            if (!mine || !own)
                _exit(2);
            if (last)
                _exit(mine.alloc(b, 64 * page) ? 3 : mine.alloc(b, page) == ENOMEM ? 0 : 4);
            for (;;) {
                Buffer b2;
                Allocation a;

                if (mine.alloc(b, 16 * page) || mine.pin(b2, own.data(), own.size()) ||
                    allocate(mine, a, alloc_ways[0], 16 * page) || mine.free(b) || mine.free(b2) ||
                    release(mine, a))
                    _exit(5);
            }
        }
        if (!last) {
            std::this_thread::sleep_for(milliseconds(15 + 7 * round));
            kill(child, SIGKILL);
        }
        int status = -1;
        EXPECT_TRUE(wait_for_child(child, seconds(20), status)) << "the child does not end";
        EXPECT_TRUE(last ? status == 0 : WIFSIGNALED(status)) << "status " << status;
    }
    EXPECT_EQ(chmod(node_path(bdf).c_str(), 0600), 0);
    expect_nothing_left();
}

bool send_fd(int socket, int fd) {
    char byte = 'x';
    iovec data = {&byte, 1};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> room = {};
    msghdr message = {};

    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = room.data();
    message.msg_controllen = room.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return sendmsg(socket, &message, 0) == 1;
}

Fd receive_fd(int socket) {
    char byte = 0;
    iovec data = {&byte, 1};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> room = {};
    msghdr message = {};
    int fd = -1;

    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = room.data();
    message.msg_controllen = room.size();
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
        return {};
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_type != SCM_RIGHTS)
        return {};
    memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    return Fd(fd);
}

// A session is handed to another process, and the one that opened it dies. It works as
// before, the memory that the dead one pinned included.
TEST_F(Races, SessionIsHandedOnByADyingProcess) {
    const uint64_t page = page_size();
    std::array<int, 2> pair{};

    for (int round = 0; round < 8; round++) {
        SCOPED_TRACE(std::format("round {}", round));
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
        Fd mine(pair[0]);
        Fd theirs(pair[1]);
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            const Raw own = Raw::open(bdf);
            Memory m = Memory::fenced(4 * page);
            Buffer pinned;
            Buffer b;
            dmaprobe_map map = {};

            memset(m.data(), 0x5e, m.size());
            if (!own || own.pin(pinned, m.data(), m.size()) || own.alloc(b, page))
                _exit(1);
            map.kind = DMAPROBE_MAP_KIND_PAGE;
            map.buffer_id = pinned.id;
            map.length = page;
            if (own(map) || pinned.id != 1 || b.id != 2 || map.id != 3)
                _exit(2);
            if (!send_fd(theirs.get(), own.fd()))
                _exit(3);
            raise(SIGKILL);
        }
        ASSERT_OK(theirs.close());
        Fd got;
        if (round % 2) // in flight while its sender dies
            std::this_thread::sleep_for(milliseconds(20));
        else
            got = receive_fd(mine.get());
        int status = -1;
        ASSERT_TRUE(wait_for_child(child, seconds(20), status));
        ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended with " << WEXITSTATUS(status);
        if (round == 7) {
            // Nobody takes it: it ends with the socket.
            EXPECT_ERRNO(set_mask(s), EBUSY) << "what is in flight has ended";
            ASSERT_OK(mine.close());
            expect_nothing_left();
            break;
        }
        if (!got)
            got = receive_fd(mine.get());
        ASSERT_TRUE(got);

        dmaprobe_get_stats stats = {};
        ASSERT_OK(call(got.get(), stats));
        EXPECT_EQ(stats.nr_buffers, 2u);
        EXPECT_EQ(stats.nr_mappings, 1u);
        EXPECT_EQ(stats.pinned, 4 * page);
        EXPECT_EQ(pinned_pages() - pinned_before, 4);
        dmaprobe_destroy free = {};
        free.id = 1;
        EXPECT_ERRNO(call(got.get(), free), EBUSY) << "it is mapped";
        dmaprobe_unmap unmap = {};
        unmap.id = 3;
        EXPECT_OK(call(got.get(), unmap));
        if (round % 4 < 2) {
            EXPECT_OK(call(got.get(), free));
        }
        ASSERT_OK(got.close());
        expect_nothing_left();
    }
}

// A forked child and its parent use one session at once. Each ends when it likes.
TEST_F(Races, ForkedChildrenUseOneSession) {
    for (int round = 0; round < 3; round++) {
        Arena arena(bdf);
        std::vector<pid_t> children;

        ASSERT_OK(arena.error());
        for (unsigned i = 0; i < 2; i++) {
            const pid_t child = fork();

            ASSERT_GE(child, 0);
            if (child == 0) {
                play(arena, milliseconds(i ? 250 : 10'000), [&](Dice& dice) { arena.turn(dice); });
                _exit(arena.odd().empty() ? 0 : 1);
            }
            children.push_back(child);
        }
        play(arena, milliseconds(300), [&](Dice& dice) { arena.turn(dice); });
        EXPECT_EQ(arena.odd(), "");
        ASSERT_OK(arena.close());
        kill(children[0], SIGKILL);
        int status = -1;
        ASSERT_TRUE(wait_for_child(children[0], seconds(20), status));
        EXPECT_TRUE(WIFSIGNALED(status)) << status;
        ASSERT_TRUE(wait_for_child(children[1], seconds(20), status));
        EXPECT_EQ(status, 0);
        expect_nothing_left();
    }
}

// Processes mmap one allocation at the same time, which no lock of their memory orders.
TEST_F(Races, ProcessesMmapOneAllocation) {
    const auto end = steady_clock::now() + milliseconds(800);
    std::vector<pid_t> children;
    Allocation a;

    ASSERT_OK(allocate(s, a, alloc_ways[0], page_size()));
    for (int i = 0; i < 3; i++) {
        const pid_t child = fork();

        ASSERT_GE(child, 0);
        if (child == 0) {
            while (steady_clock::now() < end)
                if (!map_allocation(s, a))
                    _exit(1);
            _exit(0);
        }
        children.push_back(child);
    }
    for (const pid_t child : children) {
        int status = -1;

        ASSERT_TRUE(wait_for_child(child, seconds(20), status)) << "the child does not end";
        EXPECT_EQ(status, 0);
    }
    EXPECT_OK(release(s, a)) << "nobody mmaps it any more";
}

// --- the driver goes --------------------------------------------------------------

// The driver is unbound in the middle of calls of every kind, of mmaps and of opens.
TEST_F(Races, UnbindUnderAllCalls) {
    for (int round = 0; round < 6; round++) {
        std::atomic<bool> stop = false;
        std::atomic<int> odd = 0;
        Threads opener;

        SCOPED_TRACE(std::format("round {}", round));
        {
            Arena arena(bdf);
            Arena other(bdf);
            Threads threads;

            ASSERT_OK(arena.error());
            ASSERT_OK(other.error());
            for (unsigned t = 0; t < 4; t++) {
                threads.add([&, t] {
                    Arena& mine = t < 3 ? arena : other;
                    Dice dice(t + 10 * static_cast<unsigned>(round));

                    while (!mine.gone()) {
                        if (dice(8))
                            mine.turn(dice);
                        else
                            mine.turn_unanswered(dice);
                    }
                    // Nothing works any more.
                    for (int i = 0; i < 50; i++) {
                        uint32_t id = 0;

                        if (mine.make(Make::page, id) != ENODEV)
                            odd = EPROTO;
                    }
                });
            }
            opener.add([&] {
                while (!stop) {
                    const Raw one = Raw::open(bdf);

                    if (!one && one.error() != ENOENT && one.error() != ENODEV &&
                        one.error() != ENXIO)
                        odd = one.error();
                }
            });
            std::this_thread::sleep_for(milliseconds(40 + 15 * round));
            EXPECT_OK(unbind_driver(bdf));
            threads.join();
            EXPECT_EQ(arena.odd(), "");
            EXPECT_EQ(other.odd(), "");
            if (round % 2) {
                // The old sessions end when there is a new device already.
                ASSERT_OK(probe_driver(bdf));
                ASSERT_EQ(driver_of(bdf), driver_name);
            }
        }
        stop = true;
        opener.join();
        EXPECT_ERRNO(odd.load(), 0);
        ASSERT_OK(s.close());
        if (round % 2 == 0) {
            ASSERT_NO_FATAL_FAILURE(come_back());
        } else {
            s = Raw::open(bdf);
            ASSERT_TRUE(s);
        }
        expect_nothing_left();
    }
}

// Bound and unbound again and again, while others open the node and begin to work.
TEST_F(Races, OpenWhileItComesAndGoes) {
    std::atomic<bool> stop = false;
    std::atomic<int> odd = 0;
    std::atomic<int> opened = 0;

    ASSERT_OK(s.close());
    {
        Threads threads;

        for (int t = 0; t < 3; t++) {
            threads.add([&] {
                while (!stop) {
                    const Raw one = Raw::open(bdf);
                    dmaprobe_iova_alloc io = {};
                    Buffer b;

                    if (!one) {
                        const int err = one.error();

                        if (err != ENOENT && err != ENODEV && err != ENXIO)
                            odd = err;
                        continue;
                    }
                    opened++;
                    for (const int err : {one.alloc(b, page_size()), one.iova_alloc(io, 65536)})
                        if (err && err != ENODEV && err != EOPNOTSUPP)
                            odd = err;
                }
            });
        }
        for (int round = 0; round < 12 || (opened <= 5 && round < 200); round++) {
            std::this_thread::sleep_for(milliseconds(5 * (round % 4)));
            EXPECT_OK(unbind_driver(bdf));
            EXPECT_OK(probe_driver(bdf));
        }
        stop = true;
    }
    EXPECT_ERRNO(odd.load(), 0);
    EXPECT_GT(opened.load(), 5);
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    expect_nothing_left();
}

// Whatever is left of a session holds the module by itself; when that has gone, nothing does.
TEST_F(Races, ModuleStaysForWhateverIsLeft) {
    const uint64_t page = page_size();

    if (!exists("/sys/module/dmaprobe/initstate"))
        GTEST_SKIP() << "dmaprobe is built into the kernel";
    for (const bool exported : {false, true}) {
        Raw other = Raw::open(bdf);
        Memory m;
        Fd dmabuf;

        SCOPED_TRACE(exported ? "a dma-buf" : "an mmap");
        ASSERT_TRUE(other);
        if (exported) {
            Allocation a;
            dmaprobe_export out = {};

            ASSERT_OK(allocate(other, a, alloc_ways[0], page));
            out.id = a.id;
            if (other(out))
                continue; // the kernel does not know the pages
            dmabuf = Fd(out.fd);
        } else {
            Buffer b;

            ASSERT_OK(other.alloc(b, page));
            m = other.mmap(b);
            ASSERT_TRUE(m);
        }
        ASSERT_OK(other.close());
        ASSERT_OK(s.close());
        EXPECT_ERRNO(remove_module(driver_name), EAGAIN);
        ASSERT_OK(unbind_driver(bdf));
        EXPECT_ERRNO(remove_module(driver_name), EAGAIN);
        EXPECT_TRUE(module_loaded());
        if (m)
            memset(m.data(), 1, m.size());
        m.unmap();
        EXPECT_OK(dmabuf.close());
        int err = 0;
        EXPECT_TRUE(wait_for([&] { return (err = remove_module(driver_name)) == 0; }, seconds(10)));
        ASSERT_ERRNO(err, 0);
        ASSERT_TRUE(load_module());
        ASSERT_NO_FATAL_FAILURE(come_back());
    }
}

// Loaded, used by several, and unloaded, again and again.
TEST_F(Races, ModuleComesAndGoes) {
    if (!exists("/sys/module/dmaprobe/initstate"))
        GTEST_SKIP() << "dmaprobe is built into the kernel";
    ASSERT_OK(s.close());
    for (int round = 0; round < 4; round++) {
        {
            Arena arena(bdf);

            ASSERT_OK(arena.error());
            play(arena, milliseconds(60), [&](Dice& dice) { arena.turn(dice); });
            EXPECT_EQ(arena.odd(), "");
            EXPECT_ERRNO(remove_module(driver_name), EAGAIN);
        }
        int err = 0;
        EXPECT_TRUE(wait_for([&] { return (err = remove_module(driver_name)) == 0; }, seconds(10)));
        ASSERT_ERRNO(err, 0);
        ASSERT_TRUE(load_module());
        ASSERT_TRUE(wait_for([&] { return exists(node_path(bdf)); }, seconds(5)));
    }
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    users_before = module_users();
    expect_nothing_left();
}

// --- the function is reset --------------------------------------------------------

class Reset : public Races {
protected:
    void SetUp() override {
        Races::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!exists(pci_path(bdf) + "/reset"))
            GTEST_SKIP() << "the function cannot be reset";
    }

    int reset() const { return write_text(pci_path(bdf) + "/reset", "1"); }
};

// Mappings are the IOMMU's, not the device's.
TEST_F(Reset, MappingsStay) {
    const uint64_t page = page_size();
    Buffer b;
    dmaprobe_map map = {};
    dmaprobe_enable enable = {};

    ASSERT_OK(s.alloc(b, 4 * page));
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    map.length = 4 * page;
    ASSERT_OK(s(map));
    enable.enable = 1;
    ASSERT_OK(s(enable));
    for (int i = 0; i < 3; i++) {
        ASSERT_OK(reset());
        if (iommu)
            expect_leads_to(map.dma_addr, 4 * page, b, 0);
        EXPECT_EQ(count_objects(s), 2);
    }
    enable.enable = 0;
    EXPECT_OK(s(enable));
    EXPECT_OK(s.unmap(map.id));
    EXPECT_OK(s.free(b));
}

TEST_F(Reset, UnderAllCalls) {
    Arena arena(bdf);

    ASSERT_OK(arena.error());
    {
        std::atomic<bool> stop = false;
        std::atomic<int> odd = 0;
        Threads threads;

        threads.add([&] {
            while (!stop)
                if (const int err = reset(); err && err != EAGAIN)
                    odd = err;
        });
        threads.add([&] {
            while (!stop) {
                const Raw one = Raw::open(bdf);
                dmaprobe_enable op = {};

                op.enable = 1;
                if (!one || one(op))
                    odd = EPROTO;
            }
        });
        play(arena, milliseconds(900), [&](Dice& dice) { arena.turn(dice); });
        stop = true;
        threads.join();
        EXPECT_ERRNO(odd.load(), 0);
    }
    expect_counted(arena);
    ASSERT_OK(arena.close());
    expect_nothing_left();
}

// In the middle of a DMA, by whichever route the library has. The device may lose the
// transfer; it works again afterwards.
TEST_F(Reset, InMidDma) {
    const uint64_t page = page_size();
    Rig rig(bdf);
    Buffer b;
    dmaprobe_map map = {};

    if (!rig)
        GTEST_SKIP() << rig.why();
    if (!iommu && rig.engine().dma_mask() < s.limits().required_mask)
        GTEST_SKIP() << "no IOMMU translates, and the engine does not reach all memory";
    ASSERT_OK(s.alloc(b, 2 * page));
    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = b.id;
    map.length = 2 * page;
    ASSERT_OK(s(map));
    const Memory m = s.mmap(b);
    ASSERT_TRUE(m);
    for (int round = 0; round < 4; round++) {
        std::atomic<bool> began = false;

        SCOPED_TRACE(std::format("round {}", round));
        std::thread engine([&] {
            began = true;
            // However it comes out.
            std::ignore = rig.engine().copy(dmaprobe::Iova(map.dma_addr + page),
                                            dmaprobe::Iova(map.dma_addr), dmaprobe::Size(page));
        });
        EXPECT_TRUE(wait_for([&] { return began.load(); }, seconds(5)));
        std::this_thread::sleep_for(milliseconds(20 + 40 * round));
        const int err = reset();
        engine.join();
        EXPECT_OK(err);
        EXPECT_TRUE(wait_for([&] { return rig.engine().reset().has_value(); }, seconds(5)))
            << "the engine does not come to rest";
        memset(m.data(), 0x60 + round, page);
        memset(m.data() + page, 0, page);
        ASSERT_TRUE(rig.move(map.dma_addr + page, map.dma_addr, page));
        EXPECT_EQ(memcmp(m.data(), m.data() + page, page), 0);
    }
}

} // namespace
} // namespace selftest

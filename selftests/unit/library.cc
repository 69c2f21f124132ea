// SPDX-License-Identifier: GPL-2.0-only
// What the library does before anything reaches the module: attributes, prepared
// calls, sessions that are closed or no sessions at all.

#include "support/result.h"

#include <dmaprobe/alloc.h>
#include <dmaprobe/batch.h>
#include <dmaprobe/buffer.h>
#include <dmaprobe/dmabuf.h>
#include <dmaprobe/mapping.h>
#include <dmaprobe/pool.h>
#include <dmaprobe/run.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <type_traits>
#include <unistd.h>
#include <vector>

namespace selftest {
namespace {

namespace dp = dmaprobe;
using dp::Attr;
using dp::Direction;
using dp::MapKind;
using dp::Size;
using dp::Transport;

// Kernel objects have one owner.
template <class T>
constexpr bool owns =
    !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T> &&
    std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T>;
static_assert(owns<dp::Session> && owns<dp::Buffer> && owns<dp::Mapping> && owns<dp::IovaSpace>);
static_assert(owns<dp::Alloc> && owns<dp::Pool> && owns<dp::PoolBlock> && owns<dp::DmaBuf>);
static_assert(owns<dp::Run> && owns<dp::Batch>);
// Attributes are no numbers.
static_assert(!std::is_convertible_v<int, Attr> && !std::is_convertible_v<Attr, int>);
// What is named must be of the right kind.
static_assert(std::is_convertible_v<const dp::Buffer&, dp::Ref<dp::Buffer>>);
static_assert(!std::is_convertible_v<const dp::Mapping&, dp::Ref<dp::Buffer>>);
static_assert(!std::is_convertible_v<dp::Ref<dp::Mapping>, dp::Ref<dp::Buffer>>);
static_assert(!std::is_convertible_v<uint32_t, dp::Ref<dp::Buffer>>);

TEST(Attr, Text) {
    EXPECT_EQ(dp::to_string(Attr::none), "none");
    EXPECT_EQ(dp::to_string(Attr::mmio), "mmio");
    EXPECT_EQ(dp::to_string(Attr::no_warn | Attr::weak_ordering), "weak_ordering|no_warn");
    EXPECT_EQ(dp::to_string(Attr(0x8000) | Attr::privileged), "privileged|0x8000");
    std::ostringstream out;
    out << Attr::require_coherent;
    EXPECT_EQ(out.str(), "require_coherent");
}

TEST(Attr, Sets) {
    Attr set = Attr::none;
    set |= Attr::skip_cpu_sync;
    set |= Attr::no_warn;
    EXPECT_EQ(set, Attr::skip_cpu_sync | Attr::no_warn);
    EXPECT_TRUE(dp::has(set, Attr::no_warn));
    EXPECT_TRUE(dp::has(set, Attr::none));
    EXPECT_FALSE(dp::has(set, Attr::no_warn | Attr::mmio));
    EXPECT_EQ(set & Attr::no_warn, Attr::no_warn);
}

TEST(Names, OfEnumerators) {
    EXPECT_EQ(dp::to_string(dp::BufferKind::pinned), "pinned");
    EXPECT_EQ(dp::to_string(dp::BufferKind(77)), "unknown");
    EXPECT_EQ(dp::to_string(MapKind::sg_table), "sg_table");
    EXPECT_EQ(dp::to_string(MapKind(77)), "unknown");
    EXPECT_EQ(dp::to_string(dp::AllocKind::noncontiguous), "noncontiguous");
    EXPECT_EQ(dp::to_string(dp::AllocKind(77)), "unknown");
    EXPECT_EQ(dp::to_string(Transport::ring), "ring");
    EXPECT_EQ(dp::to_string(Transport(77)), "unknown");
}

// A session whose file is a plain one: no command is known there.
class PlainFile : public testing::TestWithParam<Transport> {
protected:
    void SetUp() override {
        std::string name = (std::filesystem::temp_directory_path() / "dmaprobe.XXXXXX").string();
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        directory = name;
        path = directory / "0000:01:00.0";
        std::ofstream(path) << "no device";
        auto opened = dp::Session::open_path(path, {.transport = GetParam()});
        if (!opened && opened.error().op == "ring")
            GTEST_SKIP() << opened.error().message();
        ASSERT_WORKS(opened);
        session.emplace(std::move(*opened));
    }
    void TearDown() override {
        session.reset();
        std::filesystem::remove_all(directory);
    }

    // What the kernel says of a command that a file does not know.
    int unknown() const { return GetParam() == Transport::ring ? EOPNOTSUPP : ENOTTY; }

    std::filesystem::path directory;
    std::string path;
    std::optional<dp::Session> session;
};

INSTANTIATE_TEST_SUITE_P(By, PlainFile, testing::Values(Transport::ioctl, Transport::ring),
                         [](const auto& p) { return std::string(dp::to_string(p.param)); });

TEST_P(PlainFile, EveryCallFails) {
    EXPECT_EQ(session->transport(), GetParam());
    EXPECT_FAILS(session->nop(), unknown());
    EXPECT_FAILS(session->stats(), unknown());
    EXPECT_FAILS(session->limits(), unknown());
    EXPECT_FAILS(session->bench_nop(1), unknown());
    EXPECT_FAILS(dp::Buffer::kmalloc(*session, Size(8)), unknown());
    EXPECT_FAILS(dp::Alloc::coherent(*session, Size(8)), unknown());
    EXPECT_FAILS(dp::Pool::create(*session, Size(8)), unknown());
    EXPECT_FAILS(dp::Mapping::map_resource(*session, 0, Size(), Size(8), Direction::to_device),
                 unknown());
    EXPECT_FAILS(dp::Mapping::import_dmabuf(*session, -1, Direction::to_device), unknown());
    std::array<std::byte, 8> memory{};
    EXPECT_FAILS(dp::Buffer::pin(*session, memory), unknown());
    EXPECT_FAILS(dp::Buffer::pin_read_only(*session, memory), unknown());
}

TEST_P(PlainFile, Closed) {
    dp::Run run(*session);
    run.nop();
    auto batch = dp::Batch::create(*session);
    ASSERT_WORKS(session->close());
    EXPECT_WORKS(session->close());
    EXPECT_EQ(session->fd(), -1);
    EXPECT_FAILS(session->nop(), EBADF);
    EXPECT_FAILS(session->set_segments({.max_size = Size(4096)}), EBADF);
    EXPECT_FAILS(dp::Buffer::contiguous(*session, Size(4096)), EBADF);
    EXPECT_FAILS(dp::Alloc::coherent(*session, Size(4096)), EBADF);
    EXPECT_FAILS(run.execute(), EBADF);
    EXPECT_FAILS(dp::Batch::create(*session), EBADF);
    if (batch) {
        batch->nop();
        EXPECT_FAILS(batch->execute(), EBADF);
        EXPECT_EQ(batch->code(0), ECANCELED);
    }
}

TEST_P(PlainFile, CallsOfManyThreads) {
    std::vector<std::thread> threads;
    threads.reserve(4);
    std::atomic<unsigned> wrong = 0;
    for (int i = 0; i < 4; i++)
        threads.emplace_back([&] {
            for (int j = 0; j < 250; j++)
                if (auto done = session->nop(); done || done.error().code != unknown())
                    wrong++;
        });
    for (std::thread& thread : threads)
        thread.join();
    EXPECT_EQ(wrong, 0u);
}

TEST_P(PlainFile, SegmentSizeOf64Bits) {
    EXPECT_FAILS(session->set_segments({.max_size = Size(1ULL << 32)}), EINVAL);
}

TEST_P(PlainFile, NoTransportForAnUnknownDevice) {
    EXPECT_FAILS(dp::Session::open_path(path + "x", {.transport = GetParam()}), EINVAL);
    EXPECT_FAILS(dp::Session::open("fffe:fe:1e.7", {.transport = GetParam()}), ENOENT);
}

TEST_P(PlainFile, RunThatIsRefused) {
    dp::Run run(*session);
    EXPECT_TRUE(run.empty());
    EXPECT_WORKS(run.execute());
    EXPECT_FAILS(run.result(0), EINVAL);

    EXPECT_EQ(run.nop(), 0u);
    EXPECT_EQ(run.nop(), 1u);
    EXPECT_FAILS(run.result(1), ECANCELED);
    EXPECT_FAILS(run.execute(), unknown());
    EXPECT_EQ(run.done(), 0u);
    EXPECT_FAILS(run.result(0), ECANCELED);
    EXPECT_EQ(run.size(), 2u);
    run.clear();
    EXPECT_EQ(run.size(), 0u);
    EXPECT_WORKS(run.execute());
}

TEST_P(PlainFile, RunOfTooMany) {
    dp::Run run(*session);
    for (size_t i = 0; i < dp::Run::max_calls; i++)
        run.nop();
    EXPECT_FAILS(run.execute(), unknown());
    run.nop();
    EXPECT_FAILS(run.execute(), EINVAL);
    run.clear();
    run.nop();
    EXPECT_FAILS(run.execute(), unknown());
}

TEST_P(PlainFile, WhatARunNames) {
    dp::Run run(*session);
    dp::Run other(*session);
    const auto buffer = run.buffer_alloc(dp::BufferKind::contiguous, Size(4096));
    EXPECT_EQ(buffer.call(), 0u);
    const auto mapping = run.map(buffer, MapKind::page, Size(), Size(4096), Direction::to_device);
    EXPECT_EQ(run.unmap(mapping), 2u);
    EXPECT_EQ(run.close(buffer), 3u);
    EXPECT_FAILS(run.execute(), unknown());
    EXPECT_FAILS(run.id(buffer), ECANCELED);
    EXPECT_FAILS(run.addr(mapping), ECANCELED);

    // Another list's.
    other.unmap(mapping);
    const auto refused = other.execute();
    ASSERT_FAILS(refused, ENOENT);
    EXPECT_TRUE(refused.error().detail.starts_with("call 0: ")) << refused.error();
    EXPECT_FAILS(other.result(buffer), EINVAL);
    EXPECT_FAILS(other.id(buffer), EINVAL);
    EXPECT_FAILS(other.addr(mapping), EINVAL);
    // A closed object.
    other.clear();
    other.unmap(dp::Ref<dp::Mapping>(0));
    EXPECT_FAILS(other.execute(), EBADF);
    // By its id.
    other.clear();
    other.unmap(dp::Ref<dp::Mapping>(7));
    EXPECT_FAILS(other.execute(), unknown());
    // Both have moved, and know what is theirs.
    dp::Run moved(std::move(run));
    moved.unmap(mapping);
    EXPECT_FAILS(moved.execute(), unknown());
    EXPECT_FAILS(run.execute(), EBADF); // NOLINT(bugprone-use-after-move): that is the test
}

TEST_P(PlainFile, StructsStayWhereTheyAre) {
    dp::Run run(*session);
    for (int round = 0; round < 2; round++) {
        std::vector<dmaprobe_get_iova_state*> args;
        for (uint32_t i = 0; i < dp::Run::max_calls; i++) {
            auto& arg = run.add<dmaprobe_get_iova_state>(DMAPROBE_GET_IOVA_STATE, "iova_state");
            EXPECT_EQ(arg.id, 0u);
            arg.id = i;
            args.push_back(&arg);
        }
        for (uint32_t i = 0; i < dp::Run::max_calls; i++) {
            ASSERT_EQ(args[i]->id, i);
            ASSERT_EQ(args[i]->size, sizeof(dmaprobe_get_iova_state));
        }
        run.clear();
    }
}

class PlainBatch : public PlainFile {
protected:
    void make(const dp::BatchOptions& options) {
        auto made = dp::Batch::create(*session, options);
        if (!made && (made.error().code == ENOSYS || made.error().code == EPERM))
            GTEST_SKIP() << made.error().message();
        ASSERT_WORKS(made);
        batch.emplace(std::move(*made));
    }
    void TearDown() override {
        batch.reset();
        PlainFile::TearDown();
    }

    std::optional<dp::Batch> batch;
};

INSTANTIATE_TEST_SUITE_P(By, PlainBatch, testing::Values(Transport::ioctl, Transport::ring),
                         [](const auto& p) { return std::string(dp::to_string(p.param)); });

TEST_P(PlainBatch, Depth) {
    EXPECT_FAILS(dp::Batch::create(*session, {.depth = 0}), EINVAL);
    EXPECT_FAILS(dp::Batch::create(*session, {.depth = 4097}), EINVAL);
    ASSERT_NO_FATAL_FAILURE(make({.depth = 5}));
    if (!IsSkipped()) {
        EXPECT_EQ(batch->depth(), 5u);
    }
}

TEST_P(PlainBatch, EachCallHasAResult) {
    ASSERT_NO_FATAL_FAILURE(make({.depth = 8}));
    if (IsSkipped())
        return;
    EXPECT_WORKS(batch->execute());
    for (int i = 0; i < 100; i++)
        batch->nop();
    for (int round = 0; round < 3; round++) {
        EXPECT_FAILS(batch->execute(), EOPNOTSUPP);
        for (size_t i = 0; i < 100; i++)
            ASSERT_EQ(batch->code(i), EOPNOTSUPP) << i;
    }
    EXPECT_EQ(batch->code(100), EINVAL);
}

TEST_P(PlainBatch, LinkedStopsAtAFailure) {
    ASSERT_NO_FATAL_FAILURE(make({.depth = 8, .order = dp::Order::linked}));
    if (IsSkipped())
        return;
    for (int i = 0; i < 30; i++)
        batch->nop();
    EXPECT_FAILS(batch->execute(), EOPNOTSUPP);
    EXPECT_EQ(batch->code(0), EOPNOTSUPP);
    for (size_t i = 1; i < 30; i++)
        ASSERT_EQ(batch->code(i), ECANCELED) << i;
}

TEST_P(PlainBatch, CannotNameItsOwn) {
    ASSERT_NO_FATAL_FAILURE(make({}));
    if (IsSkipped())
        return;
    const auto pool = batch->pool_create(Size(64));
    batch->destroy(pool);
    EXPECT_FAILS(batch->execute(), EINVAL);
    EXPECT_EQ(batch->code(0), ECANCELED);
}

// A list that was moved from does no harm, and makes no calls.
TEST_P(PlainBatch, MovedFrom) {
    ASSERT_NO_FATAL_FAILURE(make({}));
    if (IsSkipped())
        return;
    dp::Batch moved(std::move(*batch));
    moved.nop();
    EXPECT_FAILS(moved.execute(), EOPNOTSUPP);
    batch->clear();
    EXPECT_EQ(batch->size(), 0u);
    EXPECT_FAILS(batch->execute(), EBADF);
    batch->clear();
    const auto buffer = batch->buffer_alloc(dp::BufferKind::contiguous, Size(8));
    batch->map(buffer, MapKind::page, Size(), Size(8), Direction::to_device);
    EXPECT_EQ(batch->size(), 2u);
    EXPECT_FAILS(batch->execute(), EBADF);
    EXPECT_EQ(batch->code(0), ECANCELED);
    EXPECT_FAILS(batch->id(buffer), ECANCELED);

    dp::Run run(*session);
    const dp::Run other(std::move(run));
    EXPECT_FAILS(run.execute(), EBADF); // NOLINT(bugprone-use-after-move): this is what is tested
    run.iova_alloc(Size(8), dp::Ref<dp::Buffer>(1), Size());
    EXPECT_FAILS(run.execute(), EBADF);
}

TEST_P(PlainBatch, BelongsToItsThread) {
    ASSERT_NO_FATAL_FAILURE(make({}));
    if (IsSkipped())
        return;
    batch->nop();
    EXPECT_FAILS(batch->execute(), EOPNOTSUPP);
    EXPECT_EQ(batch->code(0), EOPNOTSUPP);
    std::thread([&] {
        EXPECT_FAILS(batch->execute(), EEXIST);
        EXPECT_EQ(batch->code(0), ECANCELED);
    }).join();
    // It is as good as before.
    EXPECT_FAILS(batch->execute(), EOPNOTSUPP);
    EXPECT_EQ(batch->code(0), EOPNOTSUPP);
}

TEST(MapSg, Empty) {
    EXPECT_FAILS(dp::Mapping::map_sg({}, dp::SgKind::list, Direction::to_device), EINVAL);
}

TEST(DmaBuf, NoneAndNoDmaBuf) {
    dp::DmaBuf none;
    EXPECT_EQ(none.fd(), -1);
    EXPECT_FAILS(none.length(), EBADF);
    EXPECT_FAILS(none.begin_cpu_access(Direction::bidirectional), EBADF);

    std::array<int, 2> ends{};
    ASSERT_EQ(pipe(ends.data()), 0);
    dp::DmaBuf reader(ends[0]);
    dp::DmaBuf writer(ends[1]);
    EXPECT_FAILS(reader.length(), ESPIPE);
    EXPECT_FAILS(reader.end_cpu_access(Direction::to_device), ENOTTY);
    const int fd = reader.fd();
    none = std::move(reader);
    EXPECT_EQ(none.fd(), fd);
    none = std::move(writer);
    EXPECT_EQ(fcntl(fd, F_GETFD), -1) << "the old descriptor is open";
    const int mine = none.release();
    EXPECT_EQ(none.fd(), -1);
    EXPECT_EQ(close(mine), 0);
}

} // namespace
} // namespace selftest

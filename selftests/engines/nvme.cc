// SPDX-License-Identifier: GPL-2.0-only
// The engine for NVMe: what the disk holds comes through memory of each kind, and stays
// what it is. The disk is the lab's, whose contents are known.

#include "support/engine.h"
#include "support/fixture.h"
#include "support/ktap.h"
#include "support/result.h"
#include "support/system.h"
#include "support/target.h"

#include <linux/pci_regs.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <fstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

namespace dp = dmaprobe;
using dp::Direction;
using dp::Iova;
using dp::Segment;
using dp::Size;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

// What lab's disk holds (selftests/lab/machine.py, disk_image()): 64-bit words, each the number of
// its place by this factor.
constexpr uint64_t disk_factor = 0x9E3779B97F4A7C15;
constexpr size_t disk_length = 4 << 20;

std::vector<std::byte> disk(size_t from, size_t length) {
    std::vector<std::byte> bytes(length);

    for (size_t at = 0; at < length; at += 8) {
        const uint64_t word = (from + at) / 8 * disk_factor;

        std::memcpy(bytes.data() + at, &word, sizeof(word));
    }
    return bytes;
}

class Nvme : public EngineTest {
protected:
    std::string why_not(const dp::EngineTraits& traits) const override {
        return traits.name == "nvme" ? "" : "the device is no NVMe controller";
    }

    // Another engine for the device: the one there is goes first.
    void probe(const dp::EngineOptions& options) {
        engine.reset();
        auto probed = dp::Engine::probe(*keeper, *access, options);
        ASSERT_WORKS(probed);
        engine = std::move(*probed);
    }

    // Let go of the device, so that another driver can have it.
    void let_go() {
        engine.reset();
        EXPECT_WORKS(access->close());
        EXPECT_WORKS(session->close());
        EXPECT_WORKS(keeper->close());
        EXPECT_OK(s.close());
    }
};

class NvmeWays : public Nvme, public testing::WithParamInterface<MemoryKind> {
protected:
    void SetUp() override {
        Nvme::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        const uint32_t feature = GetParam() == MemoryKind::phys     ? DMAPROBE_FEATURE_MAP_PHYS
                                 : GetParam() == MemoryKind::linked ? DMAPROBE_FEATURE_DMA_IOVA
                                                                    : 0;
        if (const auto why = s.missing(feature))
            GTEST_SKIP() << *why;
        if (GetParam() == MemoryKind::linked && !no_iova.empty())
            GTEST_SKIP() << no_iova;
    }

    static void expect_holds(const Target& t, std::span<const std::byte> want) {
        const auto got = t.get(0, want.size());

        ASSERT_WORKS(got);
        EXPECT_TRUE(same(*got, want));
    }
};

INSTANTIATE_TEST_SUITE_P(Way, NvmeWays, testing::ValuesIn(all_memory_kinds),
                         [](const auto& row) { return std::string(to_string(row.param)); });

TEST_P(NvmeWays, IdentifyReadCompare) {
    constexpr size_t from = 3 << 20;
    auto made = Target::make(*session, GetParam(), Size(64 << 10));
    ASSERT_WORKS(made);
    Target& t = *made;
    const size_t length = t.length().value();

    // Identify: the serial number that lab gave it, and nothing behind the 4 KiB.
    ASSERT_WORKS(t.put(0, std::vector<std::byte>(length, std::byte{0xee})));
    const std::vector<Segment> first = {{t.at(0), Size(4096)}};
    ASSERT_WORKS(engine->identify(first));
    auto got = t.get(0, length);
    ASSERT_WORKS(got);
    const std::string serial(reinterpret_cast<const char*>(got->data()) + 4, 20);
    EXPECT_EQ(serial, "dmaprobe            ");
    EXPECT_TRUE(same(std::span(*got).subspan(4096),
                     std::vector<std::byte>(length - 4096, std::byte{0xee})));

    // Read.
    ASSERT_WORKS(engine->copy_from_device(t.segments(), Size(from)));
    const auto want = disk(from, length);
    expect_holds(t, want);

    // Compare: the same bytes; with the last one changed; at another place.
    EXPECT_WORKS(engine->copy_to_device(t.segments(), Size(from)));
    EXPECT_FAILS(engine->copy_to_device(t.segments(), Size(from + 512)), EILSEQ);
    ASSERT_WORKS(t.put(length - 1, std::vector{want[length - 1] ^ std::byte{1}}));
    EXPECT_FAILS(engine->copy_to_device(t.segments(), Size(from)), EILSEQ);
    ASSERT_WORKS(t.put(length - 1, std::vector{want[length - 1]}));
    EXPECT_WORKS(engine->copy_to_device(t.segments(), Size(from)));
    expect_no_fault();
}

// As many bytes as one command moves, in pages that lie anywhere: one range of addresses, or each
// page an address of its own.
TEST_P(NvmeWays, LongestTransfer) {
    const uint64_t longest = std::min<uint64_t>(engine->traits().max_transfer.value(), disk_length);
    auto made = Target::make(*session, GetParam(), Size(longest));
    ASSERT_WORKS(made);

    ASSERT_WORKS(engine->copy_from_device(made->segments()));
    expect_holds(*made, disk(0, made->length().value()));
    EXPECT_FAILS(engine->copy_from_device(made->at(0), Size(longest + 512)), EINVAL);
    expect_no_fault();
}

TEST_F(Nvme, Traits) {
    const dp::EngineTraits& t = engine->traits();

    diagnose(std::format("path {}, by {}, one transfer {} bytes", dp::to_string(access->path()),
                         dp::to_string(engine->completion()), t.max_transfer.value()));
    EXPECT_EQ(t.block, Size(512));
    EXPECT_EQ(t.device_memory, Size(disk_length));
    EXPECT_EQ(dp::to_string(t.read_effect), "compares");
    EXPECT_TRUE(t.emulated);
    EXPECT_EQ(dp::to_string(engine->completion()),
              access->path() == dp::AccessPath::vfio ? "interrupt" : "polling");
}

// Pages that are mapped one by one, in another order than they lie in: a list of PRPs.
TEST_F(Nvme, PagesAnywhere) {
    const size_t page = page_size();
    constexpr size_t n = 16;
    std::vector<dp::Buffer> pages;
    std::vector<dp::Mapping> maps;
    std::vector<Segment> segments;

    for (size_t i = 0; i < n; i++) {
        pages.push_back(buffer(page));
        maps.push_back(map(pages.back(), Direction::from_device));
        segments.push_back({maps.back().dma_addr(), Size(page)});
    }
    std::ranges::reverse(segments);
    // The first begins and the last ends inside its page.
    segments.front() = {segments.front().addr + Size(1024), Size(page - 1024)};
    segments.back().length = Size(1024);
    ASSERT_WORKS(engine->copy_from_device(segments, Size(1 << 20)));
    const auto want = disk(1 << 20, (n - 1) * page);
    for (size_t i = 0; i < n; i++) {
        const dp::Buffer& b = pages[n - 1 - i];
        ASSERT_WORKS(maps[n - 1 - i].sync_for_cpu());
        auto expected = std::vector<std::byte>(page);
        const size_t from = i == 0 ? 0 : i * page - 1024;
        const size_t length = i == 0 ? page - 1024 : i == n - 1 ? 1024 : page;
        std::copy_n(want.begin() + static_cast<ptrdiff_t>(from), length,
                    expected.begin() + (i == 0 ? 1024 : 0));
        EXPECT_TRUE(same(b.bytes(), expected)) << "page " << i;
    }
    expect_no_fault();
}

TEST_F(Nvme, WrongArguments) {
    const Iova good(0x1000);

    EXPECT_FAILS(engine->copy_from_device(good, Size(0)), EINVAL);
    EXPECT_FAILS(engine->copy_from_device(good, Size(511)), EINVAL);
    EXPECT_FAILS(engine->copy_from_device(good + Size(2), Size(512)), EINVAL);
    EXPECT_FAILS(engine->copy_from_device(good, Size(512), Size(256)), EINVAL);
    EXPECT_FAILS(engine->copy_from_device(good, Size(512), Size(disk_length)), EINVAL);
    EXPECT_FAILS(engine->copy_from_device(good, Size(1024), Size(disk_length - 512)), EINVAL);
    EXPECT_FAILS(engine->copy_from_device(Iova::max(), Size(512)), EINVAL);
    for (const uint64_t below : {512, 4096, 8192})
        EXPECT_FAILS(engine->copy_from_device(Iova(0 - below), Size(below)), ERANGE);
    EXPECT_FAILS(engine->copy_from_device(
                     std::vector<Segment>{{good, Size(512)}, {good + Size(512), Size(512)}}),
                 EINVAL);
    EXPECT_FAILS(engine->identify(std::vector<Segment>{{good, Size(512)}}), EINVAL);
    EXPECT_FAILS(engine->identify(std::vector<Segment>{{good + Size(2), Size(4096)}}), EINVAL);
    EXPECT_FAILS(engine->identify(std::vector<Segment>{{Iova(0 - uint64_t{4096}), Size(4096)}}),
                 ERANGE);
    EXPECT_FAILS(engine->copy(good, good + Size(4096), Size(512)), EOPNOTSUPP);
    expect_no_fault();
}

TEST_F(Nvme, ReadIntoWhatMayNotBeWritten) {
    NEEDS_IOMMU();
    NEEDS_FAULTS();
    const Faults limit(Faults::all);
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::to_device);
    const auto bytes = pattern(page_size(), 5);

    put(b.bytes(), bytes);
    ASSERT_WORKS(m.sync_for_device());
    std::ignore = engine->copy_from_device(m.dma_addr(), Size(512));
    expect_fault(m.dma_addr(), dp::FaultAccess::write);
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote";
}

TEST_F(Nvme, DmaAfterUnmap) {
    NEEDS_IOMMU();
    NEEDS_FAULTS();
    const Faults limit(Faults::all);
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    const auto bytes = pattern(page_size(), 6);
    const Iova at = m.dma_addr();

    ASSERT_WORKS(engine->copy_from_device(at, Size(512)));
    ASSERT_WORKS(m.unmap());
    EXPECT_TRUE(same(b.bytes().first(512), disk(0, 512)));
    put(b.bytes(), bytes);
    std::ignore = engine->copy_from_device(at, Size(512));
    expect_fault(at, dp::FaultAccess::write);
    EXPECT_TRUE(same(b.bytes(), bytes)) << "the device wrote after the unmap";
}

// A controller that cannot read its commands says so by a fatal status, as QEMU's does, or says
// nothing; either way nothing more is tried until a reset.
TEST_F(Nvme, FatalStatusAndReset) {
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    const auto command = access->read_config16(PCI_COMMAND);

    ASSERT_WORKS(command);
    ASSERT_WORKS(
        access->write_config16(PCI_COMMAND, static_cast<uint16_t>(*command & ~PCI_COMMAND_MASTER)));
    engine->set_deadline(milliseconds(200));
    const auto failed = engine->copy_from_device(m.dma_addr(), Size(512));
    ASSERT_FALSE(failed);
    EXPECT_TRUE(failed.error().code == EIO || failed.error().code == ETIMEDOUT)
        << failed.error().message();
    EXPECT_FAILS(engine->copy_from_device(m.dma_addr(), Size(512)), EIO);
    EXPECT_FAILS(engine->identify(std::vector<Segment>{{m.dma_addr(), Size(4096)}}), EIO);
    ASSERT_WORKS(access->write_config16(PCI_COMMAND, *command));
    engine->set_deadline(engine->traits().deadline);
    EXPECT_FAILS(engine->copy_from_device(m.dma_addr(), Size(512)), EIO);
    ASSERT_WORKS(engine->reset());
    ASSERT_WORKS(engine->copy_from_device(m.dma_addr(), Size(512)));
    ASSERT_WORKS(m.sync_for_cpu());
    EXPECT_TRUE(same(b.bytes().first(512), disk(0, 512)));
}

// The function is reset under the engine: it says that, and recovers.
TEST_F(Nvme, FunctionResetUnderTheEngine) {
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    const auto done = access->reset();

    if (!done && done.error().code == EOPNOTSUPP)
        GTEST_SKIP() << done.error().message();
    ASSERT_WORKS(done);
    engine->set_deadline(milliseconds(200));
    EXPECT_FAILS(engine->copy_from_device(m.dma_addr(), Size(512)), ETIMEDOUT);
    engine->set_deadline(engine->traits().deadline);
    ASSERT_WORKS(engine->reset());
    ASSERT_WORKS(engine->copy_from_device(m.dma_addr(), Size(512)));
    ASSERT_WORKS(m.sync_for_cpu());
    EXPECT_TRUE(same(b.bytes().first(512), disk(0, 512)));
}

// The device goes while an answer is waited for, and with it the memory that the answer would be
// in: that is ENODEV, not the end of the program. An unbind in the moment of a look is SIGBUS all
// the same.
TEST_F(Nvme, UnbindUnderACommand) {
    enum End { gone, no_session, no_memory, no_engine, done, other_error, no_reset, unlucky };
    const KeepDriver keep(bdf);
    int status = unlucky << 8;

    let_go();
    for (int attempt = 0; attempt < 5 && status == unlucky << 8; attempt++) {
        restart_deadline();
        std::array<int, 2> ends{};
        ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
        const Fd out(ends[0]);
        Fd in(ends[1]);
        if (attempt != 0) {
            ASSERT_OK(probe_driver(bdf));
        }
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            signal(SIGBUS, [](int) { _exit(unlucky); });
            auto mine = dp::Session::open(bdf);
            if (!mine)
                _exit(no_session);
            auto device = dp::DeviceAccess::open(*mine);
            auto memory = Target::make(*mine, MemoryKind::single, Size(4096));
            if (!device || !memory)
                _exit(no_memory);
            auto made = dp::Engine::probe(*mine, *device, {.completion = dp::Completion::polling});
            if (!made)
                _exit(no_engine);
            // A controller that was reset answers nothing.
            if (!device->reset() || write(in.get(), "x", 1) != 1)
                _exit(no_reset);
            const auto moved = (*made)->copy_from_device(memory->at(0), Size(512));
            _exit(moved ? done : moved.error().code == ENODEV ? gone : other_error);
        }
        in.close();
        char byte = 0;
        if (read(out.get(), &byte, 1) == 1) {
            std::this_thread::sleep_for(milliseconds(100));
            EXPECT_OK(unbind_driver(bdf));
        }
        if (!wait_for_child(child, seconds(20), status)) {
            ADD_FAILURE() << "it does not notice";
            kill(child, SIGKILL);
            waitpid(child, &status, 0);
        }
    }
    if (status == no_reset << 8)
        GTEST_SKIP() << "the function cannot be reset";
    EXPECT_EQ(status, gone << 8);
}

// Each command has its interrupt, and none is lost.
TEST_F(Nvme, TenThousandInterrupts) {
    if (access->path() != dp::AccessPath::vfio)
        GTEST_SKIP() << "interrupts come by VFIO only: " << access->why();
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);

    ASSERT_NO_FATAL_FAILURE(probe({.completion = dp::Completion::interrupt}));
    for (int i = 0; i < 10000; i++)
        ASSERT_WORKS(engine->copy_from_device(m.dma_addr(), Size(512),
                                              Size(static_cast<uint64_t>(i % 8192) * 512)))
            << "command " << i;
    ASSERT_WORKS(m.sync_for_cpu());
    EXPECT_TRUE(same(b.bytes().first(512), disk(size_t{9999 % 8192} * 512, 512)));
    // The same without.
    ASSERT_NO_FATAL_FAILURE(probe({.completion = dp::Completion::polling}));
    EXPECT_EQ(dp::to_string(engine->completion()), "polling");
    for (int i = 0; i < 100; i++)
        ASSERT_WORKS(engine->copy_from_device(m.dma_addr(), Size(512))) << "command " << i;
}

TEST_F(Nvme, InterruptsAskedForInVain) {
    if (access->path() == dp::AccessPath::vfio)
        GTEST_SKIP() << "there are interrupts by VFIO";
    engine.reset();
    EXPECT_FAILS(dp::Engine::probe(*keeper, *access, {.completion = dp::Completion::interrupt}),
                 EOPNOTSUPP);
}

// A process dies with the controller running; the next one finds it usable.
TEST_F(Nvme, KilledProcess) {
    engine.reset();
    EXPECT_WORKS(access->close());
    int ready[2];
    ASSERT_EQ(pipe2(ready, O_CLOEXEC), 0);
    const Fd in(ready[0]);
    Fd out(ready[1]);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        auto mine = dp::Session::open(bdf);
        auto reached = mine ? dp::DeviceAccess::open(*mine)
                            : dp::Result<dp::DeviceAccess>(std::unexpected(mine.error()));
        auto probed =
            reached ? dp::Engine::probe(*mine, *reached)
                    : dp::Result<std::unique_ptr<dp::Engine>>(std::unexpected(reached.error()));
        const char reply = probed ? 'y' : 'n';
        std::ignore = write(out.get(), &reply, 1);
        for (;;)
            pause();
    }
    EXPECT_EQ(out.close(), 0);
    char reply = 0;
    EXPECT_EQ(read(in.get(), &reply, 1), 1);
    EXPECT_EQ(reply, 'y');
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_TRUE(wait_for_child(child, seconds(20), status));
    auto reached = dp::DeviceAccess::open(*keeper);
    ASSERT_WORKS(reached);
    access.emplace(std::move(*reached));
    ASSERT_NO_FATAL_FAILURE(probe({}));
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    ASSERT_WORKS(engine->copy_from_device(m.dma_addr(), Size(512)));
    ASSERT_WORKS(m.sync_for_cpu());
    EXPECT_TRUE(same(b.bytes().first(512), disk(0, 512)));
}

// Blocks that may be written to are all that there is, and the others stay.
TEST_F(Nvme, AllowWrite) {
    constexpr uint64_t first = 100;
    constexpr uint64_t count = 16;
    dp::Buffer b = buffer(4 * page_size());
    dp::Mapping m = map(b, Direction::bidirectional);
    const auto bytes = pattern(count * 512, 40);
    const auto read_all = [&](std::span<const std::byte> want) {
        ASSERT_NO_FATAL_FAILURE(probe({}));
        ASSERT_WORKS(engine->copy_from_device(m.dma_addr(), Size((count + 2) * 512),
                                              Size((first - 1) * 512)));
        ASSERT_WORKS(m.sync_for_cpu());
        EXPECT_TRUE(same(b.bytes().first(512), disk((first - 1) * 512, 512)));
        EXPECT_TRUE(same(b.bytes().subspan(512, count * 512), want));
        EXPECT_TRUE(
            same(b.bytes().subspan((count + 1) * 512, 512), disk((first + count) * 512, 512)));
    };

    engine.reset();
    for (const dp::BlockRange bad : {dp::BlockRange{0, 0}, dp::BlockRange{8191, 2},
                                     dp::BlockRange{8192, 1}, dp::BlockRange{1, ~uint64_t{0}}})
        EXPECT_FAILS(dp::Engine::probe(*keeper, *access, {.allow_write = bad}), EINVAL);
    ASSERT_NO_FATAL_FAILURE(probe({.allow_write = dp::BlockRange{first, count}}));
    EXPECT_EQ(dp::to_string(engine->traits().read_effect), "stores");
    EXPECT_EQ(engine->traits().device_memory, Size(count * 512));
    put(b.bytes(), bytes);
    ASSERT_WORKS(m.sync_for_device());
    EXPECT_FAILS(engine->copy_to_device(m.dma_addr(), Size(512), Size(count * 512)), EINVAL);
    EXPECT_FAILS(engine->copy_to_device(m.dma_addr(), Size((count + 1) * 512)), EINVAL);
    ASSERT_WORKS(engine->copy_to_device(m.dma_addr(), Size(count * 512)));
    ASSERT_NO_FATAL_FAILURE(read_all(bytes));
    ASSERT_NO_FATAL_FAILURE(probe({.allow_write = dp::BlockRange{first, count}}));
    put(b.bytes(), disk(first * 512, count * 512));
    ASSERT_WORKS(m.sync_for_device());
    ASSERT_WORKS(engine->copy_to_device(m.dma_addr(), Size(count * 512)));
    ASSERT_NO_FATAL_FAILURE(read_all(disk(first * 512, count * 512)));
}

// The disk's own driver takes the controller as dmaprobe leaves it, and finds on the disk what
// was there.
TEST_F(Nvme, OwnDriverAfterwards) {
    const KeepDriver keep(bdf);
    dp::Buffer b = buffer(page_size());
    dp::Mapping m = map(b, Direction::bidirectional);

    ASSERT_WORKS(engine->copy_from_device(m.dma_addr(), Size(512)));
    EXPECT_WORKS(m.unmap());
    EXPECT_WORKS(b.close());
    let_go();
    if (run({"modprobe", "nvme"}).code != 0 && !exists("/sys/bus/pci/drivers/nvme"))
        GTEST_SKIP() << "there is no nvme driver here";
    ASSERT_OK(unbind_driver(bdf));
    ASSERT_OK(write_text(pci_path(bdf) + "/driver_override", "\n"));
    ASSERT_OK(probe_driver(bdf));
    ASSERT_EQ(driver_of(bdf), "nvme");
    std::string node;
    ASSERT_TRUE(wait_for(
        [&] {
            std::error_code none;
            for (const auto& entry : std::filesystem::directory_iterator("/sys/block", none))
                if (entry.path().filename().string().starts_with("nvme"))
                    node = "/dev/" + entry.path().filename().string();
            return !node.empty() && exists(node);
        },
        seconds(30)))
        << "no disk appeared";
    std::ifstream in(node, std::ios::binary);
    std::vector<std::byte> got(disk_length);
    in.read(reinterpret_cast<char*>(got.data()), static_cast<std::streamsize>(got.size()));
    EXPECT_EQ(in.gcount(), static_cast<std::streamsize>(disk_length));
    EXPECT_TRUE(same(got, disk(0, disk_length)));
}

// The tool's whole sequence, by a device that only writes what it has, and compares.
class NvmeDemo : public DeviceTest {};

TEST_F(NvmeDemo, AllSteps) {
    if (!read_text(pci_path(bdf) + "/class").starts_with("0x0108"))
        GTEST_SKIP() << "the device is no NVMe controller";
    NEEDS_IOMMU();
    NEEDS_FAULTS();
    if (const auto why = s.missing(DMAPROBE_FEATURE_DMA_IOVA))
        GTEST_SKIP() << *why;
    EXPECT_OK(s.close());
    const Faults limit(Faults::all);
    const Outcome o = run({"dmaprobe", "demo", bdf}, seconds(60));
    EXPECT_EQ(o.code, 0) << o.out << o.err;
    EXPECT_THAT(o.out, HasSubstr("compares both with what it has"));
    EXPECT_THAT(o.out, HasSubstr("15 of 15 steps as they must be, 2 faults caught"));
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// VFIO beside dmaprobe: who may have the device, its group and its registers.

#include "boundary.h"

#include "support/alloc.h"
#include "support/arena.h"
#include "support/unbind.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <format>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

// VFIO's node of a function, or nothing.
std::string cdev_of(const std::string& bdf) {
    std::error_code none;

    for (const auto& entry : fs::directory_iterator(pci_path(bdf) + "/vfio-dev", none)) {
        std::string path = "/dev/vfio/devices/" + entry.path().filename().string();

        if (exists(path))
            return path;
    }
    return {};
}

std::string group_of(const std::string& bdf) {
    std::error_code none;

    return fs::read_symlink(pci_path(bdf) + "/iommu_group", none).filename().string();
}

// Open a function's VFIO node and bind it to an iommufd, which opens it for real. 0 or errno.
int open_cdev(const std::string& bdf, Fd& device, Fd& iommufd) {
    vfio_device_bind_iommufd bind = {};

    device = Fd(open(cdev_of(bdf).c_str(), O_RDWR | O_CLOEXEC));
    if (!device)
        return errno;
    iommufd = Fd(open("/dev/iommu", O_RDWR | O_CLOEXEC));
    if (!iommufd)
        return errno;
    bind.argsz = sizeof(bind);
    bind.iommufd = iommufd.get();
    return ioctl(device.get(), VFIO_DEVICE_BIND_IOMMUFD, &bind) ? errno : 0;
}

// Open a function's group, and claim it for a container. 0 or errno.
int claim_group(const std::string& bdf, Fd& group, Fd& container) {
    group = Fd(open(("/dev/vfio/" + group_of(bdf)).c_str(), O_RDWR | O_CLOEXEC));
    if (!group)
        return errno;
    container = Fd(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC));
    if (!container)
        return errno;
    const int fd = container.get();
    return ioctl(group.get(), VFIO_GROUP_SET_CONTAINER, &fd) ? errno : 0;
}

int enable(const Raw& session, bool on) {
    dmaprobe_enable op = {};

    op.enable = on;
    return session(op);
}

// A page that is mapped for the device.
struct Mapped {
    Buffer buffer;
    dmaprobe_map map = {};

    int make(const Raw& s) {
        if (const int err = s.alloc(buffer, page_size()))
            return err;
        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.buffer_id = buffer.id;
        map.length = page_size();
        return s(map);
    }
};

// --- VFIO's node of the device ----------------------------------------------------

class VfioCdev : public Unbinding<DeviceTest> {
protected:
    void SetUp() override {
        Unbinding<DeviceTest>::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (!exists("/dev/iommu"))
            GTEST_SKIP() << "this kernel has no /dev/iommu";
        if (cdev_of(bdf).empty())
            GTEST_SKIP() << "this kernel has no VFIO device nodes";
    }

    int open_vfio(Fd& device, Fd& iommufd) const { return open_cdev(bdf, device, iommufd); }
};

TEST_F(VfioCdev, EnabledSessionKeepsVfioOut) {
    Raw other = Raw::open(bdf);
    Fd device;
    Fd iommufd;

    ASSERT_TRUE(other);
    ASSERT_OK(enable(s, true));
    ASSERT_OK(enable(other, true));
    EXPECT_ERRNO(open_vfio(device, iommufd), EBUSY);
    EXPECT_OK(device.close());
    ASSERT_OK(enable(s, false));
    EXPECT_ERRNO(open_vfio(device, iommufd), EBUSY) << "another session has it enabled";
    EXPECT_OK(device.close());
    ASSERT_OK(other.close());
    EXPECT_OK(open_vfio(device, iommufd)) << "nobody has it enabled any more";
}

TEST_F(VfioCdev, OpenVfioDeviceKeepsSessionsOut) {
    Fd device;
    Fd iommufd;

    ASSERT_OK(open_vfio(device, iommufd));
    EXPECT_ERRNO(enable(s, true), EBUSY);
    EXPECT_OK(enable(s, false)) << "giving up what one does not have";
    ASSERT_OK(device.close());
    EXPECT_OK(enable(s, true));
    EXPECT_OK(enable(s, false));
    EXPECT_OK(open_vfio(device, iommufd)) << "for a second time";
}

// What VFIO switched on is off again when it is closed, the pin's interrupts (INTx) included, which
// others may share, and nobody here handles.
TEST_F(VfioCdev, LeavesTheDeviceQuiet) {
    ASSERT_OK(s.close());
    ASSERT_OK(unbind_driver(bdf));
    ASSERT_OK(probe_driver(bdf));
    s = Raw::open(bdf);
    ASSERT_TRUE(s);
    for (int i = 0; i < 2; i++) {
        Fd device;
        Fd iommufd;

        EXPECT_EQ(command_of(bdf) & (PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE),
                  PCI_COMMAND_INTX_DISABLE);
        ASSERT_OK(open_vfio(device, iommufd));
        EXPECT_FALSE(command_of(bdf) & PCI_COMMAND_INTX_DISABLE) << "as VFIO leaves it to its user";
    }
    EXPECT_EQ(command_of(bdf) & (PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE),
              PCI_COMMAND_INTX_DISABLE);
}

// Mappings are the session's, whatever becomes of the VFIO device.
TEST_F(VfioCdev, MappingsOutliveTheVfioDevice) {
    Fd device;
    Fd iommufd;
    Buffer b;
    dmaprobe_map map = {};

    if (!iommu)
        GTEST_SKIP() << "no IOMMU translates for the device";
    ASSERT_OK(s.alloc(b, page_size()));
    map.buffer_id = b.id;
    map.length = page_size();
    ASSERT_OK(s(map));
    ASSERT_OK(open_vfio(device, iommufd));
    expect_leads_to(map.dma_addr, page_size(), b, 0);
    ASSERT_OK(device.close());
    ASSERT_OK(iommufd.close());
    expect_leads_to(map.dma_addr, page_size(), b, 0);
}

// Of two processes, the first has it, until it dies.
TEST_F(VfioCdev, TwoProcesses) {
    std::array<int, 2> ends{};

    ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
    const Fd out(ends[0]);
    Fd in(ends[1]);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        Fd device;
        Fd iommufd;

        if (open_vfio(device, iommufd) || write(in.get(), "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    in.close();
    char byte = 0;
    EXPECT_EQ(read(out.get(), &byte, 1), 1) << "the child could not open it";
    Fd device;
    Fd iommufd;
    for (int i = 0; i < 3; i++)
        EXPECT_ERRNO(open_vfio(device, iommufd), EINVAL) << "opened twice";
    EXPECT_ERRNO(enable(s, true), EBUSY);
    kill(child, SIGKILL);
    int status = -1;
    ASSERT_TRUE(wait_for_child(child, seconds(20), status));
    EXPECT_OK(open_vfio(device, iommufd)) << "the first one has died";
    EXPECT_OK(device.close());
    EXPECT_OK(enable(s, true));
}

// Threads ask for the registers, by VFIO and by sessions: one or the other has them.
TEST_F(VfioCdev, RaceForTheRegisters) {
    const auto end = std::chrono::steady_clock::now() + milliseconds(1200);
    std::atomic<int> by_vfio = 0;
    std::atomic<int> by_session = 0;
    std::atomic<int> together = 0;
    std::atomic<int> odd = 0;
    std::vector<std::thread> threads;

    threads.reserve(4);
    for (int t = 0; t < 4; t++) {
        threads.emplace_back([&, t] {
            while (std::chrono::steady_clock::now() < end) {
                const Raw own = Raw::open(bdf);
                Fd device;
                Fd iommufd;
                const int err = t < 2 ? open_vfio(device, iommufd) : enable(own, true);

                if (err) {
                    if (err != EBUSY && (t >= 2 || err != EINVAL))
                        odd = err;
                    continue;
                }
                (t < 2 ? by_vfio : by_session)++;
                if (by_vfio > 0 && by_session > 0)
                    together++;
                std::this_thread::sleep_for(milliseconds(1));
                (t < 2 ? by_vfio : by_session)--;
                // Let go in one or the other order.
                if (t == 0)
                    iommufd.close();
            }
        });
    }
    for (std::thread& thread : threads)
        thread.join();
    EXPECT_ERRNO(odd.load(), 0);
    EXPECT_EQ(together.load(), 0) << "both had them at once";
    EXPECT_OK(enable(s, true));
}

// A reset by VFIO takes nothing from the sessions, whatever they are doing.
TEST_F(VfioCdev, ResetUnderAllCalls) {
    Arena arena(bdf);
    Mapped mapped;
    Fd device;
    Fd iommufd;

    ASSERT_OK(arena.error());
    ASSERT_OK(mapped.make(s));
    ASSERT_OK(open_vfio(device, iommufd));
    if (ioctl(device.get(), VFIO_DEVICE_RESET))
        GTEST_SKIP() << "the function cannot be reset: " << strerror(errno);
    {
        std::atomic<bool> stop = false;
        std::vector<std::thread> threads;

        threads.reserve(3);
        for (unsigned t = 0; t < 3; t++) {
            threads.emplace_back([&, t] {
                Dice dice(t);

                while (!stop && !arena.gone())
                    arena.turn(dice);
            });
        }
        for (int i = 0; i < 8; i++) {
            EXPECT_EQ(ioctl(device.get(), VFIO_DEVICE_RESET), 0) << strerror(errno);
            if (iommu)
                expect_leads_to(mapped.map.dma_addr, page_size(), mapped.buffer, 0);
        }
        stop = true;
        for (std::thread& thread : threads)
            thread.join();
    }
    EXPECT_EQ(arena.odd(), "");
    EXPECT_EQ(arena.left_over(), arena.live());
    EXPECT_OK(arena.close());
}

// The driver is unbound while the VFIO device is open: sessions end at once, and the unbind
// waits until it is closed.
TEST_F(VfioCdev, UnbindWaitsForWhoHasItOpen) {
    std::atomic<bool> done = false;
    Fd device;
    Fd iommufd;
    Mapped mapped;
    dmaprobe_get_info info = {};

    ASSERT_OK(mapped.make(s));
    ASSERT_OK(open_vfio(device, iommufd));
    std::thread unbinder([&] {
        unbind_driver(bdf);
        done = true;
    });
    EXPECT_TRUE(wait_for([&] { return s(info) == ENODEV; }, seconds(10)));
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_FALSE(done.load()) << "unbound while it is open";
    EXPECT_OK(device.close());
    EXPECT_OK(iommufd.close());
    unbinder.join();
    EXPECT_EQ(driver_of(bdf), "");
    EXPECT_OK(s.close());
    ASSERT_NO_FATAL_FAILURE(come_back());
    EXPECT_OK(open_vfio(device, iommufd));
}

// --- groups -----------------------------------------------------------------------

class VfioGroup : public Unbinding<DeviceTest> {
protected:
    void SetUp() override {
        Unbinding<DeviceTest>::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        if (group_of(bdf).empty())
            GTEST_SKIP() << "the device has no IOMMU group";
        if (!exists("/dev/vfio/" + group_of(bdf)) || !exists("/dev/vfio/vfio"))
            GTEST_SKIP() << "this kernel has no VFIO groups";
    }
};

// The kernel has the group's DMA for as long as the device is bound.
TEST_F(VfioGroup, IsNotToBeClaimedWhileBound) {
    Mapped mapped;

    ASSERT_OK(mapped.make(s));
    for (int i = 0; i < 3; i++) {
        Fd group;
        Fd container;
        vfio_group_status status = {};

        EXPECT_ERRNO(claim_group(bdf, group, container), EPERM);
        status.argsz = sizeof(status);
        ASSERT_EQ(ioctl(group.get(), VFIO_GROUP_GET_STATUS, &status), 0);
        EXPECT_FALSE(status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET);
        EXPECT_LT(ioctl(group.get(), VFIO_GROUP_GET_DEVICE_FD, bdf.c_str()), 0);
    }
    if (iommu)
        expect_leads_to(mapped.map.dma_addr, page_size(), mapped.buffer, 0);
    EXPECT_OK(s.unmap(mapped.map.id));
}

// With an iommufd for a container, the device can be had: as by its node, without the DMA.
TEST_F(VfioGroup, OfAnIommufdGivesTheRegistersAlone) {
    Mapped mapped;
    const Fd iommufd(open("/dev/iommu", O_RDWR | O_CLOEXEC));
    const Fd group(open(("/dev/vfio/" + group_of(bdf)).c_str(), O_RDWR | O_CLOEXEC));
    const int fd = iommufd.get();

    if (!iommufd)
        GTEST_SKIP() << "this kernel has no /dev/iommu";
    ASSERT_TRUE(group) << strerror(errno);
    ASSERT_OK(mapped.make(s));
    if (ioctl(group.get(), VFIO_GROUP_SET_CONTAINER, &fd))
        GTEST_SKIP() << "an iommufd is no container here: " << strerror(errno);
    Fd device(ioctl(group.get(), VFIO_GROUP_GET_DEVICE_FD, bdf.c_str()));
    if (device) {
        EXPECT_ERRNO(enable(s, true), EBUSY);
    }
    if (iommu)
        expect_leads_to(mapped.map.dma_addr, page_size(), mapped.buffer, 0);
    device.close();
    EXPECT_OK(enable(s, true));
    EXPECT_OK(s.unmap(mapped.map.id));
}

// --- a group of two ---------------------------------------------------------------

// Two functions that share a group, because nothing keeps them from reaching each other.
// One is dmaprobe's, the other one VFIO's, or both are dmaprobe's.
class SharedGroup : public DeviceTest {
protected:
    void SetUp() override {
        DeviceTest::SetUp();
        if (IsSkipped() || HasFatalFailure())
            return;
        const std::vector<std::string> like = group_of_like(bdf);
        if (like.empty())
            GTEST_SKIP() << "no two functions of the device's kind share a group";
        first = like[0];
        second = like[1];
        keep_first.emplace(first);
        keep_second.emplace(second);
        find_ways();
    }

    void TearDown() override {
        // Unbinding from vfio-pci waits for who has it open.
        let_go();
        s.close();
        if (keep_first) {
            EXPECT_TRUE(keep_first->restore());
            EXPECT_TRUE(keep_second->restore());
        }
    }

    // By the driver's own file, which says why it does not work. 0 or errno.
    static int bind(const std::string& name, const std::string& driver) {
        if (!exists("/sys/bus/pci/drivers/" + driver))
            run({"modprobe", driver});
        if (!driver_of(name).empty())
            unbind_driver(name);
        if (const int err = write_text(pci_path(name) + "/driver_override", driver))
            return err;
        if (const int err = write_text("/sys/bus/pci/drivers/" + driver + "/bind", name))
            return err;
        if (driver == driver_name && !wait_for([&] { return exists(node_path(name)); }, seconds(5)))
            return ETIMEDOUT;
        return 0;
    }

    // VFIO takes the group by @name. 0 or errno.
    int claim(const std::string& name, bool by_cdev) {
        return by_cdev ? open_cdev(name, a, b) : claim_group(name, a, b);
    }

    void let_go() {
        a.close();
        b.close();
    }

    // The ways by which VFIO can have the group when nobody else wants it. By its node it
    // cannot where interrupts are not remapped.
    void find_ways() {
        if (bind(second, "vfio-pci"))
            return;
        for (const bool by_cdev : {false, true}) {
            if (claim(second, by_cdev) == 0)
                ways.push_back(by_cdev);
            let_go();
        }
    }

    std::string first;
    std::string second;
    Fd a;
    Fd b;
    std::vector<bool> ways;
    std::optional<KeepDriver> keep_first;
    std::optional<KeepDriver> keep_second;
};

class SharedGroupOrVfio : public SharedGroup {
protected:
    void SetUp() override {
        SharedGroup::SetUp();
        if (!IsSkipped() && ways.empty())
            GTEST_SKIP() << "VFIO cannot have the group here";
    }
};

TEST_F(SharedGroupOrVfio, ClaimedByVfioIsNotProbed) {
    for (const bool by_cdev : ways) {
        SCOPED_TRACE(by_cdev ? "by the node" : "by the group");
        ASSERT_OK(claim(second, by_cdev));
        for (int i = 0; i < 3; i++) {
            EXPECT_ERRNO(bind(first, driver_name), EBUSY);
            EXPECT_EQ(driver_of(first), "");
            EXPECT_FALSE(exists(node_path(first)));
        }
        const Outcome tool = run({"dmaprobe", "bind", "--force", first});
        EXPECT_EQ(tool.code, 1) << tool.out << tool.err;
        EXPECT_NE(tool.err, "");
        EXPECT_FALSE(exists(node_path(first)));
        let_go();
        // Nothing is left of it.
        ASSERT_OK(bind(first, driver_name));
        Raw mine = Raw::open(first);
        Mapped mapped;
        ASSERT_TRUE(mine);
        EXPECT_OK(mapped.make(mine));
        ASSERT_OK(mine.close());
        ASSERT_OK(unbind_driver(first));
    }
}

TEST_F(SharedGroupOrVfio, BoundIsNotClaimedByVfio) {
    ASSERT_OK(bind(first, driver_name));
    s = Raw::open(first);
    ASSERT_TRUE(s);
    Mapped mapped;
    ASSERT_OK(mapped.make(s));
    for (const bool by_cdev : ways) {
        SCOPED_TRACE(by_cdev ? "by the node" : "by the group");
        for (int i = 0; i < 3; i++) {
            const int err = claim(second, by_cdev);
            EXPECT_TRUE(err == EPERM || err == EBUSY) << err;
            let_go();
        }
    }
    if (s.translated()) {
        std::vector<Extent> got;

        // Another driver could map and unmap in the domain meanwhile.
        EXPECT_ERRNO(s.translate(got, mapped.map.dma_addr, page_size()), EBUSY);
        ASSERT_OK(unbind_driver(second));
        expect_leads_to(mapped.map.dma_addr, page_size(), mapped.buffer, 0);
        ASSERT_OK(bind(second, "vfio-pci"));
        EXPECT_ERRNO(s.translate(got, mapped.map.dma_addr, page_size()), EBUSY);
    }
    ASSERT_OK(s.close());
    ASSERT_OK(unbind_driver(first));
    for (const bool by_cdev : ways) {
        EXPECT_OK(claim(second, by_cdev)) << "with dmaprobe gone";
        let_go();
    }
}

// Threads bind one while others claim the group by the other one.
TEST_F(SharedGroupOrVfio, RaceForTheGroup) {
    std::atomic<bool> stop = false;
    std::atomic<int> claimed = 0;
    std::atomic<int> stolen = 0;
    std::atomic<int> mapping = 0; // its number while it is there
    int bound = 0;

    // Each leaves the group alone for as long as it took to try, so that both have a chance however
    // slow the machine is.
    using Clock = std::chrono::steady_clock;
    std::thread other([&] {
        for (size_t i = 0; !stop; i++) {
            const auto began = Clock::now();
            const int before = mapping;

            if (claim(second, ways[i % ways.size()]) == 0) {
                claimed++;
                stolen += before != 0 && mapping == before;
                std::this_thread::sleep_for(milliseconds(3));
            }
            let_go();
            std::this_thread::sleep_for(Clock::now() - began);
        }
    });
    // On the debug kernel a bind takes seconds: ACPI is asked for the interrupt.
    const auto end = Clock::now() + seconds(60);
    for (int i = 0; (i < 40 || bound < 3 || claimed < 3) && Clock::now() < end; i++) {
        const auto began = Clock::now();
        const int err = bind(first, driver_name);

        EXPECT_TRUE(err == 0 || err == EBUSY) << err;
        if (err) {
            std::this_thread::sleep_for(Clock::now() - began);
            continue;
        }
        bound++;
        Raw mine = Raw::open(first);
        Mapped mapped;
        EXPECT_TRUE(mine);
        EXPECT_OK(mapped.make(mine));
        mapping = bound;
        std::this_thread::sleep_for(milliseconds(2));
        mapping = 0;
        EXPECT_OK(mine.close());
        EXPECT_OK(unbind_driver(first));
        std::this_thread::sleep_for(Clock::now() - began);
    }
    stop = true;
    other.join();
    EXPECT_GE(bound, 3);
    EXPECT_GE(claimed.load(), 3);
    EXPECT_EQ(stolen.load(), 0) << "VFIO had the group of a device with mappings";
}

// VFIO resets the functions of a slot or a bus together, so that whoever has one of them
// enabled keeps the others from it.
TEST_F(SharedGroup, EnabledOrResetTogether) {
    Fd device;
    Fd iommufd;

    if (fs::canonical(pci_path(first)).parent_path() !=
        fs::canonical(pci_path(second)).parent_path())
        GTEST_SKIP() << "the two functions are not of one bus";
    ASSERT_OK(bind(first, driver_name));
    ASSERT_OK(bind(second, driver_name));
    Raw one = Raw::open(first);
    const Raw two = Raw::open(second);
    ASSERT_TRUE(one && two);
    // Both by sessions.
    EXPECT_OK(enable(one, true));
    EXPECT_OK(enable(two, true));
    if (!exists("/dev/iommu") || cdev_of(first).empty()) {
        EXPECT_OK(enable(two, false));
    } else {
        // One is enabled, and VFIO opens the other.
        EXPECT_OK(enable(one, false));
        EXPECT_ERRNO(open_cdev(first, device, iommufd), EBUSY) << "the second is enabled";
        device.close();
        EXPECT_OK(enable(two, false));
        // VFIO has one open, and a session enables either.
        if (open_cdev(first, device, iommufd) == 0) {
            EXPECT_ERRNO(enable(two, true), EBUSY);
            EXPECT_ERRNO(enable(one, true), EBUSY);
            device.close();
            iommufd.close();
        }
    }
    EXPECT_OK(enable(two, true));
    EXPECT_OK(enable(two, false));
    EXPECT_OK(one.close());

    // A driver of VFIO's that does not know of sessions could open it at any time.
    if (bind(first, "vfio-pci"))
        GTEST_SKIP() << "there is no vfio-pci here";
    EXPECT_ERRNO(enable(two, true), EBUSY) << "vfio-pci has the other function";
    EXPECT_OK(enable(two, false));
    ASSERT_OK(unbind_driver(first));
    EXPECT_OK(enable(two, true)) << "nobody has it any more";
}

// Two devices, one domain: their addresses do not meet, and each has its own sessions.
TEST_F(SharedGroup, BothBound) {
    ASSERT_OK(bind(first, driver_name));
    ASSERT_OK(bind(second, driver_name));
    for (const bool first_goes : {true, false}) {
        Raw one = Raw::open(first);
        Raw two = Raw::open(second);
        Mapped mine;
        Mapped theirs;

        SCOPED_TRACE(first_goes ? "the first goes" : "the second goes");
        ASSERT_TRUE(one && two);
        ASSERT_OK(mine.make(one));
        ASSERT_OK(theirs.make(two));
        if (one.translated()) {
            std::vector<Extent> got;

            EXPECT_NE(mine.map.dma_addr, theirs.map.dma_addr);
            // What one has mapped, the other one reaches: it is foreign, and no more is reported.
            ASSERT_OK(two.translate(got, mine.map.dma_addr, page_size()));
            ASSERT_EQ(got.size(), 1u);
            EXPECT_EQ(got[0].kind, uint32_t{DMAPROBE_EXTENT_FOREIGN});
            EXPECT_EQ(got[0].buffer_id, 0u);
        }
        Raw& stays = first_goes ? two : one;
        const Mapped& kept = first_goes ? theirs : mine;
        const std::string gone = first_goes ? first : second;
        ASSERT_OK(unbind_driver(gone));
        if (stays.translated()) {
            std::vector<Extent> got;

            ASSERT_OK(stays.translate(got, kept.map.dma_addr, page_size()));
            ASSERT_EQ(got.size(), 1u);
            EXPECT_EQ(got[0].buffer_id, kept.buffer.id);
            const uint64_t other = first_goes ? mine.map.dma_addr : theirs.map.dma_addr;
            ASSERT_OK(stays.translate(got, other, page_size()));
            ASSERT_EQ(got.size(), 1u);
            EXPECT_EQ(got[0].kind, uint32_t{DMAPROBE_EXTENT_HOLE}) << "left behind";
        }
        ASSERT_OK(one.close());
        ASSERT_OK(two.close());
        ASSERT_OK(bind(gone, driver_name));
    }
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: GPL-2.0-only
// PCI devices as sysfs shows them, from a tree made here.

#include "support/result.h"
#include "support/system.h"

#include <dmaprobe/pci.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace selftest {
namespace {

namespace fs = std::filesystem;
using namespace dmaprobe;

class Pci : public testing::Test {
protected:
    void SetUp() override {
        char dir[] = "/tmp/dmaprobe-sysfs-XXXXXX";

        ASSERT_NE(mkdtemp(dir), nullptr);
        root_ = dir;
        paths.sysfs = root_ + "/sys";
        paths.procfs = root_ + "/proc";
        paths.state_dir = root_ + "/state";
        fs::create_directories(paths.sysfs + "/bus/pci/devices");
        fs::create_directories(paths.sysfs + "/bus/pci/drivers");
        file("/bus/pci/drivers_probe", "");
    }
    void TearDown() override { fs::remove_all(root_); }

    void file(const std::string& path, const std::string& text) const {
        const std::string full = paths.sysfs + path;

        fs::create_directories(fs::path(full).parent_path());
        std::ofstream(full) << text;
    }

    void link(const std::string& path, const std::string& target) const {
        const std::string full = paths.sysfs + path;

        fs::create_directories(fs::path(full).parent_path());
        fs::create_symlink(target, full);
    }

    void proc(const std::string& path, const std::string& text) const {
        const std::string full = paths.procfs + path;

        fs::create_directories(fs::path(full).parent_path());
        std::ofstream(full) << text;
    }

    struct Function {
        const char* vendor = "0x1234";
        const char* device = "0x11e8";
        const char* class_code = "0x00ff00";
        const char* driver = "";
        const char* group = "";
    };

    // A function with its real directory elsewhere, as in sysfs.
    void add(const std::string& bdf, const Function& f) const {
        const std::string dir = "/devices/pci0000:00/" + bdf;

        file(dir + "/vendor", std::string(f.vendor) + "\n");
        file(dir + "/device", std::string(f.device) + "\n");
        file(dir + "/class", std::string(f.class_code) + "\n");
        file(dir + "/driver_override", "(null)\n");
        link("/bus/pci/devices/" + bdf, "../../../devices/pci0000:00/" + bdf);
        if (*f.driver) {
            const std::string driver = std::string("/bus/pci/drivers/") + f.driver;

            file(driver + "/unbind", "");
            file(driver + "/bind", "");
            link(dir + "/driver", "../../.." + driver);
            link(driver + "/" + bdf, "../../../../devices/pci0000:00/" + bdf);
        }
        if (*f.group) {
            const std::string group = std::string("/kernel/iommu_groups/") + f.group;

            file(group + "/type", "DMA-FQ\n");
            link(group + "/devices/" + bdf, "../../../../devices/pci0000:00/" + bdf);
            link(dir + "/iommu_group", "../../.." + group);
            link(dir + "/iommu", "../../virtual/iommu/dmar0");
            fs::create_directories(paths.sysfs + "/devices/virtual/iommu/dmar0/intel-iommu");
        }
    }

    // A function's configuration space, with a PCI Express capability of this type behind another.
    static std::string config(int express_type, unsigned char secondary_bus) {
        std::string bytes(256, '\0');
        bytes[0x06] = 0x10;
        bytes[0x0e] = 1;
        bytes[0x19] = static_cast<char>(secondary_bus);
        bytes[0x34] = 0x40;
        bytes[0x40] = 0x01;
        bytes[0x41] = 0x50;
        bytes[0x50] = express_type < 0 ? 0x09 : 0x10;
        bytes[0x52] = static_cast<char>(express_type < 0 ? 0 : express_type << 4 | 2);
        return bytes;
    }

    std::string sysfs(const std::string& path) const { return read_text(paths.sysfs + path); }

    SystemPaths paths;

private:
    std::string root_;
};

TEST_F(Pci, NoPciAtAll) {
    paths.sysfs += "/nothing";
    const PciBus bus(paths);

    EXPECT_FAILS(bus.devices(), ENOENT);
    EXPECT_FAILS(bus.device({0, 1, 0, 0}), ENODEV);
    EXPECT_FALSE(bus.module_loaded());
    const auto bound = bus.bound();
    ASSERT_WORKS(bound);
    EXPECT_TRUE(bound->empty());
}

// What pci_for_each_dma_alias() of the kernel goes by.
TEST_F(Pci, RequesterIds) {
    constexpr int root_port = 4, to_pci = 7, from_pci = 8, conventional = -1;
    const PciBus bus(paths);
    std::string dir = "/devices/pci0000:00";
    const auto below = [&](const std::string& bridge, int type, unsigned char secondary) {
        dir += "/" + bridge;
        file(dir + "/config", config(type, secondary));
        const std::string function = dir + "/0000:09:05.0";
        file(function + "/vendor", "0x1234\n");
        fs::remove(paths.sysfs + "/bus/pci/devices/0000:09:05.0");
        link("/bus/pci/devices/0000:09:05.0", "../../.." + function);
        return bus.requester_ids({0, 9, 5, 0});
    };
    const Bdf own{0, 9, 5, 0};
    const auto is = [&](const Result<std::vector<Bdf>>& ids, std::vector<Bdf> want) {
        ASSERT_WORKS(ids);
        want.insert(want.begin(), own);
        EXPECT_EQ(*ids, want);
    };

    is(below("0000:00:01.0", root_port, 1), {});
    is(below("0000:01:00.0", to_pci, 9), {{0, 9, 0, 0}});
    is(below("0000:09:02.0", conventional, 10), {{0, 9, 2, 0}, {0, 9, 0, 0}});
    is(below("0000:0a:03.0", from_pci, 11), {{0, 10, 3, 0}, {0, 9, 2, 0}, {0, 9, 0, 0}});
    // As sysfs shows it to others than root: nothing is known of the bridge.
    file(dir + "/config", config(from_pci, 11).substr(0, 64));
    is(bus.requester_ids(own), {{0, 9, 2, 0}, {0, 9, 0, 0}});
    EXPECT_FAILS(bus.requester_ids({0, 7, 0, 0}), ENODEV);
}

// A list of capabilities that never ends.
TEST_F(Pci, RequesterIdsBehindABrokenBridge) {
    std::string bytes = config(4, 9);
    bytes[0x41] = 0x40;
    file("/devices/pci0000:00/0000:00:01.0/config", bytes);
    file("/devices/pci0000:00/0000:00:01.0/0000:09:05.0/vendor", "0x1234\n");
    link("/bus/pci/devices/0000:09:05.0", "../../../devices/pci0000:00/0000:00:01.0/0000:09:05.0");
    const auto ids = PciBus(paths).requester_ids({0, 9, 5, 0});
    ASSERT_WORKS(ids);
    EXPECT_EQ(ids->size(), 2u);
}

TEST_F(Pci, Device) {
    add("0000:01:00.0", {.driver = "vfio-pci", .group = "7"});
    add("0000:00:1c.0", {.vendor = "0x8086",
                         .device = "0x2918",
                         .class_code = "0x060400",
                         .driver = "pcieport",
                         .group = "7"});
    const PciBus bus(paths);
    const auto d = bus.device({0, 1, 0, 0});

    ASSERT_WORKS(d);
    EXPECT_EQ(d->vendor, 0x1234);
    EXPECT_EQ(d->device, 0x11e8);
    EXPECT_EQ(d->class_code, 0x00ff00u);
    EXPECT_FALSE(d->is_bridge());
    EXPECT_EQ(d->driver, "vfio-pci");
    EXPECT_EQ(d->driver_override, "");
    EXPECT_EQ(d->group, 7u);
    EXPECT_EQ(d->group_type, "DMA-FQ");
    // As the kernel names a group without a default domain.
    file("/kernel/iommu_groups/7/type", "unknown\n");
    EXPECT_EQ(bus.device(d->bdf)->group_type, "");
    file("/kernel/iommu_groups/7/type", "DMA-FQ\n");
    EXPECT_EQ(d->iommu, "dmar0");
    EXPECT_EQ(d->iommu_driver, "intel-iommu");
    EXPECT_EQ(d->engine, "edu");
    ASSERT_EQ(d->group_members.size(), 1u);
    EXPECT_EQ(d->group_members[0].bdf, (Bdf{0, 0, 0x1c, 0}));
    EXPECT_EQ(d->group_members[0].driver, "pcieport");
    EXPECT_TRUE(d->group_members[0].bridge);
}

TEST_F(Pci, DeviceWithNothing) {
    add("0000:01:00.0", {.vendor = "0x8086", .device = "0x10d3"});
    const auto d = PciBus(paths).device({0, 1, 0, 0});

    ASSERT_WORKS(d);
    EXPECT_EQ(d->driver, "");
    EXPECT_EQ(d->engine, "");
    EXPECT_FALSE(d->group);
    EXPECT_EQ(d->iommu, "");
    EXPECT_TRUE(d->group_members.empty());
}

TEST_F(Pci, DevicesInOrder) {
    add("0001:00:00.0", {});
    add("0000:ff:00.0", {});
    add("0000:01:00.1", {});
    add("0000:01:00.0", {});
    // What goes away meanwhile, and what is no function.
    link("/bus/pci/devices/0000:02:00.0", "../../../devices/gone");
    file("/bus/pci/devices/README", "");
    const auto all = PciBus(paths).devices();

    ASSERT_WORKS(all);
    std::vector<std::string> names;
    for (const PciDevice& d : *all)
        names.push_back(d.bdf.to_string());
    EXPECT_THAT(names, testing::ElementsAre("0000:01:00.0", "0000:01:00.1", "0000:ff:00.0",
                                            "0001:00:00.0"));
}

TEST_F(Pci, Bound) {
    add("0000:02:00.0", {.driver = "dmaprobe"});
    add("0000:01:00.0", {.driver = "dmaprobe"});
    add("0000:03:00.0", {.driver = "nvme"});
    const PciBus bus(paths);
    const auto bound = bus.bound();

    EXPECT_TRUE(bus.module_loaded());
    ASSERT_WORKS(bound);
    EXPECT_EQ(*bound, (std::vector<Bdf>{{0, 1, 0, 0}, {0, 2, 0, 0}}));
}

TEST_F(Pci, UsageOfANetworkCard) {
    const std::string dir = "/devices/pci0000:00/0000:03:00.0/net/";

    add("0000:03:00.0", {.driver = "e1000e"});
    for (const char* name : {"eth0", "eth1"}) {
        link(dir + name + "/subsystem", "../../../../../class/net");
        file(dir + name + "/flags", std::string(name) == "eth0" ? "0x1003\n" : "0x1002\n");
    }
    const auto usage = PciBus(paths).usage({0, 3, 0, 0});

    ASSERT_WORKS(usage);
    EXPECT_EQ(usage->driver, "e1000e");
    EXPECT_THAT(usage->losses, testing::ElementsAre("network interface eth0 (up)"));
    EXPECT_THAT(usage->offers, testing::ElementsAre("network interface eth1 (down)"));
}

TEST_F(Pci, UsageOfADisk) {
    const std::string dir = "/devices/pci0000:00/0000:04:00.0/host0/block/sda";

    add("0000:04:00.0", {.driver = "ahci"});
    link(dir + "/subsystem", "../../../../../../class/block");
    file(dir + "/dev", "8:0\n");
    for (const char* part : {"/sda1", "/sda2", "/sda3"}) {
        link(dir + part + "/subsystem", "../../../../../../../class/block");
        file(dir + part + "/partition", std::string(part).substr(4) + "\n");
        file(dir + part + "/dev", std::string("8:") + part[4] + "\n");
        link(std::string("/class/block") + part,
             "../../devices/pci0000:00/0000:04:00.0/host0/block/sda" + std::string(part));
    }
    link("/class/block/sda", "../../devices/pci0000:00/0000:04:00.0/host0/block/sda");
    proc("/self/mountinfo", "22 1 8:1 / /mnt/with\\040space rw - ext4 /dev/sda1 rw\n"
                            "23 1 0:5 / /proc rw - proc proc rw\n"
                            "short line\n");
    proc("/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
    const auto usage = PciBus(paths).usage({0, 4, 0, 0});

    ASSERT_WORKS(usage);
    EXPECT_THAT(usage->losses,
                testing::ElementsAre("sda1 mounted on /mnt/with space", "sda2 used for swap"));
}

TEST_F(Pci, UsageOfNothing) {
    add("0000:01:00.0", {});
    const auto usage = PciBus(paths).usage({0, 1, 0, 0});

    ASSERT_WORKS(usage);
    EXPECT_TRUE(usage->losses.empty());
    EXPECT_TRUE(usage->offers.empty());
    EXPECT_FAILS(PciBus(paths).usage({0, 9, 0, 0}), ENODEV);
}

// What mounts and holders do not show: members of a btrfs, programs, virtual functions.
TEST_F(Pci, UsageThatMountsDoNotShow) {
    add("0000:03:00.0", {.driver = "nvme", .group = "1"});
    const std::string dir = "/devices/pci0000:00/0000:03:00.0";
    for (const char* name : {"nvme0n1", "nvme0n2", "nvme0n3"}) {
        link(dir + "/nvme/nvme0/" + name + "/subsystem", "../../../../../../../class/block");
        file(std::string("/class/block/") + name + "/dev", "259:0\n");
    }
    fs::create_directories(paths.sysfs + "/fs/btrfs/6b6d-01/devices/nvme0n1");
    file(dir + "/sriov_numvfs", "3\n");
    proc("/self/mountinfo", "");
    proc("/77/comm", "qemu-system-x86\n");
    fs::create_directories(paths.procfs + "/77/fd");
    for (const char* fd : {"4", "5"})
        fs::create_symlink("/dev/nvme0n2", paths.procfs + "/77/fd/" + fd);
    paths.dev = paths.sysfs + "/nodes";
    const auto usage = PciBus(paths).usage({0, 3, 0, 0});
    ASSERT_WORKS(usage);
    EXPECT_EQ(usage->losses, (std::vector<std::string>{"3 virtual functions (SR-IOV)",
                                                       "nvme0n1 part of a mounted btrfs",
                                                       "nvme0n2 open in qemu-system-x86 (77)"}));
    EXPECT_EQ(usage->offers, std::vector<std::string>{"disk nvme0n3"});
}

// A virtual machine has the function, by its group or by a node of its own; a program has a node of
// the driver's.
TEST_F(Pci, UsageOfOpenNodes) {
    const std::string dir = "/devices/pci0000:00/0000:03:00.0";

    add("0000:03:00.0", {.driver = "vfio-pci", .group = "12"});
    const auto node = [&](const std::string& name, const std::string& subsystem,
                          const std::string& uevent) {
        link(dir + "/" + subsystem + "/" + name + "/subsystem",
             "../../../../../class/" + subsystem);
        file(dir + "/" + subsystem + "/" + name + "/dev", "226:0\n");
        file(dir + "/" + subsystem + "/" + name + "/uevent", uevent);
    };
    node("vfio3", "vfio-dev", "MAJOR=511\nDEVNAME=vfio/devices/vfio3\n");
    node("card0", "drm", "MAJOR=226\nDEVNAME=dri/card0\nDEVTYPE=drm_minor\n");
    node("card1", "drm", "DEVNAME=dri/card1\n");
    ASSERT_WORKS(PciBus(paths).usage({0, 3, 0, 0}));
    EXPECT_TRUE(PciBus(paths).usage({0, 3, 0, 0})->losses.empty());
    EXPECT_EQ(PciBus(paths).usage({0, 3, 0, 0})->offers,
              (std::vector<std::string>{"drm card0", "drm card1"}));

    proc("/5/comm", "qemu\n");
    fs::create_directories(paths.procfs + "/5/fd");
    int fd = 3;
    for (const char* name : {"vfio/12", "vfio/1", "vfio/devices/vfio3", "dri/card0"})
        fs::create_symlink(std::string("/dev/") + name,
                           paths.procfs + "/5/fd/" + std::to_string(fd++));
    const auto usage = PciBus(paths).usage({0, 3, 0, 0});
    ASSERT_WORKS(usage);
    EXPECT_EQ(usage->losses, (std::vector<std::string>{"VFIO group 12 open in qemu (5)",
                                                       "drm card0 open in qemu (5)",
                                                       "vfio-dev vfio3 open in qemu (5)"}));
    EXPECT_EQ(usage->offers, std::vector<std::string>{"drm card1"});
}

// What cannot be listed is not empty.
TEST_F(Pci, ListsThatCannotBeRead) {
    file("/bus/pci/drivers/dmaprobe", "no directory\n");
    EXPECT_FAILS(PciBus(paths).bound(), ENOTDIR);
    fs::remove_all(paths.sysfs + "/bus/pci/devices");
    file("/bus/pci/devices", "no directory\n");
    EXPECT_FAILS(PciBus(paths).devices(), ENOTDIR);
}

// --- what bind() refuses, and that it then leaves everything as it was --------

class PciBind : public Pci {
protected:
    void refused(const Bdf& bdf, int code, const std::vector<std::string>& mentions,
                 bool force = false) const {
        const std::string dir = "/bus/pci/devices/" + bdf.to_string();
        const auto done = PciBus(paths).bind(bdf, force);

        ASSERT_FAILS(done, code);
        for (const std::string& text : mentions)
            EXPECT_THAT(done.error().detail, testing::HasSubstr(text));
        EXPECT_EQ(done.error().message().find('\n'), std::string::npos);
        EXPECT_EQ(sysfs("/bus/pci/drivers_probe"), "") << "a driver was asked for";
        if (exists(paths.sysfs + dir)) {
            EXPECT_EQ(sysfs(dir + "/driver_override"), "(null)");
        }
        EXPECT_FALSE(exists(paths.state_dir + "/" + bdf.to_string()));
    }
};

TEST_F(PciBind, NoSuchDevice) {
    refused({0, 9, 0, 0}, ENODEV, {"0000:09:00.0"});
}

TEST_F(PciBind, Bridge) {
    file("/bus/pci/drivers/dmaprobe/unbind", "");
    add("0000:01:00.0", {.class_code = "0x060400", .group = "1"});
    refused({0, 1, 0, 0}, EPERM, {"bridge"});
    refused({0, 1, 0, 0}, EPERM, {"bridge"}, true);
}

TEST_F(PciBind, NoIommu) {
    file("/bus/pci/drivers/dmaprobe/unbind", "");
    add("0000:01:00.0", {});
    refused({0, 1, 0, 0}, EOPNOTSUPP, {"IOMMU", "enable_unsafe_noiommu_mode=1"});
    file("/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n");
    refused({0, 1, 0, 0}, EOPNOTSUPP, {"IOMMU"});
}

// VFIO is set to take devices without an IOMMU as well. There is no domain to choose then.
TEST_F(PciBind, NoIommuIsNeeded) {
    file("/bus/pci/drivers/dmaprobe/unbind", "");
    file("/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n");
    add("0000:01:00.0", {});
    // The kernel of this tree never binds anything.
    ASSERT_FAILS(PciBus(paths).bind({0, 1, 0, 0}, false), EIO);
    EXPECT_EQ(sysfs("/bus/pci/drivers_probe"), "0000:01:00.0");
    ASSERT_FAILS(PciBus(paths).bind({0, 1, 0, 0}, false, DomainType::dma), EOPNOTSUPP);
    for (const DomainType type : {DomainType::none, DomainType::other})
        ASSERT_FAILS(PciBus(paths).bind({0, 1, 0, 0}, false, type), EINVAL);
}

TEST_F(PciBind, UsedByADriver) {
    file("/bus/pci/drivers/dmaprobe/unbind", "");
    add("0000:03:00.0", {.driver = "e1000e", .group = "1"});
    link("/devices/pci0000:00/0000:03:00.0/net/eth0/subsystem", "../../../../../class/net");
    file("/devices/pci0000:00/0000:03:00.0/net/eth0/flags", "0x1003\n");
    refused({0, 3, 0, 0}, EBUSY, {"e1000e", "eth0"});
    EXPECT_EQ(sysfs("/bus/pci/drivers/e1000e/unbind"), "") << "the driver was unbound";
}

TEST_F(PciBind, SharedGroup) {
    file("/bus/pci/drivers/dmaprobe/unbind", "");
    add("0000:03:00.0", {.group = "1"});
    add("0000:03:00.1", {.driver = "nvme", .group = "1"});
    refused({0, 3, 0, 0}, EBUSY, {"group 1", "0000:03:00.1", "nvme"});
}

TEST_F(PciBind, ModuleNotLoaded) {
    add("0000:01:00.0", {.group = "1"});
    refused({0, 1, 0, 0}, ENOENT, {"module"});
}

// The kernel of this tree never binds anything: it must all be undone.
TEST_F(PciBind, DriverDoesNotTakeIt) {
    file("/bus/pci/drivers/dmaprobe/unbind", "");
    add("0000:01:00.0", {.driver = "nvme", .group = "1"});
    const auto done = PciBus(paths).bind({0, 1, 0, 0}, true);

    ASSERT_FAILS(done, EIO);
    EXPECT_EQ(sysfs("/bus/pci/drivers/nvme/unbind"), "0000:01:00.0");
    EXPECT_EQ(sysfs("/bus/pci/drivers_probe"), "0000:01:00.0");
    // An empty name was written over "dmaprobe", as far as a plain file shows it.
    EXPECT_TRUE(sysfs("/bus/pci/devices/0000:01:00.0/driver_override").starts_with('\n'));
    EXPECT_FALSE(exists(paths.state_dir + "/0000:01:00.0"));
}

// The domain is changed while there is no driver, and goes back when binding fails.
TEST_F(PciBind, DomainIsPutBack) {
    file("/bus/pci/drivers/dmaprobe/unbind", "");
    add("0000:01:00.0", {.driver = "nvme", .group = "1"});
    EXPECT_FAILS(PciBus(paths).bind({0, 1, 0, 0}, true, DomainType::identity), EIO);
    EXPECT_TRUE(sysfs("/kernel/iommu_groups/1/type").starts_with("DMA-FQ\n"));
    EXPECT_FALSE(exists(paths.state_dir + "/0000:01:00.0"));
}

// One that is bound keeps its domain; asking for the one it has is no error.
TEST_F(PciBind, DomainOfWhatIsBound) {
    add("0000:01:00.0", {.driver = "dmaprobe", .group = "1"});
    EXPECT_FAILS(PciBus(paths).bind({0, 1, 0, 0}, false, DomainType::dma), EBUSY);
    EXPECT_EQ(sysfs("/kernel/iommu_groups/1/type"), "DMA-FQ");
    const auto done = PciBus(paths).bind({0, 1, 0, 0}, false, DomainType::dma_fq);
    ASSERT_WORKS(done);
    EXPECT_TRUE(done->already_bound);
}

TEST_F(PciBind, DomainAfterUnbind) {
    file("/bus/pci/drivers/dmaprobe/unbind", "");
    add("0000:01:00.0", {.driver = "dmaprobe", .group = "1"});
    fs::create_directories(paths.state_dir);
    std::ofstream(paths.state_dir + "/0000:01:00.0")
        << "driver=\ndriver_override=\ndomain=identity\n";
    const auto done = PciBus(paths).unbind({0, 1, 0, 0});
    ASSERT_WORKS(done);
    EXPECT_EQ(done->domain_kept, "");
    EXPECT_EQ(sysfs("/kernel/iommu_groups/1/type"), "identity");
}

TEST_F(PciBind, AlreadyBound) {
    add("0000:01:00.0", {.driver = "dmaprobe", .group = "1"});
    const auto done = PciBus(paths).bind({0, 1, 0, 0}, false);

    ASSERT_WORKS(done);
    EXPECT_TRUE(done->already_bound);
    EXPECT_EQ(sysfs("/bus/pci/drivers_probe"), "");
}

// Unbound by hand, or by the end of the module: what was remembered still counts.
class PciTaken : public PciBind {
protected:
    void SetUp() override {
        PciBind::SetUp();
        file("/bus/pci/drivers/dmaprobe/unbind", "");
        file("/bus/pci/drivers/nvme/bind", "");
        add("0000:01:00.0", {.group = "1"});
        file("/devices/pci0000:00/0000:01:00.0/driver_override", "dmaprobe\n");
        fs::create_directories(paths.state_dir);
        std::ofstream(paths.state_dir + "/0000:01:00.0")
            << "driver=nvme\ndriver_override=\ndomain=identity\n";
    }

    void expect_given_back() const {
        EXPECT_EQ(sysfs("/bus/pci/drivers/nvme/bind"), "0000:01:00.0");
        EXPECT_TRUE(sysfs("/bus/pci/devices/0000:01:00.0/driver_override").starts_with('\n'));
        EXPECT_EQ(sysfs("/kernel/iommu_groups/1/type"), "identity");
        EXPECT_FALSE(exists(paths.state_dir + "/0000:01:00.0"));
    }
};

TEST_F(PciTaken, Unbind) {
    const auto done = PciBus(paths).unbind({0, 1, 0, 0});
    ASSERT_WORKS(done);
    EXPECT_EQ(done->refused_by, "nvme") << "the kernel of this tree never binds anything";
    expect_given_back();
    EXPECT_EQ(sysfs("/bus/pci/drivers/dmaprobe/unbind"), "");
}

// That the domain's type stays is said, and the rest is put back.
TEST_F(PciTaken, UnbindOfAKeptDomain) {
    const std::string type = paths.sysfs + "/kernel/iommu_groups/1/type";
    fs::remove(type);
    fs::create_directories(type);
    const auto done = PciBus(paths).unbind({0, 1, 0, 0});
    ASSERT_WORKS(done);
    EXPECT_NE(done->domain_kept, "");
    EXPECT_EQ(sysfs("/bus/pci/drivers/nvme/bind"), "0000:01:00.0");
}

TEST_F(PciTaken, BindThatFails) {
    EXPECT_FAILS(PciBus(paths).bind({0, 1, 0, 0}, false), EIO);
    expect_given_back();
}

TEST_F(PciBind, UnbindOfWhatIsNotBound) {
    add("0000:01:00.0", {.driver = "nvme", .group = "1"});
    add("0000:02:00.0", {});
    EXPECT_FAILS(PciBus(paths).unbind({0, 1, 0, 0}), ENXIO);
    EXPECT_FAILS(PciBus(paths).unbind({0, 2, 0, 0}), ENXIO);
    EXPECT_FAILS(PciBus(paths).unbind({0, 9, 0, 0}), ENODEV);
    EXPECT_EQ(sysfs("/bus/pci/drivers/nvme/unbind"), "");
}

} // namespace
} // namespace selftest

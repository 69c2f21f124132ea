// SPDX-License-Identifier: GPL-2.0-only
// The parser of IOMMU faults, with lines as kernels write them and as they don't.

#include "support/result.h"

#include <dmaprobe/fault.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <fcntl.h>
#include <format>
#include <random>
#include <stop_token>
#include <string>
#include <thread>
#include <unistd.h>

namespace selftest {
namespace {

using namespace dmaprobe;

// What every report is asked for.
void expect_access(const std::optional<Fault>& f, const Bdf& bdf, Iova iova, FaultAccess access) {
    ASSERT_TRUE(f);
    EXPECT_EQ(f->bdf, bdf);
    EXPECT_EQ(f->iova, iova);
    EXPECT_EQ(f->access, access);
}

TEST(Fault, VtdAsTodaysKernelsTell) {
    const auto f = parse_fault("4,1234,56789012,-;DMAR: [DMA Write NO_PASID] Request device "
                               "[0000:01:00.0] fault addr 0xffdfe000 [fault reason 0x05] PTE Write "
                               "access is not set\n SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n");

    ASSERT_TRUE(f);
    EXPECT_EQ(f->time.count(), 56789012);
    EXPECT_EQ(f->bdf, (Bdf{0, 1, 0, 0}));
    EXPECT_TRUE(f->names_domain);
    EXPECT_EQ(f->iova, Iova(0xffdfe000));
    EXPECT_EQ(f->access, FaultAccess::write);
    EXPECT_EQ(f->reason, "PTE Write access is not set");
    EXPECT_EQ(f->platform, "vt-d");
    EXPECT_EQ(f->raw.find('\n'), std::string::npos);
}

TEST(Fault, VtdWithoutTheDomain) {
    const auto f = parse_fault("DMAR: [DMA Read NO_PASID] Request device [3a:1f.7] fault addr "
                               "0x1000 [fault reason 0x06] PTE Read access is not set");

    ASSERT_TRUE(f);
    EXPECT_FALSE(f->names_domain);
    EXPECT_EQ(f->bdf, (Bdf{0, 0x3a, 0x1f, 7}));
    EXPECT_EQ(f->access, FaultAccess::read);
    EXPECT_EQ(f->iova, Iova(0x1000));
    EXPECT_EQ(f->reason, "PTE Read access is not set");
    EXPECT_TRUE(f->is_from({5, 0x3a, 0x1f, 7})) << "the domain was not given";
    EXPECT_FALSE(f->is_from({0, 0x3a, 0x1f, 6}));
}

TEST(Fault, DomainsAreCompared) {
    const auto f = parse_fault("DMAR: [DMA Read NO_PASID] Request device [0001:3a:1f.7] fault addr "
                               "0x1000 [fault reason 0x06] PTE Read access is not set");

    ASSERT_TRUE(f);
    EXPECT_TRUE(f->is_from({1, 0x3a, 0x1f, 7}));
    EXPECT_FALSE(f->is_from({0, 0x3a, 0x1f, 7}));
}

TEST(Fault, VtdWithAPasid) {
    expect_access(parse_fault("4,1,2,-;DMAR: [DMA Write PASID 0x12] Request device [0000:00:02.0] "
                              "fault addr 0xabc000 [fault reason 0x81] SM: Present bit in "
                              "Second-Level Paging Entry is clear"),
                  {0, 0, 2, 0}, Iova(0xabc000), FaultAccess::write);
}

TEST(Fault, AmdVi) {
    const auto f = parse_fault("3,1,2,-;vfio-pci 0000:c1:00.1: AMD-Vi: Event logged [IO_PAGE_FAULT "
                               "domain=0x0011 address=0xfffffffdf8020200 flags=0x0020]");

    ASSERT_TRUE(f);
    EXPECT_EQ(f->bdf, (Bdf{0, 0xc1, 0, 1}));
    EXPECT_TRUE(f->names_domain);
    EXPECT_EQ(f->iova, Iova(0xfffffffdf8020200));
    EXPECT_EQ(f->access, FaultAccess::write);
    EXPECT_EQ(f->reason, "IO_PAGE_FAULT: not present");
    EXPECT_EQ(f->platform, "amd-vi");

    const auto forbidden = parse_fault("dmaprobe 0001:01:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT "
                                       "domain=0x0002 address=0x1000 flags=0x0030]");
    ASSERT_TRUE(forbidden);
    EXPECT_EQ(forbidden->reason, "IO_PAGE_FAULT: no permission");
    EXPECT_TRUE(forbidden->is_from({1, 1, 0, 0}));
    EXPECT_FALSE(forbidden->is_from({0, 1, 0, 0}));
}

TEST(Fault, AmdViOfADeviceThatIsNotThere) {
    expect_access(parse_fault("AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:03:00.0 "
                              "domain=0x0000 address=0xbde000 flags=0x0000]"),
                  {0, 3, 0, 0}, Iova(0xbde000), FaultAccess::read);
}

TEST(Fault, AmdViAsQemuTellsIt) {
    const auto f = parse_fault("pci 0000:00:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT "
                               "domain=0x0000 address=0x0 flags=0x000a]");

    ASSERT_TRUE(f);
    EXPECT_FALSE(f->bdf);
    EXPECT_FALSE(f->iova);
    EXPECT_EQ(f->access, FaultAccess::unknown);
    EXPECT_TRUE(f->is_from({0, 1, 0, 0})) << "whoever it was";

    // Of a device on the first bus.
    const auto named = parse_fault("dmaprobe 0000:00:07.0: AMD-Vi: Event logged [IO_PAGE_FAULT "
                                   "domain=0x0000 address=0x0 flags=0x000a]");
    ASSERT_TRUE(named);
    EXPECT_EQ(named->bdf, (Bdf{0, 0, 7, 0}));
    EXPECT_FALSE(named->iova);
    EXPECT_EQ(named->access, FaultAccess::unknown);
}

TEST(Fault, VirtioIommu) {
    const auto f = parse_fault("3,1,2,-;virtio_iommu virtio4: page fault from EP 265 at "
                               "0xffdfe010 [W]\n SUBSYSTEM=virtio\n");

    ASSERT_TRUE(f);
    EXPECT_EQ(f->bdf, (Bdf{0, 1, 1, 1}));
    EXPECT_FALSE(f->names_domain);
    EXPECT_TRUE(f->is_from({7, 1, 1, 1}));
    EXPECT_EQ(f->iova, Iova(0xffdfe010));
    EXPECT_EQ(f->access, FaultAccess::write);
    EXPECT_EQ(f->reason, "page fault");
    EXPECT_EQ(f->platform, "virtio-iommu");

    const auto read = parse_fault("virtio_iommu virtio0: domain fault from EP 8 at 0x0 [R]");
    ASSERT_TRUE(read);
    EXPECT_EQ(read->iova, Iova(0));
    EXPECT_EQ(read->access, FaultAccess::read);

    const auto bare = parse_fault("virtio_iommu virtio0: unknown fault from EP 8");
    ASSERT_TRUE(bare);
    EXPECT_FALSE(bare->iova);
    EXPECT_EQ(bare->bdf, (Bdf{0, 0, 1, 0}));

    // Not a requester id of PCI.
    const auto strange = parse_fault("virtio_iommu virtio0: page fault from EP 65536 at 0x1 []");
    ASSERT_TRUE(strange);
    EXPECT_FALSE(strange->bdf);
    EXPECT_EQ(strange->access, FaultAccess::unknown);
}

// By the driver's source.
TEST(Fault, Riscv) {
    const auto f =
        parse_fault("4,1,2,-;riscv_iommu_pci 0000:00:03.0: Fault 15 devid: 0x109 iotval: "
                    "ffdfe010 iotval2: 0\n SUBSYSTEM=pci\n");

    expect_access(f, {0, 1, 1, 1}, Iova(0xffdfe010), FaultAccess::write);
    EXPECT_FALSE(f->names_domain);
    EXPECT_EQ(f->platform, "riscv");
    EXPECT_EQ(f->reason, "cause 15");
    const auto line = [](unsigned cause, const char* device) {
        return std::format("riscv,iommu 10100000.iommu: Fault {} devid: {} iotval: 1000 iotval2: 7",
                           cause, device);
    };
    for (const unsigned cause : {5, 13, 21})
        expect_access(parse_fault(line(cause, "0x8")), {0, 0, 1, 0}, Iova(0x1000),
                      FaultAccess::read);
    for (const unsigned cause : {7, 15, 23})
        expect_access(parse_fault(line(cause, "0x8")), {0, 0, 1, 0}, Iova(0x1000),
                      FaultAccess::write);
    expect_access(parse_fault(line(12, "0x8")), {0, 0, 1, 0}, Iova(0x1000), FaultAccess::unknown);

    const auto invalid = parse_fault(line(258, "0x8"));
    ASSERT_TRUE(invalid);
    EXPECT_FALSE(invalid->iova) << "the device has no entry, so nothing was translated";
    const auto strange = parse_fault(line(13, "0x10008"));
    ASSERT_TRUE(strange);
    EXPECT_FALSE(strange->bdf) << "not a requester id";

    for (const char* none : {"Fault 15 devid: 0x109", "Fault 15 devid: 0x109 iotval: 1000",
                             "Fault 15 devid: 109 iotval: 1000 iotval2: 0",
                             "Fault x devid: 0x109 iotval: 1000 iotval2: 0",
                             "Fault 15 devid: 0x109 iotval: 1000 iotval2: 0 more"})
        EXPECT_FALSE(parse_fault(std::format("riscv_iommu_pci 0000:00:03.0: {}", none))) << none;
}

// As Linux reports an event of SMMUv3: the words, and what newer kernels say of them.
constexpr const char* smmu_log[] = {
    "3,10,5000000,-;arm-smmu-v3 9050000.smmuv3: event 0x10 received:\n SUBSYSTEM=platform\n",
    "3,11,5000001,-;arm-smmu-v3 9050000.smmuv3: \\x090x0000010800000010\n",
    "3,12,5000002,-;arm-smmu-v3 9050000.smmuv3: \\x090x0000020000000000\n",
    "3,13,5000003,-;arm-smmu-v3 9050000.smmuv3: \\x090x00000000ffdfe010\n",
    "3,14,5000004,-;arm-smmu-v3 9050000.smmuv3: \\x090x0000000000000000\n",
    "3,15,5000005,-;arm-smmu-v3 9050000.smmuv3: event: F_TRANSLATION client: 0000:04:01.0 sid: "
    "0x20 ssid: 0x0 iova: 0xffdfe010 ipa: 0x0\n",
    "3,16,5000006,-;arm-smmu-v3 9050000.smmuv3: unpriv data write s1 \"Input address caused "
    "fault\" stag: 0x0\n"};

// The StreamID is not the requester id: the sixth record says whose it is.
TEST(Fault, Smmuv3) {
    FaultParser parser;
    std::deque<Fault> found;

    for (const char* line : smmu_log) {
        EXPECT_FALSE(parse_fault(line)) << "by itself: " << line;
        parser.take(line, found);
        // What others say meanwhile does not matter.
        EXPECT_FALSE(parser.take("6,1,2,-;usb 1-1: new device", found));
        EXPECT_FALSE(
            parser.take("3,1,2,-;arm-smmu-v3 9060000.smmuv3: \\x090x0000000000000001", found));
        EXPECT_TRUE(parser.take("3,1,2,-;arm-smmu-v3 9060000.smmuv3: event: F_TRANSLATION client: "
                                "0000:07:00.0 sid: 0x700 ssid: 0x0 iova: 0x0 ipa: 0x0",
                                found));
    }
    ASSERT_EQ(found.size(), 1u);
    expect_access(found[0], {0, 4, 1, 0}, Iova(0xffdfe010), FaultAccess::write);
    EXPECT_TRUE(found[0].names_domain);
    EXPECT_EQ(found[0].reason, "F_TRANSLATION");
    EXPECT_EQ(found[0].platform, "smmuv3");
    EXPECT_EQ(found[0].time.count(), 5000000);
}

TEST(Fault, Smmuv3OfOtherKinds) {
    const auto report = [](FaultParser& parser, const std::vector<std::string>& words) {
        std::deque<Fault> found;
        parser.take("arm-smmu-v3 a.0: event 0x13 received:", found);
        EXPECT_TRUE(found.empty());
        for (const std::string& word : words)
            parser.take("[    1.0] arm-smmu-v3 a.0: \t" + word, found);
        return found.empty() ? std::nullopt : std::optional(found.back());
    };
    FaultParser parser;

    auto f = report(parser, {"0x0001ff0700000013", "0x0000020800000000", "0x1000", "0x0"});
    expect_access(f, {0, 0xff, 0, 7}, Iova(0x1000), FaultAccess::read);
    EXPECT_EQ(f->reason, "F_PERMISSION");
    f = report(parser, {"0x0000000800000004", "0x0", "0x1000", "0x0"});
    ASSERT_TRUE(f);
    EXPECT_EQ(f->reason, "C_BAD_STE");
    EXPECT_FALSE(f->iova);
    EXPECT_EQ(f->access, FaultAccess::unknown);
    f = report(parser, {"0x00000008000000ff", "0x0", "0x0", "0x0"});
    ASSERT_TRUE(f);
    EXPECT_EQ(f->reason, "event 0xff");
    // Cut short, the next one is whole; a word that is none ends it.
    EXPECT_FALSE(report(parser, {"0x10", "0x0"}));
    expect_access(report(parser, {"0x0000010000000010", "0x0", "0x2000", "0x0"}), {0, 1, 0, 0},
                  Iova(0x2000), FaultAccess::write);
    EXPECT_FALSE(report(parser, {"0x10", "what", "0x0", "0x0", "0x0"}));
    EXPECT_FALSE(report(parser, {"0x10", "0x1 0x2", "0x0", "0x0", "0x0"}));
    std::deque<Fault> none;
    EXPECT_FALSE(parser.take("arm-smmu-v3 a.0: \t0x0", none));
}

TEST(Fault, LargestAddress) {
    const auto f = parse_fault("DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr "
                               "0xfffffffffffff000 [fault reason 0x06] PTE Read access is not set");

    ASSERT_TRUE(f);
    EXPECT_EQ(f->iova, Iova(0xfffffffffffff000));
}

TEST(Fault, WithATimestampBefore) {
    const auto f = parse_fault("[   12.345678] DMAR: [DMA Read NO_PASID] Request device [00:02.0] "
                               "fault addr 0x2000 [fault reason 0x06] PTE Read access is not set");

    ASSERT_TRUE(f);
    EXPECT_EQ(f->iova, Iova(0x2000));
}

TEST(Fault, WhatIsNone) {
    for (const char* line :
         {"",
          "\n",
          ";",
          "4,1,2,-;",
          "4,1,2,-;DMAR: IOMMU enabled",
          "DMAR: DRHD: handling fault status reg 2",
          "DMAR: [INTR-REMAP] Request device [f0:1f.0] fault index 0x0 [fault reason 0x22] Present "
          "field in the IRTE entry is clear",
          "DMAR: [DMA Write NO_PASID] Request device",
          "DMAR: [DMA ",
          "DMAR: [DMA Write",
          "DMAR: [DMA Write NO_PASID] Request device [",
          "DMAR: [DMA Write NO_PASID] Request device [zz:00.0] fault addr 0x1000 [fault reason "
          "0x05] x",
          "DMAR: [DMA Write NO_PASID] Request device [00:00.9] fault addr 0x1000 [fault reason "
          "0x05] x",
          "DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr ",
          "DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr zz",
          "DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr 0x10000000000000000 "
          "[fault reason 0x05] x",
          "DMAR: [DMA Erase NO_PASID] Request device [00:02.0] fault addr 0x1000 [fault reason "
          "0x05] x",
          "AMD-Vi: Event logged [IO_PAGE_FAULT ",
          "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:03:00.0",
          "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:03:00.0 domain=0x0000 address=0x1000",
          "AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0x1000 flags=0x0000]",
          "what: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0x1000 flags=0x0000]",
          "pci 0000:03:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0000 address=0x1000 "
          "flags=0x0008]",
          "pci 0000:03:00.0: AMD-Vi: Event logged [INVALID_DEVICE_REQUEST domain=0x0000 "
          "address=0x1000 flags=0x0000]",
          "virtio_iommu virtio0: page fault from EP ",
          "virtio_iommu virtio0: page fault from EP x",
          "virtio_iommu virtio0: page fault from EP 8 at ",
          "virtio_iommu virtio0: page fault from EP 8 at 0x1000",
          "virtio_iommu virtio0: it is a page fault from EP 8 at 0x1000 [R]",
          "virtio_iommu virtio0: page fault from EP 8 or so",
          "arm-smmu-v3 a.0: event 0x10 received:",
          "arm-smmu-v3 a.0: \t0x0000010000000010",
          "arm-smmu-v3 a.0"})
        EXPECT_FALSE(parse_fault(line)) << line;
}

// Every part of a good line, cut anywhere or with any byte changed, does no harm.
void damage(const std::string& good, std::mt19937& random) {
    for (size_t length = 0; length <= good.size(); length++) {
        std::ignore = parse_fault(std::string_view(good).substr(0, length));
        std::ignore = parse_fault(std::string_view(good).substr(length));
    }
    for (int i = 0; i < 20000; i++) {
        std::string line = good;

        for (unsigned n = 1 + random() % 4; n; n--)
            line[random() % line.size()] = static_cast<char>(random());
        const auto f = parse_fault(line);
        if (f) {
            EXPECT_EQ(f->raw.find('\n'), std::string::npos);
        }
    }
}

// Records of SMMUv3 in any order, with any byte changed.
TEST(Fault, DamagedEvents) {
    std::mt19937 random(12);
    FaultParser parser;
    std::deque<Fault> found;

    for (int i = 0; i < 50000; i++) {
        std::string line = smmu_log[random() % std::size(smmu_log)];

        if (random() % 4 == 0)
            line[random() % line.size()] = static_cast<char>(random());
        parser.take(line, found);
    }
}

TEST(Fault, DamagedLines) {
    std::mt19937 random(11);

    for (const char* good :
         {"4,1234,56789012,-;DMAR: [DMA Write NO_PASID] Request device [0000:01:00.0] fault addr "
          "0xffdfe000 [fault reason 0x05] PTE Write access is not set\n",
          "3,1234,56789012,-;vfio-pci 0000:c1:00.1: AMD-Vi: Event logged [IO_PAGE_FAULT "
          "domain=0x0011 address=0xfffffffdf8020200 flags=0x0020]\n",
          "3,1234,56789012,-;virtio_iommu virtio4: page fault from EP 265 at 0xffdfe010 [W]\n",
          "4,1,2,-;riscv_iommu_pci 0000:00:03.0: Fault 15 devid: 0x109 iotval: ffdfe010 iotval2: "
          "0\n"})
        damage(good, random);
}

// The log's end is where a watcher starts. A plain file serves as the log.
class Watcher : public testing::Test {
protected:
    void SetUp() override {
        char name[] = "/tmp/dmaprobe-log-XXXXXX";
        fd_ = Fd(mkostemp(name, O_CLOEXEC | O_APPEND));
        ASSERT_TRUE(fd_);
        path_ = name;
    }
    void TearDown() override { unlink(path_.c_str()); }

    static std::string vtd_line(const std::string& bdf, const char* addr) {
        return "DMAR: [DMA Read NO_PASID] Request device [" + bdf + "] fault addr " + addr +
               " [fault reason 0x06] PTE Read access is not set";
    }
    void log(const std::string& bdf, const char* addr) { write_line(vtd_line(bdf, addr)); }

    void write_line(std::string line) {
        line += '\n';
        ASSERT_EQ(write(fd_.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
    }

    // /dev/kmsg gives one record by one read(), a plain file all that it has.
    void write_and_read(FaultWatcher& w, const std::string& line) {
        constexpr Bdf nobody{.domain = 9};
        write_line(line);
        EXPECT_FAILS(w.wait(nobody, std::chrono::milliseconds(0)), ETIMEDOUT);
    }

    Fd fd_;
    std::string path_;
};

TEST_F(Watcher, SeesWhatComesAfterItWasOpened) {
    log("00:02.0", "0x1000");
    auto w = FaultWatcher::open(path_);
    ASSERT_WORKS(w);
    auto none = w->drain();
    ASSERT_WORKS(none);
    EXPECT_TRUE(none->empty());
    log("00:02.0", "0x2000");
    const auto fault = w->wait(std::chrono::seconds(5));
    ASSERT_WORKS(fault);
    EXPECT_EQ(fault->iova, Iova(0x2000));
    EXPECT_FAILS(w->wait(std::chrono::milliseconds(1)), ETIMEDOUT);
    EXPECT_EQ(w->overruns(), 0u);
}

TEST_F(Watcher, OtherDevicesFaultsStay) {
    auto w = FaultWatcher::open(path_);
    ASSERT_WORKS(w);
    log("00:02.0", "0x1000");
    const auto fault = w->wait({0, 0, 2, 0}, std::chrono::seconds(5));
    ASSERT_WORKS(fault);
    log("00:03.0", "0x2000");
    EXPECT_FAILS(w->wait({0, 0, 2, 0}, std::chrono::milliseconds(50)), ETIMEDOUT);
    const auto other = w->wait({0, 0, 3, 0}, std::chrono::milliseconds(0));
    ASSERT_WORKS(other);
    EXPECT_EQ(other->iova, Iova(0x2000));
}

// A device behind a bridge: the IOMMU names the bridge.
TEST_F(Watcher, AnyOfTheRequesters) {
    const Bdf ids[] = {{0, 2, 1, 0}, {0, 2, 0, 0}};
    auto w = FaultWatcher::open(path_);
    ASSERT_WORKS(w);
    log("00:03.0", "0x1000");
    EXPECT_FAILS(w->wait(ids, std::chrono::milliseconds(0)), ETIMEDOUT);
    log("02:00.0", "0x2000");
    const auto fault = w->wait(ids, std::chrono::seconds(5));
    ASSERT_WORKS(fault);
    EXPECT_EQ(fault->iova, Iova(0x2000));
    EXPECT_TRUE(fault->is_from(ids));
    EXPECT_FALSE(fault->is_from(ids[0]));
}

TEST_F(Watcher, KeepsLinesThatAreNoFault) {
    auto w = FaultWatcher::open(path_);
    ASSERT_WORKS(w);
    for (int i = 0; i < 20; i++)
        write_and_read(*w, std::format("3,1,2,-;arm-smmu 0.smmu: Unhandled context fault: {}", i));
    log("00:02.0", "0x1000");
    ASSERT_WORKS(w->wait(std::chrono::seconds(5)));
    const std::vector<std::string> lines = w->take_other_lines();
    ASSERT_EQ(lines.size(), 16u);
    EXPECT_EQ(lines.front(), "arm-smmu 0.smmu: Unhandled context fault: 4");
    EXPECT_EQ(lines.back(), "arm-smmu 0.smmu: Unhandled context fault: 19");
    EXPECT_TRUE(w->take_other_lines().empty());
}

// What was read of an event, and what was found, moves with the watcher.
TEST_F(Watcher, Moves) {
    const auto write_event = [this](FaultWatcher& w, size_t first, size_t last) {
        for (size_t i = first; i < last; i++)
            write_and_read(w, smmu_log[i]);
    };
    auto w = FaultWatcher::open(path_);
    ASSERT_WORKS(w);
    write_and_read(*w, vtd_line("00:02.0", "0x1000"));
    write_event(*w, 0, 3);
    FaultWatcher moved(std::move(*w));
    write_event(moved, 3, 5);
    auto faults = moved.drain();
    ASSERT_WORKS(faults);
    ASSERT_EQ(faults->size(), 2u);
    EXPECT_EQ((*faults)[0].iova, Iova(0x1000));
    EXPECT_EQ((*faults)[1].iova, Iova(0xffdfe010));

    write_event(moved, 0, 3);
    auto other = FaultWatcher::open(path_);
    ASSERT_WORKS(other);
    *other = std::move(moved);
    write_event(*other, 3, 5);
    faults = other->drain();
    ASSERT_WORKS(faults);
    EXPECT_EQ(faults->size(), 1u);
}

TEST_F(Watcher, Descriptor) {
    auto w = FaultWatcher::open(path_);
    ASSERT_WORKS(w);
    const int fd = w->fd();
    EXPECT_GE(fd, 0);
    EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
    const FaultWatcher moved(std::move(*w));
    EXPECT_EQ(moved.fd(), fd);
    EXPECT_EQ(w->fd(), -1);
}

// A stop ends a wait that would be for ever, but what was there is still found.
TEST_F(Watcher, Stops) {
    constexpr auto forever = std::chrono::milliseconds::max();
    auto w = FaultWatcher::open(path_);
    ASSERT_WORKS(w);
    std::stop_source stop;
    {
        const std::jthread other([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            stop.request_stop();
        });
        EXPECT_FAILS(w->wait(forever, stop.get_token()), ECANCELED);
    }
    EXPECT_FAILS(w->wait(forever, stop.get_token()), ECANCELED) << "stopped before";
    EXPECT_FAILS(w->wait({0, 0, 2, 0}, std::chrono::milliseconds(0), stop.get_token()), ECANCELED);
    log("00:02.0", "0x1000");
    const auto fault = w->wait({0, 0, 2, 0}, forever, stop.get_token());
    ASSERT_WORKS(fault);
    EXPECT_EQ(fault->iova, Iova(0x1000));
    EXPECT_FAILS(w->wait(std::chrono::milliseconds(0)), ETIMEDOUT) << "no token";
    EXPECT_FAILS(w->wait(std::chrono::milliseconds::min()), ETIMEDOUT);
}

TEST_F(Watcher, NoSuchLog) {
    EXPECT_FAILS(FaultWatcher::open("/nonexistent/kmsg"), ENOENT);
}

} // namespace
} // namespace selftest

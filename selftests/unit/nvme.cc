// SPDX-License-Identifier: GPL-2.0-only
// What NVMe controllers say of themselves. QEMU's has one value for most of these.

#include "../../lib/src/engines/nvme.h"

#include <gtest/gtest.h>

namespace selftest {
namespace {

using namespace dmaprobe::engines::nvm;
using dmaprobe::Size;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t crms_crwms = uint64_t{1} << 59;

constexpr uint64_t cap_to(uint64_t to) {
    return to << 24;
}
constexpr uint64_t cap_mpsmin(uint64_t mpsmin) {
    return mpsmin << 48;
}

TEST(NvmeController, Capabilities) {
    // As QEMU has it: 2048 entries, TO 15, the NVM command set.
    const Capabilities qemu(0x004018200f0107ff);

    EXPECT_FALSE(qemu.none());
    EXPECT_TRUE(qemu.has_nvm_commands());
    EXPECT_EQ(qemu.queue_entries(), 2048u);
    EXPECT_EQ(qemu.doorbell_stride(), 4u);
    EXPECT_EQ(qemu.page(), Size(4096));
    EXPECT_FALSE(qemu.has_crto());
    EXPECT_EQ(qemu.ready_within(0), seconds(8));
    EXPECT_EQ(qemu.stop_within(), seconds(8));

    EXPECT_TRUE(Capabilities(~uint64_t{0}).none());
    EXPECT_FALSE(Capabilities(0).has_nvm_commands());
    EXPECT_EQ(Capabilities(0).queue_entries(), 1u);
    EXPECT_EQ(Capabilities(0xffff).queue_entries(), 65536u);
    EXPECT_EQ(Capabilities(uint64_t{3} << 32).doorbell_stride(), 32u);
}

// TO has 8 bits: a controller that takes longer than 128 s says so in CRTO.
TEST(NvmeController, TimeToBeReady) {
    EXPECT_EQ(Capabilities(cap_to(0)).ready_within(0), milliseconds(500));
    EXPECT_EQ(Capabilities(cap_to(0xff)).ready_within(0), seconds(128));
    EXPECT_EQ(Capabilities(cap_to(0xff) | crms_crwms).ready_within(600), seconds(300));
    EXPECT_EQ(Capabilities(cap_to(0xff) | crms_crwms).ready_within(0xffff0000 | 600), seconds(300))
        << "CRTO.CRIMT is for controllers that are ready without their media";
    EXPECT_EQ(Capabilities(cap_to(20) | crms_crwms).ready_within(10), milliseconds(10500))
        << "the longer one counts";
    EXPECT_EQ(Capabilities(cap_to(20)).ready_within(600), milliseconds(10500))
        << "there is no such register";
    EXPECT_EQ(Capabilities(cap_to(20) | crms_crwms).stop_within(), milliseconds(10500));
}

TEST(NvmeController, TimeToShutDown) {
    EXPECT_EQ(shutdown_within(0), seconds(5)) << "it does not say";
    EXPECT_EQ(shutdown_within(4'000'000), seconds(5));
    EXPECT_EQ(shutdown_within(10'000'001), milliseconds(10001));
    EXPECT_EQ(shutdown_within(0xffffffff), seconds(60));
}

// The controller's pages can be larger than 4 KiB.
TEST(NvmeController, Queues) {
    EXPECT_EQ(Capabilities(cap_mpsmin(4)).page(), Size(65536));
    EXPECT_EQ(Capabilities(cap_mpsmin(0xf)).page(), Size(uint64_t{1} << 27));
    EXPECT_EQ(queue_length(Size(4096), 8, sizeof(Command)), Size(4096));
    EXPECT_EQ(queue_length(Size(4096), 128, sizeof(Command)), Size(8192));
    EXPECT_EQ(queue_length(Size(65536), 128, sizeof(Command)), Size(65536))
        << "it starts at a page of the controller";
    EXPECT_EQ(queue_length(Size(65536), 8, sizeof(Answer)), Size(65536));
}

TEST(NvmeController, LongestTransfer) {
    const Size page(4096);

    EXPECT_EQ(max_transfer(page, 0, Size(512)), Size(512 * page.value())) << "by the list of PRPs";
    EXPECT_EQ(max_transfer(page, 7, Size(512)), Size(128 * page.value())) << "by MDTS";
    EXPECT_EQ(max_transfer(page, 31, Size(512)), Size(512 * page.value()));
    EXPECT_EQ(max_transfer(page, 32, Size(512)), Size(512 * page.value()))
        << "more than a shift can hold: no limit";
    EXPECT_EQ(max_transfer(Size(65536), 0, Size(512)), Size(uint64_t{65536} * 512))
        << "NLB, less one, has 16 bits";
    EXPECT_EQ(max_transfer(Size(65536), 0, Size(4096)), Size(uint64_t{65536} * 4096));
    EXPECT_EQ(max_transfer(page, 2, Size(16384)), Size(16384));
    EXPECT_EQ(max_transfer(page, 1, Size(16384)), Size()) << "a block is more than MDTS allows";
}

} // namespace
} // namespace selftest

// SPDX-License-Identifier: MIT
// QEMU's iommu-testdev: it writes a fixed pattern, as soon as it is started.
//
// docs/specs/iommu-testdev.rst of QEMU describes it. What a driver must know beyond that:
// - it writes through the IOMMU, and then looks at what it wrote by a physical address, past the
//   IOMMU. So it cannot read memory through the IOMMU at all. The physical address stays 0 here,
//   and what the device finds there is not asked for;
// - it has the ids of pci-testdev. What distinguishes them is how the result register follows the
//   doorbell.
#include "../builtin_engines.h"

#include <cerrno>
#include <format>
#include <utility>

namespace dmaprobe::engines {

namespace {

// Registers in BAR 0, all of 4 bytes.
constexpr std::uint64_t reg_trigger = 0x00; // reading it starts the transfer, and ends with it
constexpr std::uint64_t reg_iova_low = 0x04;
constexpr std::uint64_t reg_iova_high = 0x08;
constexpr std::uint64_t reg_length = 0x0c;
constexpr std::uint64_t reg_result = 0x10;
constexpr std::uint64_t reg_doorbell = 0x14;
constexpr std::uint64_t reg_attrs = 0x18;

constexpr std::uint32_t doorbell_arm = 1;

constexpr std::uint32_t result_idle = 0xffffffff;
constexpr std::uint32_t result_armed = 0xfffffffe;
constexpr std::uint32_t result_same = 0;
constexpr std::uint32_t result_write_failed = 0xdead0002;
constexpr std::uint32_t result_look_failed = 0xdead0003;
constexpr std::uint32_t result_differs = 0xdead0004;

// Bits 1 and 2 are Arm's security space, of which 1 is the non-secure one. Whether it counts is
// bit 3; without that it is the non-secure one all the same.
constexpr std::uint32_t attrs_non_secure = 1 << 1;

class Testdev final : public Engine {
public:
    static Result<std::unique_ptr<Engine>>
    create(const Session& session, const DeviceAccess& device, const EngineOptions& options);

    Testdev(const DeviceAccess& device, Bar bar)
        : Engine(testdev.traits, device), bar_(std::move(bar)) {}

    /// Make sure that it is this device.
    Result<void> check_alive() const {
        for (const auto& [doorbell, want] :
             {std::pair{0u, result_idle}, {doorbell_arm, result_armed}, {0u, result_idle}}) {
            if (auto done = bar_.write32(reg_doorbell, doorbell); !done)
                return done;
            const auto result = bar_.read32(reg_result);
            if (!result)
                return std::unexpected(result.error());
            if (*result != want)
                return std::unexpected(
                    Error{EIO, "testdev",
                          std::format("the result register reads {:#x}, not {:#x}: this is no "
                                      "iommu-testdev",
                                      *result, want)});
        }
        return {};
    }

private:
    Result<void> do_to_device(std::span<const Segment> /*src*/, Size /*device_offset*/) override {
        return std::unexpected(Error{EOPNOTSUPP, "copy_to_device", {}}); // ReadEffect::none
    }

    Result<void> do_from_device(std::span<const Segment> dst, Size /*device_offset*/) override {
        constexpr std::string_view op = "copy_from_device";
        if (auto there = check_present(op); !there)
            return there;
        const std::uint64_t iova = dst.front().addr.value();
        for (const auto& [reg, value] :
             {std::pair{reg_iova_low, static_cast<std::uint32_t>(iova)},
              {reg_iova_high, static_cast<std::uint32_t>(iova >> 32)},
              {reg_length, static_cast<std::uint32_t>(dst.front().length.value())},
              {reg_attrs, attrs_non_secure},
              {reg_doorbell, doorbell_arm}})
            if (auto done = bar_.write32(reg, value); !done)
                return done;
        if (auto ran = bar_.read32(reg_trigger); !ran)
            return std::unexpected(ran.error());
        const auto result = bar_.read32(reg_result);
        if (!result)
            return std::unexpected(result.error());
        switch (*result) {
        case result_same:
        case result_look_failed:
        case result_differs:
            return {}; // it was written; what is at physical address 0 does not matter
        case result_write_failed:
            return std::unexpected(Error{EIO, op, "the device was not let to the memory"});
        default:
            return std::unexpected(
                Error{EIO, op, std::format("the device answers {:#x}", *result)});
        }
    }

    /// Transfers are over when the register was read.
    Result<void> do_reset() override {
        if (auto there = check_present("reset"); !there)
            return there;
        return check_alive();
    }

    Bar bar_;
};

Result<std::unique_ptr<Engine>> Testdev::create(const Session& /*session*/,
                                                const DeviceAccess& device,
                                                const EngineOptions& options) {
    if (options.completion == Completion::interrupt)
        return std::unexpected(
            Error{EOPNOTSUPP, "engine_probe", "iommu-testdev has no interrupts"});
    auto bar = device.bar(0);
    if (!bar)
        return std::unexpected(std::move(bar.error()));
    auto engine = std::make_unique<Testdev>(device, std::move(*bar));
    if (auto alive = engine->check_alive(); !alive)
        return std::unexpected(std::move(alive.error()));
    return engine;
}

} // namespace

constinit const EngineType testdev{
    .traits =
        {
            .name = "testdev",
            .description = "QEMU's iommu-testdev",
            .emulated = true,
            .sees_write_faults = true,
            .dma_mask = ~0ULL,
            .max_transfer = Size(1 << 20),
            .alignment = 1,
            .block = Size(4), // the pattern's length
            .segment_edge = Size(),
            .device_memory = Size(1 << 20), // the pattern, over and over
            .identity = Size(),
            .read_effect = ReadEffect::none,
        },
    .drives =
        [](const DeviceIds& ids) noexcept { return ids.vendor == 0x1b36 && ids.device == 0x0005; },
    .create = Testdev::create,
};

} // namespace dmaprobe::engines

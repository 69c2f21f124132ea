// SPDX-License-Identifier: MIT
// QEMU's educational device: one DMA channel between memory and a buffer of 4 KiB.
//
// docs/specs/edu.rst of QEMU describes it. Three things it leaves to the driver:
// - addresses are cut off to 28 bits without a word, so the engine must refuse what is beyond;
// - a range outside the device's buffer is only logged by QEMU, and then executed;
// - a transfer that the IOMMU stopped ends like any other.
#include "../builtin_engines.h"

#include <cerrno>
#include <format>
#include <thread>
#include <tuple>
#include <utility>

namespace dmaprobe::engines {

namespace {

// Registers in BAR 0. Those below 0x80 take 4-byte accesses only.
constexpr std::uint64_t reg_id = 0x00;
constexpr std::uint64_t reg_liveness = 0x04;
constexpr std::uint64_t reg_interrupt_ack = 0x64;
constexpr std::uint64_t reg_src = 0x80;
constexpr std::uint64_t reg_dst = 0x88;
constexpr std::uint64_t reg_count = 0x90;
constexpr std::uint64_t reg_command = 0x98;

constexpr std::uint32_t id_value = 0x00ed; // 0xRRrr00ed: RR and rr are the version
constexpr std::uint32_t id_mask = 0xffff;

constexpr std::uint64_t command_run = 1 << 0;
constexpr std::uint64_t command_to_memory = 1 << 1;
constexpr std::uint64_t command_interrupt = 1 << 2;

constexpr std::uint32_t interrupt_dma = 0x100;

constexpr std::uint64_t memory_start = 0x40000; // where transfers see the device's buffer

class Edu final : public Engine {
public:
    static Result<std::unique_ptr<Engine>>
    create(const Session& session, const DeviceAccess& device, const EngineOptions& options);

    Edu(const DeviceAccess& device, Bar bar, std::optional<Interrupts> interrupts)
        : Engine(edu.traits, device, completion_by(interrupts)), bar_(std::move(bar)),
          interrupts_(std::move(interrupts)) {}

    /// Make sure that it is the device it should be, and that it answers.
    Result<void> check_alive() const {
        const auto id = bar_.read32(reg_id);
        if (!id)
            return std::unexpected(id.error());
        if ((*id & id_mask) != id_value)
            return std::unexpected(Error{
                EIO, "edu", std::format("the identification reads {:#010x}, not 0x????00ed", *id)});
        constexpr std::uint32_t probe = 0x5aa5c33c;
        if (auto done = bar_.write32(reg_liveness, probe); !done)
            return done;
        const auto answer = bar_.read32(reg_liveness);
        if (!answer)
            return std::unexpected(answer.error());
        if (*answer != ~probe)
            return std::unexpected(Error{
                EIO, "edu",
                std::format("the liveness register reads {:#x}, not {:#x}", *answer, ~probe)});
        return {};
    }

private:
    Result<void> do_to_device(std::span<const Segment> src, Size device_offset) override {
        return transfer("copy_to_device", src.front().addr.value(),
                        memory_start + device_offset.value(), src.front().length, command_run);
    }

    Result<void> do_from_device(std::span<const Segment> dst, Size device_offset) override {
        return transfer("copy_from_device", memory_start + device_offset.value(),
                        dst.front().addr.value(), dst.front().length,
                        command_run | command_to_memory);
    }

    /// The device cannot be stopped: rest is reached by waiting for the transfer's end.
    Result<void> do_reset() override {
        if (auto idle = come_to_rest("reset"); !idle)
            return idle;
        return check_alive();
    }

    /// Nothing of an earlier transfer is left, its interrupt included.
    Result<void> come_to_rest(std::string_view op) {
        if (auto idle = wait_idle(op); !idle)
            return idle;
        if (!interrupts_)
            return {};
        std::ignore = interrupts_->wait(0, std::chrono::milliseconds(10));
        return bar_.write32(reg_interrupt_ack, interrupt_dma);
    }

    Result<void> transfer(std::string_view op, std::uint64_t src, std::uint64_t dst, Size length,
                          std::uint64_t command) {
        if (auto there = check_present(op); !there)
            return there;
        // While a transfer runs, writes to the registers are ignored.
        const auto before = bar_.read64(reg_command);
        if (!before)
            return std::unexpected(before.error());
        if ((*before & command_run) != 0)
            return std::unexpected(Error{EIO, op, "an earlier transfer is still under way"});
        if (auto done = bar_.write64(reg_src, src); !done)
            return done;
        if (auto done = bar_.write64(reg_dst, dst); !done)
            return done;
        if (auto done = bar_.write64(reg_count, length.value()); !done)
            return done;
        if (!interrupts_) {
            if (auto done = bar_.write64(reg_command, command); !done)
                return done;
            return wait_idle(op);
        }
        if (auto done = bar_.write64(reg_command, command | command_interrupt); !done)
            return done;
        if (auto came = await_interrupt(op, *interrupts_, 0); !came)
            return came;
        if (auto done = bar_.write32(reg_interrupt_ack, interrupt_dma); !done)
            return done;
        return wait_idle(op);
    }

    Result<void> wait_idle(std::string_view op) const {
        const auto end = std::chrono::steady_clock::now() + deadline();
        for (;;) {
            // The clock is read first, so that a long sleep is followed by one more look.
            const bool late = std::chrono::steady_clock::now() >= end;
            if (auto there = check_present(op); !there)
                return there;
            const auto command = bar_.read64(reg_command);
            if (!command)
                return std::unexpected(command.error());
            if (*command == ~std::uint64_t{0})
                return std::unexpected(Error{EIO, op, "the device's registers read as all ones"});
            if ((*command & command_run) == 0)
                return {};
            if (late)
                return std::unexpected(
                    Error{ETIMEDOUT, op,
                          std::format("the device was not done after {} ms", deadline().count())});
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }

    Bar bar_;
    std::optional<Interrupts> interrupts_;
};

Result<std::unique_ptr<Engine>> Edu::create(const Session& /*session*/, const DeviceAccess& device,
                                            const EngineOptions& options) {
    auto bar = device.bar(0);
    if (!bar)
        return std::unexpected(std::move(bar.error()));
    auto interrupts = interrupts_for(device, options, 1);
    if (!interrupts)
        return std::unexpected(std::move(interrupts.error()));
    auto engine = std::make_unique<Edu>(device, std::move(*bar), std::move(*interrupts));
    if (auto alive = engine->check_alive(); !alive)
        return std::unexpected(std::move(alive.error()));
    // A program that was killed can have left a transfer under way.
    if (auto idle = engine->come_to_rest("edu"); !idle)
        return std::unexpected(std::move(idle.error()));
    return engine;
}

} // namespace

constinit const EngineType edu{
    .traits =
        {
            .name = "edu",
            .description = "QEMU's educational device",
            .emulated = true,
            .dma_mask = (1ULL << 28) - 1,
            .max_transfer = Size(4096),
            .alignment = 1,
            .block = Size(1),
            .segment_edge = Size(),
            .device_memory = Size(4096),
            .identity = Size(),
            .read_effect = ReadEffect::stores,
        },
    .drives =
        [](const DeviceIds& ids) noexcept { return ids.vendor == 0x1234 && ids.device == 0x11e8; },
    .create = Edu::create,
};

} // namespace dmaprobe::engines

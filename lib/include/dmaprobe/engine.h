// SPDX-License-Identifier: MIT
// Engines: devices that can be told to move bytes, so that DMA can be seen to work or to fault.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include <dmaprobe/device.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace dmaprobe {

/// What an engine is made for and can do. Constant for an engine.
struct EngineTraits {
    std::string_view name;        ///< short name, such as "edu"
    std::uint16_t vendor = 0;     ///< PCI vendor id it drives
    std::uint16_t device = 0;     ///< PCI device id it drives
    std::string_view description; ///< one line for a person
    bool emulated = false;        ///< the device exists only in emulators
    bool sees_faults = false;     ///< the device itself notices a DMA that failed
    std::uint64_t dma_mask = 0;   ///< addresses that it can give to the bus
    Size max_transfer;            ///< bytes that one transfer moves at most
    std::uint64_t alignment = 1;  ///< addresses, offsets and lengths are multiples of it
    Size device_memory;           ///< memory of its own, that transfers go into and come from
};

/// A device that moves bytes on demand.
///
/// Guarantees that every engine gives:
/// - A transfer uses exactly the IOVAs it was asked to use, or none at all: what the device would
/// cut
///   off or round is refused with ERANGE (beyond the mask) or EINVAL, and nothing is started.
/// - A call returns when the device says that it is done, or with ETIMEDOUT after deadline(). After
///   ETIMEDOUT the device may still touch the memory until reset() has succeeded.
/// - Success says that the device has finished. Whether bytes arrived is for the caller to see, in
///   memory and in the fault log (fault.h): a device need not notice that the IOMMU stopped it
///   (EngineTraits::sees_faults).
/// - When the device is unplugged or unbound meanwhile, a call answers ENODEV, whatever the device
///   did with the transfer.
/// - It never touches the session's masks: set EngineTraits::dma_mask with Session::set_mask()
/// before
///   anything is mapped.
///
/// An engine refers to the DeviceAccess it was probed with, which must outlive it. One thread at a
/// time.
class Engine {
public:
    /// Find the engine for a device and make it ready.
    ///
    /// ENOTSUP: no engine knows the device. EIO: the device does not answer as it should.
    [[nodiscard]] static Result<std::unique_ptr<Engine>> probe(const Session& session,
                                                               const DeviceAccess& device);
    /// The engine for a device id, or null when none knows it. Needs no device.
    [[nodiscard]] static const EngineTraits* find(std::uint16_t vendor,
                                                  std::uint16_t device) noexcept;

    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    virtual ~Engine();

    /// What it can do.
    [[nodiscard]] const EngineTraits& traits() const noexcept { return traits_; }
    /// Short for traits().name.
    [[nodiscard]] std::string_view name() const noexcept { return traits_.name; }
    /// Short for traits().dma_mask.
    [[nodiscard]] std::uint64_t dma_mask() const noexcept { return traits_.dma_mask; }
    /// Short for traits().emulated.
    [[nodiscard]] bool emulated() const noexcept { return traits_.emulated; }

    /// The device reads memory into its own.
    ///
    /// @param src first address
    /// @param length bytes, at least 1, at most EngineTraits::max_transfer
    /// @param device_offset where in the device's memory they go
    /// EINVAL: length, alignment or device_offset are not possible. ERANGE: addresses beyond the
    /// mask. ETIMEDOUT, EIO: the device failed. ENODEV: it is gone.
    Result<void> copy_to_device(Iova src, Size length, Size device_offset = Size());
    /// The device writes its own memory to memory; as copy_to_device().
    Result<void> copy_from_device(Iova dst, Size length, Size device_offset = Size());
    /// Copy memory to memory through the device's own, in as many transfers as that takes. Any
    /// length that fits the alignment; errors as copy_to_device(). Both ranges are checked before
    /// anything is started.
    Result<void> copy(Iova dst, Iova src, Size length);

    /// How long one transfer may take; 2 s from the start.
    [[nodiscard]] std::chrono::milliseconds deadline() const noexcept { return deadline_; }
    /// Set how long one transfer may take.
    void set_deadline(std::chrono::milliseconds deadline) noexcept { deadline_ = deadline; }

    /// Bring the device back to rest: when this succeeds, no transfer is under way. ETIMEDOUT, EIO.
    Result<void> reset();

    /// What the last call answered, when that was an error.
    [[nodiscard]] const std::optional<Error>& last_error() const noexcept { return last_error_; }

protected:
    /// @param traits static storage
    /// @param device what it reaches the device by; null when there is none that could go away
    explicit Engine(const EngineTraits& traits, const DeviceAccess* device = nullptr) noexcept
        : traits_(traits), device_(device) {}

    /// Whether the device is still there. To be asked before its registers are touched, each time
    /// anew: those of a device that is gone are no more to be touched.
    [[nodiscard]] Result<void> check_present(std::string_view op) const {
        return device_ != nullptr ? device_->check_present(op) : Result<void>();
    }

    /// One transfer, whose arguments have been checked against the traits.
    virtual Result<void> do_to_device(Iova src, Size length, Size device_offset) = 0;
    /// One transfer, whose arguments have been checked against the traits.
    virtual Result<void> do_from_device(Iova dst, Size length, Size device_offset) = 0;
    /// Bring the device to rest.
    virtual Result<void> do_reset() = 0;

private:
    [[nodiscard]] Result<void> check(std::string_view op, Iova iova, Size length) const;
    [[nodiscard]] Result<void> check_transfer(std::string_view op, Iova iova, Size length,
                                              Size device_offset) const;
    Result<void> to_device(Iova src, Size length, Size device_offset);
    Result<void> from_device(Iova dst, Size length, Size device_offset);
    Result<void> note(Result<void> result);

    const EngineTraits& traits_;
    const DeviceAccess* device_;
    std::chrono::milliseconds deadline_{2000};
    std::optional<Error> last_error_;
};

} // namespace dmaprobe

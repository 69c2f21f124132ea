// SPDX-License-Identifier: MIT
// Engines: devices that can be programmed to move bytes, so that DMA can be seen to work or fault.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include <dmaprobe/device.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>
#include <dmaprobe/types.h>

namespace [[gnu::visibility("default")]] dmaprobe {

/// What a device does with memory that it reads; Engine::copy_to_device().
enum class ReadEffect {
    stores,   ///< keeps it in its own memory
    compares, ///< compares it with its own memory, which stays what it is
    none,     ///< it cannot read memory
};

/// "stores", "compares" or "none".
[[nodiscard]] std::string_view to_string(ReadEffect read_effect) noexcept;

/// How an engine learns that a transfer has ended.
enum class Completion {
    polling,   ///< it looks at registers, or at memory
    interrupt, ///< it waits for the device's interrupt
};

/// "polling" or "interrupt".
[[nodiscard]] std::string_view to_string(Completion completion) noexcept;

/// What an engine can do, with the device it drives. Constant for an engine.
struct EngineTraits {
    std::string_view name;         ///< short name, such as "edu"
    std::string_view description;  ///< one line for a person
    bool emulated = false;         ///< the device exists only in emulators
    bool sees_read_faults = false; ///< a read that the IOMMU stopped gives an error
    /// A write that the IOMMU stopped gives an error. PCI Express posts memory writes: a real
    /// device gets no answer to them, and reports success. Some emulated ones know.
    bool sees_write_faults = false;
    std::uint64_t dma_mask = 0;  ///< addresses that it can give to the bus
    Size max_transfer = Size(0); ///< bytes that one transfer moves at most
    std::uint64_t alignment = 1; ///< addresses of memory are multiples of it
    Size block = Size(1);        ///< lengths and offsets in the device are multiples of it
    /// Where a transfer goes on in another segment, the one ends and the other starts at a multiple
    /// of it. 0: a transfer has one segment.
    Size segment_edge = Size(0);
    Size device_memory = Size(0); ///< memory of its own, that transfers go into and come from
    Size identity = Size(0);      ///< bytes of Engine::identify(); 0: it cannot do that
    ReadEffect read_effect = ReadEffect::stores; ///< what it does with memory that it reads
    std::chrono::milliseconds deadline{2000}; ///< how long a transfer may take; Engine::deadline()
};

/// Blocks of a device's medium.
struct BlockRange {
    std::uint64_t first = 0; ///< number of the first
    std::uint64_t count = 0; ///< how many
};

/// How to probe for an engine.
struct EngineOptions {
    /// How to wait. Nothing: by interrupt where the device and the path to it have that, otherwise
    /// by polling.
    std::optional<Completion> completion = std::nullopt;
    /// For a device with a medium (NVMe): these blocks of it are the device's own memory, and may
    /// be written to. Nothing: the whole medium is, and no command that writes to it is given.
    std::optional<BlockRange> allow_write = std::nullopt;
};

class Engine;

/// A kind of engine, as Engine::probe() chooses from them: what it can do, which devices it drives,
/// and how one is made.
struct EngineType {
    /// What it can do at best; a device may turn out to do less. Its texts have static storage.
    EngineTraits traits;
    /// Whether it drives such a device. Any thread may call it, several at a time.
    bool (*drives)(const DeviceIds& ids) noexcept = nullptr;
    /// Make an engine for a device that it drives, and make the device ready. Engine::probe() calls
    /// it, and hands on what it answers.
    Result<std::unique_ptr<Engine>> (*create)(const Session& session, const DeviceAccess& device,
                                              const EngineOptions& options) = nullptr;
};

/// A device that moves bytes on demand.
///
/// The library has engines of its own (Documentation/engines.rst); a program adds others with
/// add(), and derives each from this class.
///
/// Guarantees that every engine gives:
/// - A transfer uses exactly the IOVAs it was asked to use, or none at all: what the device would
///   cut off or round is refused with ERANGE (beyond the mask) or EINVAL, and nothing is started.
/// - A call returns when the device says that it is done, or with ETIMEDOUT after deadline(). After
///   ETIMEDOUT the device may still touch the memory until reset() has succeeded; until then every
///   transfer is refused with EIO.
/// - Success says that the device has finished. Whether bytes arrived is for the caller to see, in
///   memory and in the fault log (fault.h): a device need not notice that the IOMMU stopped it
///   (EngineTraits::sees_read_faults, sees_write_faults).
/// - When the device is unplugged or unbound meanwhile, a call answers ENODEV, whatever the device
///   did with the transfer.
/// - It never touches the session's masks. Some engines have memory of their own from the DMA API:
///   set the mask that find() gives, with Session::set_mask_up_to(), before probe().
/// - In the end, the device is left at rest, as its own driver expects to find it.
///
/// - It shares the open device with the DeviceAccess that it was probed with, and the open file
/// with
///   the Session. Both can be moved. When one of them was closed or destroyed, each call answers
///   EBADF, and no register is touched any more; closing the DeviceAccess has stopped the device's
///   DMA. End the engine before both, so that it can bring the device to rest.
///
/// One thread at a time.
class Engine {
public:
    /// Find the engine for a device and make it ready.
    ///
    /// EOPNOTSUPP: no engine drives the device (find() is null), there are no interrupts, and they
    /// were asked for, or the device lacks what the engine needs. EIO, ETIMEDOUT: the device does
    /// not answer as it should.
    [[nodiscard]] static Result<std::unique_ptr<Engine>>
    probe(const Session& session, const DeviceAccess& device, const EngineOptions& options = {});
    /// What the engine for such a device can do at best, or null when no engine drives it. Needs no
    /// device. What it points to stays until the program ends.
    [[nodiscard]] static const EngineTraits* find(const DeviceIds& ids) noexcept;

    /// Add a kind of engine, for all threads and until the program ends. Of several that drive a
    /// device, find() and probe() take the one that was added last: a program's own engine before
    /// one of the library's.
    ///
    /// EINVAL: no name, no function, or an alignment or a block of 0. EEXIST: there is one of that
    /// name.
    [[nodiscard]] static Result<void> add(const EngineType& type);

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

    /// How it learns that a transfer has ended.
    [[nodiscard]] Completion completion() const noexcept { return completion_; }

    /// The device reads memory, and does with it what EngineTraits::read_effect says.
    ///
    /// @param src first address
    /// @param length bytes, at least 1, at most EngineTraits::max_transfer
    /// @param device_offset where in the device's memory they go, or what they are compared with
    /// EINVAL: length, alignment or device_offset are not possible. ERANGE: addresses beyond the
    /// mask. EOPNOTSUPP: ReadEffect::none. EILSEQ: ReadEffect::compares, and there is a difference.
    /// ETIMEDOUT, EIO: the device failed. ENODEV: it is gone.
    [[nodiscard]] Result<void> copy_to_device(Iova src, Size length, Size device_offset = Size());
    /// The same in one transfer from several segments, of which none is empty.
    [[nodiscard]] Result<void> copy_to_device(std::span<const Segment> src,
                                              Size device_offset = Size());
    /// The device writes its own memory to memory; as copy_to_device().
    [[nodiscard]] Result<void> copy_from_device(Iova dst, Size length, Size device_offset = Size());
    /// The same in one transfer to several segments.
    [[nodiscard]] Result<void> copy_from_device(std::span<const Segment> dst,
                                                Size device_offset = Size());
    /// The device writes a description of itself to memory, of EngineTraits::identity bytes: that
    /// of NVMe is the one of Identify Controller. EOPNOTSUPP: it cannot; others as
    /// copy_to_device().
    [[nodiscard]] Result<void> identify(std::span<const Segment> dst);
    /// Copy memory to memory through the device's own, in as many transfers as that takes. Any
    /// length that fits the alignment; errors as copy_to_device(), and EOPNOTSUPP when the device
    /// does not store what it reads. Both ranges are checked before anything is started.
    [[nodiscard]] Result<void> copy(Iova dst, Iova src, Size length);

    /// How long one transfer may take; EngineTraits::deadline from the start.
    [[nodiscard]] std::chrono::milliseconds deadline() const noexcept { return deadline_; }
    /// Set how long one transfer may take: a year at most, to which more is shortened.
    void set_deadline(std::chrono::milliseconds deadline) noexcept {
        deadline_ = std::min<std::chrono::milliseconds>(deadline, std::chrono::years(1));
    }

    /// Bring the device back to rest: when this succeeds, no transfer is under way. ETIMEDOUT, EIO.
    [[nodiscard]] Result<void> reset();

    /// What the last call answered, when that was an error.
    [[nodiscard]] const std::optional<Error>& last_error() const noexcept { return last_error_; }

protected:
    /// An engine that has no device which could go away: one made of memory, for tests.
    explicit Engine(const EngineTraits& traits) noexcept;
    /// @param traits what it can do with this device
    /// @param device what it reaches the device by
    /// @param completion how it waits
    Engine(const EngineTraits& traits, const DeviceAccess& device,
           Completion completion = Completion::polling) noexcept;

    /// The interrupts to wait by, for a create() of EngineType: none when EngineOptions asks for
    /// polling, or when it asks for nothing and the path or the device has none. Errors as
    /// DeviceAccess::interrupts().
    [[nodiscard]] static Result<std::optional<Interrupts>>
    interrupts_for(const DeviceAccess& device, const EngineOptions& options, unsigned vectors);
    /// How an engine with these waits.
    [[nodiscard]] static Completion
    completion_by(const std::optional<Interrupts>& interrupts) noexcept {
        return interrupts ? Completion::interrupt : Completion::polling;
    }
    /// Whether the device is still there. To be asked before its registers are touched, each time
    /// anew: those of a device that is gone must no longer be touched. ENODEV: it is gone. EBADF:
    /// the DeviceAccess or the Session was closed.
    [[nodiscard]] Result<void> check_present(std::string_view op) const;
    /// DeviceAccess::reset(), for a device that does not obey its registers.
    [[nodiscard]] Result<void> reset_function() const;
    /// Wait for an interrupt until the deadline: ETIMEDOUT; ENODEV when the device went meanwhile.
    [[nodiscard]] Result<void> await_interrupt(std::string_view op, const Interrupts& interrupts,
                                               unsigned vector) const;
    /// Traits that are known only after the device was asked.
    void set_traits(const EngineTraits& traits) noexcept { traits_ = traits; }

    /// One transfer, whose arguments have been checked against the traits.
    [[nodiscard]] virtual Result<void> do_to_device(std::span<const Segment> src,
                                                    Size device_offset) = 0;
    /// One transfer, whose arguments have been checked against the traits.
    [[nodiscard]] virtual Result<void> do_from_device(std::span<const Segment> dst,
                                                      Size device_offset) = 0;
    /// Write the description; not asked for unless EngineTraits::identity says that there is one.
    [[nodiscard]] virtual Result<void> do_identify(std::span<const Segment> dst);
    /// Bring the device to rest.
    [[nodiscard]] virtual Result<void> do_reset() = 0;

private:
    [[nodiscard]] Result<void> check(std::string_view op, Iova iova, Size length) const;
    [[nodiscard]] Result<void> check_segments(std::string_view op,
                                              std::span<const Segment> segments) const;
    [[nodiscard]] Result<void> check_transfer(std::string_view op,
                                              std::span<const Segment> segments,
                                              Size device_offset) const;
    template <class Move>
    [[nodiscard]] Result<void> transfer(std::string_view op, Move move);
    [[nodiscard]] Result<void> to_device(std::span<const Segment> src, Size device_offset);
    [[nodiscard]] Result<void> from_device(std::span<const Segment> dst, Size device_offset);
    [[nodiscard]] Result<void> note(Result<void> result);

    EngineTraits traits_;
    std::shared_ptr<const DeviceState> device_; // null when there is none
    Completion completion_;
    std::chrono::milliseconds deadline_;
    std::optional<Error> last_error_;
    bool at_rest_ = true; // no transfer has timed out since the last reset
};

} // namespace dmaprobe

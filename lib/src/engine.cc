// SPDX-License-Identifier: MIT
// What all engines have in common: the list of their kinds, and the checks before a transfer.
#include <dmaprobe/engine.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <format>
#include <mutex>
#include <utility>

#include "builtin_engines.h"
#include "device_state.h"

namespace dmaprobe {

namespace {

/// Every kind of engine, in the order in which they were added. None is ever removed, and a deque
/// does not move what it has, so that pointers to them stay good.
struct Registry {
    std::mutex mutex;
    std::deque<EngineType> types{engines::edu, engines::nvme, engines::testdev};
};

Registry& registry() {
    // Never destroyed: threads may outlive main().
    static Registry& only = *new Registry;
    return only;
}

std::size_t count_types() {
    const std::scoped_lock lock(registry().mutex);
    return registry().types.size();
}

const EngineType& type_at(std::size_t index) {
    const std::scoped_lock lock(registry().mutex);
    return registry().types[index];
}

const EngineType* find_type(const DeviceIds& ids) {
    // Without the lock, since what is called is somebody else's. The newest is asked first.
    for (std::size_t left = count_types(); left > 0; left--)
        if (const EngineType& type = type_at(left - 1); type.drives(ids))
            return &type;
    return nullptr;
}

Size total(std::span<const Segment> segments) noexcept {
    Size length;
    for (const Segment& segment : segments)
        length += segment.length;
    return length;
}

} // namespace

std::string_view to_string(ReadEffect read_effect) noexcept {
    switch (read_effect) {
    case ReadEffect::stores:
        return "stores";
    case ReadEffect::compares:
        return "compares";
    case ReadEffect::none:
        return "none";
    }
    return "unknown";
}

std::string_view to_string(Completion completion) noexcept {
    return completion == Completion::polling ? "polling" : "interrupt";
}

Result<std::optional<Interrupts>>
Engine::interrupts_for(const DeviceAccess& device, const EngineOptions& options, unsigned vectors) {
    if (options.completion == Completion::polling)
        return std::nullopt;
    auto made = device.interrupts(vectors);
    if (made)
        return std::move(*made);
    if (made.error().code == EOPNOTSUPP && !options.completion)
        return std::nullopt;
    return std::unexpected(std::move(made.error()));
}

Engine::Engine(const EngineTraits& traits) noexcept
    : traits_(traits), completion_(Completion::polling), deadline_(traits.deadline) {}

Engine::Engine(const EngineTraits& traits, const DeviceAccess& device,
               Completion completion) noexcept
    : traits_(traits), device_(device.state_), completion_(completion), deadline_(traits.deadline) {
}

Engine::~Engine() = default;

Result<void> Engine::check_present(std::string_view op) const {
    return device_ ? device_->check_present(op) : Result<void>();
}

Result<void> Engine::reset_function() const {
    if (!device_)
        return std::unexpected(Error{EOPNOTSUPP, "reset", "there is no device"});
    return device_->reset();
}

Result<void> Engine::await_interrupt(std::string_view op, const Interrupts& interrupts,
                                     unsigned vector) const {
    using Clock = std::chrono::steady_clock;
    // In steps, since a device that went gives no interrupt any more.
    constexpr std::chrono::milliseconds step(50);
    const auto end = Clock::now() + deadline_;
    for (;;) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
        auto came = interrupts.wait(vector, std::clamp(left, std::chrono::milliseconds(0), step));
        if (came)
            return {};
        if (came.error().code != ETIMEDOUT)
            return std::unexpected(std::move(came.error()));
        if (auto there = check_present(op); !there)
            return there;
        if (left <= step)
            return std::unexpected(
                Error{ETIMEDOUT, op, std::format("no interrupt came in {} ms", deadline_.count())});
    }
}

const EngineTraits* Engine::find(const DeviceIds& ids) noexcept {
    const EngineType* type = find_type(ids);
    return type != nullptr ? &type->traits : nullptr;
}

Result<void> Engine::add(const EngineType& type) {
    constexpr std::string_view op = "engine_add";
    if (type.traits.name.empty())
        return std::unexpected(Error{EINVAL, op, "an engine must have a name"});
    if (type.drives == nullptr || type.create == nullptr)
        return std::unexpected(
            Error{EINVAL, op, std::format("engine {} lacks a function", type.traits.name)});
    if (type.traits.alignment == 0 || type.traits.block == Size())
        return std::unexpected(
            Error{EINVAL, op,
                  std::format("engine {} has an alignment or a block of 0", type.traits.name)});
    Registry& all = registry();
    const std::scoped_lock lock(all.mutex);
    if (std::ranges::contains(all.types, type.traits.name,
                              [](const EngineType& other) { return other.traits.name; }))
        return std::unexpected(
            Error{EEXIST, op, std::format("there is an engine {} already", type.traits.name)});
    all.types.push_back(type);
    return {};
}

Result<std::unique_ptr<Engine>> Engine::probe(const Session& session, const DeviceAccess& device,
                                              const EngineOptions& options) {
    if (session.bdf() != device.bdf())
        return std::unexpected(
            Error{EINVAL, "engine_probe", "session and device access are not of one device"});
    const DeviceIds ids = device.ids();
    const EngineType* type = find_type(ids);
    if (type == nullptr)
        return std::unexpected(
            Error{EOPNOTSUPP, "engine_probe",
                  std::format("no engine can drive a device {:04x}:{:04x} of class {:06x}",
                              ids.vendor, ids.device, ids.class_code)});
    auto engine = type->create(session, device, options);
    if (engine && !*engine)
        return std::unexpected(
            Error{EINVAL, "engine_probe",
                  std::format("engine {} was made and is null", type->traits.name)});
    return engine;
}

/// What holds for every range that the device is given, however many transfers it takes.
Result<void> Engine::check(std::string_view op, Iova iova, Size length) const {
    if (length.value() == 0)
        return std::unexpected(Error{EINVAL, op, "nothing to move"});
    if (iova.value() % traits_.alignment != 0)
        return std::unexpected(
            Error{EINVAL, op, std::format("{} is not a multiple of {}", iova, traits_.alignment)});
    // Engines go by the end, which must be an address too; max() is none, but what a slip makes.
    const Iova end = iova + length;
    if (end == Iova::max() || end.value() - 1 > traits_.dma_mask)
        return std::unexpected(
            Error{ERANGE, op,
                  std::format("{} bytes at {} lie beyond the device's DMA mask {:#x}", length, iova,
                              traits_.dma_mask)});
    return {};
}

/// What holds for the memory of a transfer.
Result<void> Engine::check_segments(std::string_view op, std::span<const Segment> segments) const {
    if (segments.empty())
        return std::unexpected(Error{EINVAL, op, "nothing to move"});
    const std::uint64_t edge = traits_.segment_edge.value();
    if (segments.size() > 1 && edge == 0)
        return std::unexpected(Error{EINVAL, op, "a transfer of this device has one segment"});
    for (const Segment& segment : segments) {
        if (auto ok = check(op, segment.addr, segment.length); !ok)
            return ok;
        const bool first = &segment == &segments.front();
        const bool last = &segment == &segments.back();
        if ((!first && segment.addr.value() % edge != 0) ||
            (!last && (segment.addr + segment.length).value() % edge != 0))
            return std::unexpected(
                Error{EINVAL, op,
                      std::format("{} bytes at {}: segments meet at multiples of {}",
                                  segment.length, segment.addr, edge)});
    }
    return {};
}

Result<void> Engine::check_transfer(std::string_view op, std::span<const Segment> segments,
                                    Size device_offset) const {
    if (auto ok = check_segments(op, segments); !ok)
        return ok;
    const Size length = total(segments);
    const std::uint64_t block = traits_.block.value();
    if (length.value() % block != 0 || device_offset.value() % block != 0)
        return std::unexpected(Error{EINVAL, op,
                                     std::format("{} bytes at the device's {:#x}: both must be "
                                                 "multiples of {}",
                                                 length, device_offset, block)});
    if (length > traits_.max_transfer)
        return std::unexpected(Error{EINVAL, op,
                                     std::format("{} bytes are more than the {} of one transfer",
                                                 length, traits_.max_transfer)});
    const auto end = checked_add(device_offset, length);
    if (!end || *end > traits_.device_memory)
        return std::unexpected(
            Error{EINVAL, op,
                  std::format("{} bytes at {:#x} do not fit the device's memory of {}", length,
                              device_offset, traits_.device_memory)});
    return {};
}

Result<void> Engine::note(Result<void> result) {
    if (result)
        last_error_.reset();
    else
        last_error_ = result.error();
    return result;
}

/// One transfer. What it came to does not count when the device went meanwhile: nothing was mapped
/// any more, which not every device notices.
template <class Move>
Result<void> Engine::transfer(std::string_view op, Move move) {
    if (!at_rest_)
        return check_present(op).and_then([&] -> Result<void> {
            return std::unexpected(
                Error{EIO, op, "an earlier transfer may still be under way: reset the engine"});
        });
    auto moved = move();
    if (!moved && moved.error().code == ETIMEDOUT)
        at_rest_ = false;
    auto there = check_present(op);
    return there ? std::move(moved) : std::move(there);
}

Result<void> Engine::to_device(std::span<const Segment> src, Size device_offset) {
    return transfer("copy_to_device", [&] { return do_to_device(src, device_offset); });
}

Result<void> Engine::from_device(std::span<const Segment> dst, Size device_offset) {
    return transfer("copy_from_device", [&] { return do_from_device(dst, device_offset); });
}

Result<void> Engine::copy_to_device(std::span<const Segment> src, Size device_offset) {
    if (traits_.read_effect == ReadEffect::none)
        return note(
            std::unexpected(Error{EOPNOTSUPP, "copy_to_device",
                                  std::format("{} cannot read memory", traits_.description)}));
    auto ok = check_transfer("copy_to_device", src, device_offset);
    return note(ok ? to_device(src, device_offset) : std::move(ok));
}

Result<void> Engine::copy_to_device(Iova src, Size length, Size device_offset) {
    const Segment segment{.addr = src, .length = length};
    return copy_to_device(std::span(&segment, 1), device_offset);
}

Result<void> Engine::copy_from_device(std::span<const Segment> dst, Size device_offset) {
    auto ok = check_transfer("copy_from_device", dst, device_offset);
    return note(ok ? from_device(dst, device_offset) : std::move(ok));
}

Result<void> Engine::copy_from_device(Iova dst, Size length, Size device_offset) {
    const Segment segment{.addr = dst, .length = length};
    return copy_from_device(std::span(&segment, 1), device_offset);
}

Result<void> Engine::identify(std::span<const Segment> dst) {
    constexpr std::string_view op = "identify";
    if (traits_.identity == Size())
        return note(std::unexpected(
            Error{EOPNOTSUPP, op, std::format("{} cannot do that", traits_.description)}));
    if (auto ok = check_segments(op, dst); !ok)
        return note(std::move(ok));
    if (total(dst) != traits_.identity)
        return note(
            std::unexpected(Error{EINVAL, op, std::format("it takes {} bytes", traits_.identity)}));
    return note(transfer(op, [&] { return do_identify(dst); }));
}

Result<void> Engine::copy(Iova dst, Iova src, Size length) {
    if (traits_.read_effect != ReadEffect::stores)
        return note(std::unexpected(
            Error{EOPNOTSUPP, "copy",
                  std::format("{} does not keep what it reads", traits_.description)}));
    if (length.value() % traits_.block.value() != 0)
        return note(std::unexpected(Error{
            EINVAL, "copy", std::format("{} bytes are no multiple of {}", length, traits_.block)}));
    if (auto ok = check("copy", src, length); !ok)
        return note(std::move(ok));
    if (auto ok = check("copy", dst, length); !ok)
        return note(std::move(ok));
    const Size step = std::min(traits_.max_transfer, traits_.device_memory);
    if (step == Size())
        return note(std::unexpected(
            Error{EOPNOTSUPP, "copy", std::format("{} has no memory", traits_.description)}));
    for (Size done; done < length;) {
        const Size part = std::min(step, length - done);
        const Segment from{.addr = src + done, .length = part};
        const Segment to{.addr = dst + done, .length = part};
        if (auto moved = to_device(std::span(&from, 1), Size()); !moved)
            return note(std::move(moved));
        if (auto moved = from_device(std::span(&to, 1), Size()); !moved)
            return note(std::move(moved));
        done += part;
    }
    return note({});
}

Result<void> Engine::do_identify(std::span<const Segment> /*dst*/) {
    return std::unexpected(Error{EOPNOTSUPP, "identify", {}});
}

Result<void> Engine::reset() {
    auto done = do_reset();
    if (done)
        at_rest_ = true;
    return note(std::move(done));
}

} // namespace dmaprobe

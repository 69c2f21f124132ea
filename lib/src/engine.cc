// SPDX-License-Identifier: MIT
// What all engines have in common: the array of them, and the checks before a transfer.
#include <dmaprobe/engine.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <format>
#include <utility>

#include "engines/engines.h"

namespace dmaprobe {

namespace {

/// Every engine there is. A new one is a file in engines/ and a line here.
constexpr std::array known_engines{
    &engines::edu,
    &engines::nvme,
    &engines::testdev,
};

const engines::Entry* find_entry(const DeviceIds& ids) noexcept {
    const auto found = std::ranges::find_if(
        known_engines, [&](const engines::Entry* entry) { return entry->drives(ids); });
    return found == known_engines.end() ? nullptr : *found;
}

Size total(std::span<const Segment> segments) noexcept {
    Size length;
    for (const Segment& segment : segments)
        length += segment.length;
    return length;
}

} // namespace

std::string_view to_string(Intake intake) noexcept {
    switch (intake) {
    case Intake::stores:
        return "stores";
    case Intake::compares:
        return "compares";
    case Intake::none:
        return "none";
    }
    return "unknown";
}

std::string_view to_string(Completion completion) noexcept {
    return completion == Completion::polling ? "polling" : "interrupt";
}

Result<std::optional<Interrupts>> engines::interrupts_for(const DeviceAccess& device,
                                                          const EngineOptions& options,
                                                          unsigned vectors) {
    if (options.completion == Completion::polling)
        return std::nullopt;
    auto made = device.interrupts(vectors);
    if (made)
        return std::move(*made);
    if (made.error().code == EOPNOTSUPP && !options.completion)
        return std::nullopt;
    return std::unexpected(std::move(made.error()));
}

Engine::~Engine() = default;

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
    const engines::Entry* entry = find_entry(ids);
    return entry != nullptr ? &entry->traits : nullptr;
}

Result<std::unique_ptr<Engine>> Engine::probe(const Session& session, const DeviceAccess& device,
                                              const EngineOptions& options) {
    if (session.bdf() != device.bdf())
        return std::unexpected(
            Error{EINVAL, "engine_probe", "session and device access are not of one device"});
    const DeviceIds ids = device.ids();
    const engines::Entry* entry = find_entry(ids);
    if (entry == nullptr)
        return std::unexpected(
            Error{ENOTSUP, "engine_probe",
                  std::format("no engine can drive a device {:04x}:{:04x} of class {:06x}",
                              ids.vendor, ids.device, ids.class_code)});
    return entry->create(session, device, options);
}

/// What holds for every range that the device is given, however many transfers it takes.
Result<void> Engine::check(std::string_view op, Iova iova, Size length) const {
    if (length.value() == 0)
        return std::unexpected(Error{EINVAL, op, "nothing to move"});
    if (iova.value() % traits_.alignment != 0)
        return std::unexpected(
            Error{EINVAL, op,
                  std::format("{:#x} is not a multiple of {}", iova.value(), traits_.alignment)});
    const auto last = checked_add(iova, length - Size(1));
    if (!last || last->value() > traits_.dma_mask)
        return std::unexpected(
            Error{ERANGE, op,
                  std::format("{} bytes at {:#x} lie beyond the device's DMA mask {:#x}",
                              length.value(), iova.value(), traits_.dma_mask)});
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
                      std::format("{} bytes at {:#x}: segments meet at multiples of {}",
                                  segment.length.value(), segment.addr.value(), edge)});
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
                                                 length.value(), device_offset.value(), block)});
    if (length > traits_.max_transfer)
        return std::unexpected(Error{EINVAL, op,
                                     std::format("{} bytes are more than the {} of one transfer",
                                                 length.value(), traits_.max_transfer.value())});
    const auto end = checked_add(device_offset, length);
    if (!end || *end > traits_.device_memory)
        return std::unexpected(Error{
            EINVAL, op,
            std::format("{} bytes at {:#x} do not fit the device's memory of {}", length.value(),
                        device_offset.value(), traits_.device_memory.value())});
    return {};
}

Result<void> Engine::note(Result<void> result) {
    if (result)
        last_error_.reset();
    else
        last_error_ = result.error();
    return result;
}

/// What a transfer came to does not count when the device went meanwhile: nothing was mapped any
/// more, which not every device notices.
Result<void> Engine::to_device(std::span<const Segment> src, Size device_offset) {
    auto moved = do_to_device(src, device_offset);
    auto there = check_present("copy_to_device");
    return there ? std::move(moved) : std::move(there);
}

Result<void> Engine::from_device(std::span<const Segment> dst, Size device_offset) {
    auto moved = do_from_device(dst, device_offset);
    auto there = check_present("copy_from_device");
    return there ? std::move(moved) : std::move(there);
}

Result<void> Engine::copy_to_device(std::span<const Segment> src, Size device_offset) {
    if (traits_.intake == Intake::none)
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
        return note(std::unexpected(
            Error{EINVAL, op, std::format("it takes {} bytes", traits_.identity.value())}));
    auto moved = do_identify(dst);
    auto there = check_present(op);
    return note(there ? std::move(moved) : std::move(there));
}

Result<void> Engine::copy(Iova dst, Iova src, Size length) {
    if (traits_.intake != Intake::stores)
        return note(std::unexpected(
            Error{EOPNOTSUPP, "copy",
                  std::format("{} does not keep what it reads", traits_.description)}));
    if (length.value() % traits_.block.value() != 0)
        return note(std::unexpected(Error{
            EINVAL, "copy",
            std::format("{} bytes are no multiple of {}", length.value(), traits_.block.value())}));
    if (auto ok = check("copy", src, length); !ok)
        return note(std::move(ok));
    if (auto ok = check("copy", dst, length); !ok)
        return note(std::move(ok));
    const Size step = std::min(traits_.max_transfer, traits_.device_memory);
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
    return note(do_reset());
}

} // namespace dmaprobe

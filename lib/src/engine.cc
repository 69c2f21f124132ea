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
};

const engines::Entry* find_entry(std::uint16_t vendor, std::uint16_t device) noexcept {
    const auto found = std::ranges::find_if(known_engines, [=](const engines::Entry* entry) {
        return entry->traits.vendor == vendor && entry->traits.device == device;
    });
    return found == known_engines.end() ? nullptr : *found;
}

} // namespace

Engine::~Engine() = default;

const EngineTraits* Engine::find(std::uint16_t vendor, std::uint16_t device) noexcept {
    const engines::Entry* entry = find_entry(vendor, device);
    return entry != nullptr ? &entry->traits : nullptr;
}

Result<std::unique_ptr<Engine>> Engine::probe(const Session& session, const DeviceAccess& device) {
    if (session.bdf() != device.bdf())
        return std::unexpected(
            Error{EINVAL, "engine_probe", "session and device access are not of one device"});
    const engines::Entry* entry = find_entry(device.vendor(), device.device());
    if (entry == nullptr)
        return std::unexpected(Error{ENOTSUP, "engine_probe",
                                     std::format("no engine can drive a device {:04x}:{:04x}",
                                                 device.vendor(), device.device())});
    return entry->create(device);
}

/// What holds for every range that the device is given, however many transfers it takes.
Result<void> Engine::check(std::string_view op, Iova iova, Size length) const {
    if (length.value() == 0)
        return std::unexpected(Error{EINVAL, op, "nothing to move"});
    if (iova.value() % traits_.alignment != 0 || length.value() % traits_.alignment != 0)
        return std::unexpected(Error{EINVAL, op,
                                     std::format("{:#x} and {} bytes are not multiples of {}",
                                                 iova.value(), length.value(), traits_.alignment)});
    const auto last = checked_add(iova, length - Size(1));
    if (!last || last->value() > traits_.dma_mask)
        return std::unexpected(
            Error{ERANGE, op,
                  std::format("{} bytes at {:#x} lie beyond the device's DMA mask {:#x}",
                              length.value(), iova.value(), traits_.dma_mask)});
    return {};
}

Result<void> Engine::check_transfer(std::string_view op, Iova iova, Size length,
                                    Size device_offset) const {
    if (auto ok = check(op, iova, length); !ok)
        return ok;
    if (length > traits_.max_transfer)
        return std::unexpected(Error{EINVAL, op,
                                     std::format("{} bytes are more than the {} of one transfer",
                                                 length.value(), traits_.max_transfer.value())});
    const auto end = checked_add(device_offset, length);
    if (!end || *end > traits_.device_memory || device_offset.value() % traits_.alignment != 0)
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
Result<void> Engine::to_device(Iova src, Size length, Size device_offset) {
    auto moved = do_to_device(src, length, device_offset);
    auto there = check_present("copy_to_device");
    return there ? std::move(moved) : std::move(there);
}

Result<void> Engine::from_device(Iova dst, Size length, Size device_offset) {
    auto moved = do_from_device(dst, length, device_offset);
    auto there = check_present("copy_from_device");
    return there ? std::move(moved) : std::move(there);
}

Result<void> Engine::copy_to_device(Iova src, Size length, Size device_offset) {
    auto ok = check_transfer("copy_to_device", src, length, device_offset);
    return note(ok ? to_device(src, length, device_offset) : std::move(ok));
}

Result<void> Engine::copy_from_device(Iova dst, Size length, Size device_offset) {
    auto ok = check_transfer("copy_from_device", dst, length, device_offset);
    return note(ok ? from_device(dst, length, device_offset) : std::move(ok));
}

Result<void> Engine::copy(Iova dst, Iova src, Size length) {
    if (auto ok = check("copy", src, length); !ok)
        return note(std::move(ok));
    if (auto ok = check("copy", dst, length); !ok)
        return note(std::move(ok));
    const Size step = std::min(traits_.max_transfer, traits_.device_memory);
    for (Size done; done < length;) {
        const Size part = std::min(step, length - done);
        if (auto moved = to_device(src + done, part, Size()); !moved)
            return note(std::move(moved));
        if (auto moved = from_device(dst + done, part, Size()); !moved)
            return note(std::move(moved));
        done += part;
    }
    return note({});
}

Result<void> Engine::reset() {
    return note(do_reset());
}

} // namespace dmaprobe

// SPDX-License-Identifier: GPL-2.0-only
// A device that misbehaves: a double in front of the real device's engine. With it, the checks of
// the platform are linked to dmaprobe-doubletest, and the tool to dmaprobe-doubletool.
//
// dmaprobe-doubletool is for demo: its check runs dmaprobe-conformance, which has no double.
//
// The device is that of DMAPROBE_BDF. DMAPROBE_DOUBLE chooses what the double does:
//
// - posted: a write that fails, as one does that the IOMMU stopped, ends with success, as that of a
//   real device does
// - through: no write is stopped, as by an IOMMU that looks at no permission, keeps every
//   translation that it had, and reports nothing of others
// - late: what leads nowhere is not answered in time; the device otherwise sees what was stopped

#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>
#include <dmaprobe/pci.h>
#include <dmaprobe/session.h>
#include <dmaprobe/translate.h>
#include <linux/dmaprobe.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <print>
#include <string_view>
#include <sys/ioctl.h>
#include <tuple>
#include <utility>

namespace selftest {
namespace {

using namespace dmaprobe;

enum class Behaviour { posted, through, late };

/// What a variable of the environment holds.
std::string_view env(const char* name) {
    const char* value = std::getenv(name);

    return value ? value : "";
}

/// What is in front of which device; and whether the double looks for the real engine.
Behaviour behaviour = Behaviour::posted;
DeviceIds ids{};
bool looking = false;

class Double : public dmaprobe::Engine {
public:
    Double(const EngineTraits& traits, const Session& session, std::unique_ptr<Engine> real)
        : Engine(traits), session_(session), real_(std::move(real)) {}

private:
    /// Where a byte of memory is: the buffer's id, and the offset in it.
    using Place = std::pair<uint32_t, uint64_t>;

    Result<void> do_to_device(std::span<const Segment> src, Size offset) override {
        return in_time(src, real_->copy_to_device(src, offset));
    }

    Result<void> do_from_device(std::span<const Segment> dst, Size offset) override {
        if (behaviour == Behaviour::through) {
            for (const Segment& segment : dst) {
                if (auto done = write(segment, offset); !done)
                    return done;
                offset += segment.length;
            }
            return {};
        }
        auto done = in_time(dst, real_->copy_from_device(dst, offset));
        if (!done && done.error().code == EIO)
            return {};
        return done;
    }

    /// What the device answers, unless it is late.
    Result<void> in_time(std::span<const Segment> segments, Result<void> answer) const {
        if (behaviour == Behaviour::late)
            for (const Segment& segment : segments) {
                const auto extents = translate(session_, segment.addr, segment.length);
                if (!extents)
                    return std::unexpected(extents.error());
                if (extents->front().kind == ExtentKind::hole)
                    return std::unexpected(Error{ETIMEDOUT, "double", "as asked for"});
            }
        return answer;
    }

    Result<void> do_reset() override { return real_->reset(); }

    /// Write to where the address leads, or led, by a mapping that lets the device write there.
    Result<void> write(const Segment& to, Size offset) {
        const auto extents = translate(session_, to.addr, to.length);
        if (!extents)
            return std::unexpected(extents.error());
        const Extent& extent = extents->front();
        if (extent.kind == ExtentKind::buffer)
            led_.insert_or_assign(to.addr, Place(extent.buffer_id, extent.buffer_offset.value()));
        const auto led = led_.find(to.addr);
        if (led == led_.end())
            return {}; // nobody has that memory, or it is none of this session's
        dmaprobe_map map{};
        map.size = sizeof(map);
        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.dir = DMAPROBE_DIR_FROM_DEVICE;
        std::tie(map.buffer_id, map.buffer_offset) = led->second;
        map.length = to.length.value();
        // What is no buffer cannot be mapped once more; nor what has gone.
        if (ioctl(session_.fd(), DMAPROBE_MAP, &map))
            return real_->copy_from_device(to.addr, to.length, offset);
        auto done = real_->copy_from_device(Iova(map.dma_addr), to.length, offset);
        dmaprobe_unmap unmap{};
        unmap.size = sizeof(unmap);
        unmap.id = map.id;
        if (ioctl(session_.fd(), DMAPROBE_UNMAP, &unmap))
            return std::unexpected(Error{errno, "double", "the memory stays mapped"});
        return done;
    }

    const Session& session_;
    std::unique_ptr<Engine> real_;
    std::map<Iova, Place> led_;
};

Result<std::unique_ptr<Engine>> create(const Session& session, const DeviceAccess& device,
                                       const EngineOptions& options) {
    looking = true;
    auto real = Engine::probe(session, device, options);
    looking = false;
    if (!real)
        return real;
    EngineTraits traits = (*real)->traits();
    traits.identity = Size();
    traits.sees_read_faults |= behaviour == Behaviour::late;
    traits.sees_write_faults = behaviour == Behaviour::late;
    return std::make_unique<Double>(traits, session, std::move(*real));
}

/// Puts the double in front of the engine of the device, or ends the program.
bool put_in_front() {
    const auto fail = [](std::string_view why) {
        std::println(stderr, "double: {}", why);
        std::_Exit(2);
    };
    using Name = std::pair<std::string_view, Behaviour>;
    constexpr std::array<Name, 3> names = {{{"posted", Behaviour::posted},
                                            {"through", Behaviour::through},
                                            {"late", Behaviour::late}}};
    const auto* const name = std::ranges::find(names, env("DMAPROBE_DOUBLE"), &Name::first);
    if (name == names.end())
        fail("DMAPROBE_DOUBLE must be posted, through or late");
    behaviour = name->second;
    const auto bdf = Bdf::parse(env("DMAPROBE_BDF"));
    if (!bdf)
        fail("DMAPROBE_BDF must name the device");
    const auto device = PciBus().device(*bdf);
    if (!device)
        fail(device.error().message());
    ids = {.vendor = device->vendor, .device = device->device, .class_code = device->class_code};
    const EngineTraits* real = Engine::find(ids);
    if (!real)
        fail("no engine drives the device");
    EngineType type{.traits = *real,
                    .drives =
                        [](const DeviceIds& of) noexcept {
                            return !looking && of.vendor == ids.vendor && of.device == ids.device;
                        },
                    .create = create};
    type.traits.name = "double";
    if (const auto added = Engine::add(type); !added)
        fail(added.error().message());
    return true;
}

[[maybe_unused]] const bool in_front = put_in_front();

} // namespace
} // namespace selftest

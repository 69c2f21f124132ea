// SPDX-License-Identifier: GPL-2.0-only
// A device whose writes are posted: a double in front of the real device's engine. With it, the
// checks of the platform are linked to a program of their own, dmaprobe-doubletest.
//
// DMAPROBE_DOUBLE chooses how the platform behaves:
//   posted   a write that the IOMMU stopped ends with success, as that of a real device does
//   through  no write is stopped, as by an IOMMU that looks at no permission, keeps every
//            translation that it had, and reports nothing of others

#include "support/ops.h"
#include "support/result.h"
#include "support/system.h"

#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>
#include <dmaprobe/session.h>
#include <dmaprobe/translate.h>

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <sys/ioctl.h>
#include <tuple>
#include <utility>
#include <vector>

namespace selftest {
namespace {

using namespace dmaprobe;

class Double : public dmaprobe::Engine {
public:
    Double(const EngineTraits& traits, const Session& session, std::unique_ptr<Engine> real)
        : Engine(traits), session_(session), real_(std::move(real)),
          through_(env("DMAPROBE_DOUBLE") == "through") {}

private:
    /// Where a byte of memory is: the buffer's id, and the offset in it.
    using Place = std::pair<uint32_t, uint64_t>;

    Result<void> do_to_device(std::span<const Segment> src, Size offset) override {
        return real_->copy_to_device(src, offset);
    }

    Result<void> do_from_device(std::span<const Segment> dst, Size offset) override {
        if (through_) {
            for (const Segment& segment : dst) {
                if (auto done = write(segment, offset); !done)
                    return done;
                offset += segment.length;
            }
            return {};
        }
        auto done = real_->copy_from_device(dst, offset);
        if (!done && done.error().code == EIO)
            return {};
        return done;
    }

    Result<void> do_reset() override { return real_->reset(); }

    /// Write to where the address leads, or led, by a mapping that lets the device write there.
    Result<void> write(const Segment& to, Size offset) {
        const auto extents = translate(session_, to.addr, to.length);
        if (!extents)
            return std::unexpected(extents.error());
        const dmaprobe::Extent& extent = extents->front();
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
        EXPECT_EQ(ioctl(session_.fd(), DMAPROBE_UNMAP, &unmap), 0);
        return done;
    }

    const Session& session_;
    std::unique_ptr<Engine> real_;
    bool through_;
    std::map<Iova, Place> led_;
};

/// While the double looks for the real engine.
bool looking = false;

Result<std::unique_ptr<Engine>> create(const Session& session, const DeviceAccess& device,
                                       const EngineOptions& options) {
    looking = true;
    auto real = Engine::probe(session, device, options);
    looking = false;
    if (!real)
        return real;
    EngineTraits traits = (*real)->traits();
    traits.sees_write_faults = false;
    return std::make_unique<Double>(traits, session, std::move(*real));
}

/// Puts the double in front of the engine of the device.
class InFront : public testing::Environment {
public:
    void SetUp() override {
        const auto session = Session::open(env("DMAPROBE_BDF"));
        ASSERT_WORKS(session);
        const auto device = DeviceAccess::open(*session);
        ASSERT_WORKS(device);
        const EngineTraits* real = Engine::find(device->ids());
        ASSERT_NE(real, nullptr) << "no engine drives this device";
        EngineType type{.traits = *real,
                        .drives = [](const DeviceIds&) noexcept { return !looking; },
                        .create = create};
        type.traits.name = "double";
        ASSERT_WORKS(Engine::add(type));
    }
};

[[maybe_unused]] const testing::Environment* const in_front =
    testing::AddGlobalTestEnvironment(new InFront);

} // namespace
} // namespace selftest

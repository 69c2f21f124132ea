// SPDX-License-Identifier: GPL-2.0-only
// What the steps of dmaprobe demo check: the IOMMU's page tables, the bytes that the device moved,
// the faults that the IOMMU reported.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <format>
#include <thread>
#include <tuple>

#include "demo.h"

namespace tool {

using namespace std::chrono_literals;

using dmaprobe::Extent;
using dmaprobe::ExtentKind;
using dmaprobe::Fault;
using dmaprobe::FaultAccess;
using dmaprobe::Iova;
using dmaprobe::ReadEffect;
using dmaprobe::Result;
using dmaprobe::Size;

namespace {

std::string extent_text(const Extent& extent, Iova base, Size page_size) {
    std::string text = std::format("{:#x} + {:#x} -> ", extent.iova.value(), extent.length.value());
    switch (extent.kind) {
    case ExtentKind::hole:
        text += "nothing";
        break;
    case ExtentKind::buffer:
        text += std::format("buffer {} + {:#x}", extent.buffer_id, extent.buffer_offset.value());
        break;
    case ExtentKind::foreign:
        text += "memory of somebody else";
        break;
    }
    if (extent.phys && extent.length <= page_size)
        text += std::format(", physical {:#x}", extent.phys->value());
    const std::uint64_t first = (extent.iova - base).value() / page_size.value();
    const std::uint64_t pages = extent.length.value() / page_size.value();
    if (pages > 1)
        text += std::format("   (pages {} to {})", first, first + pages - 1);
    else
        text += std::format("   (page {})", first);
    return text;
}

Json extent_json(const Extent& extent) {
    return {{"iova", hex(extent.iova.value())},
            {"length", extent.length.value()},
            {"kind", to_string(extent.kind)},
            {"buffer_id", extent.kind == ExtentKind::buffer ? Json(extent.buffer_id) : Json()},
            {"buffer_offset",
             extent.kind == ExtentKind::buffer ? Json(extent.buffer_offset.value()) : Json()},
            {"phys", extent.phys ? Json(hex(extent.phys->value())) : Json()}};
}

} // namespace

/// Translate a range, and report its extents; with `phys` by physical address, which needs a
/// capability that the demo works without.
Result<std::vector<Extent>> Demo::look(Step& step, Iova from, Size length, bool phys) {
    auto extents = dmaprobe::translate(*session_, from, length, {.phys = phys && with_phys_});
    if (!extents && extents.error().code == EPERM && with_phys_) {
        with_phys_ = false;
        extents = dmaprobe::translate(*session_, from, length);
    }
    if (!extents)
        return extents;
    Json list = Json::array();
    for (const Extent& extent : *extents) {
        step.say("{}", extent_text(extent, iova_, page_size_));
        list.push_back(extent_json(extent));
    }
    if (step.values().contains("extents")) {
        Json all = step.values()["extents"];
        all.insert(all.end(), list.begin(), list.end());
        list = std::move(all);
    }
    step.value("extents", std::move(list));
    return extents;
}

/// The space as a whole leads to the buffer from its start to its end.
Result<void> Demo::check_whole(Step& step) {
    const auto extents = look(step, iova_, page(nr_pages));
    if (!extents)
        return std::unexpected(extents.error());
    const Extent& first = extents->front();
    if (extents->size() != 1 || first.kind != ExtentKind::buffer || first.iova != iova_ ||
        first.length != page(nr_pages) || first.buffer_id != buffer_->id() ||
        first.buffer_offset != Size())
        step.mismatch("the space does not lead to the whole buffer in one piece");
    return {};
}

Result<void> Demo::check_hole(Step& step) {
    const auto extents = look(step, iova_, page(nr_pages));
    if (!extents)
        return std::unexpected(extents.error());
    if (extents->size() != 1 || extents->front().kind != ExtentKind::hole)
        step.mismatch("something is still mapped there");
    return {};
}

Result<void> Demo::check_no_faults(Step& step) {
    const auto list = faults_->drain();
    if (!list)
        return std::unexpected(list.error());
    for (const Fault& fault : *list) {
        if (fault.is_from(requesters_))
            step.mismatch("the IOMMU reported: {}", fault.raw);
    }
    return {};
}

/// The device writes the same of its own to two pages, and compares where it can.
Result<void> Demo::write_both(std::uint64_t one, std::uint64_t other) {
    for (const std::uint64_t n : {one, other}) {
        if (auto done = engine_->copy_from_device(at(n), page_size_); !done)
            return done;
        if (read_effect() == ReadEffect::none)
            continue;
        if (auto done = engine_->copy_to_device(at(n), page_size_); !done)
            return done;
    }
    return {};
}

/// The device copies a page, or writes to both when it cannot keep what it reads; every byte of the
/// buffer is then as it must be.
Result<void> Demo::copy(Step& step, std::uint64_t to, std::uint64_t from) {
    const bool copies = read_effect() == ReadEffect::stores;
    const auto before = snapshot();
    if (copies)
        step.say("{}: {} from {:#x} to {:#x}, through its own memory", engine_->name(),
                 size_text(page_size_), at(from).value(), at(to).value());
    else
        step.say("{}: its first {} to {:#x} and to {:#x}{}", engine_->name(), size_text(page_size_),
                 at(from).value(), at(to).value(),
                 read_effect() == ReadEffect::compares ? ", and it compares both with what it has"
                                                       : "");
    step.value("src", hex(at(from).value()));
    step.value("dst", hex(at(to).value()));
    step.value("length", page_size_.value());

    // What the kernel reports late of whoever had the device before is not ours.
    if (auto done = faults_->drain(); !done)
        return std::unexpected(done.error());
    const auto start = std::chrono::steady_clock::now();
    if (auto done = copies ? engine_->copy(at(to), at(from), page_size_) : write_both(from, to);
        !done)
        return done;
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::now() - start);
    step.value("milliseconds", took.count());

    const std::size_t size = page_size_.value();
    // What both pages must hold now, and no other one does.
    const std::span<const std::byte> same =
        copies ? std::span<const std::byte>(before).subspan(page(from).value(), size)
               : page_bytes(from);
    const auto now = buffer_->bytes();
    std::size_t wrong = 0;
    std::size_t first_wrong = 0;
    for (std::size_t i = 0; i < now.size(); ++i) {
        const std::size_t n = i / size;
        const std::byte want = n == to || n == from ? same[i % size] : before[i];
        if (now[i] != want && wrong++ == 0)
            first_wrong = i;
    }
    step.value("bytes_compared", now.size());
    step.value("bytes_wrong", wrong);
    if (wrong != 0)
        step.mismatch("{} bytes of the buffer are wrong, the first at {:#x}", wrong, first_wrong);
    else
        step.say("after {} ms page {} equals page {}, and the other pages are untouched: {} bytes "
                 "compared",
                 took.count(), to, from, now.size());
    return check_no_faults(step);
}

/// Have the device use `asked`, where nothing is mapped. An error is as good as the fault where the
/// engine sees such; so are other bytes than it has, which were read nowhere.
Result<void> Demo::provoke(FaultAccess access, Iova asked) {
    const bool reads = access == FaultAccess::read;
    const auto& able = engine_->traits();
    const auto done = reads ? engine_->copy_to_device(asked, small_dma())
                            : engine_->copy_from_device(asked, small_dma());
    const bool stopped = !done && done.error().code == EIO &&
                         (reads ? able.sees_read_faults : able.sees_write_faults);
    const bool differs = !done && reads && done.error().code == EILSEQ;
    if (!done && !stopped && !differs)
        return done;
    // Whatever the fault did to the device ends here; one that answers nothing any more fails.
    return engine_->reset();
}

/// The IOMMU reports that the device used `asked`, where nothing is mapped.
Result<void> Demo::expect_fault(Step& step, FaultAccess access, Iova asked) {
    step.say("{}: {} {} bytes at {:#x}", engine_->name(), to_string(access), small_dma().value(),
             asked.value());
    step.value("asked", hex(asked.value()));
    if (auto done = faults_->drain(); !done)
        return std::unexpected(done.error());
    std::ignore = faults_->take_other_lines();
    if (auto done = provoke(access, asked); !done)
        return done;
    auto fault = faults_->wait(requesters_, 2s);
    if (!fault && fault.error().code == ETIMEDOUT) {
        // The kernel reports few faults in 5 seconds. When others used them up, ask once more
        // later.
        step.say("no fault was reported; asking once more when the kernel's rate limit has passed");
        std::this_thread::sleep_for(6s);
        if (auto done = provoke(access, asked); !done)
            return done;
        fault = faults_->wait(requesters_, 2s);
    }
    if (!fault) {
        if (fault.error().code != ETIMEDOUT)
            return std::unexpected(fault.error());
        for (const std::string& line : faults_->take_other_lines())
            step.say("kernel log: {}", line);
        if (seen_faults_.empty())
            step.quirk("no report of the IOMMU is understood here");
        else
            step.mismatch("the IOMMU did not report the fault, as it did another");
        unreported_++;
        return {};
    }
    if (unreported_ != 0)
        step.mismatch("the IOMMU reports this fault, and did not report another");

    // Each access of the bus is a fault of its own.
    if (small_dma() > Size(8)) {
        std::this_thread::sleep_for(100ms);
        if (auto rest = faults_->drain(); !rest)
            return std::unexpected(rest.error());
    }

    Json json = {{"step", current_}, {"asked", hex(asked.value())}};
    json.update(fault_json(*fault));
    step.value("fault", json);
    seen_faults_.push_back(std::move(json));
    if (fault->iova)
        step.say("the IOMMU faults: {} of {:#x} by {}: {}",
                 fault->access == FaultAccess::unknown ? "access" : to_string(fault->access),
                 fault->iova->value(), fault->bdf.value_or(bdf_).to_string(), fault->reason);
    else
        step.say("the IOMMU faults, and does not say where: {}", fault->reason);
    if (!fault->is_from(bdf_))
        step.quirk("reports name {}, a bridge above the device", fault->bdf->to_string());
    step.say("kernel log: {}", fault->raw);
    const Size granule(4096); // what IOMMUs round addresses of faults down to
    if (fault->iova && fault->iova->align_down(granule) != asked.align_down(granule))
        step.mismatch("the fault is at {:#x}, not at the {:#x} that was asked for",
                      fault->iova->value(), asked.value());
    if (fault->access != FaultAccess::unknown && fault->access != access)
        step.mismatch("the fault is a {}, not a {}", to_string(fault->access), to_string(access));
    return {};
}

} // namespace tool

// SPDX-License-Identifier: GPL-2.0-only
// The steps of dmaprobe demo, in the order in which they run.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <format>
#include <thread>

#include <linux/dmaprobe.h>

#include "demo.h"

namespace tool {

using namespace std::chrono_literals;

using dmaprobe::Buffer;
using dmaprobe::CallStatus;
using dmaprobe::DeviceAccess;
using dmaprobe::DomainType;
using dmaprobe::Engine;
using dmaprobe::Extent;
using dmaprobe::ExtentKind;
using dmaprobe::FaultAccess;
using dmaprobe::FaultWatcher;
using dmaprobe::Iova;
using dmaprobe::IovaSpace;
using dmaprobe::ReadEffect;
using dmaprobe::Result;
using dmaprobe::Session;
using dmaprobe::Size;

Result<void> Demo::open_session(Step& step) {
    auto session = Session::open(bdf_);
    if (!session) {
        never_started_ = failure(session.error());
        return {};
    }
    session_ = std::move(*session);
    const auto info = session_->info();
    if (!info)
        return std::unexpected(info.error());
    const auto limits = session_->limits();
    if (!limits)
        return std::unexpected(limits.error());
    limits_ = *limits;
    auto domain = session_->domain();
    if (!domain)
        return std::unexpected(domain.error());
    domain_ = std::move(*domain);

    const auto call = session_->find_call("dma_iova_try_alloc");
    if (!call)
        return std::unexpected(call.error());
    if (call->status != CallStatus::offered) {
        skip_ = Skip{
            std::format("kernel {} has no dma_iova_*() calls: {}", kernel_release(), call->detail)};
        return {};
    }
    if (!limits_.iommu) {
        skip_ = Skip{std::format("no IOMMU translates for {} (domain type {})", bdf_.to_string(),
                                 to_string(domain_.type))};
        return {};
    }

    step.say("{}, ABI {}", session_->path(), info->abi_version);
    step.say("IOMMU {} ({}){}, domain {}, granule {}", domain_.iommu, domain_.driver,
             machine_.empty() ? "" : std::format(", emulated ({})", machine_),
             to_string(domain_.type), size_text(domain_.granule()));
    step.say("limits: masks {:#x} and {:#x} (coherent), largest mapping {}, merge boundary {:#x}",
             limits_.dma_mask, limits_.coherent_dma_mask, size_text(limits_.max_mapping_size),
             limits_.merge_boundary);
    step.value("node", session_->path());
    step.value("abi_version", info->abi_version);
    step.value("iommu", domain_.iommu);
    step.value("iommu_driver", domain_.driver);
    step.value("domain", to_string(domain_.type));
    step.value("granule", domain_.granule().value());
    step.value("dma_mask", hex(limits_.dma_mask));
    step.value("merge_boundary", hex(limits_.merge_boundary));
    if (info->abi_version < DMAPROBE_ABI_VERSION)
        step.mismatch("the module speaks ABI {}, this tool needs {}", info->abi_version,
                      DMAPROBE_ABI_VERSION);
    if (domain_.granule() > page_size_)
        skip_ = Skip{std::format("the IOMMU's granule of {} is larger than a page",
                                 size_text(domain_.granule()))};
    return {};
}

Result<void> Demo::find_engine(Step& step) {
    auto access = DeviceAccess::open(*session_);
    if (!access)
        return std::unexpected(access.error());
    access_ = std::move(*access);
    path_ = to_string(access_->path());
    // An engine may have memory of its own, so the mask comes first.
    const auto* traits = Engine::find(access_->ids());
    const std::uint64_t reach = traits != nullptr ? traits->dma_mask : limits_.dma_mask;
    std::uint64_t mask = reach;
    if (traits != nullptr) {
        const auto set = session_->set_mask_up_to(reach);
        if (!set)
            return std::unexpected(set.error());
        mask = *set;
    }
    auto engine = Engine::probe(*session_, *access_);
    if (!engine) {
        if (engine.error().code == EOPNOTSUPP)
            skip_ = Skip{failure(engine.error()).message};
        return std::unexpected(engine.error());
    }
    engine_ = std::move(*engine);
    engine_name_ = engine_->name();
    engine_emulated_ = engine_->emulated();
    const auto& able = engine_->traits();
    if (able.max_transfer < page_size_ || able.block > page_size_ ||
        able.device_memory < page_size_)
        skip_ = Skip{std::format("{} does not move a page at once, but {} to {}", able.description,
                                 size_text(able.block),
                                 size_text(std::min(able.max_transfer, able.device_memory)))};

    auto faults = FaultWatcher::open();
    if (!faults)
        return std::unexpected(faults.error());
    faults_ = std::move(*faults);
    auto ids = dmaprobe::PciBus().requester_ids(bdf_);
    if (!ids)
        return std::unexpected(ids.error());
    requesters_ = std::move(*ids);

    const auto limits = session_->limits();
    if (!limits)
        return std::unexpected(limits.error());
    limits_ = *limits;

    step.say("BARs and config space through {}: {}", path_, access_->why());
    step.say("{:04x}:{:04x} is {}{}", access_->ids().vendor, access_->ids().device,
             engine_->traits().description, engine_->emulated() ? ", which is emulated" : "");
    step.say("it reaches {} bits of addresses, so the DMA mask is now {:#x}{}",
             std::bit_width(reach), limits_.dma_mask,
             mask == reach ? "" : ": more than 32 bits need CAP_SYS_RAWIO");
    step.value("path", path_);
    step.value("why", access_->why());
    step.value("engine", engine_->name());
    step.value("emulated", engine_->emulated());
    step.value("dma_mask", hex(limits_.dma_mask));
    if (limits_.dma_mask != mask || limits_.coherent_dma_mask != mask)
        step.mismatch("the masks are {:#x} and {:#x} (coherent), not {:#x}", limits_.dma_mask,
                      limits_.coherent_dma_mask, mask);
    return {};
}

Result<void> Demo::make_memory(Step& step) {
    auto buffer = Buffer::scattered(*session_, page(nr_pages));
    if (!buffer)
        return std::unexpected(buffer.error());
    buffer_ = std::move(*buffer);

    // Every word names its page and its place, and no two pages share a byte at the same place.
    for (std::uint64_t n = 0; n < nr_pages; ++n) {
        const auto bytes = page_bytes(n);
        for (std::size_t i = 0; i < bytes.size(); ++i)
            bytes[i] = static_cast<std::byte>((n + 1) * 0x10 + i * 7 + i / 256 * 3);
    }
    step.say("buffer {}: {} pages of {}, not neighbours in memory, each with a pattern of its own",
             buffer_->id(), nr_pages, size_text(page_size_));
    step.value("buffer_id", buffer_->id());
    step.value("length", buffer_->length().value());
    return {};
}

Result<void> Demo::alloc_iova(Step& step) {
    auto space = IovaSpace::alloc(*session_, page(nr_pages));
    if (!space) {
        if (space.error().code == EOPNOTSUPP)
            skip_ = Skip{space.error().message()};
        return std::unexpected(space.error());
    }
    space_ = std::move(*space);
    iova_ = space_->addr();
    const Iova last = iova_ + (page(nr_pages) - Size(1));
    step.say("{:#x} - {:#x}", iova_.value(), last.value());
    step.value("iova", hex(iova_.value()));
    step.value("length", page(nr_pages).value());
    if (iova_ == Iova())
        step.mismatch("the IOVA is 0");
    if (last.value() > limits_.dma_mask)
        step.mismatch("it lies beyond the mask {:#x}", limits_.dma_mask);
    if (iova_.align_down(domain_.granule()) != iova_)
        step.mismatch("it does not start at a granule of {:#x}", domain_.granule().value());
    return check_hole(step);
}

Result<void> Demo::link_pages(Step& step) {
    for (std::uint64_t n = 0; n < nr_pages; ++n) {
        if (auto done = space_->link(*buffer_, page(n), page(n), page_size_, direction); !done)
            return done;
        step.say("page {} at offset {:#x}", n, page(n).value());
    }
    const auto state = space_->state();
    if (!state)
        return std::unexpected(state.error());
    step.say("the module's record: {} links, {} linked", state->nr_links, size_text(state->linked));
    step.value("links", state->nr_links);
    step.value("linked", state->linked.value());
    step.value("bounced", state->bounced);
    if (state->nr_links != nr_pages || state->linked != page(nr_pages))
        step.mismatch("{} links with {} bytes were made", nr_pages, page(nr_pages).value());
    return {};
}

Result<void> Demo::sync_iova(Step& step) {
    if (auto done = space_->sync(Size(), page(nr_pages)); !done)
        return done;
    step.say("{:#x} + {:#x}", iova_.value(), page(nr_pages).value());
    step.value("iova", hex(iova_.value()));
    step.value("length", page(nr_pages).value());
    return {};
}

Result<void> Demo::translate_all(Step& step) {
    if (auto done = check_whole(step); !done)
        return done;
    // One by one, so that each page's own place in memory shows.
    std::vector<Extent> pages;
    for (std::uint64_t n = 0; n < nr_pages; ++n) {
        const auto extents = look(step, at(n), page_size_, true);
        if (!extents)
            return std::unexpected(extents.error());
        const Extent& extent = extents->front();
        if (extents->size() != 1 || extent.kind != ExtentKind::buffer ||
            extent.buffer_id != buffer_->id() || extent.buffer_offset != page(n))
            step.mismatch("page {} is not where it was linked", n);
        pages.push_back(extent);
    }
    if (!with_phys_) {
        step.say("physical addresses are reported to administrators only");
        return {};
    }
    for (std::size_t n = 1; n < pages.size(); ++n) {
        if (!pages[n].phys || !pages[n - 1].phys)
            step.mismatch("no physical address was reported");
        else if (*pages[n - 1].phys + page_size_ == *pages[n].phys)
            step.mismatch(
                "pages {} and {} are neighbours in memory, so the buffer is not scattered", n - 1,
                n);
    }
    return {};
}

Result<void> Demo::copy_page(Step& step) {
    if (std::ranges::equal(page_bytes(0), page_bytes(3)))
        step.mismatch("pages 0 and 3 are equal before anything was copied");
    return copy(step, 3, 0);
}

Result<void> Demo::unlink_page(Step& step) {
    if (auto done = space_->unlink(page(1), page_size_, direction); !done)
        return done;
    step.value("offset", page(1).value());
    step.value("length", page_size_.value());
    const auto extents = look(step, iova_, page(nr_pages));
    if (!extents)
        return std::unexpected(extents.error());
    const auto leads_to = [&](const Extent& extent, std::uint64_t first, std::uint64_t count) {
        return extent.kind == ExtentKind::buffer && extent.iova == at(first) &&
               extent.length == page(count) && extent.buffer_id == buffer_->id() &&
               extent.buffer_offset == page(first);
    };
    if (extents->size() != 3 || !leads_to(extents->at(0), 0, 1) ||
        extents->at(1).kind != ExtentKind::hole || extents->at(1).iova != at(1) ||
        extents->at(1).length != page_size_ || !leads_to(extents->at(2), 2, 2))
        step.mismatch("there should be page 0, a hole of one page, and pages 2 and 3");
    return {};
}

Result<void> Demo::reach_into_hole(Step& step) {
    return expect_fault(
        step, read_effect() == ReadEffect::none ? FaultAccess::write : FaultAccess::read, at(1));
}

Result<void> Demo::copy_beside_hole(Step& step) {
    return copy(step, 0, 2);
}

Result<void> Demo::relink_page(Step& step) {
    if (auto done = space_->link(*buffer_, page(1), page(1), page_size_, direction); !done)
        return done;
    if (auto done = space_->sync(page(1), page_size_); !done)
        return done;
    return check_whole(step);
}

Result<void> Demo::destroy_iova(Step& step) {
    if (auto done = space_->destroy(page(nr_pages), direction); !done)
        return done;
    step.value("mapped_len", page(nr_pages).value());
    if (auto done = check_hole(step); !done)
        return done;
    if (domain_.type == DomainType::dma_fq) {
        step.say("lazy domain: the IOMMU may keep translations for 10 ms; waiting for longer");
        std::this_thread::sleep_for(100ms);
    }
    return {};
}

Result<void> Demo::write_after_destroy(Step& step) {
    // What the device may write is in none of these bytes: a write that came through would show.
    std::ranges::fill(page_bytes(3), std::byte{0xa5});
    const auto before = snapshot();
    if (auto done = expect_fault(step, FaultAccess::write, at(3)); !done)
        return done;
    const auto now = buffer_->bytes();
    const auto wrong = std::ranges::mismatch(now, before).in1 - now.begin();
    step.value("bytes_compared", now.size());
    if (static_cast<std::size_t>(wrong) != now.size())
        step.mismatch("the buffer changed at {:#x}", wrong);
    else
        step.say("memory is unchanged: {} bytes compared", now.size());
    return {};
}

Result<void> Demo::close_all(Step& step) {
    if (auto done = buffer_->close(); !done)
        return done;
    if (auto done = engine_->reset(); !done)
        return done;
    engine_.reset(); // which shuts the device down, and so must come before the access ends
    if (auto done = access_->close(); !done)
        return done;
    if (auto done = session_->close(); !done)
        return done;
    step.say("buffer freed, device and session closed");
    return {};
}

} // namespace tool

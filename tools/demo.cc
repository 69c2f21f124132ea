// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe demo: one sequence from an IOVA to a fault, shown step by step.
//
// Each step acts and then checks, with a witness of its own: what the calls answered, what the
// IOMMU's page tables say, what the device moved, what the IOMMU reported.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <format>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#include <dmaprobe/buffer.h>
#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>
#include <dmaprobe/fault.h>
#include <dmaprobe/iova.h>
#include <dmaprobe/translate.h>

#include <linux/dmaprobe.h>

#include "output.h"

namespace tool {

using namespace std::chrono_literals;

using dmaprobe::Bdf;
using dmaprobe::Buffer;
using dmaprobe::CallStatus;
using dmaprobe::DeviceAccess;
using dmaprobe::Direction;
using dmaprobe::Domain;
using dmaprobe::DomainType;
using dmaprobe::Engine;
using dmaprobe::Extent;
using dmaprobe::ExtentKind;
using dmaprobe::Fault;
using dmaprobe::FaultAccess;
using dmaprobe::FaultWatcher;
using dmaprobe::Intake;
using dmaprobe::Iova;
using dmaprobe::IovaSpace;
using dmaprobe::Limits;
using dmaprobe::Result;
using dmaprobe::Session;
using dmaprobe::Size;

namespace {

constexpr std::uint64_t nr_pages = 4;
constexpr Direction direction = Direction::bidirectional;

/// One step: what it prints, and what did not come out as it must.
class Step {
public:
    /// A line for a person.
    template <class... T>
    void say(std::format_string<T...> format, T&&... values) {
        lines_.push_back(std::format(format, std::forward<T>(values)...));
    }
    /// A value for programs.
    void value(std::string_view key, Json json) { values_[std::string(key)] = std::move(json); }
    /// Something is not as it must be.
    template <class... T>
    void mismatch(std::format_string<T...> format, T&&... values) {
        problems_.push_back(std::format(format, std::forward<T>(values)...));
    }

    /// Something of the platform that is worth knowing, and no rule broken.
    template <class... T>
    void quirk(std::format_string<T...> format, T&&... values) {
        quirks_.push_back(std::format(format, std::forward<T>(values)...));
    }

    [[nodiscard]] bool ok() const { return problems_.empty(); }
    [[nodiscard]] const std::vector<std::string>& lines() const { return lines_; }
    [[nodiscard]] const std::vector<std::string>& problems() const { return problems_; }
    [[nodiscard]] const std::vector<std::string>& quirks() const { return quirks_; }
    [[nodiscard]] const Json& values() const { return values_; }

private:
    std::vector<std::string> lines_;
    std::vector<std::string> problems_;
    std::vector<std::string> quirks_;
    Json values_ = Json::object();
};

/// The machine lacks something that the sequence needs.
struct Skip {
    std::string reason;
};

class Demo {
public:
    Demo(const Args& args, const Bdf& bdf) : args_(args), bdf_(bdf) {}

    int run();

private:
    using Body = Result<void> (Demo::*)(Step&);

    void step(std::string_view name, std::string_view title, Body body);
    void report(std::size_t number, std::string_view title, const Step& step) const;
    int finish();

    Result<void> open_session(Step& step);
    Result<void> find_engine(Step& step);
    Result<void> make_memory(Step& step);
    Result<void> alloc_iova(Step& step);
    Result<void> link_pages(Step& step);
    Result<void> sync_iova(Step& step);
    Result<void> translate_all(Step& step);
    Result<void> copy_page(Step& step);
    Result<void> unlink_page(Step& step);
    Result<void> reach_into_hole(Step& step);
    Result<void> copy_beside_hole(Step& step);
    Result<void> relink_page(Step& step);
    Result<void> destroy_iova(Step& step);
    Result<void> write_after_destroy(Step& step);
    Result<void> close_all(Step& step);

    [[nodiscard]] Size page(std::uint64_t n) const { return page_size_ * n; }
    [[nodiscard]] Iova at(std::uint64_t n) const { return iova_ + page(n); }
    [[nodiscard]] std::span<std::byte> page_bytes(std::uint64_t n) const {
        return buffer_->bytes().subspan(page(n).value(), page_size_.value());
    }
    [[nodiscard]] std::vector<std::byte> snapshot() const {
        return {buffer_->bytes().begin(), buffer_->bytes().end()};
    }

    /// What the engine does with memory that it reads.
    [[nodiscard]] Intake intake() const {
        return engine_ ? engine_->traits().intake : Intake::none;
    }
    /// What a DMA that is to fault asks for.
    [[nodiscard]] Size small_dma() const { return std::max(Size(4), engine_->traits().block); }

    Result<std::vector<Extent>> look(Step& step, Iova from, Size length, bool phys = false);
    Result<void> check_whole(Step& step);
    Result<void> check_hole(Step& step);
    Result<void> check_no_faults(Step& step);
    Result<void> write_both(std::uint64_t one, std::uint64_t other);
    Result<void> copy(Step& step, std::uint64_t to, std::uint64_t from);
    Result<void> provoke(FaultAccess access, Iova asked);
    Result<void> expect_fault(Step& step, FaultAccess access, Iova asked);

    const Args& args_;
    Bdf bdf_;
    std::string machine_ = virtual_machine();
    Size page_size_{static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE))};

    // In the order in which they are needed: the last is the first to go.
    std::optional<Session> session_;
    std::optional<DeviceAccess> access_;
    std::unique_ptr<Engine> engine_;
    std::optional<FaultWatcher> faults_;
    std::vector<Bdf> requesters_; // what reports of faults may call it
    std::optional<Buffer> buffer_;
    std::optional<IovaSpace> space_;

    Limits limits_;
    Domain domain_;
    Iova iova_;
    std::string route_;
    bool with_phys_ = true;

    std::string current_;                // name of the step that runs
    std::optional<std::string> stopped_; // why there are no more steps
    std::optional<Skip> skip_;
    std::optional<Failure> never_started_; // the session could not be opened
    std::size_t failed_ = 0;
    std::size_t unreported_ = 0;
    std::size_t count_ = 0;
    Json steps_ = Json::array();
    Json seen_faults_ = Json::array();
};

// ---- running and reporting ----

void Demo::report(std::size_t number, std::string_view title, const Step& step) const {
    if (args_.json)
        return;
    std::string text;
    if (number == 1)
        text =
            std::format("dmaprobe demo on {}, kernel {}\n\n", bdf_.to_string(), kernel_release());
    text += std::format("{:>2}. {}{}\n", number, title, step.ok() ? "" : "   FAILED");
    for (const auto& line : step.lines())
        text += std::format("      {}\n", line);
    for (const auto& quirk : step.quirks())
        text += std::format("      quirk: {}\n", quirk);
    for (const auto& problem : step.problems())
        text += std::format("      FAILED: {}\n", problem);
    print(text);
}

void Demo::step(std::string_view name, std::string_view title, Body body) {
    if (stopped_ || skip_ || never_started_)
        return;
    Step step;
    current_ = name;
    const auto done = (this->*body)(step);
    if (skip_ || never_started_)
        return;
    if (!done) {
        step.mismatch("{}", done.error().message());
        stopped_ = done.error().message();
    }
    ++count_;
    if (!step.ok())
        ++failed_;
    Json json{{"name", name}, {"title", title}, {"ok", step.ok()}, {"values", step.values()}};
    json["quirks"] = step.quirks();
    json["problems"] = step.problems();
    steps_.push_back(std::move(json));
    report(count_, title, step);
}

int Demo::run() {
    step("session", "Open a session with the device", &Demo::open_session);
    step("engine", "Find the engine that makes the device move bytes", &Demo::find_engine);
    step("buffer", "Allocate four scattered pages and fill them", &Demo::make_memory);
    step("iova_alloc", "Allocate IOVA space for them: dma_iova_try_alloc()", &Demo::alloc_iova);
    step("iova_link", "Link the pages, so that they are contiguous to the device: dma_iova_link()",
         &Demo::link_pages);
    step("iova_sync", "Make the links known to the IOMMU: dma_iova_sync()", &Demo::sync_iova);
    step("translate", "Ask the IOMMU's page tables: iommu_iova_to_phys()", &Demo::translate_all);
    step("copy",
         intake() == Intake::stores ? "The device copies page 0 to page 3 through these IOVAs"
                                    : "The device writes to pages 0 and 3 through these IOVAs",
         &Demo::copy_page);
    step("iova_unlink", "Unlink page 1: dma_iova_unlink()", &Demo::unlink_page);
    step("fault_hole",
         std::format("The device is asked to {} the hole",
                     intake() == Intake::none ? "write to" : "read"),
         &Demo::reach_into_hole);
    step("copy_beside_hole", "The pages beside the hole still work", &Demo::copy_beside_hole);
    step("iova_relink", "Link page 1 again, since a destroy takes no holes", &Demo::relink_page);
    step("iova_destroy", "Unlink all and free the space: dma_iova_destroy()", &Demo::destroy_iova);
    step("fault_destroyed", "The device is asked to write to the destroyed IOVA",
         &Demo::write_after_destroy);
    step("close", "Give everything back", &Demo::close_all);
    return finish();
}

int Demo::finish() {
    if (never_started_)
        return fail(args_, *never_started_);
    // Before the memory goes that the device may still use.
    if (stopped_ && engine_)
        std::ignore = engine_->reset();

    const bool device_emulated = engine_ && engine_->emulated();
    const int code = skip_ ? exit_code::skipped : failed_ ? exit_code::failed : exit_code::ok;
    if (args_.json) {
        Json document{
            {"result", skip_     ? "skipped"
                       : failed_ ? "failed"
                                 : "ok"},
            {"reason", skip_ ? Json(skip_->reason) : Json()},
            {"device", bdf_.to_string()},
            {"kernel", kernel_release()},
            {"route", or_null(route_)},
            {"engine", engine_ ? Json(engine_->name()) : Json()},
            {"iommu", or_null(domain_.iommu)},
            {"emulated", {{"device", device_emulated}, {"virtual_machine", or_null(machine_)}}}};
        document["steps"] = std::move(steps_);
        document["faults"] = std::move(seen_faults_);
        print_json(document);
    }
    if (skip_) {
        std::fflush(stdout);
        std::fputs(std::format("dmaprobe: demo skipped: {}\n", skip_->reason).c_str(), stderr);
        return code;
    }
    if (!args_.json) {
        print(std::format("\ndemo: {}: {} of {} steps as they must be, {} faults caught{}\n",
                          failed_ ? "FAILED" : "ok", count_ - failed_, count_, seen_faults_.size(),
                          unreported_ == 0 ? ""
                                           : std::format(", {} without a report that is understood",
                                                         unreported_)));
        if (device_emulated || !machine_.empty())
            print(std::format("Emulated: {}\n", device_emulated && !machine_.empty()
                                                    ? "the device and the IOMMU"
                                                : device_emulated ? "the device"
                                                                  : "the IOMMU"));
    }
    if (failed_) {
        std::fflush(stdout);
        std::fputs(std::format("dmaprobe: demo failed in {} of {} steps{}\n", failed_, count_,
                               stopped_ ? ", and stopped: " + *stopped_ : "")
                       .c_str(),
                   stderr);
    }
    return code;
}

// ---- witnesses ----

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

Json fault_json(const Fault& fault, std::string_view step, Iova asked) {
    return {{"step", step},
            {"asked", hex(asked.value())},
            {"bdf", fault.bdf ? Json(fault.bdf->to_string()) : Json()},
            {"iova", fault.iova ? Json(hex(fault.iova->value())) : Json()},
            {"access", to_string(fault.access)},
            {"reason", fault.reason},
            {"platform", fault.platform},
            {"time_us", fault.time.count()},
            {"raw", fault.raw}};
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
        if (intake() == Intake::none)
            continue;
        if (auto done = engine_->copy_to_device(at(n), page_size_); !done)
            return done;
    }
    return {};
}

/// The device copies a page, or writes to both when it cannot keep what it reads; every byte of the
/// buffer is then as it must be.
Result<void> Demo::copy(Step& step, std::uint64_t to, std::uint64_t from) {
    const bool copies = intake() == Intake::stores;
    const auto before = snapshot();
    if (copies)
        step.say("{}: {} from {:#x} to {:#x}, through its own memory", engine_->name(),
                 size_text(page_size_), at(from).value(), at(to).value());
    else
        step.say("{}: its first {} to {:#x} and to {:#x}{}", engine_->name(), size_text(page_size_),
                 at(from).value(), at(to).value(),
                 intake() == Intake::compares ? ", and it compares both with what it has" : "");
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

    Json json = fault_json(*fault, current_, asked);
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

// ---- the steps ----

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
    route_ = to_string(access_->route());
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
        if (engine.error().code == ENOTSUP)
            skip_ = Skip{failure(engine.error()).message};
        return std::unexpected(engine.error());
    }
    engine_ = std::move(*engine);
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

    step.say("BARs and config space through {}: {}", route_, access_->why());
    step.say("{:04x}:{:04x} is {}{}", access_->ids().vendor, access_->ids().device,
             engine_->traits().description, engine_->emulated() ? ", which is emulated" : "");
    step.say("it reaches {} bits of addresses, so the DMA mask is now {:#x}{}",
             std::bit_width(reach), limits_.dma_mask,
             mask == reach ? "" : ": more than 32 bits need CAP_SYS_RAWIO");
    step.value("route", route_);
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
    return expect_fault(step, intake() == Intake::none ? FaultAccess::write : FaultAccess::read,
                        at(1));
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
    if (auto done = access_->close(); !done)
        return done;
    if (auto done = session_->close(); !done)
        return done;
    step.say("buffer freed, device and session closed");
    return {};
}

} // namespace

int run_demo(const Args& args) {
    const auto bdf = pick_device(args);
    if (!bdf)
        return fail(args, bdf.error());
    return Demo(args, *bdf).run();
}

} // namespace tool

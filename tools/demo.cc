// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe demo: one sequence from an IOVA to a fault, shown step by step. Its JSON obeys
// schema/demo.schema.json.
//
// Each step acts and then checks, with a witness of its own: what the calls answered, what the
// IOMMU's page tables say, what the device moved, what the IOMMU reported.
#include "demo.h"

#include <format>
#include <string>
#include <tuple>

namespace tool {

using dmaprobe::ReadEffect;

void Demo::report(std::size_t number, std::string_view title, const Step& step) const {
    if (args_.json)
        return;
    std::string text;
    if (number == 1)
        text =
            std::format("dmaprobe demo on {}, kernel {}\n\n", bdf_.to_string(), kernel_release());
    text += std::format("{:>2}. {}{}\n", number, title,
                        step.ok() ? "" : "   " + paint(Colour::red, "FAILED"));
    for (const auto& line : step.lines())
        text += std::format("      {}\n", line);
    for (const auto& quirk : step.quirks())
        text += std::format("      {}: {}\n", paint(Colour::yellow, "quirk"), quirk);
    for (const auto& problem : step.problems())
        text += std::format("      {}: {}\n", paint(Colour::red, "FAILED"), problem);
    print(text);
}

void Demo::step(std::string_view name, std::string_view title, Body body) {
    if (stopped_ || skip_ || never_started_)
        return;
    Step step;
    current_ = name;
    show_progress(std::format("step {}: {}", count_ + 1, title));
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
         read_effect() == ReadEffect::stores
             ? "The device copies page 0 to page 3 through these IOVAs"
             : "The device writes to pages 0 and 3 through these IOVAs",
         &Demo::copy_page);
    step("iova_unlink", "Unlink page 1: dma_iova_unlink()", &Demo::unlink_page);
    step("fault_hole",
         std::format("The device is asked to {} the hole",
                     read_effect() == ReadEffect::none ? "write to" : "read"),
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

    const int code = skip_ ? exit_code::skipped : failed_ ? exit_code::failed : exit_code::ok;
    if (args_.json) {
        Json document{{"result", skip_     ? "skipped"
                                 : failed_ ? "failed"
                                           : "ok"},
                      {"reason", skip_ ? Json(skip_->reason) : Json()},
                      {"device", bdf_.to_string()},
                      {"kernel", kernel_release()},
                      {"path", or_null(path_)},
                      {"engine", or_null(engine_name_)},
                      {"iommu", or_null(domain_.iommu)},
                      {"domain", session_ ? Json(to_string(domain_.type)) : Json()},
                      {"emulated",
                       {{"device", engine_name_.empty() ? Json() : Json(engine_emulated_)},
                        {"virtual_machine", or_null(machine_)}}}};
        document["steps"] = std::move(steps_);
        document["faults"] = std::move(seen_faults_);
        print_json(document);
    }
    if (skip_) {
        warn("demo skipped: " + skip_->reason);
        return code;
    }
    if (!args_.json) {
        print(std::format("\ndemo: {}: {} of {} steps as they must be, {} faults caught{}\n",
                          failed_ ? paint(Colour::red, "FAILED") : paint(Colour::green, "ok"),
                          count_ - failed_, count_, seen_faults_.size(),
                          unreported_ == 0 ? ""
                                           : std::format(", {} without a report that is understood",
                                                         unreported_)));
        if (engine_emulated_ || !machine_.empty())
            print(std::format("Emulated: {}\n", engine_emulated_ && !machine_.empty()
                                                    ? "the device and the IOMMU"
                                                : engine_emulated_ ? "the device"
                                                                   : "the IOMMU"));
    }
    if (failed_)
        warn(std::format("demo failed in {} of {} steps{}", failed_, count_,
                         stopped_ ? ", and stopped: " + *stopped_ : ""));
    return code;
}

int run_demo(const Args& args) {
    const auto bdf = pick_device(args);
    if (!bdf)
        return fail(args, bdf.error());
    return Demo(args, *bdf).run();
}

} // namespace tool

// SPDX-License-Identifier: GPL-2.0-only
// The sequence of dmaprobe demo, and what one of its steps has to report.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <format>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <unistd.h>

#include <dmaprobe/buffer.h>
#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>
#include <dmaprobe/fault.h>
#include <dmaprobe/iova.h>
#include <dmaprobe/translate.h>

#include "output.h"

namespace tool {

inline constexpr std::uint64_t nr_pages = 4;
inline constexpr dmaprobe::Direction direction = dmaprobe::Direction::bidirectional;

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

/// The sequence: run() makes its steps, in demo_steps.cc, and reports them.
class Demo {
public:
    Demo(const Args& args, const dmaprobe::Bdf& bdf) : args_(args), bdf_(bdf) {}

    int run();

private:
    using Body = dmaprobe::Result<void> (Demo::*)(Step&);

    void step(std::string_view name, std::string_view title, Body body);
    void report(std::size_t number, std::string_view title, const Step& step) const;
    int finish();

    dmaprobe::Result<void> open_session(Step& step);
    dmaprobe::Result<void> find_engine(Step& step);
    dmaprobe::Result<void> make_memory(Step& step);
    dmaprobe::Result<void> alloc_iova(Step& step);
    dmaprobe::Result<void> link_pages(Step& step);
    dmaprobe::Result<void> sync_iova(Step& step);
    dmaprobe::Result<void> translate_all(Step& step);
    dmaprobe::Result<void> copy_page(Step& step);
    dmaprobe::Result<void> unlink_page(Step& step);
    dmaprobe::Result<void> reach_into_hole(Step& step);
    dmaprobe::Result<void> copy_beside_hole(Step& step);
    dmaprobe::Result<void> relink_page(Step& step);
    dmaprobe::Result<void> destroy_iova(Step& step);
    dmaprobe::Result<void> write_after_destroy(Step& step);
    dmaprobe::Result<void> close_all(Step& step);

    [[nodiscard]] dmaprobe::Size page(std::uint64_t n) const { return page_size_ * n; }
    [[nodiscard]] dmaprobe::Iova at(std::uint64_t n) const { return iova_ + page(n); }
    [[nodiscard]] std::span<std::byte> page_bytes(std::uint64_t n) const {
        return buffer_->bytes().subspan(page(n).value(), page_size_.value());
    }
    [[nodiscard]] std::vector<std::byte> snapshot() const {
        return {buffer_->bytes().begin(), buffer_->bytes().end()};
    }

    /// What the engine does with memory that it reads.
    [[nodiscard]] dmaprobe::ReadEffect read_effect() const {
        return engine_ ? engine_->traits().read_effect : dmaprobe::ReadEffect::none;
    }
    /// What a DMA that is to fault asks for.
    [[nodiscard]] dmaprobe::Size small_dma() const {
        return std::max(dmaprobe::Size(4), engine_->traits().block);
    }

    dmaprobe::Result<std::vector<dmaprobe::Extent>> look(Step& step, dmaprobe::Iova from,
                                                         dmaprobe::Size length, bool phys = false);
    dmaprobe::Result<void> check_whole(Step& step);
    dmaprobe::Result<void> check_hole(Step& step);
    dmaprobe::Result<void> check_no_faults(Step& step);
    dmaprobe::Result<void> write_both(std::uint64_t one, std::uint64_t other);
    dmaprobe::Result<void> copy(Step& step, std::uint64_t to, std::uint64_t from);
    dmaprobe::Result<void> provoke(dmaprobe::FaultAccess access, dmaprobe::Iova asked);
    dmaprobe::Result<void> expect_fault(Step& step, dmaprobe::FaultAccess access,
                                        dmaprobe::Iova asked);

    const Args& args_;
    dmaprobe::Bdf bdf_;
    std::string machine_ = virtual_machine();
    dmaprobe::Size page_size_{static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE))};

    // In the order in which they are needed: the last is the first to go.
    std::optional<dmaprobe::Session> session_;
    std::optional<dmaprobe::DeviceAccess> access_;
    std::unique_ptr<dmaprobe::Engine> engine_;
    std::string engine_name_; // also when the engine has gone
    bool engine_emulated_ = false;
    std::optional<dmaprobe::FaultWatcher> faults_;
    std::vector<dmaprobe::Bdf> requesters_; // what reports of faults may call it
    std::optional<dmaprobe::Buffer> buffer_;
    std::optional<dmaprobe::IovaSpace> space_;

    dmaprobe::Limits limits_;
    dmaprobe::Domain domain_;
    dmaprobe::Iova iova_;
    std::string path_;
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

} // namespace tool

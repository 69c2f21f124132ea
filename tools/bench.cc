// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe bench: what calls cost. Its JSON obeys schema/bench.schema.json.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <format>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/ioctl.h>

#include <dmaprobe/batch.h>
#include <dmaprobe/buffer.h>
#include <dmaprobe/run.h>

#include <linux/dmaprobe.h>

#include "output.h"

namespace tool {

using dmaprobe::Batch;
using dmaprobe::Buffer;
using dmaprobe::Direction;
using dmaprobe::Error;
using dmaprobe::MapKind;
using dmaprobe::Result;
using dmaprobe::Run;
using dmaprobe::Session;
using dmaprobe::Size;

namespace {

constexpr unsigned depths[] = {1, 8, 32, 128};
constexpr unsigned run_length = 128;
constexpr std::uint64_t whole = run_length; // rounds fill runs, and rings of any depth
constexpr unsigned most_rounds = 10'000'000;
constexpr Size map_length(4096);

/// How long so many rounds took, in nanoseconds of the machine's clock.
using Measure = std::function<Result<double>(std::uint64_t rounds)>;

/// A way to make the calls, and what it cost per round.
struct Row {
    std::string_view op;  ///< what one round does
    std::string_view way; ///< how it gets to the module
    unsigned depth = 0;   ///< calls at a time, for those ways that have one
    std::optional<std::string> skipped = std::nullopt; ///< why it could not be measured
    double least = 0;                                  ///< ns per round
    double median = 0;                                 ///< ns per round
    double ratio = 0;                                  ///< median to that of the module's loop
};

struct Report {
    dmaprobe::Bdf bdf;
    std::uint64_t rounds = 0;
    std::vector<Row> rows;
};

class Clock {
public:
    [[nodiscard]] double ns() const {
        return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start_)
            .count();
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::unexpected<Error> failed(int code, std::string_view op) {
    return std::unexpected(Error{code, op, {}});
}

// The loops below hold nothing but the calls: all structs are filled in before, and a failure is
// looked for only where the loop has to branch anyway.

Measure enotty(const Session& session) {
    return [fd = session.fd()](std::uint64_t rounds) -> Result<double> {
        dmaprobe_nop arg{};
        arg.size = sizeof(arg);
        const Clock clock;
        for (std::uint64_t i = 0; i < rounds; ++i)
            ::ioctl(fd, _IO(DMAPROBE_IOC_MAGIC, 0xff), &arg);
        const double ns = clock.ns();
        if (errno != ENOTTY)
            return failed(errno, "an unknown command");
        return ns;
    };
}

Measure nop_by_ioctl(const Session& session) {
    return [fd = session.fd()](std::uint64_t rounds) -> Result<double> {
        dmaprobe_nop arg{};
        arg.size = sizeof(arg);
        const Clock clock;
        for (std::uint64_t i = 0; i < rounds; ++i) {
            if (::ioctl(fd, DMAPROBE_NOP, &arg) != 0)
                return failed(errno, "nop");
        }
        return clock.ns();
    };
}

Measure map_by_ioctl(const Session& session, const Buffer& buffer) {
    return [fd = session.fd(), id = buffer.id()](std::uint64_t rounds) -> Result<double> {
        dmaprobe_map map{};
        map.size = sizeof(map);
        map.kind = DMAPROBE_MAP_KIND_PAGE;
        map.buffer_id = id;
        map.length = map_length.value();
        dmaprobe_unmap unmap{};
        unmap.size = sizeof(unmap);
        const Clock clock;
        for (std::uint64_t i = 0; i < rounds; ++i) {
            if (::ioctl(fd, DMAPROBE_MAP, &map) != 0)
                return failed(errno, "map");
            unmap.id = map.id;
            if (::ioctl(fd, DMAPROBE_UNMAP, &unmap) != 0)
                return failed(errno, "unmap");
        }
        return clock.ns();
    };
}

/// The list's calls as often as it takes, each time `portion` rounds.
template <class List>
Result<double> repeat(List& list, std::uint64_t rounds, unsigned portion) {
    const Clock clock;
    for (std::uint64_t i = 0; i < rounds; i += portion) {
        if (auto done = list.execute(); !done) [[unlikely]]
            return std::unexpected(std::move(done.error()));
    }
    return clock.ns();
}

Measure nop_by_run(const Session& session) {
    return [&session](std::uint64_t rounds) -> Result<double> {
        Run run(session);
        for (unsigned i = 0; i < run_length; ++i)
            run.nop();
        return repeat(run, rounds, run_length);
    };
}

Measure map_by_run(const Session& session, const Buffer& buffer) {
    return [&](std::uint64_t rounds) -> Result<double> {
        Run run(session);
        for (unsigned i = 0; i < run_length / 2; ++i)
            run.unmap(run.map(buffer, MapKind::page, Size(), map_length, Direction::bidirectional));
        return repeat(run, rounds, run_length / 2);
    };
}

Measure nop_by_ring(const Session& session, unsigned depth) {
    return [&session, depth](std::uint64_t rounds) -> Result<double> {
        auto batch = Batch::create(session, {.depth = depth});
        if (!batch)
            return std::unexpected(std::move(batch.error()));
        for (unsigned i = 0; i < depth; ++i)
            batch->nop();
        return repeat(*batch, rounds, depth);
    };
}

/// As many mappings as the depth, then the end of all of them.
Measure map_by_ring(const Session& session, const Buffer& buffer, unsigned depth) {
    return [&session, &buffer, depth](std::uint64_t rounds) -> Result<double> {
        auto maps = Batch::create(session, {.depth = depth});
        if (!maps)
            return std::unexpected(std::move(maps.error()));
        auto unmaps = Batch::create(session, {.depth = depth});
        if (!unmaps)
            return std::unexpected(std::move(unmaps.error()));
        std::vector<std::pair<const dmaprobe_map*, dmaprobe_unmap*>> pairs;
        for (unsigned i = 0; i < depth; ++i) {
            auto& map = maps->add<dmaprobe_map>(DMAPROBE_MAP, "map");
            map.kind = DMAPROBE_MAP_KIND_PAGE;
            map.buffer_id = buffer.id();
            map.length = map_length.value();
            pairs.emplace_back(&map, &unmaps->add<dmaprobe_unmap>(DMAPROBE_UNMAP, "unmap"));
        }
        const Clock clock;
        for (std::uint64_t i = 0; i < rounds; i += depth) {
            if (auto done = maps->execute(); !done) [[unlikely]]
                return std::unexpected(std::move(done.error()));
            for (const auto& [map, unmap] : pairs)
                unmap->id = map->id;
            if (auto done = unmaps->execute(); !done) [[unlikely]]
                return std::unexpected(std::move(done.error()));
        }
        return clock.ns();
    };
}

Result<double> in_module(Result<std::chrono::nanoseconds> took) {
    if (!took)
        return std::unexpected(std::move(took.error()));
    return static_cast<double>(took->count());
}

/// Measure one way, unless what it needs is not there.
Result<void> measure(Row& row, const Measure& once, const Args& args, std::uint64_t rounds) {
    std::vector<double> took;
    // The first time fills caches, and is not counted.
    for (unsigned i = 0; i <= args.repeat; ++i) {
        const auto ns = once(rounds);
        if (!ns && ns.error().op == "ring") {
            row.skipped = failure(ns.error()).message;
            return {};
        }
        if (!ns)
            return std::unexpected(ns.error());
        if (i != 0)
            took.push_back(*ns / static_cast<double>(rounds));
    }
    std::ranges::sort(took);
    const std::size_t middle = took.size() / 2;
    row.least = took.front();
    row.median = took.size() % 2 != 0 ? took[middle] : (took[middle - 1] + took[middle]) / 2;
    return {};
}

std::string_view title(std::string_view op) {
    return op == "nop" ? "Nothing (DMAPROBE_NOP)" : "Map and unmap 4 KiB";
}

std::string describe(const Row& row) {
    if (row.way == "module")
        return "loop inside the module";
    if (row.way == "run")
        return std::format("vectored run of {} calls", row.depth);
    if (row.way == "ring")
        return std::format("ring, depth {}", row.depth);
    if (row.way == "ioctl")
        return "ioctl";
    return "ioctl that answers ENOTTY";
}

std::expected<Report, Failure> gather(const Args& args) {
    const auto bdf = pick_device(args);
    if (!bdf)
        return std::unexpected(bdf.error());
    const auto session = Session::open(*bdf);
    if (!session)
        return std::unexpected(failure(session.error()));
    const auto buffer = Buffer::contiguous(*session, map_length);
    if (!buffer)
        return std::unexpected(failure(buffer.error()));

    Report report;
    report.bdf = *bdf;
    report.rounds = (args.rounds + whole - 1) / whole * whole;

    std::vector<std::pair<Row, Measure>> plan;
    constexpr std::string_view nop = "nop";
    constexpr std::string_view map = "map_unmap";
    plan.emplace_back(Row{nop, "module"},
                      [&](std::uint64_t rounds) { return in_module(session->bench_nop(rounds)); });
    plan.emplace_back(Row{nop, "run", run_length}, nop_by_run(*session));
    for (const unsigned depth : depths)
        plan.emplace_back(Row{nop, "ring", depth}, nop_by_ring(*session, depth));
    plan.emplace_back(Row{nop, "ioctl"}, nop_by_ioctl(*session));
    plan.emplace_back(Row{nop, "enotty"}, enotty(*session));
    plan.emplace_back(Row{map, "module"}, [&](std::uint64_t rounds) {
        return in_module(session->bench_map(*buffer, rounds));
    });
    plan.emplace_back(Row{map, "run", run_length}, map_by_run(*session, *buffer));
    for (const unsigned depth : depths)
        plan.emplace_back(Row{map, "ring", depth}, map_by_ring(*session, *buffer, depth));
    plan.emplace_back(Row{map, "ioctl"}, map_by_ioctl(*session, *buffer));

    double module = 0;
    for (auto& [row, once] : plan) {
        show_progress(std::format("{} of {}: {}, {}", report.rows.size() + 1, plan.size(),
                                  describe(row), title(row.op)));
        if (auto done = measure(row, once, args, report.rounds); !done)
            return std::unexpected(failure(done.error()));
        if (row.way == "module")
            module = row.median;
        row.ratio = module > 0 ? row.median / module : 0;
        report.rows.push_back(std::move(row));
    }
    return report;
}

std::string_view unit(const Args& args) {
    return args.icount ? "instructions" : "ns";
}

/// One digit is more than the clock can resolve.
double rounded(double value, double digits) {
    return std::round(value * digits) / digits;
}

Json to_json(const Report& report, const Args& args) {
    Json rows = Json::array();
    for (const Row& row : report.rows) {
        const bool there = !row.skipped;
        rows.push_back({{"op", row.op},
                        {"way", row.way},
                        {"depth", row.depth != 0 ? Json(row.depth) : Json()},
                        {"min", there ? Json(rounded(row.least, 10)) : Json()},
                        {"median", there ? Json(rounded(row.median, 10)) : Json()},
                        {"ratio", there ? Json(rounded(row.ratio, 1000)) : Json()},
                        {"skipped", or_null(row.skipped.value_or(""))}});
    }
    return {{"bench", "dispatch"},        {"device", report.bdf.to_string()},
            {"kernel", kernel_release()}, {"virtual_machine", or_null(virtual_machine())},
            {"unit", unit(args)},         {"rounds", report.rounds},
            {"repeat", args.repeat},      {"rows", rows}};
}

void show(const Report& report, const Args& args) {
    const std::string machine = virtual_machine();
    print(std::format("What a call costs on {}, in {} per round\n", report.bdf.to_string(),
                      unit(args)));
    print(std::format("  {} times {} rounds each; kernel {}{}\n", args.repeat, report.rounds,
                      kernel_release(),
                      machine.empty() ? "" : std::format(", a virtual machine ({})", machine)));
    std::string_view op;
    for (const Row& row : report.rows) {
        if (row.op != op) {
            op = row.op;
            print(std::format("\n{:<32}{:>12}{:>12}{:>12}\n", title(op), "minimum", "median",
                              "to module"));
        }
        if (!row.skipped)
            print(std::format("  {:<30}{:>12.1f}{:>12.1f}{:>12.2f}\n", describe(row), row.least,
                              row.median, row.ratio));
        else
            print(std::format("  {:<30}skipped: {}\n", describe(row), *row.skipped));
    }
}

} // namespace

int run_bench_dispatch(const Args& args) {
    if (args.rounds < 1 || args.rounds > most_rounds || args.repeat < 1)
        return fail(args,
                    {exit_code::usage,
                     std::format("--rounds is 1 to {}, --repeat at least 1", most_rounds), 0});
    const auto report = gather(args);
    if (!report)
        return fail(args, report.error());
    if (args.json)
        print_json(to_json(*report, args));
    else
        show(*report, args);
    return exit_code::ok;
}

} // namespace tool

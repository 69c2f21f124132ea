// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe check: whether the platform keeps the rules of the DMA API. Its JSON obeys
// schema/check.schema.json, and with --list schema/check-list.schema.json.
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <format>
#include <fstream>
#include <iterator>
#include <utility>

#include <fnmatch.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "names.h"

namespace tool {

using dmaprobe::PciBus;

namespace {

/// A file that goes with its owner.
class Scratch {
public:
    Scratch() {
        const int fd = ::mkstemp(path_.data());
        error_ = fd < 0 ? errno : 0;
        if (fd >= 0)
            ::close(fd);
        else
            path_.clear();
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        if (!path_.empty())
            ::unlink(path_.c_str());
    }
    /// Why there is none, or 0.
    [[nodiscard]] int error() const { return error_; }
    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] std::string text() const {
        std::ifstream file(path_);
        return {std::istreambuf_iterator(file), {}};
    }

private:
    std::string path_ = "/tmp/dmaprobe-check-XXXXXX";
    int error_;
};

/// Keeps a device for one program that judges the platform by it; others are refused. The kernel
/// gives it up when this process and the program that it runs have both ended, however they do.
class Turn {
public:
    static std::expected<Turn, Failure> take(const dmaprobe::Bdf& bdf) {
        Turn turn;
        // In the abstract namespace of sockets, a name is a lock that needs no file.
        sockaddr_un name{};
        name.sun_family = AF_UNIX;
        const std::string text = "dmaprobe check " + bdf.to_string();
        text.copy(name.sun_path + 1, sizeof(name.sun_path) - 1);
        turn.fd_ = ::socket(AF_UNIX, SOCK_STREAM, 0);
        const auto length =
            static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
        if (turn.fd_ < 0 || ::bind(turn.fd_, reinterpret_cast<sockaddr*>(&name), length) != 0)
            return std::unexpected(errno == EADDRINUSE
                                       ? Failure{exit_code::stopped,
                                                 "another dmaprobe check has " + bdf.to_string(),
                                                 EBUSY}
                                       : Failure{exit_code::failed, std::strerror(errno), errno});
        return turn;
    }
    Turn(Turn&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Turn& operator=(Turn&&) = delete;
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() {
        if (fd_ >= 0)
            ::close(fd_);
    }

private:
    Turn() = default;
    int fd_ = -1;
};

/// Those of them that a pattern of --only names.
std::expected<std::vector<std::string>, Failure> select(const std::vector<std::string>& names,
                                                        const std::vector<std::string>& only) {
    std::vector<std::string> selected;
    // The name of a check stands for all ways in which it is made: "Data.BothWays/page" and others.
    const auto matches = [](const std::string& pattern, const std::string& name) {
        return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0 ||
               ::fnmatch(pattern.c_str(), name.substr(0, name.find('/')).c_str(), 0) == 0;
    };
    for (const std::string& pattern : only)
        if (std::ranges::none_of(names,
                                 [&](const std::string& name) { return matches(pattern, name); }))
            return std::unexpected(Failure{
                exit_code::usage,
                std::format("check: no check is called '{}' (dmaprobe check --list names them)",
                            pattern),
                0});
    std::ranges::copy_if(names, std::back_inserter(selected), [&](const std::string& name) {
        return only.empty() || std::ranges::any_of(only, [&](const std::string& pattern) {
                   return matches(pattern, name);
               });
    });
    return selected;
}

/// The functions of the device's group that drivers use for something else, as text.
std::string shared_with(const dmaprobe::Bdf& bdf) {
    std::string others;
    if (const auto device = PciBus().device(bdf))
        for (const auto& member : device->group_users())
            others += std::format("{}{} ({})", others.empty() ? "" : ", ", member.bdf.to_string(),
                                  member.driver);
    return others;
}

/// Make an empty file where a result is to go: better now than after minutes.
std::expected<void, Failure> try_file(const std::string& path) {
    if (path.empty() || std::ofstream(path))
        return {};
    return std::unexpected(
        Failure{exit_code::failed, std::format("{}: {}", path, std::strerror(errno)), errno});
}

/// Nothing is to be read from a file in which there is nothing.
void remove_empty(const std::string& path) {
    std::error_code none;
    if (is_regular_file(std::filesystem::symlink_status(path, none)) &&
        std::filesystem::is_empty(path, none))
        std::filesystem::remove(path, none);
}

/// Write a result into a file, if one was asked for.
std::expected<void, Failure> write_file(const std::string& path, const std::string& text) {
    if (path.empty())
        return {};
    if (std::ofstream file(path); !(file << text) || !file.flush())
        return std::unexpected(
            Failure{exit_code::failed, std::format("{}: {}", path, std::strerror(errno)), errno});
    return {};
}

int run_list_of_checks(const Args& args, const std::vector<std::string>& names) {
    const Json document = {{"checks", names}};
    if (const auto done = write_file(args.json_file, document_text(document) + "\n"); !done)
        return fail(args, done.error());
    if (args.json) {
        print_json(document);
        return exit_code::ok;
    }
    for (const std::string& name : names)
        print(name + "\n");
    return exit_code::ok;
}

/// What the run as a whole comes to.
int finish(const Json& document) {
    const auto count = [&](const char* verdict) { return document["totals"][verdict].get<int>(); };
    if (count("not ok") != 0)
        return exit_code::failed;
    if (count("ok") + count("quirk") != 0)
        return exit_code::ok;
    // The document, or the results, say what was lacking.
    warn("nothing could be checked: " + text_of(document["checks"][0], "reason"));
    return exit_code::skipped;
}

/// What is checked, for people.
std::string title(const dmaprobe::PciDevice& device) {
    const std::string names = names_text(names_of(device));
    return std::format(
        "{}  {:04x}:{:04x}{}\n  domain {}, IOMMU {}, kernel {}\n\n", device.bdf.to_string(),
        device.vendor, device.device, names.empty() ? "" : "  " + names,
        device.group_type.empty() ? "none" : device.group_type,
        device.iommu.empty() ? "none" : std::format("{} ({})", device.iommu, device.iommu_driver),
        kernel_release());
}

/// Shows the results as they come, in the form that was asked for.
class Display {
public:
    Display(const Args& args, const std::vector<std::string>& names) : args_(args), names_(names) {
        for (const std::string& name : names)
            width_ = std::max(width_, name.size());
        progress();
    }

    void line(std::string_view line) {
        if (args_.ktap)
            print(std::string(line) + "\n");
        if (const auto result = reader_.read(line)) {
            ++seen_;
            if (!args_.ktap && !args_.json)
                print(result_text(*result, width_));
        }
        if (constexpr std::string_view bail = "Bail out! "; line.starts_with(bail))
            bail_ = line.substr(bail.size());
        progress();
    }

    /// Which check was running when the program ended, and why it ended.
    [[nodiscard]] std::string unfinished(int code) const {
        const std::string why = !bail_.empty()   ? bail_
                                : code > signals ? ::strsignal(code - signals)
                                                 : std::format("exit code {}", code);
        if (seen_ >= names_.size())
            return "the checks ended after the last of them: " + why;
        return std::format("the checks ended at {}, {} of {}: {}", names_[seen_], seen_ + 1,
                           names_.size(), why);
    }

private:
    static constexpr int signals = 128; // as run_checks() says it

    void progress() const {
        if (seen_ < names_.size())
            show_progress(std::format("{} of {}: {}", seen_ + 1, names_.size(), names_[seen_]));
    }

    const Args& args_;
    const std::vector<std::string>& names_;
    ResultReader reader_;
    std::size_t width_ = 0;
    std::size_t seen_ = 0;
    std::string bail_; // why the program ends early, in its own words
};

} // namespace

int run_check(const Args& args) {
    if (args.ktap && args.json)
        return fail(args, {exit_code::usage,
                           "check: --ktap and --json both print; --json=FILE writes a file", 0});
    const auto program = find_checks();
    if (!program)
        return fail(args, program.error());
    const auto names = list_checks(*program);
    if (!names)
        return fail(args, names.error());
    const auto selected = select(*names, args.only);
    if (!selected)
        return fail(args, selected.error());
    if (args.list && (args.ktap || !args.junit.empty() || !args.json_file.empty()))
        return fail(args, {exit_code::usage,
                           "check: --list runs no check, so it takes none of --ktap, --junit and "
                           "--json=FILE",
                           0});
    if (args.list)
        return run_list_of_checks(args, *selected);

    const auto bdf = pick_device(args);
    if (!bdf)
        return fail(args, bdf.error());
    const auto device = PciBus().device(*bdf);
    if (!device)
        return fail(args, failure(device.error()));
    // What a session says when it cannot be opened is better reported once, and here.
    const auto machine = machine_json(*device);
    if (!machine)
        return fail(args, machine.error());
    if (const auto why = shared_with(*bdf); !why.empty() && !args.force)
        return fail(args,
                    {exit_code::skipped,
                     std::format("{} shares its IOMMU group with {}, which its DMA could reach "
                                 "if a check finds the IOMMU broken; to check all the same: "
                                 "dmaprobe check --force {}",
                                 bdf->to_string(), why, bdf->to_string()),
                     EBUSY});
    const auto turn = Turn::take(*bdf);
    if (!turn)
        return fail(args, turn.error());
    const auto give_up = [&](const Failure& why) {
        remove_empty(args.junit); // JSON has a form for errors
        return fail(args, why);
    };
    for (const std::string& path : {args.junit, args.json_file})
        if (const auto file = try_file(path); !file)
            return give_up(file.error());

    const Scratch results;
    const Scratch stopped;
    if (const int error = results.error() != 0 ? results.error() : stopped.error(); error != 0)
        return give_up({exit_code::failed,
                        std::format("no file can be made in /tmp: {}", std::strerror(error)),
                        error});
    std::string filter;
    for (const std::string& name : *selected)
        filter += (filter.empty() ? "" : ":") + name;
    ::setenv("DMAPROBE_BDF", bdf->to_string().c_str(), 1);
    ::setenv("DMAPROBE_CHECK_STOPPED", stopped.path().c_str(), 1);
    if (!args.json && !args.ktap)
        print(title(*device));
    Display display(args, *selected);
    const auto code =
        run_checks(*program, {"--gtest_filter=" + filter, "--gtest_output=json:" + results.path()},
                   [&](std::string_view line) { display.line(line); });
    if (!code)
        return give_up(code.error());
    if (*code == exit_code::stopped)
        return give_up(
            {exit_code::stopped,
             "the checks were stopped, which says nothing about the platform: " + stopped.text(),
             ECANCELED});
    const auto document = check_document(*machine, results.path());
    // By its exit code, a program whose checks are all well may still say that it failed.
    if (!document || (*document)["checks"].size() != selected->size() ||
        (*code != 0 && (*document)["totals"]["not ok"] == 0))
        return give_up({exit_code::failed, display.unfinished(*code), EIO});
    if (const auto done = write_file(args.json_file, document_text(*document) + "\n"); !done)
        return give_up(done.error());
    if (const auto done = write_file(args.junit, junit_text(*document)); !done)
        return give_up(done.error());
    if (args.json)
        print_json(*document);
    else if (!args.ktap)
        print(summary_text(*document));
    return finish(*document);
}

} // namespace tool

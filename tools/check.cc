// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe check: whether the platform keeps the rules of the DMA API. Its JSON obeys
// schema/check.schema.json.
//
// The checks are a GoogleTest program of their own, dmaprobe-conformance (selftests/conformance);
// this verb finds it, runs it for a device, and tells what came of it.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <format>
#include <fstream>
#include <map>
#include <utility>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "output.h"

namespace tool {

using dmaprobe::PciBus;
using dmaprobe::Session;

namespace {

namespace fs = std::filesystem;

/// Beside the tool in the build tree or the lab, or where `make install` puts it.
std::expected<std::string, Failure> find_program() {
    std::error_code error;
    const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
    for (const fs::path& path :
         {here / "dmaprobe-conformance", here / "../libexec/dmaprobe/dmaprobe-conformance",
          here / "../selftests/dmaprobe-conformance"})
        if (::access(path.c_str(), X_OK) == 0)
            return path.string();
    return std::unexpected(Failure{exit_code::skipped,
                                   "dmaprobe-conformance, which has the checks, is not installed",
                                   ENOENT});
}

/// Run it. Gives its exit code; 128 and more when a signal ended it.
std::expected<int, Failure> run_program(const std::string& program,
                                        const std::vector<std::string>& options, bool quiet) {
    std::vector<std::string> words = {program};
    words.insert(words.end(), options.begin(), options.end());
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words)
        argv.push_back(word.data());
    argv.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    if (quiet)
        posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t pid = 0;
    const int error = ::posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0)
        return std::unexpected(
            Failure{exit_code::failed,
                    std::format("{} could not be run: {}", program, std::strerror(error)), error});
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return std::unexpected(Failure{exit_code::failed, program + " got lost", errno});
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// A file that goes with its owner.
class Scratch {
public:
    Scratch() {
        const int fd = ::mkstemp(path_.data());
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
    [[nodiscard]] const std::string& path() const { return path_; }

private:
    std::string path_ = "/tmp/dmaprobe-check-XXXXXX";
};

std::string text_of(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

/// Without the place in the source that GoogleTest puts in front, on one line.
std::string plain(const std::string& text) {
    const auto end = text.find('\n');
    const bool place = end != std::string::npos && text.substr(0, end).contains(".cc:");
    std::string rest = place ? text.substr(end + 1) : text;
    while (!rest.empty() && rest.back() == '\n')
        rest.pop_back();
    std::ranges::replace(rest, '\n', ' ');
    return rest;
}

/// One check, out of what GoogleTest wrote of it.
Json check_json(const std::string& suite, const Json& test) {
    // What GoogleTest says by itself; the rest was recorded by the check.
    constexpr std::array own = {"name", "file",      "line",      "status",     "result",
                                "time", "timestamp", "classname", "failures",   "skipped",
                                "rule", "defined",   "quirk",     "value_param"};
    std::string reason;
    for (const char* list : {"failures", "skipped"})
        if (const auto found = test.find(list); found != test.end())
            for (const Json& part : *found) {
                const std::string text = plain(
                    text_of(part, list == std::string_view("failures") ? "failure" : "message"));
                reason += (reason.empty() ? "" : "; ") + text;
            }
    const std::string quirk = text_of(test, "quirk");
    std::string_view verdict = "ok";
    if (test.contains("failures"))
        verdict = "not ok";
    else if (text_of(test, "result") == "SKIPPED")
        verdict = "skip";
    else if (!quirk.empty())
        verdict = "quirk";
    Json values = Json::object();
    for (const auto& [key, value] : test.items())
        if (std::ranges::find(own, key) == own.end())
            values[key] = value;
    return {{"name", suite + "." + text_of(test, "name")},
            {"verdict", verdict},
            {"rule", or_null(text_of(test, "rule"))},
            {"defined", or_null(text_of(test, "defined"))},
            {"quirk", or_null(quirk)},
            {"reason", or_null(reason)},
            {"values", values}};
}

/// The document, of the machine and of what GoogleTest wrote.
std::expected<Json, Failure> report(const dmaprobe::Bdf& bdf, const std::string& path) {
    const Json written = Json::parse(std::ifstream(path), nullptr, false);
    if (written.is_discarded() || !written.contains("testsuites"))
        return std::unexpected(
            Failure{exit_code::failed, "the checks ended before they had told anything", EIO});
    const auto device = PciBus().device(bdf);
    if (!device)
        return std::unexpected(failure(device.error()));
    const auto session = Session::open(bdf);
    if (!session)
        return std::unexpected(failure(session.error()));
    const auto domain = session->domain();
    if (!domain)
        return std::unexpected(failure(domain.error()));

    Json checks = Json::array();
    std::map<std::string, int> totals = {{"ok", 0}, {"not ok", 0}, {"skip", 0}, {"quirk", 0}};
    for (const Json& suite : written["testsuites"])
        for (const Json& test : suite["testsuite"]) {
            Json check = check_json(text_of(suite, "name"), test);
            totals[check["verdict"].get<std::string>()]++;
            checks.push_back(std::move(check));
        }
    return Json{{"device", device_json(*device)},
                {"kernel", kernel_release()},
                {"virtual_machine", or_null(virtual_machine())},
                {"domain", domain_json(*domain)},
                {"checks", checks},
                {"totals", totals}};
}

} // namespace

int run_check(const Args& args) {
    const auto program = find_program();
    if (!program)
        return fail(args, program.error());
    std::vector<std::string> options;
    std::string filter;
    for (const std::string& pattern : args.only)
        filter += (filter.empty() ? "" : ":") + pattern;
    if (!filter.empty())
        options.push_back("--gtest_filter=" + filter);
    if (args.list) {
        options.emplace_back("--gtest_list_tests");
        const auto code = run_program(*program, options, false);
        return code ? *code : fail(args, code.error());
    }
    if (args.json && !args.junit.empty())
        return fail(args, {exit_code::usage, "check: --json and --junit exclude each other", 0});

    const auto bdf = pick_device(args);
    if (!bdf)
        return fail(args, bdf.error());
    // What a session says when it cannot be opened is better told once, and here.
    if (const auto session = Session::open(*bdf); !session)
        return fail(args, failure(session.error()));
    ::setenv("DMAPROBE_BDF", bdf->to_string().c_str(), 1);

    const Scratch scratch;
    if (args.json)
        options.push_back("--gtest_output=json:" + scratch.path());
    else if (!args.junit.empty())
        options.push_back("--gtest_output=xml:" + args.junit);
    const auto code = run_program(*program, options, args.json);
    if (!code)
        return fail(args, code.error());
    if (!args.json)
        return *code == 0 ? exit_code::ok : exit_code::failed;
    const auto document = report(*bdf, scratch.path());
    if (!document)
        return fail(args, document.error());
    print_json(*document);
    return *code == 0 ? exit_code::ok : exit_code::failed;
}

} // namespace tool

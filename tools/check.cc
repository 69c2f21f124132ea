// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe check: whether the platform keeps the rules of the DMA API. Its JSON obeys
// schema/check.schema.json.
//
// The checks are a GoogleTest program of their own, dmaprobe-conformance (selftests/conformance);
// this verb finds it, runs it for a device, and reports what came of it.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <format>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <utility>

#include <fcntl.h>
#include <fnmatch.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
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
///
/// @param out where its standard output goes; nothing: to ours
std::expected<int, Failure> run_program(const std::string& program,
                                        const std::vector<std::string>& options,
                                        const std::string& out = {}) {
    std::vector<std::string> words = {program};
    words.insert(words.end(), options.begin(), options.end());
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words)
        argv.push_back(word.data());
    argv.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    if (!out.empty())
        posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(), O_WRONLY, 0);
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
    [[nodiscard]] std::string text() const {
        std::ifstream file(path_);
        return {std::istreambuf_iterator(file), {}};
    }

private:
    std::string path_ = "/tmp/dmaprobe-check-XXXXXX";
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

/// The names of the checks, as the program lists them: suites, and their tests indented.
std::expected<std::vector<std::string>, Failure> list_checks(const std::string& program) {
    const Scratch scratch;
    const auto code = run_program(program, {"--gtest_list_tests"}, scratch.path());
    if (!code)
        return std::unexpected(code.error());
    std::vector<std::string> names;
    std::string suite;
    std::istringstream lines(scratch.text());
    for (std::string line; std::getline(lines, line);) {
        line = line.substr(0, line.find('#'));
        const auto end = line.find_last_not_of(' ');
        line.resize(end == std::string::npos ? 0 : end + 1);
        if (line.starts_with("  "))
            names.push_back(suite + line.substr(2));
        else
            suite = line;
    }
    if (*code != 0 || names.empty())
        return std::unexpected(
            Failure{exit_code::failed, program + " does not list its checks", EIO});
    return names;
}

/// Those of them that a pattern of --only names.
std::expected<std::vector<std::string>, Failure> select(const std::vector<std::string>& names,
                                                        const std::vector<std::string>& only) {
    std::vector<std::string> selected;
    for (const std::string& pattern : only)
        if (std::ranges::none_of(names, [&](const std::string& name) {
                return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
            }))
            return std::unexpected(Failure{
                exit_code::usage,
                std::format("check: no check is called '{}' (dmaprobe check --list names them)",
                            pattern),
                0});
    std::ranges::copy_if(names, std::back_inserter(selected), [&](const std::string& name) {
        return only.empty() || std::ranges::any_of(only, [&](const std::string& pattern) {
                   return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
               });
    });
    return selected;
}

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
            Failure{exit_code::failed, "the checks ended before they had reported anything", EIO});
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

std::string xml_text(std::string_view text) {
    std::string escaped;
    for (const char c : text)
        switch (c) {
        case '&':
            escaped += "&amp;";
            break;
        case '<':
            escaped += "&lt;";
            break;
        case '"':
            escaped += "&quot;";
            break;
        default:
            escaped += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
        }
    return escaped;
}

/// The document as JUnit's XML, of which there is no standard but what its readers take.
std::string junit(const Json& document) {
    std::string cases;
    for (const Json& check : document["checks"]) {
        const std::string name = text_of(check, "name");
        const auto dot = name.find('.');
        const std::string verdict = text_of(check, "verdict");
        const std::string reason = xml_text(text_of(check, "reason"));
        cases += std::format("    <testcase classname=\"{}\" name=\"{}\">\n",
                             xml_text(name.substr(0, dot)), xml_text(name.substr(dot + 1)));
        if (verdict == "not ok")
            cases += std::format("      <failure message=\"{}\"/>\n", reason);
        if (verdict == "skip")
            cases += std::format("      <skipped message=\"{}\"/>\n", reason);
        if (const std::string quirk = text_of(check, "quirk"); !quirk.empty())
            cases += std::format("      <system-out>quirk: {}</system-out>\n", xml_text(quirk));
        cases += "    </testcase>\n";
    }
    const Json& totals = document["totals"];
    return std::format("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                       "<testsuites>\n  <testsuite name=\"dmaprobe check {}\" tests=\"{}\" "
                       "failures=\"{}\" skipped=\"{}\">\n{}  </testsuite>\n</testsuites>\n",
                       text_of(document["device"], "bdf"), document["checks"].size(),
                       totals["not ok"].get<int>(), totals["skip"].get<int>(), cases);
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

/// Make an empty file where the result is to go: better now than after minutes.
std::expected<void, Failure> try_file(const std::string& path) {
    if (std::ofstream file(path); file)
        return {};
    return std::unexpected(
        Failure{exit_code::failed, std::format("{}: {}", path, std::strerror(errno)), errno});
}

int run_list_of_checks(const Args& args, const std::vector<std::string>& names) {
    if (args.json) {
        print_json({{"checks", names}});
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
    std::fflush(stdout);
    std::fputs(std::format("dmaprobe: nothing could be checked: {}\n",
                           text_of(document["checks"][0], "reason"))
                   .c_str(),
               stderr);
    return exit_code::skipped;
}

} // namespace

int run_check(const Args& args) {
    const auto program = find_program();
    if (!program)
        return fail(args, program.error());
    const auto names = list_checks(*program);
    if (!names)
        return fail(args, names.error());
    const auto selected = select(*names, args.only);
    if (!selected)
        return fail(args, selected.error());
    if (args.list)
        return run_list_of_checks(args, *selected);

    const auto bdf = pick_device(args);
    if (!bdf)
        return fail(args, bdf.error());
    // What a session says when it cannot be opened is better reported once, and here.
    if (const auto session = Session::open(*bdf); !session)
        return fail(args, failure(session.error()));
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
    if (!args.junit.empty())
        if (const auto file = try_file(args.junit); !file)
            return fail(args, file.error());

    const Scratch results;
    const Scratch stopped;
    std::string filter;
    for (const std::string& name : *selected)
        filter += (filter.empty() ? "" : ":") + name;
    ::setenv("DMAPROBE_BDF", bdf->to_string().c_str(), 1);
    ::setenv("DMAPROBE_CHECK_STOPPED", stopped.path().c_str(), 1);
    const auto code =
        run_program(*program, {"--gtest_filter=" + filter, "--gtest_output=json:" + results.path()},
                    args.json ? "/dev/null" : "");
    if (!code)
        return fail(args, code.error());
    if (*code == exit_code::stopped)
        return fail(args, {exit_code::stopped,
                           "the checks were stopped, which says nothing about the platform: " +
                               stopped.text(),
                           ECANCELED});
    const auto document = report(*bdf, results.path());
    if (!document)
        return fail(args, document.error());
    if (args.json)
        print_json(*document);
    if (!args.junit.empty())
        if (std::ofstream file(args.junit); !(file << junit(*document)) || !file.flush())
            return fail(args, {exit_code::failed,
                               std::format("{}: {}", args.junit, std::strerror(errno)), errno});
    return finish(*document);
}

} // namespace tool

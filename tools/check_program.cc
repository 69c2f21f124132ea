// SPDX-License-Identifier: GPL-2.0-only
// The program that has the checks, dmaprobe-conformance (selftests/conformance): finding it,
// running it, and reading the KTAP that it prints.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <format>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

namespace tool {

namespace fs = std::filesystem;

std::expected<std::string, Failure> find_checks() {
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

std::expected<int, Failure> run_checks(const std::string& program,
                                       const std::vector<std::string>& options,
                                       const std::function<void(std::string_view)>& on_line) {
    std::vector<std::string> words = {program};
    words.insert(words.end(), options.begin(), options.end());
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words)
        argv.push_back(word.data());
    argv.push_back(nullptr);
    // GoogleTest's own variables choose among tests, repeat and shuffle them.
    std::vector<char*> variables;
    for (char** variable = environ; *variable != nullptr; variable++)
        if (!std::string_view(*variable).starts_with("GTEST_"))
            variables.push_back(*variable);
    variables.push_back(nullptr);

    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0)
        return std::unexpected(Failure{exit_code::failed, std::strerror(errno), errno});
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> output(::fdopen(ends[0], "r"),
                                                                 &std::fclose);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    pid_t pid = 0;
    const int error =
        ::posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), variables.data());
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    if (error != 0)
        return std::unexpected(
            Failure{exit_code::failed,
                    std::format("{} could not be run: {}", program, std::strerror(error)), error});

    char* line = nullptr;
    std::size_t size = 0;
    for (ssize_t length = 0; (length = ::getline(&line, &size, output.get())) > 0;) {
        std::string_view text(line, static_cast<std::size_t>(length));
        if (text.ends_with('\n'))
            text.remove_suffix(1);
        on_line(text);
    }
    std::free(line);

    int status = 0;
    while (::waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return std::unexpected(Failure{exit_code::failed, program + " got lost", errno});
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::expected<std::vector<std::string>, Failure> list_checks(const std::string& program) {
    std::vector<std::string> names;
    std::string suite;
    // GoogleTest lists suites, and their tests indented.
    const auto code = run_checks(program, {"--gtest_list_tests"}, [&](std::string_view line) {
        line = line.substr(0, line.find('#'));
        line = line.substr(0, line.find_last_not_of(' ') + 1);
        if (line.starts_with("  "))
            names.push_back(suite + std::string(line.substr(2)));
        else
            suite = line;
    });
    if (!code)
        return std::unexpected(code.error());
    if (*code != 0 || names.empty())
        return std::unexpected(
            Failure{exit_code::failed, program + " does not list its checks", EIO});
    return names;
}

/// What stands before a result: first the failures, as "file.cc:12: text" and further lines of the
/// text, then what the check recorded, as "key: value".
void ResultReader::read_diagnostic(std::string_view text) {
    constexpr std::string_view quirk = "quirk: ";
    if (text.starts_with("rule: "))
        in_failure_ = false;
    if (text.starts_with(quirk))
        next_.quirk = text.substr(quirk.size());
    if (const auto place = text.find(".cc:");
        place != std::string_view::npos &&
        text.substr(0, place).find(' ') == std::string_view::npos) {
        in_failure_ = true;
        const auto end = text.find(": ", place + 4);
        text = end == std::string_view::npos ? "" : text.substr(end + 2);
    }
    if (in_failure_)
        next_.reason.append(next_.reason.empty() || text.empty() ? "" : "\n").append(text);
}

std::optional<CheckResult> ResultReader::read(std::string_view line) {
    constexpr std::string_view skip = " # SKIP ";
    if (line.starts_with("# ")) {
        read_diagnostic(line.substr(2));
        return std::nullopt;
    }
    const bool failed = line.starts_with("not ok ");
    if (!failed && !line.starts_with("ok "))
        return std::nullopt;
    line.remove_prefix(failed ? 7 : 3);
    line.remove_prefix(std::min(line.find(' ') + 1, line.size())); // its number

    CheckResult result = std::exchange(next_, {});
    in_failure_ = false;
    const auto skipped = line.find(skip);
    result.name = line.substr(0, skipped);
    if (failed) {
        result.verdict = "not ok";
    } else if (skipped != std::string_view::npos) {
        result.verdict = "skip";
        result.reason = line.substr(skipped + skip.size());
    } else {
        result.verdict = result.quirk.empty() ? "ok" : "quirk";
    }
    return result;
}

} // namespace tool

// SPDX-License-Identifier: GPL-2.0-only
// The dmaprobe command: reads the command line and hands over to a verb.
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <exception>
#include <format>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

#include <CLI/CLI.hpp>

#include <linux/dmaprobe.h>

#include "output.h"

#ifndef DMAPROBE_VERSION_STRING
#error "the build must define DMAPROBE_VERSION_STRING"
#endif

namespace tool {

namespace {

constexpr std::array bench_topics{
    Topic{"dispatch", "what it costs to get a call to the module", run_bench_dispatch},
};

/// A new verb is a line here and a file beside this one.
constexpr std::array verbs{
    Verb{"list", "list PCI devices, their drivers, IOMMU groups and engines", Verb::Bdf::none,
         false, run_list},
    Verb{"bind", "take a device for dmaprobe", Verb::Bdf::required, true, run_bind},
    Verb{"unbind", "give a device back to the driver it had", Verb::Bdf::required, false,
         run_unbind},
    Verb{"info", "show what the kernel, the device and the IOMMU support", Verb::Bdf::optional,
         false, run_info},
    Verb{"demo", "map, link, DMA, unlink, destroy and fault, step by step", Verb::Bdf::optional,
         false, run_demo},
    Verb{"check", "check whether the platform keeps the rules of the DMA API", Verb::Bdf::optional,
         true, run_check},
    Verb{"faults", "follow the faults that the IOMMU reports", Verb::Bdf::optional, false,
         run_faults},
    Verb{"bench", "measure what calls cost", Verb::Bdf::none, false, nullptr, bench_topics},
};

void add_device(CLI::App& app, Args& args, bool required,
                std::string_view without = "the one device that is bound") {
    auto* bdf = app.add_option("BDF", args.bdf,
                               required ? "PCI address, such as 0000:01:00.0"
                                        : std::format("PCI address; without it, {}", without));
    if (required)
        bdf->required();
    // An unset variable of a script's is not the wish for any device.
    bdf->check([](const std::string& text) {
        return text.empty() ? std::string("'' is no PCI address") : std::string();
    });
}

int usage(const Args& args, std::string message) {
    return fail(args, {exit_code::usage, std::move(message), 0});
}

std::string verb_names() {
    std::string names;
    for (const Verb& verb : verbs)
        names.append(names.empty() ? "" : ", ").append(verb.name);
    return names;
}

int run_version(const Args& args) {
    if (args.json)
        print_json(
            {{"tool_version", DMAPROBE_VERSION_STRING}, {"abi_version", DMAPROBE_ABI_VERSION}});
    else
        print(std::format("dmaprobe {} (ABI {})\n", DMAPROBE_VERSION_STRING, DMAPROBE_ABI_VERSION));
    return exit_code::ok;
}

/// Whether a word asks for a document on stdout.
bool is_json(std::string_view word) {
    return word == "--json" || word == "--json=-";
}

int run(int argc, char** argv) {
    const std::vector<std::string_view> words(argv + std::min(argc, 1), argv + argc);
    Args args;
    // Needed before the command line is known to be right: its errors are reported as JSON too.
    args.json = std::ranges::any_of(words, is_json);
    // Both may be given: one document goes to stdout, and the same into the file.
    constexpr std::string_view json_file = "--json=";
    std::optional<std::string_view> file;
    for (const std::string_view word : words)
        if (word.starts_with(json_file) && !is_json(word))
            file = word.substr(json_file.size());

    CLI::App app("Drive the Linux kernel's DMA-mapping API against a real PCI device, and prove "
                 "what happened.",
                 "dmaprobe");
    app.footer("Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 stopped by something else, 4 the "
               "machine lacks what it needs.\n"
               "The manual: man dmaprobe");
    bool version = false;
    std::string read_above;
    app.add_flag("--json{-}", read_above,
                 "one JSON document on stdout, errors included; check also takes --json=FILE")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.add_flag("--version", version, "show the version and exit");

    int (*run)(const Args&) = nullptr;
    for (const Verb& verb : verbs) {
        auto* sub = app.add_subcommand(std::string(verb.name), std::string(verb.summary));
        sub->fallthrough();
        if (verb.bdf != Verb::Bdf::none)
            add_device(*sub, args, verb.bdf == Verb::Bdf::required,
                       verb.run == run_faults ? "all devices" : "the one device that is bound");
        if (verb.force)
            sub->add_flag("--force", args.force,
                          verb.run == run_check
                              ? "also when drivers use other functions of its IOMMU group"
                              : "also when a driver has the device or its IOMMU group is shared");
        if (verb.run == run_list)
            sub->add_flag("--bound", args.bound, "only devices that are bound to dmaprobe");
        if (verb.run == run_info) {
            sub->add_flag("--calls", args.calls, "name the calls of the DMA API instead");
            sub->add_flag("--no-engine", args.no_engine,
                          "do not open the device to ask its engine, which resets it by VFIO");
        }
        if (verb.run == run_bind)
            sub->add_option("--domain", args.domain,
                            "the type of its IOMMU group's domain, until unbind: DMA (or strict), "
                            "DMA-FQ (or lazy), identity");
        if (verb.run == run_faults) {
            sub->add_option("--count", args.count, "end after so many; 0 waits for none");
            sub->add_option("--seconds", args.seconds, "end after so long; 0 does not wait");
        }
        if (verb.run == run_check) {
            sub->add_option(
                   "--only", args.only,
                   "run the checks of this name only, in all its ways unless one is named; * and "
                   "? stand for other letters; may be given several times")
                ->type_name("NAME")
                ->allow_extra_args(false); // the next word is the BDF
            sub->add_flag("--list", args.list, "name the checks, and run none");
            sub->add_option("--junit", args.junit, "also write JUnit's XML into this file");
            sub->add_flag("--ktap", args.ktap, "print KTAP in place of text for people");
            sub->footer(std::format("--json=FILE writes the document into a file, and prints "
                                    "besides.\n\n{}",
                                    app.get_footer()));
        }
        if (verb.topics.empty())
            continue;
        sub->require_subcommand(1);
        for (const Topic& topic : verb.topics) {
            auto* word = sub->add_subcommand(std::string(topic.name), std::string(topic.summary));
            word->fallthrough();
            add_device(*word, args, false);
            word->add_option(
                "--rounds", args.rounds,
                "rounds of one measurement, rounded up to a multiple of 128 (default: 4096)");
            word->add_option("--repeat", args.repeat, "measurements of each kind (default: 7)");
            word->add_flag("--icount", args.icount,
                           "name the unit instructions: the machine's clock counts them "
                           "(QEMU's -icount shift=0)");
            word->callback([&run, &topic] { run = topic.run; });
        }
    }

    // CLI11 would call an unknown verb an unexpected argument.
    const auto first =
        std::ranges::find_if(words, [](std::string_view word) { return !word.starts_with('-'); });
    const auto chosen =
        first == words.end() ? verbs.end() : std::ranges::find(verbs, *first, &Verb::name);
    if (first != words.end() && chosen == verbs.end())
        return usage(args,
                     std::format("there is no verb '{}'; the verbs are {}", *first, verb_names()));
    if (chosen != verbs.end() && !chosen->topics.empty()) {
        const auto second = std::find_if(
            first + 1, words.end(), [](std::string_view word) { return !word.starts_with('-'); });
        if (second != words.end() &&
            std::ranges::find(chosen->topics, *second, &Topic::name) == chosen->topics.end()) {
            std::string names;
            for (const Topic& topic : chosen->topics)
                names.append(names.empty() ? "" : ", ").append(topic.name);
            return usage(args, std::format("{}: there is no '{}' to {}; there is {}", *first,
                                           *second, *first, names));
        }
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp& help) {
        return app.exit(help);
    } catch (const CLI::ParseError& error) {
        std::string what = error.what();
        std::ranges::replace(what, '\n', ' ');
        if (chosen != verbs.end())
            what = std::format("{}: {} (dmaprobe {} --help)", chosen->name, what, chosen->name);
        else
            what += " (dmaprobe --help)";
        return usage(args, what);
    }
    // Not before it is known that the file is meant: an error would be written into it.
    if (file && (chosen == verbs.end() || chosen->run != run_check))
        return usage(args, "--json takes a file in check only; the document goes to stdout");
    if (file && file->empty())
        return usage(args, "check: --json= lacks the name of a file");
    args.json_file = file.value_or("");
    if (version)
        return run_version(args);
    if (chosen == verbs.end())
        return usage(args, std::format("a verb is missing; the verbs are {}", verb_names()));
    return (run != nullptr ? run : chosen->run)(args);
}

} // namespace

/// Whether failures are documents too; for where the arguments are not at hand.
volatile std::sig_atomic_t json_wanted = 0;

namespace {

/// The kernel takes the registers from below a program whose device goes (sysfs' `resourceN`).
void on_sigbus(int) {
    constexpr std::string_view message =
        "dmaprobe: the device was unplugged: its registers are gone\n";
    static_assert(schema_version == 1);
    constexpr std::string_view document =
        "{\n  \"version\": 1,\n  \"error\": {\n    \"message\": \"the device was "
        "unplugged: its registers are gone\",\n"
        "    \"errno\": \"ENODEV\",\n    \"exit\": 1\n  }\n}\n";
    [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, message.data(), message.size());

    if (json_wanted)
        written = ::write(STDOUT_FILENO, document.data(), document.size());
    ::_exit(exit_code::failed);
}

} // namespace

/// A device that goes at the wrong moment is a failure to report, not a crash.
void end_on_sigbus(int argc, char** argv) {
    struct sigaction action{};

    json_wanted = std::any_of(argv, argv + argc, is_json);
    action.sa_handler = on_sigbus;
    ::sigaction(SIGBUS, &action, nullptr);
}

} // namespace tool

int main(int argc, char** argv) {
    tool::end_on_sigbus(argc, argv);
    int code = 0;
    try {
        code = tool::run(argc, argv);
    } catch (const std::exception& error) {
        tool::Args args;
        args.json = tool::json_wanted != 0;
        code = tool::fail(args, {tool::exit_code::failed, error.what(), 0});
    }
    tool::clear_progress();
    // Output that was not written, on a full disk for one, is a failure.
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
        std::fputs("dmaprobe: the output could not be written\n", stderr);
        return tool::exit_code::failed;
    }
    return code;
}

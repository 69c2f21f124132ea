// SPDX-License-Identifier: GPL-2.0-only
// dmaprobe bind, dmaprobe unbind: take a device, and give it back. Their JSON obeys
// schema/bind.schema.json and schema/unbind.schema.json.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <format>
#include <optional>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "output.h"

namespace tool {

using dmaprobe::Bdf;
using dmaprobe::DomainType;
using dmaprobe::Error;
using dmaprobe::PciBus;

namespace {

/// A type of domain in sysfs' words, or in those of the kernel's command line.
std::optional<DomainType> domain_type(std::string_view word) {
    for (const DomainType type : {DomainType::dma, DomainType::dma_fq, DomainType::identity})
        if (word == to_string(type))
            return type;
    if (word == "strict")
        return DomainType::dma;
    if (word == "lazy")
        return DomainType::dma_fq;
    return std::nullopt;
}

/// Run "modprobe dmaprobe" and keep quiet. Gives why it did not work.
std::optional<std::string> load_module() {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
    char program[] = "modprobe";
    char module[] = "dmaprobe";
    char* const argv[] = {program, module, nullptr};
    pid_t pid = 0;
    const int error = posix_spawnp(&pid, program, &actions, nullptr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0)
        return std::format("modprobe could not be run: {}", std::strerror(error));
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return "modprobe got lost";
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return std::nullopt;
    return std::format("modprobe dmaprobe failed: is it installed for kernel {}?",
                       kernel_release());
}

/// Whether --force would take it: a driver has the device, or another function of its group.
bool force_helps(const PciBus& bus, const Bdf& bdf) {
    const auto device = bus.device(bdf);
    return device && device->driver != "dmaprobe" &&
           (!device->driver.empty() || !device->group_users().empty());
}

Failure bind_failure(const PciBus& bus, const Error& error, const Bdf& bdf, bool forced) {
    Failure answer = failure(error);
    switch (error.code) {
    case EOPNOTSUPP:
        answer.exit = exit_code::skipped;
        break;
    case EBUSY:
        if (!forced && force_helps(bus, bdf))
            answer.message +=
                std::format("; to take it all the same: dmaprobe bind --force {}", bdf.to_string());
        break;
    case ENODEV:
        answer.message += " (dmaprobe list shows them)";
        break;
    default:
        break;
    }
    return answer;
}

} // namespace

int run_bind(const Args& args) {
    const auto bdf = Bdf::parse(args.bdf);
    if (!bdf)
        return fail(args, failure(bdf.error(), exit_code::usage));

    const std::optional<DomainType> domain = domain_type(args.domain);
    if (!args.domain.empty() && !domain)
        return fail(args,
                    {exit_code::usage,
                     std::format("bind: there is no domain type '{}'; there are DMA (strict), "
                                 "DMA-FQ (lazy) and identity",
                                 args.domain),
                     EINVAL});

    const PciBus bus;
    auto done = bus.bind(*bdf, args.force, domain);
    if (!done && done.error().code == ENOENT && !bus.module_loaded()) {
        if (const auto why = load_module())
            return fail(args, {exit_code::failed, "the dmaprobe module is not loaded, and " + *why,
                               ENOENT});
        done = bus.bind(*bdf, args.force, domain);
    }
    if (!done)
        return fail(args, bind_failure(bus, done.error(), *bdf, args.force));

    if (args.json) {
        print_json({{"bdf", bdf->to_string()},
                    {"driver", "dmaprobe"},
                    {"previous_driver", or_null(done->previous_driver)},
                    {"previous_domain", or_null(done->previous_domain)},
                    {"already_bound", done->already_bound}});
        return exit_code::ok;
    }
    std::string text = bdf->to_string();
    if (done->already_bound)
        text += " was bound to dmaprobe before";
    else if (done->previous_driver.empty())
        text += " is bound to dmaprobe";
    else
        text += std::format(" is bound to dmaprobe, taken from {}; dmaprobe unbind gives it back",
                            done->previous_driver);
    if (!done->previous_domain.empty())
        text += std::format("; its IOMMU group's domain was {} and is {}", done->previous_domain,
                            to_string(*domain));
    print(text + "\n");
    return exit_code::ok;
}

int run_unbind(const Args& args) {
    const auto bdf = Bdf::parse(args.bdf);
    if (!bdf)
        return fail(args, failure(bdf.error(), exit_code::usage));
    const auto done = PciBus().unbind(*bdf);
    if (!done)
        return fail(args, failure(done.error()));
    if (!done->refused_by.empty())
        return fail(args, {exit_code::failed,
                           std::format("{} is unbound, but its driver {} did not take it back; the "
                                       "kernel log says why",
                                       bdf->to_string(), done->refused_by),
                           EIO});
    if (!done->domain_kept.empty())
        return fail(args, {exit_code::failed,
                           std::format("{} is unbound, but its domain's type was not put back: {}",
                                       bdf->to_string(), done->domain_kept),
                           EBUSY});
    if (args.json)
        print_json({{"bdf", bdf->to_string()}, {"driver", or_null(done->driver)}});
    else if (done->driver.empty())
        print(std::format("{} is unbound and has no driver, as before\n", bdf->to_string()));
    else
        print(std::format("{} is unbound and back with {}\n", bdf->to_string(), done->driver));
    return exit_code::ok;
}

} // namespace tool

// SPDX-License-Identifier: GPL-2.0-only
// What the verbs share: arguments, output, failures.
#pragma once

#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <dmaprobe/bdf.h>
#include <dmaprobe/fault.h>
#include <dmaprobe/pci.h>
#include <dmaprobe/query.h>
#include <dmaprobe/result.h>
#include <dmaprobe/session.h>

namespace tool {

/// Members stay in the order they were put in.
using Json = nlohmann::ordered_json;

/// The tool's exit codes, as its man page promises them.
namespace exit_code {
inline constexpr int ok = 0;
inline constexpr int failed = 1;
inline constexpr int usage = 2;
inline constexpr int stopped = 3;
inline constexpr int skipped = 4;
} // namespace exit_code

/// What was given on the command line.
struct Args {
    bool json = false;     ///< the document on stdout, in place of text
    std::string json_file; ///< check: the document into this file, besides what is printed
    bool force = false;
    std::string bdf;
    std::string domain; // bind
    bool bound = false; // list
    // info
    bool calls = false;
    bool no_engine = false;
    // bench
    bool icount = false;
    unsigned rounds = 4096;
    unsigned repeat = 7;
    // faults
    std::optional<unsigned> count;
    std::optional<unsigned> seconds;
    // check
    bool list = false;
    std::vector<std::string> only;
    std::string junit;
    bool ktap = false;
};

/// What a verb can be asked for: a word behind it.
struct Topic {
    std::string_view name;
    std::string_view summary;
    int (*run)(const Args&);
};

/// For most verbs.
inline constexpr std::span<const Topic> no_topics;

/// A verb of the tool: one line of the table in main.cc.
struct Verb {
    std::string_view name;
    std::string_view summary;
    enum class Bdf { none, optional, required } bdf;
    bool force;
    int (*run)(const Args&);
    std::span<const Topic> topics = no_topics; ///< then the verb itself does nothing
};

int run_list(const Args& args);
int run_bind(const Args& args);
int run_unbind(const Args& args);
int run_info(const Args& args);
int run_demo(const Args& args);
int run_check(const Args& args);
int run_faults(const Args& args);
int run_bench_dispatch(const Args& args);

/// Why a verb cannot go on: one line, and the exit code.
struct Failure {
    int exit = exit_code::failed;
    std::string message;
    int code = 0; ///< errno value, or 0
};

/// Make a failure of an error of the library.
Failure failure(const dmaprobe::Error& error, int exit = exit_code::failed);

/// Report a failure: a line on stderr, with --json also a document. Gives the exit code.
int fail(const Args& args, const Failure& failure);

/// Print text on stdout; what follows appears at once.
void print(std::string_view text);
/// Print a line on stderr, in the tool's name.
void warn(std::string_view text);

/// The version of the schemas in schema/, which each document names. It is raised when a member
/// goes, or changes its meaning.
inline constexpr int schema_version = 1;
/// A document as text on one line or, by default, on several; its first member is the version.
std::string document_text(const Json& document, int indent = 2);
/// Print a document on stdout.
void print_json(const Json& document);

enum class Colour { red, green, yellow, dim };
/// The text in a colour where stdout is a terminal and NO_COLOR is not set.
std::string paint(Colour colour, std::string_view text);
/// One line of a report: "  label          value".
std::string field(std::string_view label, std::string_view value);
/// Rows as columns, each as wide as its longest text.
std::string columns(const std::vector<std::vector<std::string>>& rows);

/// Show what a verb is at, in one line of stderr, where that is a terminal. The next output takes
/// its place.
void show_progress(std::string_view text);
/// Remove that line.
void clear_progress();

/// The text, or null when it is empty.
Json or_null(std::string_view text);
/// A number as text in hexadecimal: JSON readers lose the low bits of large integers.
std::string hex(std::uint64_t value);
/// A size; null for "no limit", which the kernel reports as the largest number.
Json size_json(dmaprobe::Size size);
/// A size for a person: "4 KiB", "unlimited".
std::string size_text(dmaprobe::Size size);
/// A device as `list`, `info` and `check` show it.
Json device_json(const dmaprobe::PciDevice& device);
/// The page sizes of an IOMMU domain, the smallest first.
std::vector<dmaprobe::Size> page_sizes(const dmaprobe::Domain& domain);
/// An IOMMU domain as `info` and `check` show it.
Json domain_json(const dmaprobe::Domain& domain);
/// A fault as `faults` and `demo` show it.
Json fault_json(const dmaprobe::Fault& fault);

/// Whether this machine is a virtual one, whose IOMMU is emulated then: what says so, or nothing.
std::string virtual_machine();
/// The running kernel's release.
std::string kernel_release();

/// The device that is meant: the one given, or the only one that is bound.
std::expected<dmaprobe::Bdf, Failure> pick_device(const Args& args);

} // namespace tool

// SPDX-License-Identifier: GPL-2.0-only
// What dmaprobe check is made of: the program that has the checks, and the forms of its results.
#pragma once

#include <expected>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "output.h"

namespace tool {

/// Find dmaprobe-conformance: beside the tool in the build tree or the lab, or where `make install`
/// puts it.
std::expected<std::string, Failure> find_checks();

/// Run it, and pass on each line that it prints. Gives its exit code; 128 and more when a signal
/// ended it.
std::expected<int, Failure> run_checks(const std::string& program,
                                       const std::vector<std::string>& options,
                                       const std::function<void(std::string_view)>& on_line);

/// The names of all checks, in the order in which they run.
std::expected<std::vector<std::string>, Failure> list_checks(const std::string& program);

/// What came of a check.
struct CheckResult {
    std::string name;
    std::string_view verdict; ///< "ok", "quirk", "not ok" or "skip"
    std::string quirk;        ///< what is legal, but has to be known
    std::string reason;       ///< why it failed or was skipped; may have several lines
};

/// Makes results of the checks' KTAP, as it comes.
class ResultReader {
public:
    /// Read one line. Gives the result that it completes, if any.
    std::optional<CheckResult> read(std::string_view line);

private:
    void read_diagnostic(std::string_view text);

    CheckResult next_;
    bool in_failure_ = false; // further lines belong to the failure's text
};

/// A result for people: one line, and below it why it failed.
std::string result_text(const CheckResult& result, std::size_t width);
/// How many checks came to which verdict, for people.
std::string summary_text(const Json& document);
/// What is checked: the members of the document that describe the machine.
std::expected<Json, Failure> machine_json(const dmaprobe::PciDevice& device);
/// The document, of the machine and of what GoogleTest wrote into a file. Nothing when the checks
/// ended before they had written it.
std::optional<Json> check_document(Json machine, const std::string& path);
/// The document as JUnit's XML, of which there is no standard but what its readers take.
std::string junit_text(const Json& document);
/// A member of the document that is text; empty where it is not.
std::string text_of(const Json& object, const char* key);

} // namespace tool

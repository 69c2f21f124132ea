// SPDX-License-Identifier: GPL-2.0-only
// The results of dmaprobe check: for people, as a JSON document, as JUnit's XML.
#include <algorithm>
#include <array>
#include <format>
#include <fstream>
#include <map>
#include <string_view>
#include <utility>

#include "check.h"

namespace tool {

namespace {

Colour colour_of(std::string_view verdict) {
    return verdict == "ok"       ? Colour::green
           : verdict == "not ok" ? Colour::red
           : verdict == "quirk"  ? Colour::yellow
                                 : Colour::dim;
}

} // namespace

std::string result_text(const CheckResult& result, std::size_t width) {
    const bool failed = result.verdict == "not ok";
    const std::string& note = failed || !result.quirk.empty() ? result.quirk : result.reason;
    std::string text = std::format(
        "  {}  {:<{}}  {}", paint(colour_of(result.verdict), std::format("{:<6}", result.verdict)),
        result.name, width, note);
    text.resize(text.find_last_not_of(' ') + 1);
    text += '\n';
    if (!failed)
        return text;
    for (std::string_view left = result.reason; !left.empty();) {
        const auto end = std::min(left.find('\n'), left.size());
        text += std::format("            {}\n", left.substr(0, end));
        left.remove_prefix(std::min(end + 1, left.size()));
    }
    return text;
}

std::string summary_text(const Json& document) {
    std::string text = std::format("\n{} checks:", document["checks"].size());
    const char* comma = "";
    for (const auto& [verdict, word] :
         {std::pair{"ok", "ok"}, std::pair{"quirk", "with a quirk"}, std::pair{"not ok", "not ok"},
          std::pair{"skip", "skipped"}}) {
        const int count = document["totals"][verdict].get<int>();
        const std::string part = std::format("{} {}", count, word);
        text += std::format("{} {}", std::exchange(comma, ","),
                            count != 0 ? paint(colour_of(verdict), part) : part);
    }
    return text + "\n";
}

std::string text_of(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

namespace {

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

} // namespace

std::expected<Json, Failure> machine_json(const dmaprobe::PciDevice& device) {
    const auto session = dmaprobe::Session::open(device.bdf);
    if (!session)
        return std::unexpected(failure(session.error()));
    const auto domain = session->domain();
    if (!domain)
        return std::unexpected(failure(domain.error()));
    return Json{{"device", device_json(device)},
                {"kernel", kernel_release()},
                {"virtual_machine", or_null(virtual_machine())},
                {"domain", domain_json(*domain)}};
}

std::optional<Json> check_document(Json machine, const std::string& path) {
    const Json written = Json::parse(std::ifstream(path), nullptr, false);
    if (written.is_discarded() || !written.contains("testsuites"))
        return std::nullopt;

    Json checks = Json::array();
    std::map<std::string, int> totals = {{"ok", 0}, {"not ok", 0}, {"skip", 0}, {"quirk", 0}};
    for (const Json& suite : written["testsuites"])
        for (const Json& test : suite["testsuite"]) {
            Json check = check_json(text_of(suite, "name"), test);
            totals[check["verdict"].get<std::string>()]++;
            checks.push_back(std::move(check));
        }
    machine["checks"] = std::move(checks);
    machine["totals"] = totals;
    return machine;
}

namespace {

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

} // namespace

std::string junit_text(const Json& document) {
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

} // namespace tool

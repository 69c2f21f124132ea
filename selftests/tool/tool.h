// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dmaprobe command, as a person or a script uses it: what it prints where, and
 * the exit code. Wrong use is one line on stderr.
 */
#ifndef SELFTESTS_TOOL_H
#define SELFTESTS_TOOL_H

#include "support/fixture.h"
#include "support/ktap.h"
#include "support/system.h"

#include <nlohmann/json.hpp>

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace selftest {

using nlohmann::json;
using testing::HasSubstr;

inline constexpr int exit_ok = 0;
inline constexpr int exit_failed = 1;
inline constexpr int exit_usage = 2;
inline constexpr int exit_stopped = 3; /* of check: something else ended it */
inline constexpr int exit_lacking = 4;

/* A place on the bus that no machine has. */
inline constexpr char no_such_device[] = "fffe:fe:1e.7";

Outcome dmaprobe(std::vector<std::string> args, const std::function<void()>& in_child = {});

/* A terminal, to be a program's stdout or stderr. */
class Terminal {
public:
    Terminal();

    explicit operator bool() const { return bool(slave_); }
    /* In the child: put it in place of a descriptor. */
    void replace(int fd) const;
    /* What was written to it, when the program has ended. */
    std::string text();

private:
    Fd master_;
    Fd slave_;
};

class Tool : public DeviceTest {
protected:
    void SetUp() override;
    void TearDown() override;

    /*
     * One line on stderr that mentions these, nothing on stdout; and with --json
     * the same in a document.
     */
    void fails(const std::vector<std::string>& args, int code,
               const std::vector<std::string>& mentions,
               const std::function<void()>& in_child = {}) const;
    static void one_line_of(const std::string& err, const std::vector<std::string>& mentions);
    /* A document on stdout and nothing on stderr. */
    static json works(const std::vector<std::string>& args,
                      const std::function<void()>& in_child = {});

    /* What the demo needs and this machine lacks, or nothing. */
    std::string demo_lacks() const;
    /* Why the demo cannot see its faults, or nothing. */
    std::string no_faults() const { return Raw::open(bdf).no_faults(); }

    std::optional<KeepDriver> keep;
};

} // namespace selftest

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* Print GoogleTest results as KTAP, version 1. */
#ifndef SELFTESTS_KTAP_H
#define SELFTESTS_KTAP_H

#include <string>
#include <string_view>

namespace selftest {

/*
 * Replace GoogleTest's own printer. To be called after InitGoogleMock() and
 * before RUN_ALL_TESTS(). XML and JSON output are not touched.
 */
void install_ktap();

/* Print text as KTAP diagnostics, "# " before each of its lines. */
void diagnose(std::string_view text);

/* The text on one line, as a skip's reason or a test's name needs it. */
std::string one_line(std::string_view text);

/* What stands before each line of the text, a trailing newline included. */
std::string with_prefix(std::string_view prefix, std::string_view text);

} // namespace selftest

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* Assertions about what the library gives back. */
#ifndef SELFTESTS_RESULT_H
#define SELFTESTS_RESULT_H

#include "fixture.h"

#include <dmaprobe/result.h>

namespace selftest {

template <class T>
testing::AssertionResult worked(const dmaprobe::Result<T>& result) {
    if (result)
        return testing::AssertionSuccess();
    return testing::AssertionFailure() << result.error().message();
}

template <class T>
testing::AssertionResult failed(const dmaprobe::Result<T>& result, int code) {
    if (result)
        return testing::AssertionFailure() << "worked";
    if (result.error().code != code)
        return testing::AssertionFailure() << result.error().message();
    return testing::AssertionSuccess();
}

} // namespace selftest

#define EXPECT_WORKS(expr) EXPECT_TRUE(::selftest::worked(expr)) << #expr
#define ASSERT_WORKS(expr) ASSERT_TRUE(::selftest::worked(expr)) << #expr
#define EXPECT_FAILS(expr, code)                                                                   \
    EXPECT_TRUE(::selftest::failed((expr), code)) << #expr << " should have failed with " #code
#define ASSERT_FAILS(expr, code)                                                                   \
    ASSERT_TRUE(::selftest::failed((expr), code)) << #expr << " should have failed with " #code

#endif

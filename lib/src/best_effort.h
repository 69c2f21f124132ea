// SPDX-License-Identifier: MIT
// For destructors, and for undoing what was half done: there a failure has nowhere to go.
#pragma once

#include <dmaprobe/result.h>

namespace dmaprobe {

/// Let a result be, on purpose.
inline void best_effort(const Result<void>& /*result*/) noexcept {}

} // namespace dmaprobe

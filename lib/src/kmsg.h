// SPDX-License-Identifier: MIT
// Records of the kernel log, as /dev/kmsg gives them.
#pragma once

#include <chrono>
#include <string_view>

namespace dmaprobe {

/// The text of a record: "<prefix>,<sequence>,<microseconds>,<flags>[,more];<text>\n", which may be
/// followed by lines of keys and values, which start with a space; and its time. A plain line is
/// its own text.
std::string_view record_text(std::string_view record, std::chrono::microseconds& time);

} // namespace dmaprobe

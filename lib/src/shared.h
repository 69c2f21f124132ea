// SPDX-License-Identifier: MIT
// Calls that objects of several kinds share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <dmaprobe/result.h>
#include <dmaprobe/types.h>

#include "channel.h"

namespace dmaprobe {

/// DMAPROBE_COPY from an object. EBADF with `gone` as detail when the object has no id any more.
Result<void> copy_out(const Channel* channel, std::uint32_t id, Size offset,
                      std::span<std::byte> to, std::string_view gone);
/// DMAPROBE_COPY into an object.
Result<void> copy_in(const Channel* channel, std::uint32_t id, Size offset,
                     std::span<const std::byte> from, std::string_view gone);
/// DMAPROBE_SYNC of a range.
Result<void> sync_range(const Channel* channel, std::uint32_t id, std::uint32_t target, Size offset,
                        Size length, std::string_view gone);
/// DMAPROBE_SEGMENTS, all of them.
Result<std::vector<Segment>> list_segments(const Channel* channel, std::uint32_t id,
                                           std::size_t expected, std::string_view gone);

} // namespace dmaprobe

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
/// DMAPROBE_GET_SEGMENTS, all of them.
Result<std::vector<Segment>> list_segments(const Channel* channel, std::uint32_t id,
                                           std::size_t expected, std::string_view gone);
/// DMAPROBE_DESTROY.
Result<void> destroy(const Channel& channel, std::uint32_t id);
/// DMAPROBE_DESTROY of an object that is mmapped at `memory`, if that is not empty; the module
/// destroys nothing that is mmapped. When it refuses, the object is mmapped at the same place
/// again. `memory` is empty afterwards unless the object is still mmapped.
Result<void> destroy_mmapped(const Channel& channel, std::uint32_t id, std::span<std::byte>& memory,
                             std::uint64_t mmap_offset);

} // namespace dmaprobe

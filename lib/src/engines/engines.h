// SPDX-License-Identifier: MIT
// The engines that there are, each in a file of its own.
#pragma once

#include <memory>

#include <dmaprobe/engine.h>

namespace dmaprobe::engines {

/// What the array of engines keeps of each.
struct Entry {
    EngineTraits traits;
    Result<std::unique_ptr<Engine>> (*create)(const DeviceAccess& device);
};

extern const Entry edu;

} // namespace dmaprobe::engines

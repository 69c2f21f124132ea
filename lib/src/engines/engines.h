// SPDX-License-Identifier: MIT
// The engines that there are, each in a file of its own.
#pragma once

#include <memory>

#include <dmaprobe/engine.h>

namespace dmaprobe::engines {

/// What the array of engines keeps of each.
struct Entry {
    EngineTraits traits; ///< at best: a device may turn out to do less
    bool (*drives)(const DeviceIds& ids);
    Result<std::unique_ptr<Engine>> (*create)(const Session& session, const DeviceAccess& device,
                                              const EngineOptions& options);
};

/// The interrupts to wait by: none when polling was asked for, or, unless interrupts were, when the
/// route or the device has none.
Result<std::optional<Interrupts>> interrupts_for(const DeviceAccess& device,
                                                 const EngineOptions& options, unsigned vectors);

/// How an engine with these waits.
inline Completion completion_by(const std::optional<Interrupts>& interrupts) noexcept {
    return interrupts ? Completion::interrupt : Completion::polling;
}

extern const Entry edu;
extern const Entry nvme;
extern const Entry testdev;

} // namespace dmaprobe::engines

// SPDX-License-Identifier: MIT
// The engines that the library has from the start, each in a file of engines/.
#pragma once

#include <dmaprobe/engine.h>

namespace dmaprobe::engines {

extern const EngineType edu;
extern const EngineType nvme;
extern const EngineType testdev;

} // namespace dmaprobe::engines

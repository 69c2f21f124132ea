// SPDX-License-Identifier: MIT
// The calls of a list, as they lie in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <dmaprobe/calls.h>

#include "channel.h"
#include "ring.h"

namespace dmaprobe {

struct CallList::State {
    /// What is known of a call besides its CallOp.
    struct Note {
        std::string_view op;
        const std::uint32_t* id = nullptr;   ///< where the id of what it makes will be
        const std::uint64_t* addr = nullptr; ///< where its address will be
    };

    std::shared_ptr<Channel> channel;
    References references = References::no;
    std::size_t most = 0;
    std::vector<CallOp> ops;
    std::vector<Note> notes;
    std::optional<Error> wrong;   ///< what was wrong first while adding
    std::uint64_t generation = 0; ///< counts clear()

    /// The structs. They must not move, so they are kept in chunks.
    static constexpr std::size_t chunk_size = 65536;
    std::vector<std::unique_ptr<std::byte[]>> chunks;
    std::size_t chunk = 0; ///< the one in use
    std::size_t used = 0;  ///< bytes of it
};

} // namespace dmaprobe

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of memory that the DMA API allocates share: allocations by the
 * bare ABI, and the device's engine by the library.
 */
#ifndef SELFTESTS_ALLOC_H
#define SELFTESTS_ALLOC_H

#include "fixture.h"

#include <dmaprobe/device.h>
#include <dmaprobe/engine.h>
#include <dmaprobe/session.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace selftest {

/* A way to allocate. */
struct AllocWay {
    const char* name;
    uint32_t kind;
    uint64_t attrs = 0;
};
void PrintTo(const AllocWay& way, std::ostream* out);

/* Every kind, and coherent memory with every attribute. */
extern const std::vector<AllocWay> alloc_ways;

struct Allocation {
    uint32_t id = 0;
    uint32_t nr_entries = 0;
    uint64_t length = 0;
    uint64_t dma_addr = 0;
    uint64_t mmap_offset = 0;
};

/* What answers is 0 or errno. */
int allocate(const Raw& session, Allocation& out, const AllocWay& way, uint64_t length,
             uint32_t dir = DMAPROBE_DIR_BIDIRECTIONAL);
int release(const Raw& session, const Allocation& allocation);
/* Whole pages of it, from @offset to its end; empty on failure (errno says why). */
Memory map_allocation(const Raw& session, const Allocation& allocation, uint64_t offset = 0);
int copy_in(const Raw& session, uint32_t id, uint64_t offset, std::span<const std::byte> from);
int copy_out(const Raw& session, uint32_t id, uint64_t offset, std::span<std::byte> to);
/* All DMA segments. */
int segments(const Raw& session, uint32_t id, std::vector<dmaprobe_segment>& out);
int sgtable(const Raw& session, uint32_t id, std::vector<dmaprobe_sgtable_entry>& out,
            uint32_t flags = 0);
/* Of the device to the CPU and back, where that has something to do. */
int sync_all(const Raw& session, const Allocation& allocation, uint32_t target);

std::vector<std::byte> pattern_of(size_t length, size_t seed);

/* Take a capability from this thread, for good. */
bool give_up_capability(unsigned capability);

/* Whether the first byte of a page gives SIGBUS. */
bool gives_sigbus(const std::byte* at);

/* The device's engine and what it takes; why() says why there is none. */
class Rig {
public:
    explicit Rig(const std::string& bdf);

    explicit operator bool() const { return engine_ != nullptr; }
    const std::string& why() const { return why_; }
    /* Whether an engine drives such a device at all. */
    bool known() const { return known_; }
    dmaprobe::Engine& engine() { return *engine_; }
    /* The device reads memory, and writes what it read elsewhere. */
    bool move(uint64_t to, uint64_t from, uint64_t length);

private:
    std::optional<dmaprobe::Session> keeper_;
    std::optional<dmaprobe::DeviceAccess> access_;
    std::unique_ptr<dmaprobe::Engine> engine_;
    std::string why_;
    bool known_ = false;
};

} // namespace selftest

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A session in which several threads make, use and destroy the same objects at once,
 * each without regard to what the others do. What they are answered, and what is left
 * in the end, shows whether the module kept count.
 */
#ifndef SELFTESTS_ARENA_H
#define SELFTESTS_ARENA_H

#include "alloc.h"
#include "fixture.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace selftest {

/* What a thread makes. */
enum class Make : uint8_t {
    contiguous,
    scattered,
    kmalloc,
    pinned,
    single,
    page,
    phys,
    list,
    resource,
    import,
    iova,
    coherent,
    noncoherent,
    pages,
    noncontiguous,
    pool,
    block,
};
inline constexpr unsigned nr_makes = 17;
std::string_view name_of(Make make);

/* Numbers that look random and are the same in each run. */
class Dice {
public:
    explicit Dice(unsigned seed) : state_(seed * 2654435761u + 1) {}
    /* From 0 to @sides - 1. */
    unsigned operator()(unsigned sides) {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<unsigned>(state_ >> 33) % sides;
    }

private:
    uint64_t state_;
};

class Arena {
public:
    /* With what its objects need; error() says whether there is all of that. */
    explicit Arena(const std::string& bdf);

    int error() const { return error_; }
    const Raw& session() const { return s_; }
    /* Let go of all. 0 or errno. */
    int close();

    /* Make one object. 0 or errno. */
    int make(Make make, uint32_t& id);
    /* Whether this machine has such objects. */
    bool offers(Make make);

    /* A few calls about one object: make one, use one, or destroy one. */
    void turn(Make make, Dice& dice);
    /* The same about an object of any kind. */
    void turn(Dice& dice) { turn(static_cast<Make>(dice(nr_makes)), dice); }

    /*
     * Make an object whose id cannot be reported, for the struct cannot be written. It is
     * gone when the call returns, and nobody finds it before; so live() does not count it.
     */
    void turn_unanswered(Dice& dice);
    /*
     * Try to destroy what a turn_unanswered() is making, by one of the ids that are free
     * next. Whether there was something.
     */
    bool guess(Dice& dice);

    /* Objects that were made and not destroyed, as the threads have counted. */
    int64_t live() const { return live_; }
    /* Calls that did what they are for. */
    uint64_t good() const { return good_; }
    /* ENODEV was answered. */
    bool gone() const { return gone_; }
    /* The first answer that no such call may give, or nothing. */
    std::string odd() const;

    /* Destroy all that is left, whoever made it. One thread only. */
    void clear();
    /* Objects there are beyond those at the start, as the module counts. */
    int64_t left_over() const;
    /* Bytes that are charged beyond those at the start. */
    int64_t charged() const;

private:
    int destroy(Make make, uint32_t id, Dice& dice);
    void use(uint32_t id, unsigned way, Dice& dice);
    void end(Make make, uint32_t id, Dice& dice);
    bool check(std::string_view what, int err);
    void use_buffer(uint32_t id, unsigned way);
    void use_bytes(uint32_t id, unsigned way);
    void use_mapping(uint32_t id, unsigned way);
    void use_iova(uint32_t id, Dice& dice);
    void use_allocation(uint32_t id);
    void use_pool(uint32_t id);
    void unmap(uint32_t id);

    Raw s_;
    int error_ = 0;
    bool iommu_ = false;
    bool iova_ = false;
    uint64_t page_ = 0;
    Memory own_;
    Buffer base_;
    dmaprobe_map base_map_ = {};
    dmaprobe_iova_alloc base_iova_ = {};
    uint32_t base_pool_ = 0;
    Allocation base_alloc_;
    Fd dmabuf_;
    Fd sink_; /* to touch memory without a SIGBUS */
    int64_t at_start_ = 0;
    int64_t charged_at_start_ = 0;

    std::array<std::array<std::atomic<uint32_t>, 4>, nr_makes> ids_ = {};
    std::atomic<int64_t> live_ = 0;
    std::atomic<uint64_t> good_ = 0;
    std::atomic<bool> gone_ = false;
    mutable std::mutex lock_; /* all below */
    std::string odd_;
    std::vector<std::pair<Make, uint32_t>> left_; /* was in use when it was to go */
};

/* All objects of a session; -1 when it cannot be asked. */
int64_t count_objects(const Raw& session);

} // namespace selftest

#endif

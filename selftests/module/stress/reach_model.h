/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What two sessions own and have mapped, as far as it follows from the calls that succeeded.
 * reach.cc says what this is for.
 */
#ifndef SELFTESTS_REACH_MODEL_H
#define SELFTESTS_REACH_MODEL_H

#include "support/bars.h"
#include "support/fixture.h"

#include <array>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace selftest::reach {

inline constexpr unsigned nr_sessions = 2;
/* Few enough addresses to walk all of them after each call. */
inline constexpr unsigned mask_bits = 24;
inline constexpr uint64_t space_end = uint64_t{1} << mask_bits;

inline uint64_t ones(unsigned bits) {
    return bits < 64 ? (uint64_t{1} << bits) - 1 : ~uint64_t{0};
}

inline uint64_t align_up(uint64_t value, uint64_t to) {
    return (value + to - 1) & ~(to - 1);
}

/* A call that was made, and its answer. */
using AnyOp =
    std::variant<dmaprobe_buffer_alloc, dmaprobe_buffer_pin, dmaprobe_map, dmaprobe_map_sg,
                 dmaprobe_map_resource, dmaprobe_map_dmabuf, dmaprobe_unmap, dmaprobe_destroy,
                 dmaprobe_iova_alloc, dmaprobe_iova_link, dmaprobe_iova_unlink, dmaprobe_iova_free,
                 dmaprobe_iova_destroy, dmaprobe_alloc, dmaprobe_export, dmaprobe_pool_create,
                 dmaprobe_pool_alloc, dmaprobe_set_mask, dmaprobe_set_segments, dmaprobe_bench>;

struct Call {
    unsigned session = 0;
    AnyOp op;
    int err = 0;
    bool unanswered = false; /* its struct could not be written */
    /* Of a list. */
    std::vector<dmaprobe_sg_entry> entries{}; // NOLINT(readability-redundant-member-init)
};

enum class Type : uint8_t {
    buffer, /* or pinned memory */
    alloc,
    pool,
    block,
    mapping,
    list,
    resource,
    import,
    space, /* of IOVAs */
};
using Types = std::initializer_list<Type>;
inline constexpr Types all_types = {Type::buffer,   Type::alloc,   Type::pool,
                                    Type::block,    Type::mapping, Type::list,
                                    Type::resource, Type::import,  Type::space};

/* A place in the pages of a session's object. */
struct Place {
    unsigned session = nr_sessions; /* nobody's: a pool's or a BAR's */
    uint32_t id = 0;
    uint64_t at = 0;
};

/* Mapped granules that are physically contiguous. */
struct Piece {
    uint64_t length = 0;
    uint64_t phys = 0;
    Place place{};
};

struct Link {
    uint64_t length = 0;
    uint32_t dir = 0;
    uint64_t attrs = 0;
    uint32_t buffer = 0;
    std::vector<uint64_t> pieces{}; // NOLINT(readability-redundant-member-init)
};

/* A dma-buf of an allocation. */
struct Export {
    unsigned session = 0;
    uint32_t id = 0;
    Fd fd{};            // NOLINT(readability-redundant-member-init)
    unsigned users = 1; /* the descriptor, and mappings of it */
    bool revoked = false;
};

// Initialised one by one, so that those not named in the list are not missing.
// NOLINTBEGIN(readability-redundant-member-init)
struct Object {
    Type type = Type::buffer;
    uint64_t length = 0;
    uint64_t addr = 0; /* IOVA of a block or a space */
    uint32_t dir = 0;
    uint64_t attrs = 0;
    unsigned users = 0;           /* objects and dma-bufs that need it */
    std::vector<uint32_t> uses{}; /* ids of the same session */

    /* Its memory: page frames, and where in the first of them it begins. */
    std::vector<uint64_t> frames{};
    uint64_t first = 0;
    bool pinned = false;
    bool read_only = false;

    std::vector<uint64_t> pieces{}; /* what it has mapped: IOVAs */

    std::map<uint64_t, Link> links{};   /* of a space, by offset */
    uint64_t chunk = 0;                 /* what a pool allocates at a time */
    std::shared_ptr<Export> exported{}; /* what an import maps */

    uint64_t pages_end() const { return frames.size() * page_size(); }
    /* The physical address of a byte of its pages. */
    uint64_t phys(uint64_t at) const {
        return frames[at / page_size()] * page_size() + at % page_size();
    }
    bool holds(uint64_t offset, uint64_t bytes) const {
        return offset <= length && bytes <= length - offset;
    }
};
// NOLINTEND(readability-redundant-member-init)

class Model {
public:
    Model(const std::string& bdf, std::span<const Raw, nr_sessions> sessions, uint64_t granule);

    /* The first thing that is not as it must be, or nothing. */
    const std::string& trouble() const { return trouble_; }
    void wrong(const std::string& what) {
        if (trouble_.empty())
            trouble_ = what;
    }

    /* Take over what a call did. Nobody may be in a call meanwhile. */
    void apply(const Call& call);
    void close_export(size_t index);
    /* A session was closed with all that it had. */
    void close_session(unsigned number);

    /* Compare all that a session sees of the domain. @number is nr_sessions for an outsider. */
    void compare(const Raw& session, unsigned number);

    const std::map<uint32_t, Object>& objects(unsigned session) const { return objects_[session]; }
    const Object* find(unsigned session, uint32_t id) const;
    /* Ids of some types; of those only that nothing uses. */
    std::vector<uint32_t> ids(unsigned session, Types types, bool unused = false) const;
    const std::vector<std::shared_ptr<Export>>& exports() const { return exports_; }
    const std::array<Bar, 6>& bars() const { return bars_; }
    bool maps_something() const { return !pieces_.empty(); }
    uint64_t granule() const { return granule_; }
    uint64_t boundary() const { return boundary_; }
    uint64_t max_segment() const { return max_segment_; }
    size_t size() const { return objects_[0].size() + objects_[1].size(); }
    /* Lists that the kernel has padded. */
    uint64_t pads() const { return pads_; }

private:
    Object* object(unsigned session, uint32_t id);
    bool has_addresses() const;
    std::span<const dmaprobe_extent> translate(const Raw& session, uint64_t iova, uint64_t length);
    void compare_kind(unsigned session, const dmaprobe_extent& e, uint64_t at, uint64_t length,
                      uint64_t piece_at, const Piece& piece);

    void expect_below(uint64_t end, uint64_t mask);
    void add_piece(std::vector<uint64_t>& keys, uint64_t iova, const Piece& piece);
    void add_pages(std::vector<uint64_t>& keys, uint64_t iova, const Place& place, uint64_t end);
    void add_range(std::vector<uint64_t>& keys, uint64_t iova, const Place& place, uint64_t length,
                   uint32_t dir);
    void add_bar(std::vector<uint64_t>& keys, uint64_t iova, uint32_t bar, uint64_t offset,
                 uint64_t length);
    void add_padding(std::vector<uint64_t>& keys, uint64_t iova, const Place& behind,
                     uint64_t length);
    void drop_pieces(std::vector<uint64_t>& keys);

    void add(unsigned session, uint32_t id, Object&& made);
    void forget(unsigned session, uint32_t id);
    void own(const std::vector<uint64_t>& frames);
    void use(unsigned session, Object& user, uint32_t id);
    void unuse(unsigned session, uint32_t id);
    void put_export(Export& e);
    void drop_link(unsigned session, Object& space, std::map<uint64_t, Link>::iterator link);
    bool unlink(unsigned session, Object& space, uint64_t offset, uint64_t length, uint32_t dir,
                uint64_t attrs);
    Object* space(unsigned session, uint32_t id);
    void grow(unsigned session, Object& pool, uint64_t low, uint64_t length);

    std::vector<uint64_t> mmapped_frames(unsigned session, const dmaprobe_buffer_alloc& buffer);
    std::vector<uint64_t> kmalloc_frames(unsigned session, const dmaprobe_buffer_alloc& buffer);
    std::vector<uint64_t> table_frames(unsigned session, uint32_t id);
    std::vector<dmaprobe_segment> segments_of(unsigned session, uint32_t id);

    /* What a call of each kind did; specialised for each. */
    template <class T>
    void on(const Call& call, const T& op);

    std::span<const Raw, nr_sessions> sessions_;
    uint64_t granule_;
    std::array<Bar, 6> bars_;
    uint64_t mask_ = 0;
    uint64_t coherent_mask_ = 0;
    uint64_t max_segment_ = 0;
    uint64_t boundary_ = 0;
    uint64_t pads_ = 0;

    std::array<std::map<uint32_t, Object>, nr_sessions> objects_;
    std::map<uint64_t, Piece> pieces_; /* all that is mapped, by IOVA */
    std::set<uint64_t> owned_;         /* page frames of buffers, allocations and pools */
    std::vector<std::shared_ptr<Export>> exports_;
    std::vector<dmaprobe_extent> extents_;
    std::string trouble_;
};

} // namespace selftest::reach

#endif

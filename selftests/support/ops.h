/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every command of the ABI: what its struct is made of, and a call that works.
 * Tests that hold for all commands go by this list.
 */
#ifndef SELFTESTS_OPS_H
#define SELFTESTS_OPS_H

#include "fixture.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace selftest {

enum class Kind { buffer, mapping, iova, alloc, pool, block };
inline constexpr std::array all_kinds = {Kind::buffer, Kind::mapping, Kind::iova,
                                         Kind::alloc,  Kind::pool,    Kind::block};

/*
 * A session with one object of each kind, made when it is asked for. Where the
 * kernel cannot make one, its id is one that no session has: checks that come
 * before the look-up of objects are tested on every kernel.
 */
class Live {
public:
    static constexpr uint32_t no_such_id = 0x7ffffff0;

    explicit Live(const std::string& bdf);

    uint32_t buffer();
    uint32_t mapping();
    /* An IOVA of four pages; with a link of two if that was asked for. */
    uint32_t iova(bool linked = false);
    /* Not coherent, so that it can be synchronised. */
    uint32_t alloc();
    uint32_t pool();
    uint32_t block();
    /* A pool without blocks. */
    uint32_t empty_pool();
    /* A dma-buf of the allocation. */
    int dmabuf();

    /* Whatever was made. */
    std::set<uint32_t> ids() const;
    uint32_t live(Kind kind);
    /* The id of an object that is gone again. */
    uint32_t freed(Kind kind);

    Raw s;
    Memory extents;
    uint64_t length = 0;
    uint64_t dma_addr = 0;

private:
    int make_alloc(uint32_t& id) const;
    int make_pool(uint32_t& id) const;
    int make_block(uint32_t& id);

    Buffer buffer_;
    uint32_t mapping_ = 0;
    uint32_t iova_ = 0;
    uint32_t alloc_ = 0;
    uint32_t pool_ = 0;
    uint32_t block_ = 0;
    uint32_t empty_pool_ = 0;
    Fd dmabuf_;
    bool linked_ = false;
};

struct IdField {
    size_t offset;
    Kind kind;
    bool optional = false; // 0 stands for none
    // Other kinds that it can be.
    // NOLINTNEXTLINE(readability-redundant-member-init): need not be named
    std::vector<Kind> also{};
};

struct EnumField {
    size_t offset;
    uint32_t end; // the first value that is not one
};

struct PointerField {
    size_t offset;
    bool input = false; // read, not written
};

struct AttrsField {
    size_t offset;
    uint64_t taken; // out of enum dmaprobe_attrs
};

inline constexpr uint64_t all_attrs =
    DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_WRITE_COMBINE | DMAPROBE_ATTR_NO_KERNEL_MAPPING |
    DMAPROBE_ATTR_FORCE_CONTIGUOUS | DMAPROBE_ATTR_ALLOC_SINGLE_PAGES | DMAPROBE_ATTR_MMIO |
    DMAPROBE_ATTR_CC_SHARED;

enum class Needs { nothing, iommu, iova };

// Initialised one by one, so that those not named in the list are not missing.
// NOLINTBEGIN(readability-redundant-member-init)
struct Op {
    // Filled in from the struct.
    unsigned number = 0;
    unsigned long command = 0;
    std::string name{};
    size_t size = 0;

    // What the header says.
    size_t min_size = 0; // never changes
    uint32_t flags = 0;  // known ones
    std::vector<size_t> reserved{};
    std::vector<AttrsField> attrs{};
    std::vector<IdField> ids{};
    std::vector<EnumField> enums{};
    std::vector<PointerField> pointers{};
    bool answers = false; // writes the struct
    // Where the struct has the id of what was made, and what that is.
    std::optional<IdField> makes{};
    // Where it has a file descriptor of a dma-buf, in or out.
    std::optional<size_t> fd{};
    Needs needs = Needs::nothing;
    // Fill in a call that works.
    std::function<void(Live&, std::byte*)> sample{};
};
// NOLINTEND(readability-redundant-member-init)

void PrintTo(const Op& op, std::ostream* out);

/* All commands, in no order. */
const std::vector<Op>& ops();
const Op& op_of(unsigned long command);

/* Whether a file that was opened for reading only may do it: DMAPROBE_GET_* and NOP. */
bool only_reads(const Op& op);

/* Why the sample of an op cannot work on this machine, or nothing. */
std::string unsupported_reason(const Op& op, const Raw& session);

/* Members of a struct that is known by its bytes. */
template <class V>
V get(const std::byte* from, size_t offset) {
    V v;

    memcpy(&v, from + offset, sizeof(v));
    return v;
}

template <class V>
void set(std::byte* to, size_t offset, V v) {
    memcpy(to + offset, &v, sizeof(v));
}

} // namespace selftest

#endif

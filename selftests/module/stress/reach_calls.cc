// SPDX-License-Identifier: GPL-2.0-only

#include "reach_calls.h"

#include "support/ops.h"

#include <algorithm>
#include <cstring>
#include <format>
#include <iterator>
#include <sys/mman.h>

namespace selftest::reach {
namespace {

// Bytes of a buffer from @offset on that are physically contiguous.
uint64_t contiguous(const Object& memory, uint64_t offset) {
    const uint64_t at = memory.first + offset;
    size_t last = at / page_size();

    while (last + 1 < memory.frames.size() && memory.frames[last + 1] == memory.frames[last] + 1)
        last++;
    return std::min((last + 1) * page_size() - at, memory.length - offset);
}

// Whether a call that cannot be answered must do nothing. Not so for a pool's blocks: a pool
// that has grown for one keeps that.
template <class T>
bool is_undone(const T& /*op*/) {
    return CommandOf<T>::value == DMAPROBE_EXPORT ||
           (op_of(CommandOf<T>::value).makes && CommandOf<T>::value != DMAPROBE_POOL_ALLOC);
}

} // namespace

Caller::Caller(const Model& model, std::span<const Raw, nr_sessions> sessions, const Memory& memory,
               unsigned seed)
    : model_(model), sessions_(sessions), memory_(memory), attrs_(sessions[0].info().attrs),
      dice_(seed), unwritable_(Memory::fenced(page_size())) {}

// --- ids ------------------------------------------------------------------------------------

uint32_t Caller::one_of(const std::vector<uint32_t>& ids) {
    missed_ |= ids.empty();
    return ids.empty() ? below(100) : ids[below(ids.size())];
}

// Of an object that is used.
uint32_t Caller::id(unsigned session, Types types) {
    switch (below(60)) {
    case 0:
        return static_cast<uint32_t>(pick({0, 77, DMAPROBE_RUN_ID(1), UINT32_MAX}));
    case 1:
        return one_of(model_.ids(below(nr_sessions), all_types));
    default:
        return one_of(model_.ids(session, types));
    }
}

// Of an object that is ended.
uint32_t Caller::end_id(unsigned session, Types types) {
    if (chance(32))
        return static_cast<uint32_t>(pick({0, below(100), DMAPROBE_RUN_ID(0), UINT32_MAX}));
    return one_of(model_.ids(session, chance(16) ? all_types : types, !chance(4)));
}

// --- numbers --------------------------------------------------------------------------------

uint64_t Caller::odd() {
    switch (below(6)) {
    case 0:
        return pick({0, 1, ~uint64_t{0}, uint64_t{1} << 63, uint64_t{1} << 32, uint64_t{1} << 62,
                     (uint64_t{1} << 30) + 1, space_end});
    case 1:
        return ~uint64_t{0} - below(3) * page_size();
    case 2:
        return below(64 * page_size());
    case 3:
        return below(64) * page_size();
    case 4:
        return below(64) * page_size() + below(32) - 16;
    default:
        return below(page_size());
    }
}

uint64_t Caller::length_of(uint64_t most) {
    switch (below(6)) {
    case 0:
        return 1;
    case 1:
        return std::min(most, page_size());
    case 2:
    case 3:
        return most;
    case 4:
        return std::max<uint64_t>(1, most & ~(page_size() - 1));
    default:
        return 1 + below(most);
    }
}

uint64_t Caller::offset_in(const Object& memory) {
    const uint64_t at = align_up(memory.first, page_size()) +
                        below(memory.frames.size()) * page_size() - memory.first;

    switch (below(4)) {
    case 0:
        return 0;
    case 1:
        return below(memory.length);
    default:
        return at < memory.length ? at : 0;
    }
}

// As long as the limits of segments allow.
uint64_t Caller::longest_entry(uint64_t at) const {
    const uint64_t room = model_.boundary() - (at & (model_.granule() - 1) & model_.boundary());

    return room < model_.max_segment() ? room + 1 : model_.max_segment();
}

Caller::Range Caller::range_in(const Object& memory, bool entry) {
    Range range = {.offset = offset_in(memory)};
    const uint64_t rest = contiguous(memory, range.offset);

    range.length =
        length_of(entry ? std::min(rest, longest_entry(memory.first + range.offset)) : rest);
    return range;
}

// Mostly one that can be mapped.
Caller::Range Caller::range_of(const Object* memory, bool entry) {
    if (!memory || memory->frames.empty() || chance(16))
        return {.offset = odd(), .length = odd()};
    Range range = range_in(*memory, entry);
    if (chance(24)) // a little too long
        range.length =
            contiguous(*memory, range.offset) + pick({1, 8, page_size(), memory->length});
    return range;
}

uint32_t Caller::dir_of(const Object* memory) {
    return memory && memory->read_only && !chance(8) ? uint32_t{DMAPROBE_DIR_TO_DEVICE}
                                                     : below(chance(32) ? 4 : 3);
}

uint64_t Caller::attrs() {
    const uint64_t drawn = chance(3) ? dice_(1u << 31) : 0;

    return chance(48) ? drawn : drawn & attrs_ & DMAPROBE_MAP_ATTRS;
}

uint32_t Caller::bar() {
    for (int tries = 0; tries < 8; tries++)
        if (const uint32_t one = below(6); model_.bars().at(one).memory())
            return one;
    return below(8);
}

uint64_t Caller::size_of_bar(uint32_t bar) const {
    return bar < model_.bars().size() && model_.bars()[bar].memory() ? model_.bars()[bar].size()
                                                                     : page_size();
}

// --- what makes objects and mappings ----------------------------------------------------------

template <>
void Caller::fill(Call& /*call*/, dmaprobe_buffer_alloc& op) {
    op.kind = below(chance(32) ? 4 : 3);
    op.length = pick({1, 1, 2, 3, 4, 8, 16, 32, 64, 256}) * page_size();
    if (op.kind == DMAPROBE_BUFFER_KIND_SCATTERED && chance(2)) {
        op.order = below(4);
        op.length = (1 + below(8)) * page_size() << op.order;
    } else if (op.kind == DMAPROBE_BUFFER_KIND_KMALLOC) {
        op.length = 1 + below(pick({64, 5000, 20'000}));
        op.offset = chance(3) ? 0 : below(page_size() / 8) * 8;
    }
    if (chance(24))
        op.length = odd() & ones(26);
    if (chance(48))
        op.offset = odd();
}

template <>
void Caller::fill(Call& /*call*/, dmaprobe_buffer_pin& op) {
    const uint64_t page = below(memory_.size() / page_size()) * page_size();

    op.flags = chance(4) ? DMAPROBE_BUFFER_PIN_READ_ONLY : 0;
    op.addr = memory_.address() + (chance(3) ? below(memory_.size()) : page);
    op.length = 1 + below(pick({16, page_size(), 12 * page_size()}));
    if (chance(3))
        op.length = align_up(op.length, page_size());
    if (chance(24))
        op.length = odd();
}

template <>
void Caller::fill(Call& call, dmaprobe_map& op) {
    op.buffer_id = id(call.session, {Type::buffer});
    const Object* memory = model_.find(call.session, op.buffer_id);
    const Range range = range_of(memory);
    op.kind = below(chance(32) ? 4 : 3);
    op.dir = dir_of(memory);
    op.buffer_offset = range.offset;
    op.length = range.length;
    op.attrs = attrs();
    op.__reserved = chance(64);
}

// Seldom a wrong one, for a list has many.
dmaprobe_sg_entry Caller::draw_entry(unsigned session) {
    dmaprobe_sg_entry e = {};

    e.buffer_id =
        chance(10) ? id(session, {Type::buffer}) : one_of(model_.ids(session, {Type::buffer}));
    const Object* memory = model_.find(session, e.buffer_id);
    const Range range = memory && !memory->frames.empty() && !chance(4) ? range_in(*memory, true)
                                                                        : range_of(memory, true);
    e.offset = range.offset;
    e.length = range.length;
    return e;
}

// The kernel pads where an entry, other than the first, would cross a boundary: it maps what
// lies behind the entry before.
void Caller::invite_padding(unsigned session, dmaprobe_sg_entry& before, dmaprobe_sg_entry& entry) {
    std::vector<std::pair<uint64_t, uint32_t>> buffers; // contiguous bytes, id

    for (const uint32_t id : model_.ids(session, {Type::buffer}))
        buffers.emplace_back(contiguous(*model_.find(session, id), 0), id);
    if (buffers.empty())
        return;
    std::ranges::sort(buffers);
    const auto one_long = [&](dmaprobe_sg_entry& e) {
        const auto& [length, id] = buffers[buffers.size() - 1 - below(buffers.size()) / 2];
        const uint64_t most = std::min(length, longest_entry(model_.find(session, id)->first));

        e = {.offset = 0, .length = most, .buffer_id = id, .__reserved = 0};
    };
    one_long(entry);
    if (chance(4))
        return;
    one_long(before);
    if (chance(3))
        before.offset = below(before.length / page_size() + 1) * page_size() % before.length;
    before.length =
        std::min<uint64_t>(before.length - before.offset, 1 + below((1 + below(3)) * page_size()));
}

template <>
void Caller::fill(Call& call, dmaprobe_map_sg& op) {
    call.entries.resize(1 + below(chance(6) ? 24 : 4));
    for (dmaprobe_sg_entry& e : call.entries)
        e = draw_entry(call.session);
    if (call.entries.size() > 1 && !chance(3)) {
        const size_t at = below(call.entries.size() - 1);

        invite_padding(call.session, call.entries[at], call.entries[at + 1]);
    }
    op.kind = below(2);
    op.dir = below(3);
    for (const dmaprobe_sg_entry& e : call.entries) {
        const Object* memory = model_.find(call.session, e.buffer_id);

        if (memory && memory->read_only)
            op.dir = dir_of(memory);
    }
    op.attrs = attrs();
    op.nr_entries = static_cast<uint32_t>(call.entries.size());
    op.entries = reinterpret_cast<uintptr_t>(call.entries.data());
    if (chance(48))
        call.entries[0].__reserved = 1;
}

template <>
void Caller::fill(Call& call, dmaprobe_iova_alloc& op) {
    op.length = pick({1, page_size(), 4 * page_size() + 1, 16 * page_size(), 16 * page_size(),
                      64 * page_size(), uint64_t{1} << 20});
    if (chance(12))
        op.length = pick({0, space_end, uint64_t{1} << 62, ~uint64_t{0}, odd()});
    op.flags = chance(8) ? DMAPROBE_IOVA_ALLOC_TRY : 0;
    if (chance(2)) {
        op.buffer_id = id(call.session, {Type::buffer});
        const Object* memory = model_.find(call.session, op.buffer_id);
        op.buffer_offset = memory && memory->length && !chance(16) ? below(memory->length) : odd();
    }
}

// Up to @most bytes to link at an IOVA: mostly whole granules.
uint64_t Caller::link_length(uint64_t at, uint64_t most) {
    const uint64_t granule = model_.granule();
    const uint64_t whole = ((at + most) & ~(granule - 1)) - at;

    if (chance(4) || whole > most)
        return length_of(most);
    if (chance(2))
        return whole;
    return std::min(whole, align_up(at + 1 + below(4) * granule, granule) - at);
}

template <>
void Caller::fill(Call& call, dmaprobe_iova_link& op) {
    const uint64_t mask = model_.granule() - 1;

    op.id = id(call.session, {Type::space});
    op.attrs = attrs();
    op.buffer_id = id(call.session, {Type::buffer});
    const Object* space = model_.find(call.session, op.id);
    const Object* memory = model_.find(call.session, op.buffer_id);
    op.dir = dir_of(memory);
    if (!space || space->type != Type::space || !memory || memory->frames.empty() || chance(10)) {
        const Range range = range_of(memory);

        op.offset = odd();
        op.buffer_offset = range.offset;
        op.length = range.length;
        return;
    }
    if (!space->links.empty() && !chance(6))
        op.offset = space->links.rbegin()->first + space->links.rbegin()->second.length;
    if (chance(6))
        op.offset = below(16) * model_.granule() - (op.offset ? space->addr & mask : 0);
    const uint64_t at = space->addr + op.offset;
    const uint64_t room = space->length > op.offset ? space->length - op.offset : 1;
    if (chance(6)) { // a BAR
        op.attrs |= DMAPROBE_ATTR_MMIO;
        op.buffer_id = 0;
        op.bar = bar();
        op.buffer_offset = below(16) * model_.granule() + (at & mask);
        op.length = link_length(at, std::min<uint64_t>(room, 8 * page_size()));
        if (chance(6)) // over its end
            op.buffer_offset = size_of_bar(op.bar) - model_.granule() + (at & mask);
        return;
    }
    // The same place in the granule.
    op.buffer_offset = below(4) * page_size() + ((at - memory->first) & mask);
    if (op.buffer_offset >= memory->length)
        op.buffer_offset = (at - memory->first) & mask;
    op.length = 1;
    if (op.buffer_offset < memory->length)
        op.length = link_length(at, std::min(room, contiguous(*memory, op.buffer_offset)));
    if (chance(8))
        op.length += pick({1, page_size(), room});
}

template <>
void Caller::fill(Call& /*call*/, dmaprobe_alloc& op) {
    op.kind = below(chance(32) ? 5 : 4);
    op.length = pick({1, page_size(), page_size() + 1, 3 * page_size(), 16 * page_size(),
                      64 * page_size() - 5, 1 + below(16 * page_size())});
    if (op.kind == DMAPROBE_ALLOC_KIND_COHERENT)
        op.attrs = pick({0, 0, DMAPROBE_ATTR_WRITE_COMBINE, DMAPROBE_ATTR_NO_KERNEL_MAPPING,
                         DMAPROBE_ATTR_FORCE_CONTIGUOUS, DMAPROBE_ATTR_ALLOC_SINGLE_PAGES,
                         DMAPROBE_ATTR_WEAK_ORDERING});
    else
        op.dir = below(3);
    if (chance(24))
        op.length = pick({0, space_end, (uint64_t{1} << 28) + 1, odd() & ones(24)});
    if (chance(32))
        op.attrs = odd();
}

template <>
void Caller::fill(Call& /*call*/, dmaprobe_pool_create& op) {
    op.block_size = pick({1, 8, 64, 100, 1000, page_size() / 2 + 8, page_size(), page_size() + 1,
                          3 * page_size(), 16 * page_size()});
    op.align = pick({0, 0, 1, 16, 256, page_size()});
    op.boundary = pick({0, 0, 0, page_size(), 16 * page_size()});
    if (chance(16))
        op.align = odd();
    if (chance(16))
        op.block_size = odd();
}

template <>
void Caller::fill(Call& call, dmaprobe_pool_alloc& op) {
    op.pool_id = id(call.session, {Type::pool});
}

template <>
void Caller::fill(Call& /*call*/, dmaprobe_map_resource& op) {
    op.bar = bar();
    const uint64_t size = size_of_bar(op.bar);
    op.offset = chance(2) ? below(size) : below(size / page_size() + 1) * page_size() % size;
    op.length = std::min<uint64_t>(length_of(size - op.offset),
                                   chance(4) ? size : 1 + below(16 * page_size()));
    if (chance(6)) // over its end
        op.offset = size - below(std::min<uint64_t>(size, op.length));
    op.dir = below(3);
    op.attrs = chance(4) ? DMAPROBE_ATTR_SKIP_CPU_SYNC : 0;
    if (chance(16))
        op.offset = odd();
}

template <>
void Caller::fill(Call& call, dmaprobe_export& op) {
    op.id = id(call.session, {Type::alloc});
}

template <>
void Caller::fill(Call& /*call*/, dmaprobe_map_dmabuf& op) {
    op.fd = static_cast<int32_t>(pick({~uint64_t{0}, 0, 1000}));
    missed_ = model_.exports().empty();
    if (!model_.exports().empty() && !chance(12))
        op.fd = model_.exports()[below(model_.exports().size())]->fd.get();
    op.dir = below(chance(32) ? 4 : 3);
}

// Limits that cannot change while something has an address.
template <>
void Caller::fill(Call& /*call*/, dmaprobe_set_mask& op) {
    op.flags = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT;
    op.mask = ones(static_cast<unsigned>(pick({20, 22, 24})));
}

// Mostly limits for which lists of such buffers as are drawn here can be padded.
template <>
void Caller::fill(Call& /*call*/, dmaprobe_set_segments& op) {
    op.flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY |
               DMAPROBE_SET_SEGMENTS_MIN_ALIGN;
    op.max_segment_size =
        static_cast<uint32_t>(chance(8) ? page_size() : pick({1 << 16, 1 << 20, UINT32_MAX}));
    op.segment_boundary_mask =
        ones(static_cast<unsigned>(chance(6)   ? pick({32, 64})
                                   : chance(3) ? 12 + below(12)
                                               : pick({13, 14, 14, 15, 16})));
    op.min_align_mask = static_cast<uint32_t>(ones(below(12)));
}

template <>
void Caller::fill(Call& call, dmaprobe_bench& op) {
    op.kind = DMAPROBE_BENCH_MAP_PAGE;
    op.buffer_id = id(call.session, {Type::buffer});
    op.count = 1 + below(3);
}

// --- what ends them ---------------------------------------------------------------------------

template <>
void Caller::fill(Call& call, dmaprobe_destroy& op) {
    op.id = end_id(call.session, {Type::buffer, Type::alloc, Type::pool, Type::block});
    op.__reserved = chance(64);
}

template <>
void Caller::fill(Call& call, dmaprobe_unmap& op) {
    op.id = end_id(call.session, {Type::mapping, Type::list, Type::resource, Type::import});
    if (const Object* gone = model_.find(call.session, op.id))
        op.attrs = gone->attrs;
    if (chance(8))
        op.attrs ^= DMAPROBE_ATTR_SKIP_CPU_SYNC;
    if (chance(16))
        op.attrs ^= uint64_t{1} << below(12);
    op.__reserved = chance(64);
}

template <>
void Caller::fill(Call& call, dmaprobe_iova_unlink& op) {
    op.id = end_id(call.session, {Type::space});
    const Object* space = model_.find(call.session, op.id);
    if (!space || space->links.empty()) {
        missed_ |= !chance(8);
        op.offset = odd();
        op.length = odd();
        return;
    }
    const auto link = std::next(space->links.begin(), below(space->links.size()));
    op.offset = link->first;
    op.length = link->second.length;
    op.dir = link->second.dir;
    op.attrs = link->second.attrs;
    if (chance(6)) // a part of it
        op.length = below(op.length);
    if (chance(12))
        op.dir = below(3);
    for (auto next = std::next(link); next != space->links.end() && chance(2); ++next)
        op.length = next->first + next->second.length - op.offset;
    if (chance(12))
        op.offset += pick({1, page_size(), ~uint64_t{0}});
    if (chance(12))
        op.length += pick({1, page_size(), ~uint64_t{0} - page_size()});
}

template <>
void Caller::fill(Call& call, dmaprobe_iova_free& op) {
    op.id = end_id(call.session, {Type::space});
}

template <>
void Caller::fill(Call& call, dmaprobe_iova_destroy& op) {
    op.id = end_id(call.session, {Type::space});
    if (const Object* space = model_.find(call.session, op.id))
        for (const auto& [offset, link] : space->links) {
            op.dir = link.dir;
            op.attrs = link.attrs;
            op.mapped_len = offset + link.length;
        }
    if (chance(8))
        op.mapped_len = odd();
}

// --- which of them ----------------------------------------------------------------------------

template <class T>
void Caller::draw(Call& call) {
    T op = {};

    fill(call, op);
    call.op = op;
}

struct Caller::Choice {
    unsigned weight;
    void (Caller::*draw)(Call& call);
};

void Caller::draw_one(Call& call, std::span<const Choice> choices) {
    unsigned total = 0;

    for (const Choice& choice : choices)
        total += choice.weight;
    unsigned what = below(total);
    while (what >= choices.front().weight) {
        what -= choices.front().weight;
        choices = choices.subspan(1);
    }
    (this->*choices.front().draw)(call);
}

void Caller::draw_any(Call& call) {
    static constexpr Choice buffers[] = {{2, &Caller::draw<dmaprobe_buffer_alloc>},
                                         {1, &Caller::draw<dmaprobe_buffer_pin>}};
    static constexpr Choice makes[] = {
        {8, &Caller::draw<dmaprobe_buffer_alloc>}, {4, &Caller::draw<dmaprobe_buffer_pin>},
        {15, &Caller::draw<dmaprobe_map>},         {17, &Caller::draw<dmaprobe_map_sg>},
        {5, &Caller::draw<dmaprobe_iova_alloc>},   {15, &Caller::draw<dmaprobe_iova_link>},
        {6, &Caller::draw<dmaprobe_alloc>},        {2, &Caller::draw<dmaprobe_pool_create>},
        {5, &Caller::draw<dmaprobe_pool_alloc>},   {3, &Caller::draw<dmaprobe_map_resource>},
        {4, &Caller::draw<dmaprobe_export>},       {6, &Caller::draw<dmaprobe_map_dmabuf>},
        {1, &Caller::draw<dmaprobe_set_mask>},     {1, &Caller::draw<dmaprobe_set_segments>},
        {4, &Caller::draw<dmaprobe_bench>}};
    static constexpr Choice ends[] = {{10, &Caller::draw<dmaprobe_unmap>},
                                      {8, &Caller::draw<dmaprobe_destroy>},
                                      {4, &Caller::draw<dmaprobe_iova_unlink>},
                                      {1, &Caller::draw<dmaprobe_iova_free>},
                                      {1, &Caller::draw<dmaprobe_iova_destroy>}};

    if (below(100) < (model_.size() > 80 ? 60 : 32))
        draw_one(call, ends);
    else if (model_.ids(call.session, {Type::buffer}).size() < 4 && chance(2))
        draw_one(call, buffers); // without them there is little to do
    else
        draw_one(call, makes);
}

Call Caller::call() {
    Call made;

    // Seldom for objects of which there are none.
    for (int tries = 0; tries < 5; tries++) {
        made = {};
        made.session = below(nr_sessions);
        missed_ = false;
        draw_any(made);
        if (!missed_)
            break;
    }
    const int fd = sessions_[made.session].fd();
    std::visit(
        [&]<class T>(T& op) {
            made.unanswered = chance(24) && is_undone(op);
            if (!made.unanswered) {
                made.err = selftest::call(fd, op);
                return;
            }
            op.size = sizeof(op);
            memcpy(unwritable_.data(), &op, sizeof(op));
            unwritable_.protect(PROT_READ);
            made.err = submit(fd, CommandOf<T>::value, unwritable_.data());
            unwritable_.protect(PROT_READ | PROT_WRITE);
        },
        made.op);
    return made;
}

dmaprobe_set_segments Caller::segments() {
    Call call;

    draw<dmaprobe_set_segments>(call);
    return std::get<dmaprobe_set_segments>(call.op);
}

// --- for people to read -----------------------------------------------------------------------

namespace {

// The members that are not 0, whatever kind of call it is.
template <class T>
std::string members(const T& op) {
    std::string text;

#define SHOW(member)                                                                               \
    if constexpr (requires { op.member; })                                                         \
        if (op.member)                                                                             \
    text += std::format(" " #member " {:#x}", op.member)
    SHOW(flags);
    SHOW(kind);
    SHOW(mask);
    SHOW(max_segment_size);
    SHOW(segment_boundary_mask);
    SHOW(min_align_mask);
    SHOW(order);
    SHOW(pool_id);
    SHOW(buffer_id);
    SHOW(buffer_offset);
    SHOW(bar);
    SHOW(offset);
    SHOW(length);
    SHOW(mapped_len);
    SHOW(block_size);
    SHOW(align);
    SHOW(boundary);
    SHOW(count);
    SHOW(dir);
    SHOW(attrs);
    SHOW(id);
    SHOW(fd);
    SHOW(addr);
    SHOW(dma_addr);
    SHOW(nr_segments);
#undef SHOW
    return text;
}

} // namespace

std::string text(const Call& call) {
    std::string line = std::visit(
        [&]<class T>(const T& op) {
            return std::format("session {}: {}{}: {}", call.session, CommandOf<T>::name,
                               members(op), testing::PrintToString(Errno{call.err}));
        },
        call.op);

    for (const dmaprobe_sg_entry& e : call.entries)
        line += std::format("\n    buffer {:#x} at {:#x}+{:#x}", e.buffer_id, e.offset, e.length);
    return line;
}

} // namespace selftest::reach

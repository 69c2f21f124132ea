// SPDX-License-Identifier: GPL-2.0-only

#include "reach_model.h"

#include "support/alloc.h"

#include <algorithm>
#include <fcntl.h>
#include <format>
#include <unistd.h>

namespace selftest::reach {
namespace {

// A little more than the mask allows, so that what is mapped beyond it is seen as well.
constexpr uint64_t walk_end = space_end + (uint64_t{1} << 18);

// The page frames behind addresses of this program; empty when one is not there.
std::vector<uint64_t> frames_at(uint64_t address, uint64_t length) {
    static const Fd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    const uint64_t first = address / page_size();
    std::vector<uint64_t> frames((address + length - 1) / page_size() - first + 1);
    const size_t bytes = frames.size() * sizeof(frames[0]);

    if (pread(pagemap.get(), frames.data(), bytes, static_cast<off_t>(first * sizeof(frames[0]))) !=
        static_cast<ssize_t>(bytes))
        return {};
    // Documentation/admin-guide/mm/pagemap.rst
    for (uint64_t& frame : frames) {
        if (!(frame >> 63))
            return {};
        frame &= ones(55);
    }
    return frames;
}

} // namespace

Model::Model(const std::string& bdf, std::span<const Raw, nr_sessions> sessions, uint64_t granule)
    : sessions_(sessions), granule_(granule), bars_(bars_of(bdf)),
      extents_(walk_end / granule * 3) {}

const Object* Model::find(unsigned session, uint32_t id) const {
    const auto at = objects_[session].find(id);

    return at == objects_[session].end() ? nullptr : &at->second;
}

Object* Model::object(unsigned session, uint32_t id) {
    const auto at = objects_[session].find(id);

    return at == objects_[session].end() ? nullptr : &at->second;
}

std::vector<uint32_t> Model::ids(unsigned session, Types types, bool unused) const {
    std::vector<uint32_t> found;

    for (const auto& [id, object] : objects_[session])
        if (std::ranges::contains(types, object.type) && (!unused || !object.users))
            found.push_back(id);
    return found;
}

// --- the device's page tables against what must be there -------------------------------

std::span<const dmaprobe_extent> Model::translate(const Raw& session, uint64_t iova,
                                                  uint64_t length) {
    dmaprobe_translate op = {};

    op.flags = DMAPROBE_TRANSLATE_PHYS;
    op.iova = iova;
    op.length = length;
    op.nr_extents = static_cast<uint32_t>(extents_.size());
    op.extents = reinterpret_cast<uintptr_t>(extents_.data());
    if (session(op) || op.translated != length) {
        wrong(std::format("cannot translate {:#x}+{:#x}", iova, length));
        op.nr_extents = 0;
    }
    return std::span(extents_).first(op.nr_extents);
}

void Model::compare(const Raw& session, unsigned number) {
    auto piece = pieces_.begin();
    uint64_t at = 0;

    for (const dmaprobe_extent& e : translate(session, 0, walk_end)) {
        const uint64_t end = e.iova + e.length;

        if (e.iova != at || !e.length)
            return wrong(std::format("translate: no extent begins at {:#x}", at));
        while (at < end) {
            while (piece != pieces_.end() && piece->first + piece->second.length <= at)
                ++piece;
            const bool mapped = piece != pieces_.end() && piece->first <= at;
            uint64_t next = end;
            if (piece != pieces_.end())
                next = std::min(end, piece->first + (mapped ? piece->second.length : 0));
            const uint64_t part = next - at;
            const uint64_t phys = e.phys + (at - e.iova);
            const uint64_t want = mapped ? piece->second.phys + (at - piece->first) : 0;

            if (e.kind == DMAPROBE_EXTENT_HOLE) {
                if (mapped)
                    return wrong(std::format("{:#x}+{:#x} is mapped, and leads nowhere", at, part));
            } else if (!mapped) {
                return wrong(std::format("the device reaches {:#x}+{:#x} by {:#x}, where nothing "
                                         "is mapped",
                                         phys, part, at));
            } else if (phys != want) {
                return wrong(std::format("the device reaches {:#x} by {:#x}+{:#x}, where {:#x} is "
                                         "mapped",
                                         phys, at, part, want));
            } else {
                compare_kind(number, e, at, part, piece->first, piece->second);
            }
            at = next;
        }
    }
    if (at != walk_end)
        wrong(std::format("translate ends at {:#x}", at));
}

// What is the session's own is described as such, byte for byte, and nothing else is.
void Model::compare_kind(unsigned session, const dmaprobe_extent& e, uint64_t at, uint64_t length,
                         uint64_t piece_at, const Piece& piece) {
    if (e.kind == DMAPROBE_EXTENT_BUFFER) {
        const Object* memory = session < nr_sessions ? find(session, e.buffer_id) : nullptr;
        const uint64_t offset = e.buffer_offset + (at - e.iova);

        if (!memory || memory->frames.empty() || !memory->holds(offset, length))
            return wrong(std::format("{:#x}+{:#x} is said to lead to {} at {:#x}", at, length,
                                     e.buffer_id, offset));
        for (uint64_t i = 0; i < length;) {
            const uint64_t place = memory->first + offset + i;

            if (memory->phys(place) != e.phys + (at - e.iova) + i)
                return wrong(std::format("{:#x} is said to lead to {} at {:#x}, and does not",
                                         at + i, e.buffer_id, offset + i));
            i += page_size() - place % page_size();
        }
    } else if (piece.place.session == session && session < nr_sessions) {
        const Object* memory = find(session, piece.place.id);
        const uint64_t place = piece.place.at + (at - piece_at);

        if (!memory || (place < memory->first + memory->length && place + length > memory->first))
            wrong(std::format("{:#x}+{:#x} leads to {} of session {}, and is said to be foreign",
                              at, length, piece.place.id, session));
    }
}

// --- IOVAs, and what is mapped there -----------------------------------------------------

void Model::expect_below(uint64_t end, uint64_t mask) {
    if (end - 1 > mask)
        wrong(std::format("{:#x} is beyond the mask {:#x}", end - 1, mask));
}

void Model::add_piece(std::vector<uint64_t>& keys, uint64_t iova, const Piece& piece) {
    const auto next = pieces_.lower_bound(iova);

    if ((next != pieces_.end() && next->first < iova + piece.length) ||
        (next != pieces_.begin() && std::prev(next)->first + std::prev(next)->second.length > iova))
        return wrong(std::format("{:#x}+{:#x} is mapped for two objects", iova, piece.length));
    pieces_.emplace(iova, piece);
    keys.push_back(iova);
}

// Whole granules of an object's pages, from @place to @end.
void Model::add_pages(std::vector<uint64_t>& keys, uint64_t iova, const Place& place,
                      uint64_t end) {
    const Object& memory = *find(place.session, place.id);

    for (uint64_t at = place.at; at < end;) {
        Piece piece = {.length = 0,
                       .phys = memory.phys(at),
                       .place = {.session = place.session, .id = place.id, .at = at}};

        while (at < end && memory.phys(at) == piece.phys + piece.length) {
            const uint64_t step = std::min(end - at, page_size() - at % page_size());

            piece.length += step;
            at += step;
        }
        add_piece(keys, iova, piece);
        iova += piece.length;
    }
}

// The granules of a range of a buffer; @place is where it begins, as an offset in the buffer.
void Model::add_range(std::vector<uint64_t>& keys, uint64_t iova, const Place& place,
                      uint64_t length, uint32_t dir) {
    const Object* memory = find(place.session, place.id);
    const uint64_t mask = granule_ - 1;

    if (!memory || memory->type != Type::buffer)
        return wrong(std::format("{} is no buffer, and was mapped", place.id));
    if (!length || !memory->holds(place.at, length))
        return wrong("a range was mapped that leaves its buffer");
    if (memory->read_only && dir != DMAPROBE_DIR_TO_DEVICE)
        return wrong("memory was mapped for writing that may only be read");
    const uint64_t at = memory->first + place.at;
    if ((at ^ iova) & mask)
        return wrong(std::format("{:#x} is not the place in the granule of the memory", iova));
    add_pages(keys, iova & ~mask, {.session = place.session, .id = place.id, .at = at & ~mask},
              align_up(at + length, granule_));
}

void Model::add_bar(std::vector<uint64_t>& keys, uint64_t iova, uint32_t bar, uint64_t offset,
                    uint64_t length) {
    const uint64_t mask = granule_ - 1;

    if (bar >= bars_.size() || !bars_[bar].memory() || !length || offset > bars_[bar].size() ||
        length > bars_[bar].size() - offset)
        return wrong("a range was mapped that leaves its BAR");
    const uint64_t phys = bars_[bar].start + offset;
    const uint64_t low = phys & ~mask;
    const uint64_t high = align_up(phys + length, granule_);
    if (low < bars_[bar].start || high - 1 > bars_[bar].end)
        return wrong("a granule was mapped that is not the BAR's alone");
    if ((phys ^ iova) & mask)
        return wrong(std::format("{:#x} is not the place in the granule of the BAR", iova));
    add_piece(keys, iova & ~mask, {.length = high - low, .phys = low, .place = {}});
}

void Model::drop_pieces(std::vector<uint64_t>& keys) {
    for (const uint64_t key : keys)
        pieces_.erase(key);
    keys.clear();
}

// --- objects ------------------------------------------------------------------------------

void Model::add(unsigned session, uint32_t id, Object&& made) {
    if (!id || !objects_[session].emplace(id, std::move(made)).second)
        wrong(std::format("id {} of session {} was given twice", id, session));
}

// No page belongs to two objects.
void Model::own(const std::vector<uint64_t>& frames) {
    for (const uint64_t frame : frames)
        if (!owned_.insert(frame).second)
            wrong(std::format("the page at {:#x} belongs to two objects", frame * page_size()));
}

void Model::use(unsigned session, Object& user, uint32_t id) {
    Object* used = object(session, id);

    if (!used || std::ranges::contains(user.uses, id))
        return;
    used->users++;
    user.uses.push_back(id);
}

void Model::unuse(unsigned session, uint32_t id) {
    if (Object* used = object(session, id))
        used->users--;
}

void Model::put_export(Export& e) {
    if (!--e.users && !e.revoked)
        unuse(e.session, e.id);
}

void Model::close_export(size_t index) {
    const std::shared_ptr<Export> e = exports_[index];

    exports_.erase(exports_.begin() + static_cast<ptrdiff_t>(index));
    e->fd.close();
    put_export(*e);
}

void Model::drop_link(unsigned session, Object& space, std::map<uint64_t, Link>::iterator link) {
    drop_pieces(link->second.pieces);
    if (link->second.buffer)
        unuse(session, link->second.buffer);
    space.links.erase(link);
}

void Model::forget(unsigned session, uint32_t id) {
    Object gone = std::move(objects_[session].extract(id).mapped());

    while (!gone.links.empty())
        drop_link(session, gone, gone.links.begin());
    drop_pieces(gone.pieces);
    for (const uint32_t used : gone.uses)
        unuse(session, used);
    if (gone.type == Type::import)
        put_export(*gone.exported);
    if (!gone.pinned)
        for (const uint64_t frame : gone.frames)
            owned_.erase(frame);
}

// What others have mapped of its dma-bufs leads nowhere from now on.
void Model::close_session(unsigned number) {
    for (const auto& e : exports_)
        if (e->session == number)
            e->revoked = true;
    for (auto& session : objects_)
        for (auto& [id, one] : session)
            if (one.type == Type::import && one.exported->session == number) {
                one.exported->revoked = true;
                drop_pieces(one.pieces);
            }
    while (!objects_[number].empty())
        forget(number, objects_[number].begin()->first);
}

template <>
void Model::on(const Call& call, const dmaprobe_destroy& op) {
    const Object* gone = find(call.session, op.id);

    if (!gone || !std::ranges::contains(Types{Type::buffer, Type::alloc, Type::pool, Type::block},
                                        gone->type))
        return wrong(std::format("{} was destroyed, which is not to be", op.id));
    if (gone->users)
        return wrong(std::format("{} was destroyed while it was in use", op.id));
    forget(call.session, op.id);
}

template <>
void Model::on(const Call& call, const dmaprobe_unmap& op) {
    const Object* gone = find(call.session, op.id);

    if (!gone || !std::ranges::contains(
                     Types{Type::mapping, Type::list, Type::resource, Type::import}, gone->type))
        return wrong(std::format("{} was unmapped, which is no mapping", op.id));
    forget(call.session, op.id);
}

// --- memory -------------------------------------------------------------------------------

std::vector<uint64_t> Model::mmapped_frames(unsigned session, const dmaprobe_buffer_alloc& buffer) {
    const Memory view = sessions_[session].mmap(
        {.id = buffer.id, .length = buffer.length, .mmap_offset = buffer.mmap_offset});
    std::vector<uint64_t> frames;

    if (view)
        frames = frames_at(view.address(), buffer.length);
    if (frames.empty())
        wrong(std::format("cannot see where {} lies", buffer.id));
    return frames;
}

// A kmalloc buffer cannot be mmapped, but a mapping of all of it shows where it lies. Empty
// when there are no IOVAs for that.
std::vector<uint64_t> Model::kmalloc_frames(unsigned session, const dmaprobe_buffer_alloc& buffer) {
    std::vector<uint64_t> frames(align_up(buffer.offset + buffer.length, page_size()) /
                                 page_size());
    dmaprobe_map map = {};

    map.buffer_id = buffer.id;
    map.length = buffer.length;
    if (sessions_[session](map))
        return {};
    for (const dmaprobe_extent& e : translate(sessions_[session], map.dma_addr, map.length)) {
        if (e.kind != DMAPROBE_EXTENT_BUFFER || e.buffer_id != buffer.id)
            wrong(std::format("a mapping of {} does not lead there", buffer.id));
        const uint64_t at = buffer.offset + (e.iova - map.dma_addr);
        for (uint64_t i = 0; i < e.length; i += page_size() - (at + i) % page_size())
            if ((at + i) / page_size() < frames.size())
                frames[(at + i) / page_size()] = (e.phys + i) / page_size();
    }
    if (sessions_[session].unmap(map.id))
        wrong("a mapping cannot be unmapped");
    return frames;
}

// The kernel's own table: not every mmap of an allocation is in pagemap.
std::vector<uint64_t> Model::table_frames(unsigned session, uint32_t id) {
    std::vector<dmaprobe_sgtable_entry> entries;
    std::vector<uint64_t> frames;

    if (sgtable(sessions_[session], id, entries, DMAPROBE_SGTABLE_PHYS))
        wrong(std::format("cannot see where {} lies", id));
    for (const dmaprobe_sgtable_entry& e : entries)
        for (uint64_t at = 0; at < e.length; at += page_size())
            frames.push_back((e.phys + at) / page_size());
    return frames;
}

template <>
void Model::on(const Call& call, const dmaprobe_buffer_alloc& op) {
    Object made = {.type = Type::buffer, .length = op.length};

    made.first = op.offset;
    made.frames = op.kind == DMAPROBE_BUFFER_KIND_KMALLOC ? kmalloc_frames(call.session, op)
                                                          : mmapped_frames(call.session, op);
    if (made.frames.empty()) {
        if (sessions_[call.session].destroy(op.id))
            wrong("a buffer cannot be destroyed");
        return;
    }
    own(made.frames);
    add(call.session, op.id, std::move(made));
}

template <>
void Model::on(const Call& call, const dmaprobe_buffer_pin& op) {
    Object made = {.type = Type::buffer, .length = op.length};

    made.first = op.addr % page_size();
    made.frames = frames_at(op.addr, op.length);
    made.pinned = true;
    made.read_only = op.flags & DMAPROBE_BUFFER_PIN_READ_ONLY;
    if (made.frames.empty())
        wrong("memory was pinned that is not there");
    for (const uint64_t frame : made.frames)
        if (owned_.contains(frame))
            wrong("a page of the program is one of an object");
    add(call.session, op.id, std::move(made));
}

template <>
void Model::on(const Call& call, const dmaprobe_alloc& op) {
    const bool streaming =
        op.kind == DMAPROBE_ALLOC_KIND_NONCOHERENT || op.kind == DMAPROBE_ALLOC_KIND_PAGES;
    Object made = {.type = Type::alloc, .length = op.length};

    made.frames = table_frames(call.session, op.id);
    const uint64_t end = made.pages_end();
    if (end != align_up(op.length, page_size()))
        return wrong("an allocation has other pages than were asked for");
    own(made.frames);
    expect_below(op.dma_addr + end, streaming ? mask_ : coherent_mask_);
    add(call.session, op.id, std::move(made));
    add_pages(object(call.session, op.id)->pieces, op.dma_addr,
              {.session = call.session, .id = op.id, .at = 0}, end);
}

template <>
void Model::on(const Call& call, const dmaprobe_pool_create& op) {
    Object made = {.type = Type::pool, .length = op.block_size};

    // A free block holds a link and an address (mm/dmapool.c).
    made.chunk = align_up(std::max<uint64_t>(op.block_size, 16), std::max<uint64_t>(op.align, 1));
    add(call.session, op.id, std::move(made));
}

// Only the device's page tables say where a pool's memory lies. From then on it stays there.
void Model::grow(unsigned session, Object& pool, uint64_t low, uint64_t length) {
    std::vector<uint64_t> frames;

    expect_below(low + length, coherent_mask_);
    for (const dmaprobe_extent& e : translate(sessions_[session], low, length)) {
        if (e.kind != DMAPROBE_EXTENT_FOREIGN)
            return wrong(std::format("{:#x} of a pool is {} of session {}", e.iova,
                                     e.kind ? "an object's" : "nowhere", session));
        add_piece(pool.pieces, e.iova, {.length = e.length, .phys = e.phys, .place = {}});
        for (uint64_t at = 0; at < e.length; at += page_size())
            frames.push_back((e.phys + at) / page_size());
    }
    own(frames);
    pool.frames.insert(pool.frames.end(), frames.begin(), frames.end());
}

template <>
void Model::on(const Call& call, const dmaprobe_pool_alloc& op) {
    Object* pool = object(call.session, op.pool_id);

    if (!pool || pool->type != Type::pool)
        return wrong("a block comes from what is no pool");
    const bool small = pool->chunk <= page_size();
    const uint64_t low = small ? op.dma_addr & ~(page_size() - 1) : op.dma_addr;
    const uint64_t length = align_up(pool->chunk, page_size());
    if (!std::ranges::contains(pool->pieces, low))
        grow(call.session, *pool, low, length);
    Object made = {.type = Type::block, .length = pool->length, .addr = op.dma_addr};
    use(call.session, made, op.pool_id);
    add(call.session, op.id, std::move(made));
}

// --- mappings -----------------------------------------------------------------------------

template <>
void Model::on(const Call& call, const dmaprobe_map& op) {
    Object made = {.type = Type::mapping, .length = op.length, .dir = op.dir, .attrs = op.attrs};

    expect_below(op.dma_addr + op.length, mask_);
    add_range(made.pieces, op.dma_addr,
              {.session = call.session, .id = op.buffer_id, .at = op.buffer_offset}, op.length,
              op.dir);
    use(call.session, made, op.buffer_id);
    add(call.session, op.id, std::move(made));
}

template <>
void Model::on(const Call& call, const dmaprobe_map_resource& op) {
    Object made = {.type = Type::resource, .length = op.length, .dir = op.dir, .attrs = op.attrs};

    expect_below(op.dma_addr + op.length, mask_);
    add_bar(made.pieces, op.dma_addr, op.bar, op.offset, op.length);
    add(call.session, op.id, std::move(made));
}

std::vector<dmaprobe_segment> Model::segments_of(unsigned session, uint32_t id) {
    std::vector<dmaprobe_segment> segments;

    if (sessions_[session].segments(segments, id) || segments.empty()) {
        wrong(std::format("{} has no segments", id));
        segments = {{}};
    }
    return segments;
}

// The segments have the bytes of the entries, each entry's in one of them. Between segments
// lies what follows the entry before, in its buffer.
template <>
void Model::on(const Call& call, const dmaprobe_map_sg& op) {
    const std::vector<dmaprobe_segment> segments = segments_of(call.session, op.id);
    const uint64_t mask = granule_ - 1;
    Object made = {.type = Type::list, .dir = op.dir, .attrs = op.attrs};
    size_t segment = 0;
    uint64_t used = 0;
    uint64_t reached = 0; // the IOVA where the entry before ended
    Place behind;         // and the memory behind it

    expect_below(segments.back().dma_addr + segments.back().length, mask_);
    for (const dmaprobe_sg_entry& e : call.entries) {
        if (segment < segments.size() && used == segments[segment].length) {
            segment++;
            used = 0;
        }
        if (segment == segments.size() || e.length > segments[segment].length - used)
            return wrong("the entries of a list are not in its segments");
        const uint64_t iova = segments[segment].dma_addr + used;
        if (reached && (iova & ~mask) > reached)
            add_padding(made.pieces, reached, behind, (iova & ~mask) - reached);
        behind = {.session = call.session, .id = e.buffer_id, .at = e.offset};
        add_range(made.pieces, iova, behind, e.length, op.dir);
        if (!trouble_.empty())
            return;
        behind.at =
            align_up(find(behind.session, behind.id)->first + e.offset + e.length, granule_);
        reached = align_up(iova + e.length, granule_);
        used += e.length;
        made.length += e.length;
        use(call.session, made, e.buffer_id);
    }
    if (segment != segments.size() - 1 || used != segments.back().length)
        wrong("the segments of a list are longer than its entries");
    add(call.session, op.id, std::move(made));
}

void Model::add_padding(std::vector<uint64_t>& keys, uint64_t iova, const Place& behind,
                        uint64_t length) {
    const Object* memory = find(behind.session, behind.id);

    pads_++;
    if (behind.at + length > memory->pages_end())
        return wrong(std::format("a list is padded with {:#x} bytes, but its buffer {} does not "
                                 "go on so far",
                                 length, behind.id));
    if (memory->phys(behind.at + length - 1) != memory->phys(behind.at - 1) + length)
        return wrong(std::format("a list is padded with {:#x} bytes, but its buffer {} goes on "
                                 "elsewhere",
                                 length, behind.id));
    add_pages(keys, iova, behind, behind.at + length);
}

template <>
void Model::on(const Call& call, const dmaprobe_export& op) {
    Object* memory = object(call.session, op.id);

    exports_.push_back(
        std::make_shared<Export>(Export{.session = call.session, .id = op.id, .fd = Fd(op.fd)}));
    if (!memory || memory->type != Type::alloc)
        return wrong("something was exported that is no allocation");
    memory->users++;
}

template <>
void Model::on(const Call& call, const dmaprobe_map_dmabuf& op) {
    const auto e =
        std::ranges::find_if(exports_, [&](const auto& one) { return one->fd.get() == op.fd; });

    if (e == exports_.end() || (*e)->revoked)
        return wrong("a dma-buf was mapped that is none");
    const std::vector<dmaprobe_segment> segments = segments_of(call.session, op.id);
    const Object* memory = find((*e)->session, (*e)->id);
    Object made = {.type = Type::import, .length = op.length, .dir = op.dir};
    uint64_t at = 0;

    made.exported = *e;
    (*e)->users++;
    expect_below(segments.back().dma_addr + segments.back().length, mask_);
    for (const dmaprobe_segment& segment : segments) {
        if (segment.length > memory->pages_end() - at)
            return wrong("a mapped dma-buf is longer than the allocation");
        add_pages(made.pieces, segment.dma_addr,
                  {.session = (*e)->session, .id = (*e)->id, .at = at}, at + segment.length);
        at += segment.length;
    }
    add(call.session, op.id, std::move(made));
}

// --- IOVA spaces and their links ----------------------------------------------------------

template <>
void Model::on(const Call& call, const dmaprobe_iova_alloc& op) {
    Object made = {.type = Type::space, .length = op.length, .addr = op.addr};

    if (op.addr)
        expect_below(op.addr + op.length, mask_);
    else if (!(op.flags & DMAPROBE_IOVA_ALLOC_TRY))
        wrong("an IOVA space has no space");
    add(call.session, op.id, std::move(made));
}

Object* Model::space(unsigned session, uint32_t id) {
    Object* found = object(session, id);

    if (found && found->type == Type::space)
        return found;
    wrong(std::format("{} was used as an IOVA space, and is none", id));
    return nullptr;
}

template <>
void Model::on(const Call& call, const dmaprobe_iova_link& op) {
    Object* to = space(call.session, op.id);
    Link link = {.length = op.length, .dir = op.dir, .attrs = op.attrs};

    if (!to)
        return;
    if (!to->addr || !to->holds(op.offset, op.length))
        return wrong("a link leaves its IOVA space");
    if (op.attrs & DMAPROBE_ATTR_MMIO) {
        add_bar(link.pieces, to->addr + op.offset, op.bar, op.buffer_offset, op.length);
    } else {
        add_range(link.pieces, to->addr + op.offset,
                  {.session = call.session, .id = op.buffer_id, .at = op.buffer_offset}, op.length,
                  op.dir);
        link.buffer = op.buffer_id;
        if (Object* used = object(call.session, op.buffer_id))
            used->users++;
    }
    if (!to->links.emplace(op.offset, std::move(link)).second)
        wrong("a link is over another one");
}

// Whole links, without a hole, of one direction and with the same attributes.
bool Model::unlink(unsigned session, Object& space, uint64_t offset, uint64_t length, uint32_t dir,
                   uint64_t attrs) {
    while (length) {
        const auto link = space.links.find(offset);

        if (link == space.links.end() || link->second.length > length || link->second.dir != dir ||
            link->second.attrs != attrs)
            return false;
        offset += link->second.length;
        length -= link->second.length;
        drop_link(session, space, link);
    }
    return true;
}

template <>
void Model::on(const Call& call, const dmaprobe_iova_unlink& op) {
    Object* from = space(call.session, op.id);

    if (from && !unlink(call.session, *from, op.offset, op.length, op.dir, op.attrs))
        wrong("a range was unlinked that is not made of whole links");
}

template <>
void Model::on(const Call& call, const dmaprobe_iova_free& op) {
    const Object* gone = space(call.session, op.id);

    if (!gone)
        return;
    if (!gone->links.empty())
        return wrong("an IOVA space was freed while something was linked");
    forget(call.session, op.id);
}

template <>
void Model::on(const Call& call, const dmaprobe_iova_destroy& op) {
    Object* gone = space(call.session, op.id);

    if (!gone)
        return;
    if (!unlink(call.session, *gone, 0, op.mapped_len, op.dir, op.attrs) || !gone->links.empty())
        return wrong("an IOVA space was destroyed whose links are others");
    forget(call.session, op.id);
}

// --- limits -------------------------------------------------------------------------------

bool Model::has_addresses() const {
    return std::ranges::any_of(objects_, [](const auto& session) {
        return std::ranges::any_of(session,
                                   [](const auto& one) { return one.second.type != Type::buffer; });
    });
}

template <>
void Model::on(const Call& /*call*/, const dmaprobe_set_mask& op) {
    if (has_addresses())
        wrong("the mask changed under live addresses");
    if (op.flags & DMAPROBE_SET_MASK_STREAMING)
        mask_ = op.mask;
    if (op.flags & DMAPROBE_SET_MASK_COHERENT)
        coherent_mask_ = op.mask;
}

template <>
void Model::on(const Call& /*call*/, const dmaprobe_set_segments& op) {
    if (has_addresses())
        wrong("limits of segments changed under live addresses");
    if (op.flags & DMAPROBE_SET_SEGMENTS_MAX_SIZE)
        max_segment_ = op.max_segment_size;
    if (op.flags & DMAPROBE_SET_SEGMENTS_BOUNDARY)
        boundary_ = op.segment_boundary_mask;
}

template <>
void Model::on(const Call& /*call*/, const dmaprobe_bench& /*op*/) {} // leaves nothing mapped

void Model::apply(const Call& call) {
    if (call.err)
        return;
    if (call.unanswered)
        return wrong("a call succeeds whose answer cannot be written");
    std::visit([&](const auto& op) { on(call, op); }, call.op);
}

} // namespace selftest::reach

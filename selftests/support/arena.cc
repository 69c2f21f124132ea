// SPDX-License-Identifier: GPL-2.0-only

#include "arena.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <format>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace selftest {

namespace {

constexpr std::array<std::string_view, nr_makes> names = {
    "contiguous",  "scattered", "kmalloc",       "pinned", "single", "page",
    "phys",        "list",      "resource",      "import", "iova",   "coherent",
    "noncoherent", "pages",     "noncontiguous", "pool",   "block"};

enum class Family : uint8_t { buffer, mapping, iova, allocation, pool, block };

constexpr Family family_of(Make make) {
    if (make <= Make::pinned)
        return Family::buffer;
    if (make <= Make::import)
        return Family::mapping;
    if (make == Make::iova)
        return Family::iova;
    if (make <= Make::noncontiguous)
        return Family::allocation;
    return make == Make::pool ? Family::pool : Family::block;
}

} // namespace

std::string_view name_of(Make make) {
    return names.at(static_cast<size_t>(make));
}

int64_t count_objects(const Raw& session) {
    dmaprobe_get_stats op = {};

    if (session(op))
        return -1;
    return int64_t{op.nr_buffers} + op.nr_mappings + op.nr_iovas + op.nr_allocs + op.nr_pools +
           op.nr_blocks;
}

Arena::Arena(const std::string& bdf) : s_(Raw::open(bdf)), page_(page_size()) {
    dmaprobe_pool_create pool = {};
    dmaprobe_export out = {};

    error_ = s_ ? 0 : s_.error();
    if (error_)
        return;
    iommu_ = s_.translated();
    iova_ = iommu_ && !s_.missing(DMAPROBE_FEATURE_DMA_IOVA);
    own_ = Memory::fenced(4 * page_);
    sink_ = Fd(memfd_create("sink", MFD_CLOEXEC));
    if (!own_ || !sink_) {
        error_ = ENOMEM;
        return;
    }
    error_ = s_.alloc(base_, 8 * page_);
    if (!error_) {
        base_map_.kind = DMAPROBE_MAP_KIND_PAGE;
        base_map_.buffer_id = base_.id;
        base_map_.length = 8 * page_;
        error_ = s_(base_map_);
    }
    if (!error_ && iova_)
        error_ = s_.iova_alloc(base_iova_, 8 * page_);
    if (!error_)
        error_ = allocate(s_, base_alloc_, alloc_ways[0], page_);
    if (error_)
        return;
    // Without these there are fewer kinds of objects.
    pool.block_size = 256;
    if (!s_(pool))
        base_pool_ = pool.id;
    out.id = base_alloc_.id;
    if (!s_(out))
        dmabuf_ = Fd(out.fd);
    charged_at_start_ = charged();
    at_start_ = count_objects(s_);
    if (at_start_ < 0)
        error_ = ENODEV;
}

int Arena::close() {
    dmabuf_.close();
    return s_.close();
}

int Arena::make(Make make, uint32_t& id) {
    const auto map = [&](uint32_t kind) {
        dmaprobe_map op = {};

        op.kind = kind;
        op.buffer_id = base_.id;
        op.buffer_offset = page_;
        op.length = page_;
        const int err = s_(op);
        id = op.id;
        return err;
    };
    const auto buffer = [&](uint32_t kind) {
        Buffer b;
        const int err = s_.alloc(b, 2 * page_, kind);

        id = b.id;
        return err;
    };
    const auto allocation = [&](uint32_t kind) {
        Allocation a;
        const int err = allocate(s_, a, {"", kind}, 2 * page_);

        id = a.id;
        return err;
    };

    switch (make) {
    case Make::contiguous:
        return buffer(DMAPROBE_BUFFER_KIND_CONTIGUOUS);
    case Make::scattered:
        return buffer(DMAPROBE_BUFFER_KIND_SCATTERED);
    case Make::kmalloc:
        return buffer(DMAPROBE_BUFFER_KIND_KMALLOC);
    case Make::pinned: {
        Buffer b;
        const int err = s_.pin(b, own_.data() + page_, 2 * page_);

        id = b.id;
        return err;
    }
    case Make::single:
        return map(DMAPROBE_MAP_KIND_SINGLE);
    case Make::page:
        return map(DMAPROBE_MAP_KIND_PAGE);
    case Make::phys:
        return map(DMAPROBE_MAP_KIND_PHYS);
    case Make::list: {
        const std::array<dmaprobe_sg_entry, 2> entries = {
            {{0, page_, base_.id, 0}, {4 * page_, page_, base_.id, 0}}};
        dmaprobe_map_sg op = {};
        const int err = s_.map_sg(op, entries);

        id = op.id;
        return err;
    }
    case Make::resource: {
        dmaprobe_map_resource op = {};

        op.length = page_;
        const int err = s_(op);
        id = op.id;
        return err;
    }
    case Make::import: {
        dmaprobe_map_dmabuf op = {};

        if (!dmabuf_)
            return ENXIO;
        op.fd = dmabuf_.get();
        const int err = s_(op);
        id = op.id;
        return err;
    }
    case Make::iova: {
        dmaprobe_iova_alloc op = {};

        if (!iova_)
            return EOPNOTSUPP;
        const int err = s_.iova_alloc(op, 2 * page_);
        id = op.id;
        return err;
    }
    case Make::coherent:
        return allocation(DMAPROBE_ALLOC_KIND_COHERENT);
    case Make::noncoherent:
        return allocation(DMAPROBE_ALLOC_KIND_NONCOHERENT);
    case Make::pages:
        return allocation(DMAPROBE_ALLOC_KIND_PAGES);
    case Make::noncontiguous:
        return allocation(DMAPROBE_ALLOC_KIND_NONCONTIGUOUS);
    case Make::pool: {
        dmaprobe_pool_create op = {};

        op.block_size = 64;
        const int err = s_(op);
        id = op.id;
        return err;
    }
    case Make::block: {
        dmaprobe_pool_alloc op = {};

        if (!base_pool_)
            return EPERM;
        op.pool_id = base_pool_;
        const int err = s_(op);
        id = op.id;
        return err;
    }
    }
    return EINVAL;
}

bool Arena::offers(Make kind) {
    Dice dice(1);
    uint32_t id = 0;

    if (make(kind, id))
        return false;
    // Not every way to destroy a space suits an empty one.
    while (destroy(kind, id, dice))
        ;
    return true;
}

int Arena::destroy(Make make, uint32_t id, Dice& dice) {
    switch (family_of(make)) {
    case Family::mapping:
        return s_.unmap(id);
    case Family::iova: {
        if (dice(2))
            return s_.iova_free(id);
        return s_.iova_destroy(id, dice(2) * page_);
    }
    case Family::buffer:
    case Family::allocation:
    case Family::pool:
    case Family::block:
        return s_.destroy(id);
    }
    return EINVAL;
}

bool Arena::check(std::string_view what, int err) {
    switch (err) {
    case 0:
        ++good_;
        return true;
    case ENODEV:
        gone_ = true;
        return false;
    // Gone by now, in use by another thread, or an object of another kind by now.
    case ENOENT:
    case EBUSY:
    case EINVAL:
    case ENXIO:
    case EEXIST:
    case EOPNOTSUPP:
        return false;
    // Nothing translates, and the device cannot reach the memory.
    case EIO:
        if (!iommu_)
            return false;
        break;
    case EPERM: // no pools without CAP_SYS_RAWIO
        if (!base_pool_)
            return false;
        break;
    default:
        break;
    }
    const std::scoped_lock guard(lock_);
    if (odd_.empty())
        odd_ = std::format("{}: {}", what, strerrorname_np(err) ? strerrorname_np(err) : "?");
    return false;
}

std::string Arena::odd() const {
    const std::scoped_lock guard(lock_);

    return odd_;
}

void Arena::turn(Make kind, Dice& dice) {
    std::atomic<uint32_t>& slot = ids_.at(static_cast<size_t>(kind)).at(dice(4));
    const unsigned what = dice(8);

    if (what < 2) {
        uint32_t id = 0;

        if (!check(name_of(kind), make(kind, id)))
            return;
        ++live_;
        id = slot.exchange(id);
        // What was there is destroyed, unless somebody has done so already.
        if (id)
            end(kind, id, dice);
    } else if (what < 4) {
        const uint32_t id = slot.load();

        if (id)
            end(kind, id, dice);
    } else if (const uint32_t id = slot.load()) {
        use(id, what == 4 ? dice(6) : static_cast<unsigned>(family_of(kind)), dice);
    }
}

void Arena::turn_unanswered(Dice& dice) {
    const Memory place = Memory::fenced(page_);
    const auto attempt = [&]<class T>(T op) {
        op.size = sizeof(op);
        memcpy(place.data(), &op, sizeof(op));
        if (!place.protect(PROT_READ))
            return check("mprotect", errno);
        const int err = submit(s_.fd(), CommandOf<T>::value, place.data());
        // EFAULT is right; a success would be a lie.
        return check("unanswered", err == EFAULT ? EBUSY : err ? err : EPROTO);
    };

    if (!place)
        return;
    switch (dice(5)) {
    case 0: {
        dmaprobe_buffer_alloc op = {};

        op.length = 2 * page_;
        attempt(op);
        return;
    }
    case 1: {
        dmaprobe_map op = {};

        op.kind = DMAPROBE_MAP_KIND_PAGE;
        op.buffer_id = base_.id;
        op.length = page_;
        attempt(op);
        return;
    }
    case 2: {
        dmaprobe_alloc op = {};

        op.length = 2 * page_;
        attempt(op);
        return;
    }
    case 3: {
        dmaprobe_buffer_pin op = {};

        op.addr = own_.address();
        op.length = page_;
        attempt(op);
        return;
    }
    default: {
        dmaprobe_pool_alloc op = {};

        op.pool_id = base_pool_;
        attempt(op);
        return;
    }
    }
}

bool Arena::guess(Dice& dice) {
    const auto next = static_cast<uint32_t>(at_start_ + 1 + dice(4));

    return destroy(static_cast<Make>(dice(nr_makes)), next, dice) == 0;
}

void Arena::use(uint32_t id, unsigned way, Dice& dice) {
    switch (static_cast<Family>(way)) {
    case Family::buffer:
        if (dice(2))
            return use_buffer(id, dice(5));
        return use_bytes(id, dice(3));
    case Family::mapping:
        return use_mapping(id, dice(3));
    case Family::iova:
        return use_iova(id, dice);
    case Family::allocation:
        if (dice(2))
            return use_bytes(id, dice(3));
        if (dice(2))
            return use_mapping(id, dice(3));
        return use_allocation(id);
    case Family::pool:
        return use_pool(id);
    case Family::block:
        if (dice(2))
            return use_bytes(id, dice(2));
        return use_mapping(id, dice(2));
    }
}

void Arena::end(Make kind, uint32_t id, Dice& dice) {
    const int err = destroy(kind, id, dice);

    if (check(err == EINVAL || err == ENXIO ? "destroy, not of an iova" : "destroy",
              kind != Make::iova && (err == EINVAL || err == ENXIO) ? EPROTO : err)) {
        --live_;
    } else if (err != ENOENT) {
        const std::scoped_lock guard(lock_);
        left_.emplace_back(kind, id);
    }
}

void Arena::unmap(uint32_t id) {
    Dice none(0);

    end(Make::page, id, none);
}

void Arena::use_buffer(uint32_t id, unsigned way) {
    dmaprobe_map map = {};

    map.kind = DMAPROBE_MAP_KIND_PAGE;
    map.buffer_id = id;
    map.length = page_;
    switch (way) {
    case 0:
        if (!check("map", s_(map)))
            return;
        ++live_;
        return unmap(map.id);
    case 1: {
        const std::array<dmaprobe_sg_entry, 2> entries = {
            {{0, page_, id, 0}, {page_, page_, base_.id, 0}}};
        dmaprobe_map_sg op = {};

        if (!check("map_sg", s_.map_sg(op, entries)))
            return;
        ++live_;
        return unmap(op.id);
    }
    case 2: {
        dmaprobe_unmap undo = {};
        dmaprobe_sync sync = {};
        std::array<dmaprobe_run_op, 3> ops = {};
        dmaprobe_run run = {};

        map.size = sizeof(map);
        sync.size = sizeof(sync);
        sync.id = DMAPROBE_RUN_ID(0);
        sync.length = page_;
        undo.size = sizeof(undo);
        undo.id = DMAPROBE_RUN_ID(0);
        ops[0].cmd = DMAPROBE_MAP;
        ops[0].arg = reinterpret_cast<uintptr_t>(&map);
        ops[1].cmd = DMAPROBE_SYNC;
        ops[1].arg = reinterpret_cast<uintptr_t>(&sync);
        ops[2].cmd = DMAPROBE_UNMAP;
        ops[2].arg = reinterpret_cast<uintptr_t>(&undo);
        run.flags = DMAPROBE_RUN_CONTINUE;
        run.nr_ops = ops.size();
        run.ops = reinterpret_cast<uintptr_t>(ops.data());
        if (!check("run", s_(run)))
            return;
        // ECANCELED: not made, since the device went.
        for (const dmaprobe_run_op& op : ops)
            if (op.result != -ECANCELED)
                check("a call of a run", -op.result);
        if (ops[0].result)
            return;
        ++live_;
        if (ops[2].result == 0)
            --live_;
        else
            unmap(map.id);
        return;
    }
    case 3: {
        dmaprobe_bench op = {};

        op.kind = DMAPROBE_BENCH_MAP_PAGE;
        op.buffer_id = id;
        op.count = 50;
        check("bench", s_(op));
        return;
    }
    default: {
        if (!iommu_)
            return;
        std::array<dmaprobe_extent, 4> extents = {};
        dmaprobe_translate op = {};

        op.iova = base_map_.dma_addr;
        op.length = 8 * page_;
        op.buffer_id = id;
        op.nr_extents = extents.size();
        op.extents = reinterpret_cast<uintptr_t>(extents.data());
        check("translate", s_(op));
        return;
    }
    }
}

void Arena::use_bytes(uint32_t id, unsigned way) {
    if (way < 2) {
        std::array<std::byte, 48> bytes = {};
        const int err = s_.copy(id, way ? DMAPROBE_COPY_READ : DMAPROBE_COPY_WRITE, 8, bytes);

        check("copy", err);
        return;
    }
    Buffer b;
    b.id = id;
    b.length = 2 * page_;
    b.mmap_offset = uint64_t{id} << 32;
    const Memory m = s_.mmap(b);
    if (!m) {
        check("mmap", errno);
        return;
    }
    ++good_;
    for (uint64_t at = 0; at < b.length; at += page_)
        if (pwrite(sink_.get(), m.data() + at, 8, 0) < 0 && errno != EFAULT)
            check("touching an mmap", errno);
}

void Arena::use_mapping(uint32_t id, unsigned way) {
    if (way == 2) {
        dmaprobe_sync op = {};

        op.id = id;
        op.length = 64;
        check("sync", s_(op));
        return;
    }
    std::array<dmaprobe_segment, 4> out = {};
    dmaprobe_get_segments op = {};

    op.id = id;
    op.nr_segments = out.size();
    op.segments = reinterpret_cast<uintptr_t>(out.data());
    check("segments", s_(op));
}

void Arena::use_iova(uint32_t id, Dice& dice) {
    if (!iova_)
        return;
    const uint64_t at = dice(2) * page_;
    const uint32_t space = dice(3) ? id : base_iova_.id;
    dmaprobe_get_iova_state state = {};

    check("link", s_.link(space, at, base_, dice(8) * page_, page_));
    check("iova_sync", s_.iova_sync(space, at, page_));
    state.id = space;
    check("iova_state", s_(state));
    if (dice(3))
        check("unlink", s_.unlink(space, at, page_));
}

void Arena::use_allocation(uint32_t id) {
    std::array<dmaprobe_sgtable_entry, 4> out = {};
    dmaprobe_get_sgtable table = {};
    dmaprobe_export op = {};
    dmaprobe_map_dmabuf import = {};

    table.id = id;
    table.nr_entries = out.size();
    table.entries = reinterpret_cast<uintptr_t>(out.data());
    check("sgtable", s_(table));
    op.id = id;
    if (!check("export", s_(op)))
        return;
    const Fd fd(op.fd);
    import.fd = fd.get();
    if (!check("map_dmabuf", s_(import)))
        return;
    ++live_;
    unmap(import.id);
}

void Arena::use_pool(uint32_t id) {
    dmaprobe_pool_alloc op = {};
    Dice none(0);

    op.pool_id = id;
    if (!check("pool_alloc", s_(op)))
        return;
    ++live_;
    end(Make::block, op.id, none);
}

void Arena::clear() {
    Dice dice(1);

    for (unsigned kind = 0; kind < nr_makes; kind++)
        for (std::atomic<uint32_t>& slot : ids_.at(kind))
            left_.emplace_back(static_cast<Make>(kind), slot.exchange(0));
    // What maps goes before what it maps, blocks before their pools, and a space when
    // its links do not stand in the way any more.
    for (int round = 0; round < 8 && live_ > 0; round++) {
        for (auto [kind, id] : std::exchange(left_, {})) {
            if (family_of(kind) == Family::iova)
                for (const uint64_t at : {uint64_t{0}, page_})
                    s_.unlink(id, at, page_);
            if (id)
                end(kind, id, dice);
        }
    }
    for (uint64_t at = 0; iova_ && at < 8 * page_; at += page_)
        s_.unlink(base_iova_.id, at, page_);
}

int64_t Arena::charged() const {
    dmaprobe_get_stats op = {};

    return s_(op) ? -1 : static_cast<int64_t>(op.charged) - charged_at_start_;
}

int64_t Arena::left_over() const {
    return count_objects(s_) - at_start_;
}

} // namespace selftest

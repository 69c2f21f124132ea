// SPDX-License-Identifier: GPL-2.0-only

#include "ops.h"

#include <algorithm>
#include <cerrno>
#include <ostream>
#include <type_traits>

namespace selftest {

Live::Live(const std::string& bdf) : s(Raw::open(bdf)) {
    EXPECT_TRUE(s) << strerror(s.error());
    length = 4 * page_size();
    extents = Memory::fenced(page_size());
}

uint32_t Live::buffer() {
    if (!buffer_.id) {
        EXPECT_OK(s.alloc(buffer_, length));
    }
    return buffer_.id;
}

uint32_t Live::mapping() {
    if (mapping_)
        return mapping_;
    dmaprobe_map op = {};

    op.kind = DMAPROBE_MAP_KIND_PAGE;
    op.buffer_id = buffer();
    op.length = length;
    EXPECT_OK(s(op));
    dma_addr = op.dma_addr;
    return mapping_ = op.id;
}

uint32_t Live::iova(bool linked) {
    dmaprobe_iova_alloc op = {};

    if (!iova_ && s.iova_alloc(op, length))
        return no_such_id;
    if (!iova_)
        iova_ = op.id;
    if (linked && !linked_) {
        linked_ = true;
        buffer();
        EXPECT_OK(s.link(iova_, 0, buffer_, 0, length / 2));
    }
    return iova_;
}

uint32_t Live::alloc() {
    if (!alloc_) {
        EXPECT_OK(make_alloc(alloc_));
    }
    return alloc_;
}

uint32_t Live::pool() {
    if (!pool_) {
        EXPECT_OK(make_pool(pool_));
    }
    return pool_;
}

uint32_t Live::block() {
    if (!block_) {
        EXPECT_OK(make_block(block_));
    }
    return block_;
}

uint32_t Live::empty_pool() {
    if (!empty_pool_) {
        EXPECT_OK(make_pool(empty_pool_));
    }
    return empty_pool_;
}

int Live::dmabuf() {
    dmaprobe_export op = {};

    op.id = alloc();
    if (!dmabuf_) {
        EXPECT_OK(s(op));
        dmabuf_ = Fd(op.fd);
    }
    return dmabuf_.get();
}

std::set<uint32_t> Live::ids() const {
    return {buffer_.id, mapping_, iova_, alloc_, pool_, block_, empty_pool_};
}

uint32_t Live::live(Kind kind) {
    switch (kind) {
    case Kind::buffer:
        return buffer();
    case Kind::mapping:
        return mapping();
    case Kind::iova:
        return iova();
    case Kind::alloc:
        return alloc();
    case Kind::pool:
        return pool();
    case Kind::block:
        return block();
    }
    return no_such_id;
}

uint32_t Live::freed(Kind kind) {
    uint32_t id = no_such_id;

    buffer();
    switch (kind) {
    case Kind::buffer: {
        Buffer b;

        EXPECT_OK(s.alloc(b, length));
        id = b.id;
        break;
    }
    case Kind::alloc:
        EXPECT_OK(make_alloc(id));
        break;
    case Kind::pool:
        EXPECT_OK(make_pool(id));
        break;
    case Kind::block:
        EXPECT_OK(make_block(id));
        break;
    case Kind::mapping: {
        dmaprobe_map op = {};

        op.kind = DMAPROBE_MAP_KIND_PAGE;
        op.buffer_id = buffer();
        op.length = length;
        EXPECT_OK(s(op));
        EXPECT_OK(s.unmap(op.id));
        return op.id;
    }
    case Kind::iova: {
        dmaprobe_iova_alloc op = {};

        if (s.iova_alloc(op, length))
            return no_such_id;
        EXPECT_OK(s.iova_free(op.id));
        return op.id;
    }
    }
    EXPECT_OK(s.destroy(id));
    return id;
}

int Live::make_alloc(uint32_t& id) const {
    dmaprobe_alloc op = {};

    op.kind = DMAPROBE_ALLOC_KIND_PAGES;
    op.length = length;
    const int err = s(op);
    id = op.id;
    return err;
}

int Live::make_pool(uint32_t& id) const {
    dmaprobe_pool_create op = {};

    op.block_size = 64;
    const int err = s(op);
    id = op.id;
    return err;
}

int Live::make_block(uint32_t& id) {
    dmaprobe_pool_alloc op = {};

    op.pool_id = pool();
    const int err = s(op);
    id = op.id;
    return err;
}

void PrintTo(const Op& op, std::ostream* out) {
    *out << op.name;
}

namespace {

constexpr uint64_t resource_attrs = DMAPROBE_MAP_ATTRS & ~uint64_t{DMAPROBE_ATTR_REQUIRE_COHERENT};

template <class T, class Fill>
Op of(Op op, Fill fill) {
    static_assert(std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T>);
    static_assert(std::has_unique_object_representations_v<T>, "no hidden padding");
    static_assert(offsetof(T, size) == 0 && sizeof(T::size) == 4);
    static_assert(offsetof(T, flags) == 4 && sizeof(T::flags) == 4);
    static_assert(sizeof(T) % 8 == 0 && alignof(T) <= 8);
    static_assert(_IOC_DIR(CommandOf<T>::value) == _IOC_NONE &&
                  _IOC_SIZE(CommandOf<T>::value) == 0 &&
                  _IOC_TYPE(CommandOf<T>::value) == DMAPROBE_IOC_MAGIC &&
                  _IOC_NR(CommandOf<T>::value) == CommandOf<T>::number);

    op.number = CommandOf<T>::number;
    op.command = CommandOf<T>::value;
    op.name = CommandOf<T>::name;
    op.size = sizeof(T);
    op.sample = [fill](Live& live, std::byte* to) {
        T t = {};

        t.size = sizeof(T);
        fill(live, t);
        memcpy(to, &t, sizeof(t));
    };
    return op;
}

} // namespace

#define AT(member) offsetof(T, member)

const std::vector<Op>& ops() {
    static const std::vector<Op> list = [] {
        std::vector<Op> all;
        {
            using T = struct dmaprobe_get_info;
            all.push_back(of<T>({.min_size = 24, .answers = true}, [](Live&, T&) {}));
        }
        {
            using T = struct dmaprobe_get_limits;
            all.push_back(of<T>({.min_size = 96, .answers = true}, [](Live&, T&) {}));
        }
        {
            using T = struct dmaprobe_get_domain;
            all.push_back(of<T>({.min_size = 112, .pointers = {{AT(regions)}}, .answers = true},
                                [](Live& live, T& t) {
                                    t.nr_regions = 16;
                                    t.regions = live.extents.address();
                                }));
        }
        {
            using T = struct dmaprobe_set_mask;
            all.push_back(of<T>(
                {.min_size = 16, .flags = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT},
                [](Live&, T& t) {
                    t.flags = DMAPROBE_SET_MASK_STREAMING;
                    t.mask = 0xfffffff;
                }));
        }
        {
            using T = struct dmaprobe_enable;
            all.push_back(
                of<T>({.min_size = 16, .reserved = {AT(__reserved)}, .enums = {{AT(enable), 2}}},
                      [](Live&, T& t) { t.enable = 1; }));
        }
        {
            using T = struct dmaprobe_buffer_alloc;
            all.push_back(of<T>({.min_size = 48,
                                 .flags = DMAPROBE_BUFFER_ALLOC_NODE,
                                 .enums = {{AT(kind), 3}},
                                 .answers = true,
                                 .makes = IdField{AT(id), Kind::buffer}},
                                [](Live& live, T& t) { t.length = live.length; }));
        }
        {
            using T = struct dmaprobe_destroy;
            all.push_back(of<T>(
                {.min_size = 16,
                 .reserved = {AT(__reserved)},
                 .ids = {{AT(id), Kind::buffer, false, {Kind::alloc, Kind::pool, Kind::block}}}},
                [](Live& live, T& t) { t.id = live.buffer(); }));
        }
        {
            using T = struct dmaprobe_map;
            all.push_back(
                of<T>({.min_size = 64,
                       .reserved = {AT(__reserved)},
                       .attrs = {{AT(attrs), DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_CC_SHARED}},
                       .ids = {{AT(buffer_id), Kind::buffer}},
                       .enums = {{AT(kind), 3}, {AT(dir), 3}},
                       .answers = true,
                       .makes = IdField{AT(id), Kind::mapping}},
                      [](Live& live, T& t) {
                          t.buffer_id = live.buffer();
                          t.length = live.length;
                      }));
        }
        {
            using T = struct dmaprobe_unmap;
            // Those of the mapping, which has none; this one may differ.
            all.push_back(of<T>({.min_size = 24,
                                 .reserved = {AT(__reserved)},
                                 .attrs = {{AT(attrs), DMAPROBE_ATTR_SKIP_CPU_SYNC}},
                                 .ids = {{AT(id), Kind::mapping}}},
                                [](Live& live, T& t) { t.id = live.mapping(); }));
        }
        {
            using T = struct dmaprobe_sync;
            all.push_back(of<T>({.min_size = 32,
                                 .ids = {{AT(id), Kind::mapping, false, {Kind::alloc}}},
                                 .enums = {{AT(target), 2}}},
                                [](Live& live, T& t) {
                                    t.id = live.mapping();
                                    t.length = live.length;
                                }));
        }
        {
            using T = struct dmaprobe_iova_alloc;
            all.push_back(of<T>({.min_size = 40,
                                 .flags = DMAPROBE_IOVA_ALLOC_TRY,
                                 .ids = {{AT(buffer_id), Kind::buffer, true}},
                                 .answers = true,
                                 .makes = IdField{AT(id), Kind::iova},
                                 .needs = Needs::iova},
                                [](Live& live, T& t) {
                                    t.buffer_id = live.buffer();
                                    t.length = live.length;
                                }));
        }
        {
            using T = struct dmaprobe_iova_free;
            all.push_back(of<T>({.min_size = 16,
                                 .reserved = {AT(__reserved)},
                                 .ids = {{AT(id), Kind::iova}},
                                 .needs = Needs::iova},
                                [](Live& live, T& t) { t.id = live.iova(); }));
        }
        {
            using T = struct dmaprobe_iova_link;
            all.push_back(of<T>({.min_size = 56,
                                 .reserved = {AT(bar)},
                                 .attrs = {{AT(attrs), DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_MMIO}},
                                 .ids = {{AT(id), Kind::iova}, {AT(buffer_id), Kind::buffer}},
                                 .enums = {{AT(dir), 3}},
                                 .needs = Needs::iova},
                                [](Live& live, T& t) {
                                    t.id = live.iova();
                                    t.buffer_id = live.buffer();
                                    t.length = live.length / 2;
                                }));
        }
        {
            using T = struct dmaprobe_iova_sync;
            all.push_back(of<T>({.min_size = 32,
                                 .reserved = {AT(__reserved)},
                                 .ids = {{AT(id), Kind::iova}},
                                 .needs = Needs::iova},
                                [](Live& live, T& t) {
                                    t.id = live.iova(true);
                                    t.length = live.length / 2;
                                }));
        }
        {
            using T = struct dmaprobe_iova_unlink;
            all.push_back(of<T>({.min_size = 40,
                                 .attrs = {{AT(attrs), DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_MMIO}},
                                 .ids = {{AT(id), Kind::iova}},
                                 .enums = {{AT(dir), 3}},
                                 .needs = Needs::iova},
                                [](Live& live, T& t) {
                                    t.id = live.iova(true);
                                    t.length = live.length / 2;
                                }));
        }
        {
            using T = struct dmaprobe_iova_destroy;
            all.push_back(of<T>({.min_size = 32,
                                 .attrs = {{AT(attrs), DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_MMIO}},
                                 .ids = {{AT(id), Kind::iova}},
                                 .enums = {{AT(dir), 3}},
                                 .needs = Needs::iova},
                                [](Live& live, T& t) {
                                    t.id = live.iova(true);
                                    t.mapped_len = live.length / 2;
                                }));
        }
        {
            using T = struct dmaprobe_get_iova_state;
            all.push_back(of<T>({.min_size = 48,
                                 .ids = {{AT(id), Kind::iova}},
                                 .answers = true,
                                 .needs = Needs::iova},
                                [](Live& live, T& t) { t.id = live.iova(true); }));
        }
        {
            using T = struct dmaprobe_translate;
            all.push_back(of<T>({.min_size = 48,
                                 .flags = DMAPROBE_TRANSLATE_PHYS,
                                 .ids = {{AT(buffer_id), Kind::buffer, true, {Kind::alloc}}},
                                 .pointers = {{AT(extents)}},
                                 .answers = true,
                                 .needs = Needs::iommu},
                                [](Live& live, T& t) {
                                    live.mapping();
                                    t.iova = live.dma_addr;
                                    t.length = live.length;
                                    t.buffer_id = live.buffer();
                                    t.nr_extents = 16;
                                    t.extents = live.extents.address();
                                }));
        }
        {
            using T = struct dmaprobe_set_segments;
            all.push_back(
                of<T>({.min_size = 24,
                       .flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY |
                                DMAPROBE_SET_SEGMENTS_MIN_ALIGN},
                      [](Live&, T& t) {
                          t.flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE;
                          t.max_segment_size = 1 << 16;
                      }));
        }
        {
            using T = struct dmaprobe_map_sg;
            all.push_back(of<T>({.min_size = 48,
                                 .attrs = {{AT(attrs), DMAPROBE_MAP_ATTRS}},
                                 .enums = {{AT(kind), 2}, {AT(dir), 3}},
                                 .pointers = {{AT(entries), true}},
                                 .answers = true,
                                 .makes = IdField{AT(id), Kind::mapping}},
                                [](Live& live, T& t) {
                                    const dmaprobe_sg_entry entry = {.offset = 0,
                                                                     .length = live.length,
                                                                     .buffer_id = live.buffer(),
                                                                     .__reserved = 0};

                                    memcpy(live.extents.data(), &entry, sizeof(entry));
                                    t.entries = live.extents.address();
                                    t.nr_entries = 1;
                                }));
        }
        {
            using T = struct dmaprobe_map_resource;
            all.push_back(of<T>({.min_size = 56,
                                 .reserved = {AT(__reserved)},
                                 .attrs = {{AT(attrs), resource_attrs}},
                                 .enums = {{AT(bar), 6}, {AT(dir), 3}},
                                 .answers = true,
                                 .makes = IdField{AT(id), Kind::mapping}},
                                [](Live& live, T& t) { t.length = live.length; }));
        }
        {
            using T = struct dmaprobe_get_segments;
            all.push_back(
                of<T>({.min_size = 24,
                       .ids = {{AT(id), Kind::mapping, false, {Kind::alloc, Kind::block}}},
                       .pointers = {{AT(segments)}},
                       .answers = true},
                      [](Live& live, T& t) {
                          t.id = live.mapping();
                          t.nr_segments = 16;
                          t.segments = live.extents.address();
                      }));
        }
        {
            using T = struct dmaprobe_buffer_pin;
            all.push_back(of<T>({.min_size = 32,
                                 .flags = DMAPROBE_BUFFER_PIN_READ_ONLY,
                                 .reserved = {AT(__reserved)},
                                 .pointers = {{AT(addr)}},
                                 .answers = true,
                                 .makes = IdField{AT(id), Kind::buffer}},
                                [](Live& live, T& t) {
                                    t.addr = live.extents.address();
                                    t.length = live.extents.size();
                                }));
        }
        {
            using T = struct dmaprobe_copy;
            all.push_back(of<T>({.min_size = 40,
                                 .ids = {{AT(id), Kind::buffer, false, {Kind::alloc, Kind::block}}},
                                 .enums = {{AT(dir), 2}},
                                 .pointers = {{AT(addr)}}},
                                [](Live& live, T& t) {
                                    t.id = live.buffer();
                                    t.length = live.extents.size();
                                    t.addr = live.extents.address();
                                }));
        }
        {
            using T = struct dmaprobe_nop;
            all.push_back(of<T>({.min_size = 8}, [](Live&, T&) {}));
        }
        {
            using T = struct dmaprobe_get_stats;
            all.push_back(of<T>({.min_size = 48, .answers = true}, [](Live&, T&) {}));
        }
        {
            using T = struct dmaprobe_run;
            all.push_back(of<T>(
                {.min_size = 24,
                 .flags = DMAPROBE_RUN_CONTINUE,
                 .pointers = {{AT(ops)}},
                 .answers = true},
                [](Live& live, T& t) {
                    auto* nop = reinterpret_cast<dmaprobe_nop*>(live.extents.data() +
                                                                sizeof(dmaprobe_run_op));
                    *nop = {.size = sizeof(*nop), .flags = 0};
                    *reinterpret_cast<dmaprobe_run_op*>(live.extents.data()) = {
                        .cmd = DMAPROBE_NOP, .result = 0, .arg = reinterpret_cast<uintptr_t>(nop)};
                    t.nr_ops = 1;
                    t.ops = live.extents.address();
                }));
        }
        {
            using T = struct dmaprobe_bench;
            all.push_back(of<T>({.min_size = 32,
                                 .ids = {{AT(buffer_id), Kind::buffer}},
                                 .enums = {{AT(kind), 2}},
                                 .answers = true},
                                [](Live& live, T& t) {
                                    t.kind = DMAPROBE_BENCH_MAP_PAGE;
                                    t.buffer_id = live.buffer();
                                    t.count = 1;
                                }));
        }
        {
            using T = struct dmaprobe_map_dmabuf;
            all.push_back(of<T>({.min_size = 32,
                                 .enums = {{AT(dir), 3}},
                                 .answers = true,
                                 .makes = IdField{AT(id), Kind::mapping},
                                 .fd = AT(fd)},
                                [](Live& live, T& t) { t.fd = live.dmabuf(); }));
        }
        {
            using T = struct dmaprobe_alloc;
            all.push_back(of<T>(
                {.min_size = 56,
                 .attrs = {{AT(attrs), DMAPROBE_ATTR_WEAK_ORDERING | DMAPROBE_ATTR_WRITE_COMBINE |
                                           DMAPROBE_ATTR_NO_KERNEL_MAPPING |
                                           DMAPROBE_ATTR_FORCE_CONTIGUOUS |
                                           DMAPROBE_ATTR_ALLOC_SINGLE_PAGES |
                                           DMAPROBE_ATTR_NO_WARN | DMAPROBE_ATTR_PRIVILEGED}},
                 .enums = {{AT(kind), 4}, {AT(dir), 3}},
                 .answers = true,
                 .makes = IdField{AT(id), Kind::alloc}},
                [](Live& live, T& t) { t.length = live.length; }));
        }
        {
            using T = struct dmaprobe_get_sgtable;
            all.push_back(of<T>({.min_size = 24,
                                 .flags = DMAPROBE_SGTABLE_PHYS,
                                 .ids = {{AT(id), Kind::alloc}},
                                 .pointers = {{AT(entries)}},
                                 .answers = true},
                                [](Live& live, T& t) {
                                    t.id = live.alloc();
                                    t.nr_entries = 16;
                                    t.entries = live.extents.address();
                                }));
        }
        {
            using T = struct dmaprobe_export;
            all.push_back(of<T>(
                {.min_size = 16, .ids = {{AT(id), Kind::alloc}}, .answers = true, .fd = AT(fd)},
                [](Live& live, T& t) { t.id = live.alloc(); }));
        }
        {
            using T = struct dmaprobe_pool_create;
            all.push_back(of<T>({.min_size = 40,
                                 .reserved = {AT(__reserved)},
                                 .answers = true,
                                 .makes = IdField{AT(id), Kind::pool}},
                                [](Live&, T& t) { t.block_size = 64; }));
        }
        {
            using T = struct dmaprobe_pool_alloc;
            all.push_back(of<T>({.min_size = 24,
                                 .ids = {{AT(pool_id), Kind::pool}},
                                 .answers = true,
                                 .makes = IdField{AT(id), Kind::block}},
                                [](Live& live, T& t) { t.pool_id = live.pool(); }));
        }
        return all;
    }();
    return list;
}

#undef AT

const Op& op_of(unsigned long command) {
    return *std::ranges::find(ops(), command, &Op::command);
}

bool only_reads(const Op& op) {
    return op.name.starts_with("get_") || op.command == DMAPROBE_NOP;
}

std::string unsupported_reason(const Op& op, const Raw& session) {
    if (op.needs == Needs::nothing)
        return "";
    if (op.needs == Needs::iova)
        if (auto why = session.missing(DMAPROBE_FEATURE_DMA_IOVA))
            return *why;
    return session.translated() ? "" : "no IOMMU translates for the device";
}

} // namespace selftest

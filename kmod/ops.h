/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The op table, for whoever includes it with an OP() of its own:
 *
 *	OP(command, name of struct and handler, last member of the struct's first
 *	   version, what else struct dmaprobe_op has for it)
 */
OP(GET_INFO, get_info, attrs, .read_only = true, .writeback = true)
OP(GET_LIMITS, get_limits, __reserved, .read_only = true, .may_block = true, .writeback = true)
OP(GET_DOMAIN, get_domain, driver, .read_only = true, .may_block = true, .writeback = true)
OP(GET_STATS, get_stats, pinned, .read_only = true, .may_block = true, .writeback = true)
OP(GET_IOVA_STATE, get_iova_state, bounced, .read_only = true, .writeback = true)
OP(GET_SEGMENTS, get_segments, segments, .read_only = true, .self_locked = true,
   .may_block = true, .writeback = true)
OP(GET_SGTABLE, get_sgtable, entries, .flags = DMAPROBE_SGTABLE_PHYS, .read_only = true,
   .self_locked = true, .may_block = true, .writeback = true)
OP(NOP, nop, flags, .read_only = true)
OP(SET_MASK, set_mask, mask, .exclusive = true, .may_block = true,
   .flags = DMAPROBE_SET_MASK_STREAMING | DMAPROBE_SET_MASK_COHERENT)
OP(SET_SEGMENTS, set_segments, segment_boundary_mask, .exclusive = true, .may_block = true,
   .flags = DMAPROBE_SET_SEGMENTS_MAX_SIZE | DMAPROBE_SET_SEGMENTS_BOUNDARY |
	    DMAPROBE_SET_SEGMENTS_MIN_ALIGN)
OP(ENABLE, enable, __reserved, .self_locked = true, .may_block = true)
OP(DESTROY, destroy, __reserved, .may_block = true)
OP(BUFFER_ALLOC, buffer_alloc, offset, .flags = DMAPROBE_BUFFER_ALLOC_NODE, .self_locked = true,
   .may_block = true, .writeback = true)
OP(BUFFER_PIN, buffer_pin, __reserved, .flags = DMAPROBE_BUFFER_PIN_READ_ONLY,
   .self_locked = true, .may_block = true, .writeback = true)
OP(COPY, copy, addr, .self_locked = true, .may_block = true)
OP(MAP, map, __reserved, .writeback = true)
OP(MAP_RESOURCE, map_resource, __reserved, .writeback = true)
OP(MAP_SG, map_sg, need_sync, .self_locked = true, .may_block = true, .writeback = true)
OP(MAP_DMABUF, map_dmabuf, length, .self_locked = true, .may_block = true, .writeback = true)
OP(UNMAP, unmap, __reserved)
OP(SYNC, sync, length)
OP(IOVA_ALLOC, iova_alloc, addr, .flags = DMAPROBE_IOVA_ALLOC_TRY, .writeback = true)
OP(IOVA_FREE, iova_free, __reserved)
OP(IOVA_LINK, iova_link, attrs)
OP(IOVA_SYNC, iova_sync, __reserved)
OP(IOVA_UNLINK, iova_unlink, attrs)
OP(IOVA_DESTROY, iova_destroy, attrs)
OP(ALLOC, alloc, mmap_offset, .self_locked = true, .may_block = true, .writeback = true)
OP(EXPORT, export, fd, .self_locked = true, .may_block = true, .writeback = true)
OP(POOL_CREATE, pool_create, __reserved, .may_block = true, .writeback = true)
OP(POOL_ALLOC, pool_alloc, dma_addr, .may_block = true, .writeback = true)
OP(TRANSLATE, translate, translated, .flags = DMAPROBE_TRANSLATE_PHYS, .self_locked = true,
   .may_block = true, .writeback = true)
OP(RUN, run, ops, .flags = DMAPROBE_RUN_CONTINUE, .self_locked = true, .may_block = true,
   .writeback = true)
OP(BENCH, bench, ns, .self_locked = true, .may_block = true, .writeback = true)

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The calls of the kernel's DMA API, old and new, and what became of each: the
 * command that drives it, or why there is none.
 *
 * Documentation/api-calls.csv says the same to readers; the selftests compare.
 */
#include "compat.h"
#include "private.h"

struct call {
	u32 status;
	const char *name;
	const char *detail;
};

#define CALL(_status, _name, _detail) {					\
	.status = (_status) +						\
		BUILD_BUG_ON_ZERO(sizeof(_name) >			\
				  sizeof_field(struct dmaprobe_call, name)) + \
		BUILD_BUG_ON_ZERO(sizeof(_detail) >			\
				  sizeof_field(struct dmaprobe_call, detail)), \
	.name = _name,							\
	.detail = _detail,						\
}

#define OFFERED(_name, _op) CALL(DMAPROBE_CALL_OFFERED, _name, _op)
#define NEEDS(_have, _name, _op, _since)				\
	CALL(_have ? DMAPROBE_CALL_OFFERED : DMAPROBE_CALL_MISSING, _name, \
	     __builtin_choose_expr(_have, _op,				\
				   "this kernel is older than Linux " _since))
#define NEEDS_IOVA(_name, _op)	NEEDS(DMAPROBE_HAVE_DMA_IOVA, _name, _op, "6.16")
#define NEEDS_PHYS(_name, _op)	NEEDS(DMAPROBE_HAVE_DMA_MAP_PHYS, _name, _op, "6.18")
#define GONE(_name, _why) CALL(DMAPROBE_CALL_GONE, _name, _why)

static const struct call calls[] = {
	/* Streaming mappings */
	OFFERED("dma_map_single", "DMAPROBE_MAP, kind SINGLE"),
	OFFERED("dma_map_single_attrs", "DMAPROBE_MAP, kind SINGLE, attrs"),
	OFFERED("dma_unmap_single", "DMAPROBE_UNMAP"),
	OFFERED("dma_unmap_single_attrs",
		"DMAPROBE_UNMAP, the attrs of the mapping"),
	OFFERED("dma_map_page", "DMAPROBE_MAP, kind PAGE"),
	OFFERED("dma_map_page_attrs", "DMAPROBE_MAP, kind PAGE, attrs"),
	OFFERED("dma_unmap_page", "DMAPROBE_UNMAP"),
	OFFERED("dma_unmap_page_attrs",
		"DMAPROBE_UNMAP, the attrs of the mapping"),
	NEEDS_PHYS("dma_map_phys", "DMAPROBE_MAP, kind PHYS"),
	NEEDS_PHYS("dma_unmap_phys", "DMAPROBE_UNMAP"),
	OFFERED("dma_mapping_error", "DMAPROBE_MAP, ENOMEM"),
	OFFERED("dma_map_sg", "DMAPROBE_MAP_SG, kind LIST"),
	OFFERED("dma_map_sg_attrs", "DMAPROBE_MAP_SG, kind LIST, attrs"),
	OFFERED("dma_unmap_sg", "DMAPROBE_UNMAP"),
	OFFERED("dma_unmap_sg_attrs",
		"DMAPROBE_UNMAP, the attrs of the mapping"),
	OFFERED("dma_map_sgtable", "DMAPROBE_MAP_SG, kind TABLE"),
	OFFERED("dma_unmap_sgtable", "DMAPROBE_UNMAP"),
	OFFERED("sg_dma_address", "DMAPROBE_SEGMENTS, dma_addr"),
	OFFERED("sg_dma_len", "DMAPROBE_SEGMENTS, length"),
	OFFERED("dma_map_resource", "DMAPROBE_MAP_RESOURCE"),
	OFFERED("dma_unmap_resource", "DMAPROBE_UNMAP"),
	OFFERED("dma_sync_single_for_cpu", "DMAPROBE_SYNC, FOR_CPU, offset 0"),
	OFFERED("dma_sync_single_for_device",
		"DMAPROBE_SYNC, FOR_DEVICE, offset 0"),
	OFFERED("dma_sync_single_range_for_cpu", "DMAPROBE_SYNC, FOR_CPU"),
	OFFERED("dma_sync_single_range_for_device",
		"DMAPROBE_SYNC, FOR_DEVICE"),
	OFFERED("dma_sync_sg_for_cpu", "DMAPROBE_SYNC, FOR_CPU, of a list"),
	OFFERED("dma_sync_sg_for_device",
		"DMAPROBE_SYNC, FOR_DEVICE, of a list"),
	OFFERED("dma_sync_sgtable_for_cpu",
		"DMAPROBE_SYNC, FOR_CPU, of a table"),
	OFFERED("dma_sync_sgtable_for_device",
		"DMAPROBE_SYNC, FOR_DEVICE, of a table"),
	OFFERED("dma_need_sync", "DMAPROBE_MAP, need_sync"),

	/* IOVA space */
	NEEDS_IOVA("dma_iova_try_alloc", "DMAPROBE_IOVA_ALLOC"),
	NEEDS_IOVA("dma_use_iova", "DMAPROBE_IOVA_STATE, use"),
	NEEDS_IOVA("dma_iova_size", "DMAPROBE_IOVA_STATE, length"),
	NEEDS_IOVA("dma_iova_link", "DMAPROBE_IOVA_LINK"),
	NEEDS_IOVA("dma_iova_sync", "DMAPROBE_IOVA_SYNC"),
	NEEDS_IOVA("dma_iova_unlink", "DMAPROBE_IOVA_UNLINK"),
	NEEDS_IOVA("dma_iova_free", "DMAPROBE_IOVA_FREE"),
	NEEDS_IOVA("dma_iova_destroy", "DMAPROBE_IOVA_DESTROY"),
	OFFERED("iommu_iova_to_phys", "DMAPROBE_TRANSLATE"),

	/* Allocations */
	OFFERED("dma_alloc_coherent", "DMAPROBE_ALLOC, kind COHERENT"),
	OFFERED("dma_alloc_attrs", "DMAPROBE_ALLOC, kind COHERENT, attrs"),
	OFFERED("dma_free_coherent", "DMAPROBE_ALLOC_FREE"),
	OFFERED("dma_free_attrs",
		"DMAPROBE_ALLOC_FREE, the attrs of the allocation"),
	OFFERED("dma_mmap_coherent",
		"DMAPROBE_ALLOC, kind COHERENT, mmap_offset"),
	OFFERED("dma_mmap_attrs",
		"DMAPROBE_ALLOC, kind COHERENT, attrs, mmap_offset"),
	OFFERED("dma_can_mmap", "DMAPROBE_LIMITS, props CAN_MMAP"),
	OFFERED("dma_get_sgtable", "DMAPROBE_SGTABLE"),
	OFFERED("dma_get_sgtable_attrs",
		"DMAPROBE_SGTABLE, the attrs of the allocation"),
	OFFERED("dma_alloc_noncoherent", "DMAPROBE_ALLOC, kind NONCOHERENT"),
	OFFERED("dma_free_noncoherent", "DMAPROBE_ALLOC_FREE"),
	OFFERED("dma_alloc_pages", "DMAPROBE_ALLOC, kind PAGES"),
	OFFERED("dma_free_pages", "DMAPROBE_ALLOC_FREE"),
	OFFERED("dma_mmap_pages",
		"DMAPROBE_ALLOC, kinds NONCOHERENT and PAGES, mmap_offset"),
	OFFERED("dma_alloc_noncontiguous",
		"DMAPROBE_ALLOC, kind NONCONTIGUOUS"),
	OFFERED("dma_free_noncontiguous", "DMAPROBE_ALLOC_FREE"),
	OFFERED("dma_mmap_noncontiguous",
		"DMAPROBE_ALLOC, kind NONCONTIGUOUS, mmap_offset"),
	OFFERED("dma_vmap_noncontiguous", "DMAPROBE_COPY, kind NONCONTIGUOUS"),
	OFFERED("dma_vunmap_noncontiguous",
		"DMAPROBE_COPY, kind NONCONTIGUOUS"),
	OFFERED("flush_kernel_vmap_range", "DMAPROBE_COPY, kind NONCONTIGUOUS"),
	OFFERED("invalidate_kernel_vmap_range",
		"DMAPROBE_COPY, kind NONCONTIGUOUS"),

	/* Pools */
	OFFERED("dma_pool_create", "DMAPROBE_POOL_CREATE"),
	OFFERED("dma_pool_destroy", "DMAPROBE_POOL_DESTROY"),
	OFFERED("dma_pool_alloc", "DMAPROBE_POOL_ALLOC"),
	OFFERED("dma_pool_free", "DMAPROBE_POOL_FREE"),

	/* dma-bufs */
	OFFERED("dma_buf_get", "DMAPROBE_MAP_DMABUF"),
	OFFERED("dma_buf_attach", "DMAPROBE_MAP_DMABUF"),
	OFFERED("dma_buf_map_attachment", "DMAPROBE_MAP_DMABUF"),
	OFFERED("dma_buf_unmap_attachment", "DMAPROBE_UNMAP"),
	OFFERED("dma_buf_detach", "DMAPROBE_UNMAP"),
	OFFERED("dma_buf_put", "DMAPROBE_UNMAP"),
	OFFERED("dma_buf_export", "DMAPROBE_EXPORT"),

	/* User memory */
	OFFERED("pin_user_pages_fast", "DMAPROBE_BUFFER_PIN"),
	OFFERED("unpin_user_pages", "DMAPROBE_BUFFER_FREE"),

	/* What a device can do */
	OFFERED("dma_set_mask", "DMAPROBE_SET_MASK, STREAMING"),
	OFFERED("dma_set_coherent_mask", "DMAPROBE_SET_MASK, COHERENT"),
	OFFERED("dma_set_mask_and_coherent",
		"DMAPROBE_SET_MASK, STREAMING and COHERENT"),
	OFFERED("dma_get_mask", "DMAPROBE_LIMITS, dma_mask"),
	OFFERED("dma_get_required_mask", "DMAPROBE_LIMITS, required_mask"),
	OFFERED("dma_addressing_limited",
		"DMAPROBE_LIMITS, props ADDRESSING_LIMITED"),
	OFFERED("dma_dev_need_sync", "DMAPROBE_LIMITS, props NEED_SYNC"),
	NEEDS_IOVA("dma_need_unmap", "DMAPROBE_LIMITS, props NEED_UNMAP"),
	OFFERED("dma_max_mapping_size", "DMAPROBE_LIMITS, max_mapping_size"),
	OFFERED("dma_opt_mapping_size", "DMAPROBE_LIMITS, opt_mapping_size"),
	OFFERED("dma_get_merge_boundary", "DMAPROBE_LIMITS, merge_boundary"),
	OFFERED("dma_get_cache_alignment", "DMAPROBE_LIMITS, cache_alignment"),
	OFFERED("dma_get_max_seg_size", "DMAPROBE_LIMITS, max_segment_size"),
	OFFERED("dma_set_max_seg_size", "DMAPROBE_SET_SEGMENTS, MAX_SIZE"),
	OFFERED("dma_get_seg_boundary",
		"DMAPROBE_LIMITS, segment_boundary_mask"),
	OFFERED("dma_set_seg_boundary", "DMAPROBE_SET_SEGMENTS, BOUNDARY"),
	OFFERED("dma_get_min_align_mask", "DMAPROBE_LIMITS, min_align_mask"),
	OFFERED("dma_set_min_align_mask", "DMAPROBE_SET_SEGMENTS, MIN_ALIGN"),

	/* What is gone */
	GONE("pci_alloc_consistent", "replaced by dma_alloc_coherent"),
	GONE("pci_free_consistent", "replaced by dma_free_coherent"),
	GONE("pci_pool_create", "replaced by dma_pool_create"),
	GONE("pci_pool_alloc", "replaced by dma_pool_alloc"),
	GONE("pci_pool_free", "replaced by dma_pool_free"),
	GONE("pci_pool_destroy", "replaced by dma_pool_destroy"),
	GONE("pci_dma_supported",
	     "replaced by dma_set_mask, which answers EIO"),
	GONE("pci_set_dma_mask", "replaced by dma_set_mask"),
	GONE("pci_map_single", "replaced by dma_map_single"),
	GONE("pci_unmap_single", "replaced by dma_unmap_single"),
	GONE("pci_map_page", "replaced by dma_map_page"),
	GONE("pci_unmap_page", "replaced by dma_unmap_page"),
	GONE("pci_dma_mapping_error", "replaced by dma_mapping_error"),
	GONE("pci_map_sg", "replaced by dma_map_sg"),
	GONE("pci_unmap_sg", "replaced by dma_unmap_sg"),
	GONE("pci_dma_sync_single",
	     "replaced by dma_sync_single_for_cpu and dma_sync_single_for_device"),
	GONE("pci_dma_sync_sg",
	     "replaced by dma_sync_sg_for_cpu and dma_sync_sg_for_device"),
	GONE("dma_sync_single",
	     "replaced by dma_sync_single_for_cpu and dma_sync_single_for_device"),
	GONE("dma_sync_sg",
	     "replaced by dma_sync_sg_for_cpu and dma_sync_sg_for_device"),
	GONE("dma_sync_single_range",
	     "replaced by dma_sync_single_range_for_cpu and dma_sync_single_range_for_device"),
	GONE("dma_cache_sync",
	     "replaced by dma_sync_single_for_cpu and dma_sync_single_for_device"),
	GONE("DEFINE_DMA_ATTRS",
	     "replaced by an unsigned long of DMA_ATTR_* bits"),
	GONE("dma_set_attr", "replaced by an unsigned long of DMA_ATTR_* bits"),
	GONE("dma_get_attr", "replaced by an unsigned long of DMA_ATTR_* bits"),
	GONE("dma_supported",
	     "the kernel's own now; dma_set_mask answers EIO instead"),
	GONE("dma_is_consistent",
	     "dropped: coherent memory always is; LIMITS, props COHERENT, tells of the rest"),
	GONE("dma_declare_coherent_memory",
	     "not for modules any more; the platform's reserved memory instead"),
	GONE("dma_release_declared_memory",
	     "replaced by dma_release_coherent_memory, which is not for modules"),
	GONE("dma_mark_declared_memory_occupied", "dropped: nobody used it"),
	GONE("iommu_get_dma_cookie",
	     "the IOMMU core's own now; done when it makes a domain"),
	GONE("iommu_put_dma_cookie",
	     "the IOMMU core's own now; done when it frees a domain"),
	GONE("iommu_dma_init_domain",
	     "internal now; done when the device gets its domain"),
	GONE("dma_direction_to_prot",
	     "internal now, as dma_info_to_prot; what maps takes a direction"),
	GONE("iommu_dma_alloc",
	     "internal now, with other arguments; behind dma_alloc_attrs"),
	GONE("iommu_dma_free",
	     "internal now, with other arguments; behind dma_free_attrs"),
	GONE("iommu_dma_mmap",
	     "internal now, with other arguments; behind dma_mmap_attrs"),
};

int dmaprobe_op_version(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_version *cmd = ucmd->cmd;

	cmd->abi_version = DMAPROBE_ABI_VERSION;
	cmd->nr_calls = ARRAY_SIZE(calls);
	return 0;
}

int dmaprobe_op_call(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_call *cmd = ucmd->cmd;

	if (cmd->index >= ARRAY_SIZE(calls))
		return -ENOENT;
	cmd->status = calls[cmd->index].status;
	strscpy_pad(cmd->name, calls[cmd->index].name, sizeof(cmd->name));
	strscpy_pad(cmd->detail, calls[cmd->index].detail, sizeof(cmd->detail));
	return 0;
}

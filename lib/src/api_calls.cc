// SPDX-License-Identifier: MIT
// The calls of the kernel's DMA API, old and new: the command that drives each, or why there is
// none. Documentation/api-calls.csv is the same table for readers; a test compares them.
#include <dmaprobe/query.h>

#include <array>
#include <string_view>

namespace dmaprobe {

namespace {

/// Which kernels have a call.
enum class Have {
    always,     ///< all that the module is built for
    since_6_16, ///< those that have the dma_iova_*() calls
    since_6_18, ///< those that have dma_map_phys()
    gone,       ///< none of them; the detail says what replaced it
    not_driven, ///< all, but no command drives it; the detail says why
};

struct Entry {
    Have have;
    std::string_view name;
    std::string_view detail; ///< the command, and with which of its members
};

constexpr std::array entries{
    // Streaming mappings
    Entry{Have::always, "dma_map_single",
          "DMAPROBE_MAP, kind SINGLE: by dma_map_single_attrs(), of which it is a macro"},
    Entry{Have::always, "dma_map_single_attrs", "DMAPROBE_MAP, kind SINGLE"},
    Entry{Have::always, "dma_unmap_single",
          "DMAPROBE_UNMAP, of kind SINGLE: by dma_unmap_single_attrs(), of which it is a macro"},
    Entry{Have::always, "dma_unmap_single_attrs", "DMAPROBE_UNMAP, of kind SINGLE"},
    Entry{Have::always, "dma_map_page",
          "DMAPROBE_MAP, kind PAGE: by dma_map_page_attrs(), of which it is a macro"},
    Entry{Have::always, "dma_map_page_attrs", "DMAPROBE_MAP, kind PAGE"},
    Entry{Have::always, "dma_unmap_page",
          "DMAPROBE_UNMAP, of kind PAGE: by dma_unmap_page_attrs(), of which it is a macro"},
    Entry{Have::always, "dma_unmap_page_attrs", "DMAPROBE_UNMAP, of kind PAGE"},
    Entry{Have::since_6_18, "dma_map_phys", "DMAPROBE_MAP, kind PHYS"},
    Entry{Have::since_6_18, "dma_unmap_phys", "DMAPROBE_UNMAP, of kind PHYS"},
    Entry{Have::always, "dma_mapping_error", "DMAPROBE_MAP, ENOMEM"},
    Entry{Have::always, "dma_map_sg",
          "DMAPROBE_MAP_SG, kind LIST: by dma_map_sg_attrs(), of which it is a macro"},
    Entry{Have::always, "dma_map_sg_attrs", "DMAPROBE_MAP_SG, kind LIST"},
    Entry{Have::always, "dma_unmap_sg",
          "DMAPROBE_UNMAP, of kind LIST: by dma_unmap_sg_attrs(), of which it is a macro"},
    Entry{Have::always, "dma_unmap_sg_attrs", "DMAPROBE_UNMAP, of kind LIST"},
    Entry{Have::always, "dma_map_sgtable", "DMAPROBE_MAP_SG, kind TABLE"},
    Entry{Have::always, "dma_unmap_sgtable", "DMAPROBE_UNMAP, of kind TABLE"},
    Entry{Have::always, "sg_dma_address", "DMAPROBE_GET_SEGMENTS, dma_addr"},
    Entry{Have::always, "sg_dma_len", "DMAPROBE_GET_SEGMENTS, length"},
    Entry{Have::always, "dma_map_resource", "DMAPROBE_MAP_RESOURCE"},
    Entry{Have::always, "dma_unmap_resource", "DMAPROBE_UNMAP, of a BAR"},
    Entry{Have::always, "dma_sync_single_for_cpu",
          "DMAPROBE_SYNC, FOR_CPU: by dma_sync_single_range_for_cpu(), an inline of it"},
    Entry{Have::always, "dma_sync_single_for_device",
          "DMAPROBE_SYNC, FOR_DEVICE: by dma_sync_single_range_for_device(), an inline of it"},
    Entry{Have::always, "dma_sync_single_range_for_cpu", "DMAPROBE_SYNC, FOR_CPU"},
    Entry{Have::always, "dma_sync_single_range_for_device", "DMAPROBE_SYNC, FOR_DEVICE"},
    Entry{Have::always, "dma_sync_sg_for_cpu", "DMAPROBE_SYNC, FOR_CPU, of kind LIST"},
    Entry{Have::always, "dma_sync_sg_for_device", "DMAPROBE_SYNC, FOR_DEVICE, of kind LIST"},
    Entry{Have::always, "dma_sync_sgtable_for_cpu",
          "DMAPROBE_SYNC, FOR_CPU, of kinds TABLE and NONCONTIGUOUS"},
    Entry{Have::always, "dma_sync_sgtable_for_device",
          "DMAPROBE_SYNC, FOR_DEVICE, of kinds TABLE and NONCONTIGUOUS"},
    Entry{Have::always, "dma_need_sync", "DMAPROBE_MAP, need_sync"},
    // IOVA space
    Entry{Have::since_6_16, "dma_iova_try_alloc", "DMAPROBE_IOVA_ALLOC"},
    Entry{Have::since_6_16, "dma_use_iova", "DMAPROBE_GET_IOVA_STATE, use"},
    Entry{Have::since_6_16, "dma_iova_size", "DMAPROBE_GET_IOVA_STATE, length"},
    Entry{Have::since_6_16, "dma_iova_link", "DMAPROBE_IOVA_LINK"},
    Entry{Have::since_6_16, "dma_iova_sync", "DMAPROBE_IOVA_SYNC"},
    Entry{Have::since_6_16, "dma_iova_unlink", "DMAPROBE_IOVA_UNLINK"},
    Entry{Have::since_6_16, "dma_iova_free", "DMAPROBE_IOVA_FREE"},
    Entry{Have::since_6_16, "dma_iova_destroy", "DMAPROBE_IOVA_DESTROY"},
    Entry{Have::always, "iommu_iova_to_phys", "DMAPROBE_TRANSLATE"},
    // Allocations
    Entry{Have::always, "dma_alloc_coherent",
          "DMAPROBE_ALLOC, kind COHERENT: by dma_alloc_attrs(), of which it is an inline"},
    Entry{Have::always, "dma_alloc_attrs", "DMAPROBE_ALLOC, kind COHERENT"},
    Entry{Have::always, "dma_alloc_wc",
          "DMAPROBE_ALLOC, kind COHERENT, attrs WRITE_COMBINE: by dma_alloc_attrs(), of which it "
          "is an inline"},
    Entry{Have::always, "dma_free_coherent",
          "DMAPROBE_DESTROY, of kind COHERENT: by dma_free_attrs(), of which it is an inline"},
    Entry{Have::always, "dma_free_attrs", "DMAPROBE_DESTROY, of kind COHERENT"},
    Entry{Have::always, "dma_free_wc",
          "DMAPROBE_DESTROY, of kind COHERENT, attrs WRITE_COMBINE: by dma_free_attrs(), of which "
          "it is an inline"},
    Entry{
        Have::always, "dma_mmap_coherent",
        "DMAPROBE_ALLOC, kind COHERENT, mmap_offset: by dma_mmap_attrs(), of which it is a macro"},
    Entry{Have::always, "dma_mmap_attrs", "DMAPROBE_ALLOC, kind COHERENT, mmap_offset"},
    Entry{Have::always, "dma_mmap_wc",
          "DMAPROBE_ALLOC, kind COHERENT, attrs WRITE_COMBINE, mmap_offset: by dma_mmap_attrs(), "
          "of which it is an inline"},
    Entry{Have::always, "dma_can_mmap", "DMAPROBE_GET_LIMITS, props CAN_MMAP"},
    Entry{Have::always, "dma_get_sgtable",
          "DMAPROBE_GET_SGTABLE, of kind COHERENT: by dma_get_sgtable_attrs(), of which it is a "
          "macro"},
    Entry{Have::always, "dma_get_sgtable_attrs", "DMAPROBE_GET_SGTABLE, of kind COHERENT"},
    Entry{Have::always, "dma_alloc_noncoherent", "DMAPROBE_ALLOC, kind NONCOHERENT"},
    Entry{Have::always, "dma_free_noncoherent", "DMAPROBE_DESTROY, of kind NONCOHERENT"},
    Entry{Have::always, "dma_alloc_pages", "DMAPROBE_ALLOC, kind PAGES"},
    Entry{Have::always, "dma_free_pages", "DMAPROBE_DESTROY, of kind PAGES"},
    Entry{Have::always, "dma_mmap_pages",
          "DMAPROBE_ALLOC, kinds NONCOHERENT and PAGES, mmap_offset"},
    Entry{Have::always, "dma_alloc_noncontiguous", "DMAPROBE_ALLOC, kind NONCONTIGUOUS"},
    Entry{Have::always, "dma_free_noncontiguous", "DMAPROBE_DESTROY, of kind NONCONTIGUOUS"},
    Entry{Have::always, "dma_mmap_noncontiguous",
          "DMAPROBE_ALLOC, kind NONCONTIGUOUS, mmap_offset"},
    Entry{Have::always, "dma_vmap_noncontiguous", "DMAPROBE_COPY, of kind NONCONTIGUOUS"},
    Entry{Have::always, "dma_vunmap_noncontiguous", "DMAPROBE_COPY, of kind NONCONTIGUOUS"},
    Entry{Have::always, "flush_kernel_vmap_range", "DMAPROBE_COPY, of kind NONCONTIGUOUS"},
    Entry{Have::always, "invalidate_kernel_vmap_range", "DMAPROBE_COPY, of kind NONCONTIGUOUS"},
    // Pools
    Entry{Have::always, "dma_pool_create", "DMAPROBE_POOL_CREATE"},
    Entry{Have::since_6_16, "dma_pool_create_node",
          "DMAPROBE_POOL_CREATE, by dma_pool_create(), an inline of it with NUMA_NO_NODE"},
    Entry{Have::always, "dma_pool_destroy", "DMAPROBE_DESTROY, of a pool"},
    Entry{Have::always, "dma_pool_alloc",
          "DMAPROBE_POOL_ALLOC, by dma_pool_zalloc(), an inline of it with __GFP_ZERO"},
    Entry{Have::always, "dma_pool_zalloc", "DMAPROBE_POOL_ALLOC"},
    Entry{Have::always, "dma_pool_free", "DMAPROBE_DESTROY, of a block"},
    // dma-bufs
    Entry{Have::always, "dma_buf_get", "DMAPROBE_MAP_DMABUF"},
    Entry{Have::always, "dma_buf_attach",
          "DMAPROBE_MAP_DMABUF, by dma_buf_dynamic_attach(), which is all it calls"},
    Entry{Have::always, "dma_buf_dynamic_attach", "DMAPROBE_MAP_DMABUF"},
    Entry{Have::always, "dma_buf_map_attachment", "DMAPROBE_MAP_DMABUF"},
    Entry{Have::always, "dma_buf_unmap_attachment", "DMAPROBE_UNMAP, of a dma-buf"},
    Entry{Have::always, "dma_buf_detach", "DMAPROBE_UNMAP, of a dma-buf"},
    Entry{Have::always, "dma_buf_put", "DMAPROBE_UNMAP, of a dma-buf"},
    Entry{Have::always, "dma_buf_export", "DMAPROBE_EXPORT"},
    // User memory
    Entry{Have::always, "pin_user_pages_fast", "DMAPROBE_BUFFER_PIN"},
    Entry{Have::always, "unpin_user_pages",
          "DMAPROBE_DESTROY, of a pinned buffer: by unpin_user_pages_dirty_lock(), which calls it "
          "for read-only memory"},
    Entry{Have::always, "unpin_user_pages_dirty_lock", "DMAPROBE_DESTROY, of a pinned buffer"},
    // What a device can do
    Entry{Have::always, "dma_set_mask", "DMAPROBE_SET_MASK, STREAMING"},
    Entry{Have::always, "dma_set_coherent_mask", "DMAPROBE_SET_MASK, COHERENT"},
    Entry{Have::always, "dma_set_mask_and_coherent",
          "DMAPROBE_SET_MASK, STREAMING and COHERENT: by dma_set_mask() and "
          "dma_set_coherent_mask(), of which it is an inline"},
    Entry{Have::not_driven, "dma_coerce_mask_and_coherent",
          "not for a PCI device: it would replace the dma_mask pointer that the bus has set"},
    Entry{Have::always, "dma_get_mask", "DMAPROBE_GET_LIMITS, dma_mask"},
    Entry{Have::always, "dma_get_required_mask", "DMAPROBE_GET_LIMITS, required_mask"},
    Entry{Have::always, "dma_addressing_limited", "DMAPROBE_GET_LIMITS, props ADDRESSING_LIMITED"},
    Entry{Have::always, "dma_dev_need_sync", "DMAPROBE_GET_LIMITS, props NEED_SYNC"},
    Entry{Have::since_6_16, "dma_need_unmap", "DMAPROBE_GET_LIMITS, props NEED_UNMAP"},
    Entry{Have::always, "dma_max_mapping_size", "DMAPROBE_GET_LIMITS, max_mapping_size"},
    Entry{Have::always, "dma_opt_mapping_size", "DMAPROBE_GET_LIMITS, opt_mapping_size"},
    Entry{Have::always, "dma_get_merge_boundary", "DMAPROBE_GET_LIMITS, merge_boundary"},
    Entry{Have::always, "dma_get_cache_alignment", "DMAPROBE_GET_LIMITS, cache_alignment"},
    Entry{Have::always, "dma_get_max_seg_size", "DMAPROBE_GET_LIMITS, max_segment_size"},
    Entry{Have::always, "dma_set_max_seg_size", "DMAPROBE_SET_SEGMENTS, MAX_SIZE"},
    Entry{Have::always, "dma_get_seg_boundary", "DMAPROBE_GET_LIMITS, segment_boundary_mask"},
    Entry{Have::always, "dma_set_seg_boundary", "DMAPROBE_SET_SEGMENTS, BOUNDARY"},
    Entry{Have::always, "dma_get_min_align_mask", "DMAPROBE_GET_LIMITS, min_align_mask"},
    Entry{Have::always, "dma_set_min_align_mask", "DMAPROBE_SET_SEGMENTS, MIN_ALIGN"},
    // What is gone
    Entry{Have::gone, "pci_alloc_consistent", "replaced by dma_alloc_coherent"},
    Entry{Have::gone, "pci_free_consistent", "replaced by dma_free_coherent"},
    Entry{Have::gone, "pci_pool_create", "replaced by dma_pool_create"},
    Entry{Have::gone, "pci_pool_alloc", "replaced by dma_pool_alloc"},
    Entry{Have::gone, "pci_pool_free", "replaced by dma_pool_free"},
    Entry{Have::gone, "pci_pool_destroy", "replaced by dma_pool_destroy"},
    Entry{Have::gone, "pci_dma_supported", "replaced by dma_set_mask, which answers EIO"},
    Entry{Have::gone, "pci_set_dma_mask", "replaced by dma_set_mask"},
    Entry{Have::gone, "pci_map_single", "replaced by dma_map_single"},
    Entry{Have::gone, "pci_unmap_single", "replaced by dma_unmap_single"},
    Entry{Have::gone, "pci_map_page", "replaced by dma_map_page"},
    Entry{Have::gone, "pci_unmap_page", "replaced by dma_unmap_page"},
    Entry{Have::gone, "pci_dma_mapping_error", "replaced by dma_mapping_error"},
    Entry{Have::gone, "pci_map_sg", "replaced by dma_map_sg"},
    Entry{Have::gone, "pci_unmap_sg", "replaced by dma_unmap_sg"},
    Entry{Have::gone, "pci_dma_sync_single",
          "replaced by dma_sync_single_for_cpu and dma_sync_single_for_device"},
    Entry{Have::gone, "pci_dma_sync_sg",
          "replaced by dma_sync_sg_for_cpu and dma_sync_sg_for_device"},
    Entry{Have::gone, "dma_sync_single",
          "replaced by dma_sync_single_for_cpu and dma_sync_single_for_device"},
    Entry{Have::gone, "dma_sync_sg", "replaced by dma_sync_sg_for_cpu and dma_sync_sg_for_device"},
    Entry{Have::gone, "dma_sync_single_range",
          "replaced by dma_sync_single_range_for_cpu and dma_sync_single_range_for_device"},
    Entry{Have::gone, "dma_cache_sync",
          "replaced by dma_sync_single_for_cpu and dma_sync_single_for_device"},
    Entry{Have::gone, "DEFINE_DMA_ATTRS", "replaced by an unsigned long of DMA_ATTR_* bits"},
    Entry{Have::gone, "dma_set_attr", "replaced by an unsigned long of DMA_ATTR_* bits"},
    Entry{Have::gone, "dma_get_attr", "replaced by an unsigned long of DMA_ATTR_* bits"},
    Entry{Have::gone, "dma_supported", "the kernel's own now; dma_set_mask answers EIO instead"},
    Entry{Have::gone, "dma_is_consistent",
          "dropped: coherent memory always is; for the rest see GET_LIMITS, props COHERENT"},
    Entry{Have::gone, "dma_declare_coherent_memory",
          "not for modules any more; the platform's reserved memory instead"},
    Entry{Have::gone, "dma_release_declared_memory",
          "replaced by dma_release_coherent_memory, which is not for modules"},
    Entry{Have::gone, "dma_mark_declared_memory_occupied", "dropped: nobody used it"},
    Entry{Have::gone, "iommu_get_dma_cookie",
          "the IOMMU core's own now; done when it makes a domain"},
    Entry{Have::gone, "iommu_put_dma_cookie",
          "the IOMMU core's own now; done when it frees a domain"},
    Entry{Have::gone, "iommu_dma_init_domain",
          "internal now; done when the device gets its domain"},
    Entry{Have::gone, "dma_direction_to_prot",
          "internal now, as dma_info_to_prot; the calls that map take a direction"},
    Entry{Have::gone, "iommu_dma_alloc",
          "internal now, with other arguments; behind dma_alloc_attrs"},
    Entry{Have::gone, "iommu_dma_free",
          "internal now, with other arguments; behind dma_free_attrs"},
    Entry{Have::gone, "iommu_dma_mmap",
          "internal now, with other arguments; behind dma_mmap_attrs"},
};

Call describe(const Entry& entry, const Info& info) {
    Call call{.name = std::string(entry.name),
              .status = CallStatus::offered,
              .detail = std::string(entry.detail)};
    switch (entry.have) {
    case Have::always:
        break;
    case Have::since_6_16:
        if (!info.dma_iova) {
            call.status = CallStatus::missing;
            call.detail = "this kernel is older than Linux 6.16";
        }
        break;
    case Have::since_6_18:
        if (!info.map_phys) {
            call.status = CallStatus::missing;
            call.detail = "this kernel is older than Linux 6.18";
        }
        break;
    case Have::gone:
        call.status = CallStatus::gone;
        break;
    case Have::not_driven:
        call.status = CallStatus::not_driven;
        break;
    }
    return call;
}

} // namespace

std::vector<Call> kernel_calls(const Info& info) {
    std::vector<Call> calls;
    calls.reserve(entries.size());
    for (const Entry& entry : entries)
        calls.push_back(describe(entry, info));
    return calls;
}

} // namespace dmaprobe

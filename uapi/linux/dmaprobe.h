/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * dmaprobe: drive the kernel's DMA-mapping API from user space.
 *
 * Every bound device has a node /dev/dmaprobe/<BDF>. An open file on it is a
 * session. When the last descriptor of the file is closed and nothing of it is
 * mmapped any more, the session ends and everything it created is torn down.
 */
#ifndef _UAPI_LINUX_DMAPROBE_H
#define _UAPI_LINUX_DMAPROBE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: General ioctl format
 *
 * Each command takes the address of its own struct. The first member, @size, is the size of
 * the struct as the caller knows it; it makes the structs extensible in both directions. A
 * member named flags follows in every struct, and members named __reserved must be zero.
 * Lengths, offsets and addresses are in bytes.
 *
 * The checks begin with the command, @size, the tail beyond what the kernel knows, flags
 * and the mode of the file, in this order; the others follow in none. A call that fails
 * changes nothing but memory that it was to fill. An object that a call makes can be named
 * by others only after the caller has its id.
 *
 * Every command can answer:
 *
 *  - ENOTTY: no such command.
 *  - EINVAL: @size is smaller than the struct's first version, or no multiple of 8; a
 *    reserved member is not zero; a value is out of its range; lengths overflow.
 *  - E2BIG: @size is larger than the kernel's struct and the tail is not zero; or it is
 *    larger than a page.
 *  - EOPNOTSUPP: an unknown flag or attribute, or a call that this kernel or this device's
 *    DMA domain does not offer; see ``DMAPROBE_GET_INFO``.
 *  - EBADF: the file was not opened for writing, and the command is none of
 *    ``DMAPROBE_GET_*`` and ``DMAPROBE_NOP``.
 *  - EFAULT: an address that cannot be read or written.
 *  - ENODEV: the device was unbound or unplugged. Everything the session held is torn down,
 *    or about to be.
 *
 * Commands that name an object can answer:
 *
 *  - ENOENT: the session has no object with that id, or it is of another kind.
 *  - EBUSY: the object is in use, by another object (a buffer that is still mapped or
 *    linked) or by a call of another thread in this moment.
 *
 * Commands that create something (and with ENOMEM, those that fill or read an array):
 *
 *  - ENOMEM: no memory, or a limit was reached: RLIMIT_MEMLOCK for sessions opened without
 *    CAP_IPC_LOCK and the module's device_max_mib, session_max_mib, or 1024 uses of one allocation:
 *    mmap()s, dma-bufs, imports of these.
 *  - ENOSPC: the unprivileged sessions of the device hold as many DMA addresses together
 *    as the module's device_max_addresses allows. Each mapping, entry of a list, piece of
 *    an imported dma-buf, link, IOVA space, allocation, pool and block of a pool is one.
 *  - EPERM: the session was opened without CAP_SYS_RAWIO (it is not privileged), and a
 *    privileged one has widened the limits of the device (see ``DMAPROBE_SET_MASK``,
 *    ``DMAPROBE_SET_SEGMENTS``), or the device does not see the CPU's caches.
 */

/**
 * DOC: Transports
 *
 * The same commands with the same structs go three ways, and answer alike:
 *
 *  - ioctl(), with the command as request and the struct's address as argument.
 *  - io_uring, as ``IORING_OP_URING_CMD``: sqe->cmd_op is the command, sqe->addr the
 *    struct's address, all else that the operation could use is zero (otherwise EINVAL).
 *    cqe->res is 0 or the negative errno. The struct stays where it is until the completion.
 *    Commands that may take long run in a worker of the ring; cancelling the request ends
 *    those that a signal ends.
 *  - ``DMAPROBE_RUN``, which makes many calls in one.
 */

/* Raised when a command is added or a struct grows. */
#define DMAPROBE_ABI_VERSION	1

/**
 * enum dmaprobe_dir - direction of a mapping, as in the kernel's enum dma_data_direction
 * @DMAPROBE_DIR_BIDIRECTIONAL: the device reads and writes
 * @DMAPROBE_DIR_TO_DEVICE: the device reads
 * @DMAPROBE_DIR_FROM_DEVICE: the device writes
 */
enum dmaprobe_dir {
	DMAPROBE_DIR_BIDIRECTIONAL = 0,
	DMAPROBE_DIR_TO_DEVICE = 1,
	DMAPROBE_DIR_FROM_DEVICE = 2,
};

/**
 * enum dmaprobe_attrs - DMA attributes, the kernel's DMA_ATTR_* of these names
 * @DMAPROBE_ATTR_WEAK_ORDERING: reads and writes may be weakly ordered
 * @DMAPROBE_ATTR_WRITE_COMBINE: the CPU's writes may be combined
 * @DMAPROBE_ATTR_NO_KERNEL_MAPPING: no kernel mapping of the memory is needed
 * @DMAPROBE_ATTR_SKIP_CPU_SYNC: mapping and unmapping synchronise nothing
 * @DMAPROBE_ATTR_FORCE_CONTIGUOUS: the memory is physically contiguous
 * @DMAPROBE_ATTR_ALLOC_SINGLE_PAGES: do not try for large pages
 * @DMAPROBE_ATTR_NO_WARN: a failure is not logged
 * @DMAPROBE_ATTR_PRIVILEGED: for the device's privileged accesses only
 * @DMAPROBE_ATTR_MMIO: the range is memory-mapped I/O; Linux 6.18
 * @DMAPROBE_ATTR_REQUIRE_COHERENT: fail where coherence needs bouncing or cache
 *	maintenance; Linux 7.0
 * @DMAPROBE_ATTR_CC_SHARED: the memory is shared with the host of a confidential guest;
 *	Linux 7.0
 *
 * Each command takes those that the kernel's call takes. An attribute that exists but that
 * the command does not take is EINVAL; one that this kernel does not have, EOPNOTSUPP.
 * Mappings of unprivileged sessions always have %DMAPROBE_ATTR_NO_WARN.
 */
enum dmaprobe_attrs {
	DMAPROBE_ATTR_WEAK_ORDERING = 1 << 0,
	DMAPROBE_ATTR_WRITE_COMBINE = 1 << 1,
	DMAPROBE_ATTR_NO_KERNEL_MAPPING = 1 << 2,
	DMAPROBE_ATTR_SKIP_CPU_SYNC = 1 << 3,
	DMAPROBE_ATTR_FORCE_CONTIGUOUS = 1 << 4,
	DMAPROBE_ATTR_ALLOC_SINGLE_PAGES = 1 << 5,
	DMAPROBE_ATTR_NO_WARN = 1 << 6,
	DMAPROBE_ATTR_PRIVILEGED = 1 << 7,
	DMAPROBE_ATTR_MMIO = 1 << 8,
	DMAPROBE_ATTR_REQUIRE_COHERENT = 1 << 9,
	DMAPROBE_ATTR_CC_SHARED = 1 << 10,
};

/* What every mapping of memory takes. */
#define DMAPROBE_MAP_ATTRS						\
	(DMAPROBE_ATTR_WEAK_ORDERING | DMAPROBE_ATTR_SKIP_CPU_SYNC |	\
	 DMAPROBE_ATTR_NO_WARN | DMAPROBE_ATTR_PRIVILEGED |		\
	 DMAPROBE_ATTR_REQUIRE_COHERENT)

/**
 * enum dmaprobe_features - what this kernel offers
 * @DMAPROBE_FEATURE_DMA_IOVA: the dma_iova_*() calls; Linux 6.16
 * @DMAPROBE_FEATURE_MAP_PHYS: dma_map_phys(); Linux 6.18
 */
enum dmaprobe_features {
	DMAPROBE_FEATURE_DMA_IOVA = 1 << 0,
	DMAPROBE_FEATURE_MAP_PHYS = 1 << 1,
};

/**
 * struct dmaprobe_get_info - ioctl(DMAPROBE_GET_INFO)
 * @size: sizeof(struct dmaprobe_get_info)
 * @flags: must be 0
 * @abi_version: out: the module's %DMAPROBE_ABI_VERSION
 * @features: out: &enum dmaprobe_features, or'ed
 * @attrs: out: the attributes that this kernel has, &enum dmaprobe_attrs, or'ed
 *
 * Get the version of the ABI and what the kernel offers.
 */
struct dmaprobe_get_info {
	__u32 size;
	__u32 flags;
	__u32 abi_version;
	__u32 features;
	__aligned_u64 attrs;
};

/**
 * enum dmaprobe_device_props - yes-or-no properties of the device's DMA
 * @DMAPROBE_DEVICE_COHERENT: the device's DMA is coherent with the CPU caches
 * @DMAPROBE_DEVICE_NEED_SYNC: dma_sync_*() may have work to do (dma_dev_need_sync())
 * @DMAPROBE_DEVICE_NEED_UNMAP: unmapping is needed (dma_need_unmap())
 * @DMAPROBE_DEVICE_ADDRESSING_LIMITED: the mask misses memory (dma_addressing_limited())
 * @DMAPROBE_DEVICE_IOMMU: an IOMMU translates for the DMA API, so that there are IOVA spaces
 * @DMAPROBE_DEVICE_CAN_MMAP: coherent memory can be mmapped (dma_can_mmap())
 * @DMAPROBE_DEVICE_CONFINED: with bus mastering the device reaches only what the sessions map,
 *	and no interrupts but its own (or the module's allow_unsafe_interrupts lets that pass)
 */
enum dmaprobe_device_props {
	DMAPROBE_DEVICE_COHERENT = 1 << 0,
	DMAPROBE_DEVICE_NEED_SYNC = 1 << 1,
	DMAPROBE_DEVICE_NEED_UNMAP = 1 << 2,
	DMAPROBE_DEVICE_ADDRESSING_LIMITED = 1 << 3,
	DMAPROBE_DEVICE_IOMMU = 1 << 4,
	DMAPROBE_DEVICE_CAN_MMAP = 1 << 5,
	DMAPROBE_DEVICE_CONFINED = 1 << 6,
};

/**
 * struct dmaprobe_get_limits - ioctl(DMAPROBE_GET_LIMITS)
 * @size: sizeof(struct dmaprobe_get_limits)
 * @flags: must be 0
 * @props: out: &enum dmaprobe_device_props, or'ed
 * @max_segment_size: out: dma_get_max_seg_size()
 * @dma_mask: out: streaming mask, dma_get_mask()
 * @coherent_dma_mask: out: coherent mask
 * @required_mask: out: dma_get_required_mask()
 * @bus_dma_limit: out: limit of the bus, 0 when there is none
 * @max_mapping_size: out: dma_max_mapping_size()
 * @opt_mapping_size: out: dma_opt_mapping_size()
 * @merge_boundary: out: dma_get_merge_boundary(): the IOMMU's granule - 1, or 0 when DMA
 *	segments cannot be merged
 * @segment_boundary_mask: out: dma_get_seg_boundary()
 * @min_align_mask: out: dma_get_min_align_mask()
 * @cache_alignment: out: dma_get_cache_alignment()
 * @__reserved: must be 0
 *
 * Get what the DMA API says to a driver about this device.
 */
struct dmaprobe_get_limits {
	__u32 size;
	__u32 flags;
	__u32 props;
	__u32 max_segment_size;
	__aligned_u64 dma_mask;
	__aligned_u64 coherent_dma_mask;
	__aligned_u64 required_mask;
	__aligned_u64 bus_dma_limit;
	__aligned_u64 max_mapping_size;
	__aligned_u64 opt_mapping_size;
	__aligned_u64 merge_boundary;
	__aligned_u64 segment_boundary_mask;
	__aligned_u64 min_align_mask;
	__u32 cache_alignment;
	__u32 __reserved;
};

/**
 * enum dmaprobe_domain_type - type of the IOMMU domain behind the DMA API
 * @DMAPROBE_DOMAIN_NONE: no IOMMU
 * @DMAPROBE_DOMAIN_IDENTITY: the IOMMU passes addresses through
 * @DMAPROBE_DOMAIN_DMA: translated, invalidated at once (strict)
 * @DMAPROBE_DOMAIN_DMA_FQ: translated, invalidated later (lazy)
 * @DMAPROBE_DOMAIN_OTHER: none of these
 */
enum dmaprobe_domain_type {
	DMAPROBE_DOMAIN_NONE = 0,
	DMAPROBE_DOMAIN_IDENTITY = 1,
	DMAPROBE_DOMAIN_DMA = 2,
	DMAPROBE_DOMAIN_DMA_FQ = 3,
	DMAPROBE_DOMAIN_OTHER = 4,
};

/**
 * enum dmaprobe_resv_type - type of a reserved region of IOVA space
 * @DMAPROBE_RESV_DIRECT: mapped one to one from boot on
 * @DMAPROBE_RESV_DIRECT_RELAXABLE: the same, unless the device is assigned
 * @DMAPROBE_RESV_RESERVED: not usable
 * @DMAPROBE_RESV_MSI: MSI doorbells, not translated
 * @DMAPROBE_RESV_SW_MSI: MSI doorbells, mapped by software
 */
enum dmaprobe_resv_type {
	DMAPROBE_RESV_DIRECT = 0,
	DMAPROBE_RESV_DIRECT_RELAXABLE = 1,
	DMAPROBE_RESV_RESERVED = 2,
	DMAPROBE_RESV_MSI = 3,
	DMAPROBE_RESV_SW_MSI = 4,
};

/**
 * struct dmaprobe_resv_region - a reserved region of IOVA space
 * @start: first address
 * @length: length
 * @type: one of &enum dmaprobe_resv_type
 * @__reserved: 0
 */
struct dmaprobe_resv_region {
	__aligned_u64 start;
	__aligned_u64 length;
	__u32 type;
	__u32 __reserved;
};

/**
 * struct dmaprobe_get_domain - ioctl(DMAPROBE_GET_DOMAIN)
 * @size: sizeof(struct dmaprobe_get_domain)
 * @flags: must be 0
 * @type: out: one of &enum dmaprobe_domain_type
 * @nr_regions: in: room at @regions, in entries; out: reserved regions there are, which may
 *	be more than were written
 * @regions: address of an array of &struct dmaprobe_resv_region; not used when there is no
 *	room
 * @pgsize_bitmap: out: page sizes of the domain; the lowest bit is the granule
 * @aperture_start: out: first usable IOVA
 * @aperture_end: out: last usable IOVA
 * @iommu: out: the IOMMU instance, as under /sys/class/iommu; NUL-terminated
 * @driver: out: the IOMMU's driver; NUL-terminated
 *
 * Get the IOMMU domain behind the device's DMA API. With %DMAPROBE_DOMAIN_NONE all other
 * members are zero.
 */
struct dmaprobe_get_domain {
	__u32 size;
	__u32 flags;
	__u32 type;
	__u32 nr_regions;
	__aligned_u64 regions;
	__aligned_u64 pgsize_bitmap;
	__aligned_u64 aperture_start;
	__aligned_u64 aperture_end;
	char iommu[32];
	char driver[32];
};

/**
 * enum dmaprobe_set_mask_flags - masks to set
 * @DMAPROBE_SET_MASK_STREAMING: dma_set_mask()
 * @DMAPROBE_SET_MASK_COHERENT: dma_set_coherent_mask()
 */
enum dmaprobe_set_mask_flags {
	DMAPROBE_SET_MASK_STREAMING = 1 << 0,
	DMAPROBE_SET_MASK_COHERENT = 1 << 1,
};

/**
 * struct dmaprobe_set_mask - ioctl(DMAPROBE_SET_MASK)
 * @size: sizeof(struct dmaprobe_set_mask)
 * @flags: &enum dmaprobe_set_mask_flags, at least one of them
 * @mask: the new mask: ones from bit 0 up, at least 32 pages - 1
 *
 * Set the device's DMA masks. The masks belong to the device: all its sessions see them,
 * and they go back to what the device had when it was bound, or to unprivileged_mask_bits
 * if that was more, when its last session closes.
 *
 * EPERM without CAP_SYS_RAWIO when @mask has more bits than the module's
 * unprivileged_mask_bits (32), or fewer than that when bound and the IOMMU group has other
 * functions. EBUSY while any session of the device holds a DMA address; EIO when the
 * platform cannot serve the mask.
 */
struct dmaprobe_set_mask {
	__u32 size;
	__u32 flags;
	__aligned_u64 mask;
};

/**
 * struct dmaprobe_enable - ioctl(DMAPROBE_ENABLE)
 * @size: sizeof(struct dmaprobe_enable)
 * @flags: must be 0
 * @enable: 1 to enable the device, 0 to give that up
 * @__reserved: must be 0
 *
 * Enable bus mastering for as long as the session asks for it; asking twice is no error. This
 * is for callers that reach the BARs through sysfs: VFIO's users do it in its config space.
 *
 * When another user had the device enabled last, or VFIO had it open, the function is reset
 * first, so that no DMA of that user is left in it. EPERM without CAP_SYS_RAWIO when it cannot
 * be reset, or is not %DMAPROBE_DEVICE_CONFINED.
 *
 * EBUSY while a function that VFIO resets together with this one (of the same slot or bus)
 * is open by VFIO or has another VFIO driver, or while somebody else is resetting it.
 * Opening one by VFIO answers EBUSY while a session has any of them enabled.
 */
struct dmaprobe_enable {
	__u32 size;
	__u32 flags;
	__u32 enable;
	__u32 __reserved;
};

/**
 * enum dmaprobe_buffer_kind - how a buffer lies in physical memory
 * @DMAPROBE_BUFFER_KIND_CONTIGUOUS: one physically contiguous range
 * @DMAPROBE_BUFFER_KIND_SCATTERED: pieces of 2^order pages, each contiguous and aligned to its
 *	size, none followed by its physical neighbour
 * @DMAPROBE_BUFFER_KIND_KMALLOC: memory from kmalloc(), which lies at any place of its page as
 *	small objects do; no other object shares its pages
 */
enum dmaprobe_buffer_kind {
	DMAPROBE_BUFFER_KIND_CONTIGUOUS = 0,
	DMAPROBE_BUFFER_KIND_SCATTERED = 1,
	DMAPROBE_BUFFER_KIND_KMALLOC = 2,
};

/**
 * enum dmaprobe_buffer_flags - where the memory comes from
 * @DMAPROBE_BUFFER_ALLOC_NODE: from the NUMA node @node and from nowhere else
 */
enum dmaprobe_buffer_flags {
	DMAPROBE_BUFFER_ALLOC_NODE = 1 << 0,
};

/**
 * struct dmaprobe_buffer_alloc - ioctl(DMAPROBE_BUFFER_ALLOC)
 * @size: sizeof(struct dmaprobe_buffer_alloc)
 * @flags: &enum dmaprobe_buffer_flags
 * @kind: one of &enum dmaprobe_buffer_kind
 * @id: out: id of the buffer
 * @length: bytes, at most 1 GiB; a multiple of the CPU's page size (of the pieces' size for
 *	a scattered buffer), but for a kmalloc one. A contiguous buffer is bounded by the
 *	page allocator's largest order (4 MiB on x86), a kmalloc buffer by 64 KiB
 * @mmap_offset: out: what to give to mmap() as offset, together with MAP_SHARED; add a
 *	multiple of the page size to map from there. 0 for a kmalloc buffer, which cannot be
 *	mmapped (EINVAL): ``DMAPROBE_COPY`` reaches it
 * @order: the pieces of a scattered buffer are 2^order pages; 9 makes them 2 MiB on x86. 0
 *	for the other kinds
 * @node: the NUMA node, with %DMAPROBE_BUFFER_ALLOC_NODE; otherwise 0
 * @offset: where in its page a kmalloc buffer starts, a multiple of 8 below the page size;
 *	0 for the other kinds
 *
 * Allocate zeroed memory. All pages that the kernel's allocator gives for it are charged
 * until the buffer is destroyed and nothing of it is mmapped any more; while it is mmapped
 * it cannot be destroyed. When the device goes away, what is mmapped stays. EINVAL also for
 * a node that is not there or has no memory. EINTR when the process is being killed.
 */
struct dmaprobe_buffer_alloc {
	__u32 size;
	__u32 flags;
	__u32 kind;
	__u32 id;
	__aligned_u64 length;
	__aligned_u64 mmap_offset;
	__u32 order;
	__u32 node;
	__aligned_u64 offset;
};

/**
 * struct dmaprobe_destroy - ioctl(DMAPROBE_DESTROY)
 * @size: sizeof(struct dmaprobe_destroy)
 * @flags: must be 0
 * @id: a buffer, an allocation, a pool or a block of a pool
 * @__reserved: must be 0
 *
 * Destroy an object by the call that belongs to the one that made it: unpin a pinned
 * buffer, dma_free_*() an allocation, dma_pool_destroy() a pool, dma_pool_free() a block.
 * EBUSY while it is mapped, linked, mmapped or exported, and while a pool has blocks.
 * Mappings end by ``DMAPROBE_UNMAP``, IOVA spaces by ``DMAPROBE_IOVA_FREE`` and
 * ``DMAPROBE_IOVA_DESTROY``.
 */
struct dmaprobe_destroy {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 __reserved;
};

/**
 * enum dmaprobe_map_kind - the kernel call that maps
 * @DMAPROBE_MAP_KIND_SINGLE: dma_map_single(), by the kernel's virtual address
 * @DMAPROBE_MAP_KIND_PAGE: dma_map_page(), by page and offset
 * @DMAPROBE_MAP_KIND_PHYS: dma_map_phys(), by physical address; Linux 6.18
 */
enum dmaprobe_map_kind {
	DMAPROBE_MAP_KIND_SINGLE = 0,
	DMAPROBE_MAP_KIND_PAGE = 1,
	DMAPROBE_MAP_KIND_PHYS = 2,
};

/**
 * struct dmaprobe_map - ioctl(DMAPROBE_MAP)
 * @size: sizeof(struct dmaprobe_map)
 * @flags: must be 0
 * @kind: one of &enum dmaprobe_map_kind
 * @dir: one of &enum dmaprobe_dir
 * @buffer_id: the buffer
 * @id: out: id of the mapping
 * @buffer_offset: start of the range in the buffer
 * @length: length of the range, at least 1; the range is physically contiguous
 * @attrs: DMA attributes, out of %DMAPROBE_MAP_ATTRS and %DMAPROBE_ATTR_CC_SHARED, which
 *	needs CAP_SYS_RAWIO (EPERM)
 * @dma_addr: out: the address to give to the device
 * @need_sync: out: 1 when dma_sync_*() has work to do for this mapping (dma_need_sync())
 * @__reserved: must be 0
 *
 * Map a range of a buffer for streaming DMA. ENOMEM when the kernel's call answers with a
 * mapping error (dma_mapping_error()); EIO when the device cannot reach the memory and
 * nothing can bounce it; EACCES when the buffer is read-only and the device could write.
 */
struct dmaprobe_map {
	__u32 size;
	__u32 flags;
	__u32 kind;
	__u32 dir;
	__u32 buffer_id;
	__u32 id;
	__aligned_u64 buffer_offset;
	__aligned_u64 length;
	__aligned_u64 attrs;
	__aligned_u64 dma_addr;
	__u32 need_sync;
	__u32 __reserved;
};

/**
 * struct dmaprobe_unmap - ioctl(DMAPROBE_UNMAP)
 * @size: sizeof(struct dmaprobe_unmap)
 * @flags: must be 0
 * @attrs: DMA attributes: those of the mapping, of which %DMAPROBE_ATTR_SKIP_CPU_SYNC may
 *	differ; without effect for a dma-buf, which has none
 * @id: the mapping
 * @__reserved: must be 0
 *
 * Unmap with the call that belongs to the one that mapped, whichever command that was.
 * EINVAL when @attrs are not those of the mapping.
 */
struct dmaprobe_unmap {
	__u32 size;
	__u32 flags;
	__aligned_u64 attrs;
	__u32 id;
	__u32 __reserved;
};

/**
 * enum dmaprobe_sync_target - who is to see the memory
 * @DMAPROBE_SYNC_FOR_CPU: the dma_sync_*_for_cpu() of the mapping's kind
 * @DMAPROBE_SYNC_FOR_DEVICE: its dma_sync_*_for_device()
 */
enum dmaprobe_sync_target {
	DMAPROBE_SYNC_FOR_CPU = 0,
	DMAPROBE_SYNC_FOR_DEVICE = 1,
};

/**
 * struct dmaprobe_sync - ioctl(DMAPROBE_SYNC)
 * @size: sizeof(struct dmaprobe_sync)
 * @flags: must be 0
 * @id: the mapping, or an allocation that is not coherent
 * @target: one of &enum dmaprobe_sync_target
 * @offset: start of the range in the mapping
 * @length: length of the range, at least 1
 *
 * Synchronise a range of a mapping, in the mapping's own direction:
 * dma_sync_single_range_*() for one piece of memory, dma_sync_sg_*() and
 * dma_sync_sgtable_*() for a list and for noncontiguous memory, which the kernel only
 * synchronises as a whole (otherwise EINVAL). EOPNOTSUPP for what has no sync: coherent
 * memory, a BAR, a dma-buf (whose own file has one).
 */
struct dmaprobe_sync {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 target;
	__aligned_u64 offset;
	__aligned_u64 length;
};

/**
 * enum dmaprobe_iova_alloc_flags - what becomes of a false answer
 * @DMAPROBE_IOVA_ALLOC_TRY: make the object also when dma_iova_try_alloc() answers false
 */
enum dmaprobe_iova_alloc_flags {
	DMAPROBE_IOVA_ALLOC_TRY = 1 << 0,
};

/* The longest range that one call links, syncs, unlinks, destroys, or maps of a BAR. */
#define DMAPROBE_IOVA_RANGE_MAX	0x40000000

/**
 * struct dmaprobe_iova_alloc - ioctl(DMAPROBE_IOVA_ALLOC)
 * @size: sizeof(struct dmaprobe_iova_alloc)
 * @flags: &enum dmaprobe_iova_alloc_flags
 * @buffer_id: the buffer of the first link, or 0
 * @id: out: id of the IOVA space
 * @buffer_offset: where in that buffer the first link will start. Only its place inside the
 *	granule counts: the IOVA gets the same. Must be 0 without a buffer
 * @length: bytes of IOVA space, from 1 to 2^62; without CAP_SYS_RAWIO at most
 *	%DMAPROBE_IOVA_RANGE_MAX (1 GiB), otherwise EPERM
 * @addr: out: first address; 0 when there is no space
 *
 * Allocate IOVA space with dma_iova_try_alloc(). Where that answers false: EOPNOTSUPP when
 * no IOMMU translates for this device, so that the streaming calls serve instead; ENOSPC
 * when the space or the mask is exhausted. EOPNOTSUPP also before Linux 6.16, which has no
 * such call.
 *
 * With %DMAPROBE_IOVA_ALLOC_TRY the object is made in these cases too. It has no space:
 * dma_use_iova() is false (``DMAPROBE_GET_IOVA_STATE``), the other commands of IOVA spaces
 * answer EOPNOTSUPP, and ``DMAPROBE_IOVA_FREE`` ends it.
 */
struct dmaprobe_iova_alloc {
	__u32 size;
	__u32 flags;
	__u32 buffer_id;
	__u32 id;
	__aligned_u64 buffer_offset;
	__aligned_u64 length;
	__aligned_u64 addr;
};

/**
 * struct dmaprobe_iova_free - ioctl(DMAPROBE_IOVA_FREE)
 * @size: sizeof(struct dmaprobe_iova_free)
 * @flags: must be 0
 * @id: the IOVA space
 * @__reserved: must be 0
 *
 * Free IOVA space with dma_iova_free(). EBUSY while something is linked in it.
 */
struct dmaprobe_iova_free {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 __reserved;
};

/**
 * struct dmaprobe_iova_link - ioctl(DMAPROBE_IOVA_LINK)
 * @size: sizeof(struct dmaprobe_iova_link)
 * @flags: must be 0
 * @id: the IOVA space
 * @buffer_id: the buffer; 0 with %DMAPROBE_ATTR_MMIO
 * @dir: one of &enum dmaprobe_dir
 * @bar: the BAR of the device, with %DMAPROBE_ATTR_MMIO; otherwise 0
 * @buffer_offset: start of the range in the buffer or the BAR
 * @offset: where in the IOVA space to link it
 * @length: length of the range, from 1 to %DMAPROBE_IOVA_RANGE_MAX; the range is physically
 *	contiguous
 * @attrs: DMA attributes, out of %DMAPROBE_MAP_ATTRS and %DMAPROBE_ATTR_MMIO
 *
 * Link a range of a buffer, or of a memory BAR, with dma_iova_link(). The device may use it
 * after ``DMAPROBE_IOVA_SYNC``.
 *
 * EINVAL when the link would break a rule of the kernel's call: it leaves the IOVA space;
 * at @offset 0 the memory does not lie in its granule as the IOVA does; behind that, memory
 * or IOVA do not start at a granule; it ends inside a granule and is not the last range, or
 * lies behind such a range. EEXIST when it would cover a granule that is linked. ENOMEM
 * when the kernel has no memory for page tables, or no room to bounce what it must bounce.
 * EPERM when part of it would have to be bounced and @attrs forbid that; EOPNOTSUPP when
 * they do and a link of the space was bounced, or when memory would be bounced that starts
 * inside a granule. EACCES when the buffer is read-only and the device could write. Of a BAR:
 * ENXIO when there is no such memory BAR; EINVAL also when a granule is not the BAR's alone.
 */
struct dmaprobe_iova_link {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 buffer_id;
	__u32 dir;
	__u32 bar;
	__aligned_u64 buffer_offset;
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 attrs;
};

/**
 * struct dmaprobe_iova_sync - ioctl(DMAPROBE_IOVA_SYNC)
 * @size: sizeof(struct dmaprobe_iova_sync)
 * @flags: must be 0
 * @offset: start of the range in the IOVA space
 * @length: length of the range, from 1 to %DMAPROBE_IOVA_RANGE_MAX
 * @id: the IOVA space
 * @__reserved: must be 0
 *
 * Make linked ranges known to the IOMMU with dma_iova_sync(). EINVAL when the range leaves
 * the IOVA space; ENXIO when part of it is not linked.
 */
struct dmaprobe_iova_sync {
	__u32 size;
	__u32 flags;
	__aligned_u64 offset;
	__aligned_u64 length;
	__u32 id;
	__u32 __reserved;
};

/**
 * struct dmaprobe_iova_unlink - ioctl(DMAPROBE_IOVA_UNLINK)
 * @size: sizeof(struct dmaprobe_iova_unlink)
 * @flags: must be 0
 * @id: the IOVA space
 * @dir: one of &enum dmaprobe_dir, the one the range was linked with
 * @offset: start of the range in the IOVA space
 * @length: length of the range, from 1 to %DMAPROBE_IOVA_RANGE_MAX
 * @attrs: DMA attributes, those the range was linked with
 *
 * Unlink with dma_iova_unlink(). The range is made of whole links, one or more, without a
 * hole: part of a link may be part of a large page-table entry, which the kernel cannot
 * take apart.
 *
 * EINVAL when the range leaves the IOVA space, cuts through a link, or @dir or
 * @attrs are not those of its links; ENXIO when part of it is not linked.
 */
struct dmaprobe_iova_unlink {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 dir;
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 attrs;
};

/**
 * struct dmaprobe_iova_destroy - ioctl(DMAPROBE_IOVA_DESTROY)
 * @size: sizeof(struct dmaprobe_iova_destroy)
 * @flags: must be 0
 * @id: the IOVA space
 * @dir: one of &enum dmaprobe_dir, the one everything was linked with
 * @mapped_len: bytes linked, from the start of the space; 0 when nothing is; at most
 *	%DMAPROBE_IOVA_RANGE_MAX
 * @attrs: DMA attributes, those everything was linked with
 *
 * Unlink all and free the space with dma_iova_destroy(). What is linked must be exactly the
 * bytes from 0 to @mapped_len.
 *
 * EINVAL when @mapped_len leaves the IOVA space, cuts through a link, or @dir or
 * @attrs are not those of the links; ENXIO when there is a hole below
 * @mapped_len; EBUSY when there are links beyond it.
 */
struct dmaprobe_iova_destroy {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 dir;
	__aligned_u64 mapped_len;
	__aligned_u64 attrs;
};

/**
 * struct dmaprobe_get_iova_state - ioctl(DMAPROBE_GET_IOVA_STATE)
 * @size: sizeof(struct dmaprobe_get_iova_state)
 * @flags: must be 0
 * @id: the IOVA space
 * @use: out: 1 when dma_use_iova() holds for the state
 * @addr: out: first address
 * @length: out: dma_iova_size()
 * @linked: out: bytes linked
 * @nr_links: out: number of links
 * @bounced: out: 1 when the kernel bounced part of a link
 *
 * Get the kernel's state and the module's record of what is linked.
 */
struct dmaprobe_get_iova_state {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 use;
	__aligned_u64 addr;
	__aligned_u64 length;
	__aligned_u64 linked;
	__u32 nr_links;
	__u32 bounced;
};

/**
 * enum dmaprobe_translate_flags - what to report
 * @DMAPROBE_TRANSLATE_PHYS: report physical addresses too; needs CAP_SYS_ADMIN, otherwise
 *	EPERM
 */
enum dmaprobe_translate_flags {
	DMAPROBE_TRANSLATE_PHYS = 1 << 0,
};

/**
 * enum dmaprobe_extent_kind - where an extent leads
 * @DMAPROBE_EXTENT_HOLE: nowhere: nothing is mapped
 * @DMAPROBE_EXTENT_BUFFER: into a buffer or an allocation of this session
 * @DMAPROBE_EXTENT_FOREIGN: into memory that is none of these (a bounce buffer of the
 *	kernel, a BAR, a dma-buf, a pool, or another session's memory)
 */
enum dmaprobe_extent_kind {
	DMAPROBE_EXTENT_HOLE = 0,
	DMAPROBE_EXTENT_BUFFER = 1,
	DMAPROBE_EXTENT_FOREIGN = 2,
};

/**
 * struct dmaprobe_extent - a piece of IOVA space that is translated alike
 * @iova: first address
 * @length: length
 * @kind: one of &enum dmaprobe_extent_kind
 * @buffer_id: the buffer or allocation it leads to, or 0
 * @buffer_offset: where in that
 * @phys: physical address when %DMAPROBE_TRANSLATE_PHYS was asked for and the extent is not
 *	a hole, or 0
 */
struct dmaprobe_extent {
	__aligned_u64 iova;
	__aligned_u64 length;
	__u32 kind;
	__u32 buffer_id;
	__aligned_u64 buffer_offset;
	__aligned_u64 phys;
};

/**
 * struct dmaprobe_translate - ioctl(DMAPROBE_TRANSLATE)
 * @size: sizeof(struct dmaprobe_translate)
 * @flags: &enum dmaprobe_translate_flags
 * @iova: first address
 * @length: length, at least 1, at most 4 GiB
 * @buffer_id: the buffer or allocation to look into first, or 0; it saves a search
 * @nr_extents: in: room at @extents, in entries, at least 1; out: entries written
 * @extents: address of an array of &struct dmaprobe_extent
 * @translated: out: bytes that the extents written cover, from @iova on; less than @length
 *	when there was no room for more
 *
 * Ask iommu_iova_to_phys() for each granule of a range of the device's IOVA space, whether
 * something of this session is mapped there or not. Neighbouring granules that lead to
 * neighbouring bytes of one buffer make one extent; so do neighbouring holes, and
 * neighbouring foreign granules that are physically contiguous. With
 * %DMAPROBE_TRANSLATE_PHYS every extent is physically contiguous.
 *
 * A buffer need not begin and end with a granule. The other bytes of its first and last
 * granule, which the device reaches too, are not the buffer's: foreign, unless they are
 * another's. Memory that was pinned twice is reported as one of its places, preferably the
 * one in @buffer_id, or the one that continues the extent.
 *
 * Nothing is mapped or unmapped in the device's domain while the page tables are read, 128
 * granules at a time. That holds for dmaprobe only: EBUSY when another driver has a
 * function of the device's IOMMU group.
 *
 * EOPNOTSUPP without an IOMMU; EINTR when a signal arrives.
 */
struct dmaprobe_translate {
	__u32 size;
	__u32 flags;
	__aligned_u64 iova;
	__aligned_u64 length;
	__u32 buffer_id;
	__u32 nr_extents;
	__aligned_u64 extents;
	__aligned_u64 translated;
};

/**
 * struct dmaprobe_nop - ioctl(DMAPROBE_NOP)
 * @size: sizeof(struct dmaprobe_nop)
 * @flags: must be 0
 *
 * Do nothing: what a call costs without the kernel's DMA API in it.
 */
struct dmaprobe_nop {
	__u32 size;
	__u32 flags;
};

/**
 * struct dmaprobe_get_stats - ioctl(DMAPROBE_GET_STATS)
 * @size: sizeof(struct dmaprobe_get_stats)
 * @flags: must be 0
 * @nr_buffers: out: buffers that the session holds
 * @nr_mappings: out: mappings
 * @nr_iovas: out: IOVA spaces
 * @nr_allocs: out: allocations
 * @nr_pools: out: pools
 * @nr_blocks: out: blocks of pools
 * @charged: out: bytes charged to the session's limit
 * @pinned: out: bytes of user memory that the session has pinned
 *
 * Get what the session holds at this moment.
 */
struct dmaprobe_get_stats {
	__u32 size;
	__u32 flags;
	__u32 nr_buffers;
	__u32 nr_mappings;
	__u32 nr_iovas;
	__u32 nr_allocs;
	__u32 nr_pools;
	__u32 nr_blocks;
	__aligned_u64 charged;
	__aligned_u64 pinned;
};

/**
 * enum dmaprobe_run_flags - how to run
 * @DMAPROBE_RUN_CONTINUE: go on after a call that failed
 */
enum dmaprobe_run_flags {
	DMAPROBE_RUN_CONTINUE = 1 << 0,
};

/**
 * DMAPROBE_RUN_ID() - in a run, the id that call number @n (from 0 on) has made
 * @n: the call. One that failed, or made nothing, has no id: ENOENT
 */
#define DMAPROBE_RUN_ID(n)	(0x80000000U | (n))

/**
 * struct dmaprobe_run_op - one call of a run
 * @cmd: the command, any but ``DMAPROBE_RUN``
 * @result: out: 0 or a negative errno; -ECANCELED when it was not made
 * @arg: address of the command's struct
 */
struct dmaprobe_run_op {
	__u32 cmd;
	__s32 result;
	__aligned_u64 arg;
};

/**
 * struct dmaprobe_run - ioctl(DMAPROBE_RUN)
 * @size: sizeof(struct dmaprobe_run)
 * @flags: &enum dmaprobe_run_flags
 * @nr_ops: calls to make, from 1 to %DMAPROBE_RUN_MAX (4096)
 * @done: out: calls made, the one that failed included
 * @ops: address of an array of &struct dmaprobe_run_op
 *
 * Make calls one after the other, in one call. Each is what it is alone, with a result of
 * its own; a run in a run is EINVAL. The run stops at the first that fails, unless it shall
 * continue, and soon when the process is being killed. The run itself succeeds when it
 * could read the calls and write the results: also when the device is gone, which each call
 * answers for itself. When it fails, the calls before have been made.
 */
struct dmaprobe_run {
	__u32 size;
	__u32 flags;
	__u32 nr_ops;
	__u32 done;
	__aligned_u64 ops;
};

#define DMAPROBE_RUN_MAX	4096

/**
 * enum dmaprobe_bench_kind - what is done in the loop
 * @DMAPROBE_BENCH_NOP: call the handler of ``DMAPROBE_NOP``
 * @DMAPROBE_BENCH_MAP_PAGE: dma_map_page_attrs() and dma_unmap_page_attrs() of one page
 */
enum dmaprobe_bench_kind {
	DMAPROBE_BENCH_NOP = 0,
	DMAPROBE_BENCH_MAP_PAGE = 1,
};

/**
 * struct dmaprobe_bench - ioctl(DMAPROBE_BENCH)
 * @size: sizeof(struct dmaprobe_bench)
 * @flags: must be 0
 * @kind: one of &enum dmaprobe_bench_kind
 * @buffer_id: the buffer whose first page is mapped; 0 for the other kinds
 * @count: rounds, from 1 to 10 million
 * @ns: out: nanoseconds they took together
 *
 * Make the kernel's calls in a loop inside the module: what they cost without a way from
 * user space to them. EINTR when a signal arrives; others as ``DMAPROBE_MAP``.
 */
struct dmaprobe_bench {
	__u32 size;
	__u32 flags;
	__u32 kind;
	__u32 buffer_id;
	__aligned_u64 count;
	__aligned_u64 ns;
};

/**
 * enum dmaprobe_set_segments_flags - limits to set
 * @DMAPROBE_SET_SEGMENTS_MAX_SIZE: dma_set_max_seg_size()
 * @DMAPROBE_SET_SEGMENTS_BOUNDARY: dma_set_seg_boundary()
 * @DMAPROBE_SET_SEGMENTS_MIN_ALIGN: dma_set_min_align_mask()
 */
enum dmaprobe_set_segments_flags {
	DMAPROBE_SET_SEGMENTS_MAX_SIZE = 1 << 0,
	DMAPROBE_SET_SEGMENTS_BOUNDARY = 1 << 1,
	DMAPROBE_SET_SEGMENTS_MIN_ALIGN = 1 << 2,
};

/**
 * struct dmaprobe_set_segments - ioctl(DMAPROBE_SET_SEGMENTS)
 * @size: sizeof(struct dmaprobe_set_segments)
 * @flags: &enum dmaprobe_set_segments_flags, at least one of them
 * @max_segment_size: longest segment, at least a page
 * @min_align_mask: bits of an address that bouncing must keep: ones from bit 0 up, at most
 *	11 of them, or 0
 * @segment_boundary_mask: segments do not cross multiples of this plus one: ones from bit 0
 *	up, at least the page size - 1
 *
 * Set what the device can take in a scatter-gather list. A member whose flag is not given
 * must be 0. As the masks, this belongs to the device and is put back when its last session
 * closes. EPERM without CAP_SYS_RAWIO; EBUSY while any session of the device holds a DMA
 * address.
 */
struct dmaprobe_set_segments {
	__u32 size;
	__u32 flags;
	__u32 max_segment_size;
	__u32 min_align_mask;
	__aligned_u64 segment_boundary_mask;
};

/**
 * enum dmaprobe_buffer_pin_flags - how to pin
 * @DMAPROBE_BUFFER_PIN_READ_ONLY: the memory is only read, so the program need not be
 *	allowed to write it; it can be mapped with %DMAPROBE_DIR_TO_DEVICE only
 */
enum dmaprobe_buffer_pin_flags {
	DMAPROBE_BUFFER_PIN_READ_ONLY = 1 << 0,
};

/**
 * struct dmaprobe_buffer_pin - ioctl(DMAPROBE_BUFFER_PIN)
 * @size: sizeof(struct dmaprobe_buffer_pin)
 * @flags: &enum dmaprobe_buffer_pin_flags
 * @addr: start of the memory in the caller's address space, at any byte
 * @length: bytes, from 1 to 1 GiB
 * @id: out: id of the buffer
 * @__reserved: must be 0
 *
 * Make a buffer of the caller's own memory: anonymous, huge pages, shared memory. It is
 * pinned (pin_user_pages_fast(), FOLL_LONGTERM) until the buffer is freed with
 * ``DMAPROBE_DESTROY`` or the session ends, whatever becomes of the caller's mapping. Each
 * page of the range is charged, as often as it is pinned, and of a huge page all of it,
 * since a pin keeps the whole. ENOMEM also when a page has been pinned so often that its
 * count is about to overflow. The buffer cannot be mmapped (EINVAL).
 *
 * EFAULT when the memory is not the caller's, is not there, may not be written, or is of a
 * kind that the kernel does not pin for long: registers, and shared mappings of files of
 * most file systems that the device could write. EINTR when the process is being killed.
 */
struct dmaprobe_buffer_pin {
	__u32 size;
	__u32 flags;
	__aligned_u64 addr;
	__aligned_u64 length;
	__u32 id;
	__u32 __reserved;
};

/**
 * enum dmaprobe_copy_dir - which way to copy
 * @DMAPROBE_COPY_READ: from the object to the program
 * @DMAPROBE_COPY_WRITE: from the program to the object
 */
enum dmaprobe_copy_dir {
	DMAPROBE_COPY_READ = 0,
	DMAPROBE_COPY_WRITE = 1,
};

/**
 * struct dmaprobe_copy - ioctl(DMAPROBE_COPY)
 * @size: sizeof(struct dmaprobe_copy)
 * @flags: must be 0
 * @id: a buffer, an allocation or a block of a pool
 * @dir: one of &enum dmaprobe_copy_dir
 * @offset: start of the range in the object
 * @length: bytes, at least 1
 * @addr: the program's memory
 *
 * Copy bytes through the kernel's own mapping of the memory: the address that the allocator
 * gave, for noncontiguous memory the one that dma_vmap_noncontiguous() gives. After EFAULT
 * and EINTR, bytes before the one that failed may have been copied.
 *
 * EOPNOTSUPP for memory without a kernel mapping (%DMAPROBE_ATTR_NO_KERNEL_MAPPING) and for
 * pinned user memory, which the program has; EINTR when the process is being killed.
 */
struct dmaprobe_copy {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 dir;
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 addr;
};

/**
 * enum dmaprobe_map_sg_kind - the kernel call that maps a list
 * @DMAPROBE_MAP_SG_KIND_LIST: dma_map_sg_attrs(), whose failure has no reason: EIO
 * @DMAPROBE_MAP_SG_KIND_TABLE: dma_map_sgtable()
 */
enum dmaprobe_map_sg_kind {
	DMAPROBE_MAP_SG_KIND_LIST = 0,
	DMAPROBE_MAP_SG_KIND_TABLE = 1,
};

/**
 * struct dmaprobe_sg_entry - a range of a buffer in a scatter-gather list
 * @offset: start of the range in the buffer
 * @length: length of the range, at least 1; the range is physically contiguous
 * @buffer_id: the buffer
 * @__reserved: must be 0
 */
struct dmaprobe_sg_entry {
	__aligned_u64 offset;
	__aligned_u64 length;
	__u32 buffer_id;
	__u32 __reserved;
};

/**
 * struct dmaprobe_map_sg - ioctl(DMAPROBE_MAP_SG)
 * @size: sizeof(struct dmaprobe_map_sg)
 * @flags: must be 0
 * @kind: one of &enum dmaprobe_map_sg_kind
 * @dir: one of &enum dmaprobe_dir
 * @entries: address of an array of &struct dmaprobe_sg_entry
 * @nr_entries: entries there, from 1 to %DMAPROBE_MAP_SG_MAX (65536)
 * @id: out: id of the mapping
 * @attrs: DMA attributes, out of %DMAPROBE_MAP_ATTRS
 * @nr_segments: out: DMA segments, at most @nr_entries; see ``DMAPROBE_GET_SEGMENTS``
 * @need_sync: out: 1 when dma_sync_sg_*() has work to do
 *
 * Map a scatter-gather list. A buffer may be in it more than once. EINVAL also when an
 * entry is longer than the longest segment, when it cannot but cross a segment boundary, or
 * when the entries have more than 1 GiB together, each as the granules it touches. EINVAL
 * too when the kernel would keep a segment boundary by mapping more than an entry, and its
 * buffer does not go on so far: the device would reach the memory behind it. ENOMEM and EIO
 * as the kernel's call answers, EIO also when the device cannot reach an entry and nothing
 * can bounce it; EACCES when a buffer is read-only and the device could write. EINTR when
 * the process is being killed.
 */
struct dmaprobe_map_sg {
	__u32 size;
	__u32 flags;
	__u32 kind;
	__u32 dir;
	__aligned_u64 entries;
	__u32 nr_entries;
	__u32 id;
	__aligned_u64 attrs;
	__u32 nr_segments;
	__u32 need_sync;
};

#define DMAPROBE_MAP_SG_MAX	65536

/**
 * struct dmaprobe_map_resource - ioctl(DMAPROBE_MAP_RESOURCE)
 * @size: sizeof(struct dmaprobe_map_resource)
 * @flags: must be 0
 * @bar: number of a memory BAR of the device, 0 to 5
 * @dir: one of &enum dmaprobe_dir
 * @offset: start of the range in the BAR
 * @length: length of the range, from 1 to %DMAPROBE_IOVA_RANGE_MAX
 * @attrs: DMA attributes: %DMAPROBE_ATTR_WEAK_ORDERING, %DMAPROBE_ATTR_SKIP_CPU_SYNC,
 *	%DMAPROBE_ATTR_NO_WARN, %DMAPROBE_ATTR_PRIVILEGED
 * @dma_addr: out: the address to give to the device
 * @id: out: id of the mapping
 * @__reserved: must be 0
 *
 * Map part of a BAR for DMA with dma_map_resource(). EINVAL also when an IOMMU translates
 * and a granule of the range is not the BAR's alone. ENXIO when the device has no such
 * memory BAR; ENOMEM when the kernel's call answers with a mapping error; EIO when the
 * device cannot reach it.
 */
struct dmaprobe_map_resource {
	__u32 size;
	__u32 flags;
	__u32 bar;
	__u32 dir;
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 attrs;
	__aligned_u64 dma_addr;
	__u32 id;
	__u32 __reserved;
};

/**
 * struct dmaprobe_map_dmabuf - ioctl(DMAPROBE_MAP_DMABUF)
 * @size: sizeof(struct dmaprobe_map_dmabuf)
 * @flags: must be 0
 * @fd: file descriptor of a dma-buf
 * @dir: one of &enum dmaprobe_dir
 * @id: out: id of the mapping
 * @nr_segments: out: DMA segments; see ``DMAPROBE_GET_SEGMENTS``
 * @length: out: bytes
 *
 * Attach the device to a dma-buf and map that (dma_buf_map_attachment()). The mapping holds
 * the dma-buf, not the descriptor. Who exported it can take the memory away: the mapping
 * then has no segments any more.
 *
 * EBADF when @fd is no open file, EINVAL when it is no dma-buf, or was not exported here
 * and is longer than a segment of the device may be (DMAPROBE_SET_SEGMENTS): an exporter
 * need not look at that. EIO without a translating IOMMU when the device cannot reach the
 * memory by itself (all memory, when it was not exported here); EINTR and ETIMEDOUT while
 * the exporter is moving the memory; EACCES when the device could write and @fd was opened
 * for reading only; otherwise what the exporter answers.
 */
struct dmaprobe_map_dmabuf {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 dir;
	__u32 id;
	__u32 nr_segments;
	__aligned_u64 length;
};

/**
 * struct dmaprobe_segment - a DMA segment
 * @dma_addr: its address
 * @length: its length
 */
struct dmaprobe_segment {
	__aligned_u64 dma_addr;
	__aligned_u64 length;
};

/**
 * struct dmaprobe_get_segments - ioctl(DMAPROBE_GET_SEGMENTS)
 * @size: sizeof(struct dmaprobe_get_segments)
 * @flags: must be 0
 * @id: a mapping of any kind, an allocation, or a block of a pool
 * @nr_segments: in: room at @segments, in entries; out: segments there are, which may be
 *	more than were written
 * @segments: address of an array of &struct dmaprobe_segment; not used when there is no
 *	room
 *
 * Get the DMA segments of a mapping: what the device is given. An allocation and a block of
 * a pool are one.
 */
struct dmaprobe_get_segments {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 nr_segments;
	__aligned_u64 segments;
};

/**
 * enum dmaprobe_alloc_kind - the kernel call that allocates
 * @DMAPROBE_ALLOC_KIND_COHERENT: dma_alloc_attrs(), freed by dma_free_attrs()
 * @DMAPROBE_ALLOC_KIND_NONCOHERENT: dma_alloc_noncoherent(), dma_free_noncoherent()
 * @DMAPROBE_ALLOC_KIND_PAGES: dma_alloc_pages(), dma_free_pages()
 * @DMAPROBE_ALLOC_KIND_NONCONTIGUOUS: dma_alloc_noncontiguous(), dma_free_noncontiguous()
 */
enum dmaprobe_alloc_kind {
	DMAPROBE_ALLOC_KIND_COHERENT = 0,
	DMAPROBE_ALLOC_KIND_NONCOHERENT = 1,
	DMAPROBE_ALLOC_KIND_PAGES = 2,
	DMAPROBE_ALLOC_KIND_NONCONTIGUOUS = 3,
};

/**
 * struct dmaprobe_alloc - ioctl(DMAPROBE_ALLOC)
 * @size: sizeof(struct dmaprobe_alloc)
 * @flags: must be 0
 * @kind: one of &enum dmaprobe_alloc_kind
 * @dir: one of &enum dmaprobe_dir; coherent memory is bidirectional
 * @length: bytes, from 1 to 256 MiB
 * @attrs: DMA attributes. Coherent memory: %DMAPROBE_ATTR_WEAK_ORDERING,
 *	%DMAPROBE_ATTR_WRITE_COMBINE, %DMAPROBE_ATTR_NO_KERNEL_MAPPING,
 *	%DMAPROBE_ATTR_FORCE_CONTIGUOUS, %DMAPROBE_ATTR_ALLOC_SINGLE_PAGES,
 *	%DMAPROBE_ATTR_NO_WARN, %DMAPROBE_ATTR_PRIVILEGED; noncontiguous memory:
 *	%DMAPROBE_ATTR_ALLOC_SINGLE_PAGES; the others: none
 * @id: out: id of the allocation
 * @nr_entries: out: physically contiguous pieces it is made of (see
 *	``DMAPROBE_GET_SGTABLE``); 0 when the kernel does not know them
 * @dma_addr: out: the address to give to the device; the allocation is one DMA segment
 * @mmap_offset: out: what to give to mmap() as offset, as for a buffer. The mmap is made by
 *	the call of the kind: dma_mmap_attrs(), dma_mmap_pages(), dma_mmap_noncontiguous()
 *
 * Allocate zeroed memory that is mapped for the device. The pages that the kernel takes for
 * it are charged: a power of two of them where they are contiguous. Unlike a buffer's, what
 * is mmapped of it goes when the device goes away: SIGBUS.
 *
 * Addresses obey the coherent mask; those of %DMAPROBE_ALLOC_KIND_NONCOHERENT and
 * %DMAPROBE_ALLOC_KIND_PAGES under an IOMMU, the streaming mask. EINVAL also for noncontiguous
 * memory whose pages are more than the device's longest segment, or than lie between two of
 * its segment boundaries (DMAPROBE_SET_SEGMENTS): it is one segment. EOPNOTSUPP also where the
 * device could see what was there before: the two latter kinds, unprivileged, by a kernel with CMA
 * and no init_on_alloc=1; without an IOMMU, %DMAPROBE_ATTR_NO_KERNEL_MAPPING if not coherent.
 */
struct dmaprobe_alloc {
	__u32 size;
	__u32 flags;
	__u32 kind;
	__u32 dir;
	__aligned_u64 length;
	__aligned_u64 attrs;
	__u32 id;
	__u32 nr_entries;
	__aligned_u64 dma_addr;
	__aligned_u64 mmap_offset;
};

/**
 * enum dmaprobe_sgtable_flags - what to report
 * @DMAPROBE_SGTABLE_PHYS: report physical addresses too; needs CAP_SYS_ADMIN, otherwise
 *	EPERM
 */
enum dmaprobe_sgtable_flags {
	DMAPROBE_SGTABLE_PHYS = 1 << 0,
};

/**
 * struct dmaprobe_sgtable_entry - a physically contiguous piece of an allocation
 * @length: its length
 * @phys: its physical address when %DMAPROBE_SGTABLE_PHYS was asked for, or 0
 */
struct dmaprobe_sgtable_entry {
	__aligned_u64 length;
	__aligned_u64 phys;
};

/**
 * struct dmaprobe_get_sgtable - ioctl(DMAPROBE_GET_SGTABLE)
 * @size: sizeof(struct dmaprobe_get_sgtable)
 * @flags: &enum dmaprobe_sgtable_flags
 * @id: the allocation
 * @nr_entries: in: room at @entries, in entries; out: entries there are, which may be more
 *	than were written
 * @entries: address of an array of &struct dmaprobe_sgtable_entry; not used when there is
 *	no room
 *
 * Get how an allocation lies in physical memory: dma_get_sgtable_attrs() for coherent
 * memory, the allocator's own table for noncontiguous memory, one entry for the others.
 * ENXIO when the kernel does not know the pieces.
 */
struct dmaprobe_get_sgtable {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 nr_entries;
	__aligned_u64 entries;
};

/**
 * struct dmaprobe_export - ioctl(DMAPROBE_EXPORT)
 * @size: sizeof(struct dmaprobe_export)
 * @flags: must be 0
 * @id: the allocation
 * @fd: out: file descriptor of the dma-buf, close-on-exec
 *
 * Export an allocation as a dma-buf, a new one with each call. It can be mmapped, and
 * imported by ``DMAPROBE_MAP_DMABUF`` in any session of any device that is as coherent as
 * this one; others, who could not be made to let go of the memory at once, get EOPNOTSUPP.
 * When the session ends or the device goes away, the dma-buf's memory goes: what is mapped
 * of it is unmapped, what is mmapped gives SIGBUS. ENXIO when the kernel does not know the
 * allocation's pages.
 */
struct dmaprobe_export {
	__u32 size;
	__u32 flags;
	__u32 id;
	__s32 fd;
};

/**
 * struct dmaprobe_pool_create - ioctl(DMAPROBE_POOL_CREATE)
 * @size: sizeof(struct dmaprobe_pool_create)
 * @flags: must be 0
 * @block_size: bytes of a block, from 1 to 1 MiB
 * @align: alignment of the blocks, a power of two up to 1 MiB, or 0 for 1
 * @boundary: blocks do not cross a multiple of it: a power of two up to 1 MiB, or 0 for
 *	none; at least @block_size, which for this counts as 16 when it is less, rounded up
 *	to @align
 * @id: out: id of the pool
 * @__reserved: must be 0
 *
 * Make a pool of small blocks of coherent memory with dma_pool_create(). The pages are
 * charged that the pool needs for the most blocks it ever had; it gives them back when it
 * is destroyed.
 *
 * EPERM without CAP_SYS_RAWIO: the kernel keeps the list of a pool's free blocks in these
 * blocks, where the device can write.
 */
struct dmaprobe_pool_create {
	__u32 size;
	__u32 flags;
	__aligned_u64 block_size;
	__aligned_u64 align;
	__aligned_u64 boundary;
	__u32 id;
	__u32 __reserved;
};

/**
 * struct dmaprobe_pool_alloc - ioctl(DMAPROBE_POOL_ALLOC)
 * @size: sizeof(struct dmaprobe_pool_alloc)
 * @flags: must be 0
 * @pool_id: the pool
 * @id: out: id of the block
 * @dma_addr: out: the address to give to the device
 *
 * Take a zeroed block out of a pool with dma_pool_alloc(). ``DMAPROBE_COPY`` reaches its
 * bytes: it shares pages with other blocks, so it cannot be mmapped.
 */
struct dmaprobe_pool_alloc {
	__u32 size;
	__u32 flags;
	__u32 pool_id;
	__u32 id;
	__aligned_u64 dma_addr;
};

/* The commands. Numbers never change and are never used again. */
#define DMAPROBE_IOC_MAGIC	0xDA

#define DMAPROBE_GET_INFO        _IO(DMAPROBE_IOC_MAGIC, 0)
#define DMAPROBE_GET_LIMITS      _IO(DMAPROBE_IOC_MAGIC, 1)
#define DMAPROBE_GET_DOMAIN      _IO(DMAPROBE_IOC_MAGIC, 2)
#define DMAPROBE_SET_MASK        _IO(DMAPROBE_IOC_MAGIC, 3)
#define DMAPROBE_ENABLE          _IO(DMAPROBE_IOC_MAGIC, 4)
#define DMAPROBE_BUFFER_ALLOC    _IO(DMAPROBE_IOC_MAGIC, 5)
#define DMAPROBE_DESTROY         _IO(DMAPROBE_IOC_MAGIC, 6)
#define DMAPROBE_MAP             _IO(DMAPROBE_IOC_MAGIC, 7)
#define DMAPROBE_UNMAP           _IO(DMAPROBE_IOC_MAGIC, 8)
#define DMAPROBE_SYNC            _IO(DMAPROBE_IOC_MAGIC, 9)
#define DMAPROBE_IOVA_ALLOC      _IO(DMAPROBE_IOC_MAGIC, 10)
#define DMAPROBE_IOVA_FREE       _IO(DMAPROBE_IOC_MAGIC, 11)
#define DMAPROBE_IOVA_LINK       _IO(DMAPROBE_IOC_MAGIC, 12)
#define DMAPROBE_IOVA_SYNC       _IO(DMAPROBE_IOC_MAGIC, 13)
#define DMAPROBE_IOVA_UNLINK     _IO(DMAPROBE_IOC_MAGIC, 14)
#define DMAPROBE_IOVA_DESTROY    _IO(DMAPROBE_IOC_MAGIC, 15)
#define DMAPROBE_GET_IOVA_STATE  _IO(DMAPROBE_IOC_MAGIC, 16)
#define DMAPROBE_TRANSLATE       _IO(DMAPROBE_IOC_MAGIC, 17)
#define DMAPROBE_NOP             _IO(DMAPROBE_IOC_MAGIC, 18)
#define DMAPROBE_GET_STATS       _IO(DMAPROBE_IOC_MAGIC, 19)
#define DMAPROBE_RUN             _IO(DMAPROBE_IOC_MAGIC, 20)
#define DMAPROBE_BENCH           _IO(DMAPROBE_IOC_MAGIC, 21)
#define DMAPROBE_SET_SEGMENTS    _IO(DMAPROBE_IOC_MAGIC, 22)
#define DMAPROBE_BUFFER_PIN      _IO(DMAPROBE_IOC_MAGIC, 23)
#define DMAPROBE_COPY            _IO(DMAPROBE_IOC_MAGIC, 24)
#define DMAPROBE_MAP_SG          _IO(DMAPROBE_IOC_MAGIC, 25)
#define DMAPROBE_MAP_RESOURCE    _IO(DMAPROBE_IOC_MAGIC, 26)
#define DMAPROBE_MAP_DMABUF      _IO(DMAPROBE_IOC_MAGIC, 27)
#define DMAPROBE_GET_SEGMENTS    _IO(DMAPROBE_IOC_MAGIC, 28)
#define DMAPROBE_ALLOC           _IO(DMAPROBE_IOC_MAGIC, 29)
#define DMAPROBE_GET_SGTABLE     _IO(DMAPROBE_IOC_MAGIC, 30)
#define DMAPROBE_EXPORT          _IO(DMAPROBE_IOC_MAGIC, 31)
#define DMAPROBE_POOL_CREATE     _IO(DMAPROBE_IOC_MAGIC, 32)
#define DMAPROBE_POOL_ALLOC      _IO(DMAPROBE_IOC_MAGIC, 33)

#endif /* _UAPI_LINUX_DMAPROBE_H */

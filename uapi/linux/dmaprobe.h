/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * dmaprobe: drive the kernel's DMA-mapping API from user space.
 *
 * Every bound device has a node /dev/dmaprobe/<BDF>. An open file on it is a
 * session. It ends, and all it created is torn down, when the last descriptor of
 * the file is closed and nothing of it is mmapped any more; at the latest, when
 * its processes end.
 */
#ifndef _UAPI_LINUX_DMAPROBE_H
#define _UAPI_LINUX_DMAPROBE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: General ioctl format
 *
 * Each command takes the address of its own struct. The first member, @size,
 * is the size of the struct as the caller knows it; it makes the structs
 * extensible in both directions. A member named flags follows in every struct,
 * and members named __reserved must be zero. Lengths, offsets and addresses
 * are in bytes.
 *
 * The order of the checks is fixed: the command, @size, the tail beyond what
 * the kernel knows, flags, reserved members, values, objects. A call that fails
 * changes nothing.
 *
 * Every command can answer:
 *
 *  - ENOTTY: no such command.
 *  - EINVAL: @size is smaller than the struct's first version; a reserved member
 *    is not zero; a value is out of its range; lengths overflow.
 *  - E2BIG: @size is larger than the kernel's struct and the tail is not zero; or
 *    it is larger than a page.
 *  - EOPNOTSUPP: an unknown flag or attribute, or a call that this kernel or
 *    this device's DMA domain does not offer. ``DMAPROBE_CALL`` says which.
 *  - EFAULT: an address that cannot be read or written.
 *  - ENODEV: the device was unbound or unplugged. Everything the session held has
 *    been torn down.
 *
 * Commands that name an object can answer:
 *
 *  - ENOENT: the session has no object with that id, or it is of another kind.
 *  - EBUSY: the object is in use, by another object (a buffer that is still
 *    mapped or linked) or by a call of another thread in this moment.
 *
 * Commands that create something can answer:
 *
 *  - ENOMEM: no memory, or the limit of memory was reached (RLIMIT_MEMLOCK for
 *    callers without CAP_IPC_LOCK, the module's session_max_mib for all).
 */

#define DMAPROBE_IOC_MAGIC	0xDA

/* Raised when a command is added or a struct grows. */
#define DMAPROBE_ABI_VERSION	1

/**
 * enum dmaprobe_cmd_nr - numbers of the commands
 * @DMAPROBE_NR_VERSION: see &struct dmaprobe_version
 * @DMAPROBE_NR_CALL: see &struct dmaprobe_call
 * @DMAPROBE_NR_LIMITS: see &struct dmaprobe_limits
 * @DMAPROBE_NR_DOMAIN: see &struct dmaprobe_domain
 * @DMAPROBE_NR_SET_MASK: see &struct dmaprobe_set_mask
 * @DMAPROBE_NR_ENABLE: see &struct dmaprobe_enable
 * @DMAPROBE_NR_BUFFER_ALLOC: see &struct dmaprobe_buffer_alloc
 * @DMAPROBE_NR_BUFFER_FREE: see &struct dmaprobe_buffer_free
 * @DMAPROBE_NR_MAP: see &struct dmaprobe_map
 * @DMAPROBE_NR_UNMAP: see &struct dmaprobe_unmap
 * @DMAPROBE_NR_SYNC: see &struct dmaprobe_sync
 * @DMAPROBE_NR_IOVA_ALLOC: see &struct dmaprobe_iova_alloc
 * @DMAPROBE_NR_IOVA_FREE: see &struct dmaprobe_iova_free
 * @DMAPROBE_NR_IOVA_LINK: see &struct dmaprobe_iova_link
 * @DMAPROBE_NR_IOVA_SYNC: see &struct dmaprobe_iova_sync
 * @DMAPROBE_NR_IOVA_UNLINK: see &struct dmaprobe_iova_unlink
 * @DMAPROBE_NR_IOVA_DESTROY: see &struct dmaprobe_iova_destroy
 * @DMAPROBE_NR_IOVA_STATE: see &struct dmaprobe_iova_state
 * @DMAPROBE_NR_TRANSLATE: see &struct dmaprobe_translate
 *
 * Numbers are never changed or used again; new commands go to the end.
 */
enum dmaprobe_cmd_nr {
	DMAPROBE_NR_VERSION = 0,
	DMAPROBE_NR_CALL,
	DMAPROBE_NR_LIMITS,
	DMAPROBE_NR_DOMAIN,
	DMAPROBE_NR_SET_MASK,
	DMAPROBE_NR_ENABLE,
	DMAPROBE_NR_BUFFER_ALLOC,
	DMAPROBE_NR_BUFFER_FREE,
	DMAPROBE_NR_MAP,
	DMAPROBE_NR_UNMAP,
	DMAPROBE_NR_SYNC,
	DMAPROBE_NR_IOVA_ALLOC,
	DMAPROBE_NR_IOVA_FREE,
	DMAPROBE_NR_IOVA_LINK,
	DMAPROBE_NR_IOVA_SYNC,
	DMAPROBE_NR_IOVA_UNLINK,
	DMAPROBE_NR_IOVA_DESTROY,
	DMAPROBE_NR_IOVA_STATE,
	DMAPROBE_NR_TRANSLATE,
};

/**
 * enum dmaprobe_dir - direction of a mapping, as in the kernel's
 *	enum dma_data_direction
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
 * struct dmaprobe_version - ioctl(DMAPROBE_VERSION)
 * @size: sizeof(struct dmaprobe_version)
 * @flags: must be 0
 * @abi_version: out: the module's %DMAPROBE_ABI_VERSION
 * @nr_calls: out: entries that ``DMAPROBE_CALL`` lists
 *
 * The version of the ABI. It answers whatever the device's state is, short of
 * its being gone.
 */
struct dmaprobe_version {
	__u32 size;
	__u32 flags;
	__u32 abi_version;
	__u32 nr_calls;
};

#define DMAPROBE_VERSION _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_VERSION)

/**
 * enum dmaprobe_call_status - what became of a call of the kernel's DMA API
 * @DMAPROBE_CALL_OFFERED: this kernel has it and a command drives it
 * @DMAPROBE_CALL_MISSING: this kernel does not have it (yet)
 * @DMAPROBE_CALL_GONE: older kernels had it; today's replacement is named
 */
enum dmaprobe_call_status {
	DMAPROBE_CALL_OFFERED = 0,
	DMAPROBE_CALL_MISSING = 1,
	DMAPROBE_CALL_GONE = 2,
};

/**
 * struct dmaprobe_call - ioctl(DMAPROBE_CALL)
 * @size: sizeof(struct dmaprobe_call)
 * @flags: must be 0
 * @index: entry to tell, from 0 to &dmaprobe_version.nr_calls - 1
 * @status: out: one of &enum dmaprobe_call_status
 * @name: out: the kernel function, NUL-terminated
 * @detail: out: the command that drives it, or why it is missing and what
 *	replaced it; NUL-terminated
 *
 * List the calls of the kernel's DMA API that the module knows about.
 * ENOENT when @index is past the last one.
 */
struct dmaprobe_call {
	__u32 size;
	__u32 flags;
	__u32 index;
	__u32 status;
	char name[40];
	char detail[96];
};

#define DMAPROBE_CALL _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_CALL)

/**
 * enum dmaprobe_device_props - yes-or-no properties of the device's DMA
 * @DMAPROBE_DEVICE_COHERENT: the device's DMA is coherent with the CPU caches
 * @DMAPROBE_DEVICE_NEED_SYNC: dma_sync_*() may have work to do
 *	(dma_dev_need_sync())
 * @DMAPROBE_DEVICE_NEED_UNMAP: unmapping is needed (dma_need_unmap())
 * @DMAPROBE_DEVICE_ADDRESSING_LIMITED: the mask does not cover all memory
 *	(dma_addressing_limited())
 * @DMAPROBE_DEVICE_IOMMU: an IOMMU translates for the device's DMA API, so
 *	the IOVA calls can be used
 */
enum dmaprobe_device_props {
	DMAPROBE_DEVICE_COHERENT = 1 << 0,
	DMAPROBE_DEVICE_NEED_SYNC = 1 << 1,
	DMAPROBE_DEVICE_NEED_UNMAP = 1 << 2,
	DMAPROBE_DEVICE_ADDRESSING_LIMITED = 1 << 3,
	DMAPROBE_DEVICE_IOMMU = 1 << 4,
};

/**
 * struct dmaprobe_limits - ioctl(DMAPROBE_LIMITS)
 * @size: sizeof(struct dmaprobe_limits)
 * @flags: must be 0
 * @props: out: &enum dmaprobe_device_props, or'ed
 * @max_segment_size: out: dma_get_max_seg_size()
 * @dma_mask: out: streaming mask, dma_get_mask()
 * @coherent_dma_mask: out: coherent mask
 * @required_mask: out: dma_get_required_mask()
 * @bus_dma_limit: out: limit of the bus, 0 when there is none
 * @max_mapping_size: out: dma_max_mapping_size()
 * @opt_mapping_size: out: dma_opt_mapping_size()
 * @merge_boundary: out: dma_get_merge_boundary(): the IOMMU's granule - 1, or 0
 *	when DMA segments cannot be merged
 * @segment_boundary_mask: out: dma_get_seg_boundary()
 * @min_align_mask: out: dma_get_min_align_mask()
 *
 * What the DMA API tells a driver about this device.
 */
struct dmaprobe_limits {
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
};

#define DMAPROBE_LIMITS _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_LIMITS)

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
 * struct dmaprobe_domain - ioctl(DMAPROBE_DOMAIN)
 * @size: sizeof(struct dmaprobe_domain)
 * @flags: must be 0
 * @type: out: one of &enum dmaprobe_domain_type
 * @nr_regions: in: room at @regions, in entries; out: reserved regions there
 *	are, which may be more than were written
 * @regions: address of an array of &struct dmaprobe_resv_region; not used when
 *	there is no room
 * @pgsize_bitmap: out: page sizes of the domain; the lowest bit is the granule
 * @aperture_start: out: first usable IOVA
 * @aperture_end: out: last usable IOVA
 * @iommu: out: the IOMMU instance, as under /sys/class/iommu; NUL-terminated
 * @driver: out: the IOMMU's driver; NUL-terminated
 *
 * The IOMMU domain behind the device's DMA API. With %DMAPROBE_DOMAIN_NONE all
 * other members are zero.
 */
struct dmaprobe_domain {
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

#define DMAPROBE_DOMAIN _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_DOMAIN)

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
 * @mask: the new mask: ones from bit 0 up, at least 12 of them
 *
 * Set the device's DMA masks. The masks belong to the device: all its sessions
 * see them, and the last session to close puts back what the device had when it
 * was bound.
 *
 * EBUSY while any session of the device holds a mapping or an IOVA; EIO when
 * the platform cannot serve the mask.
 */
struct dmaprobe_set_mask {
	__u32 size;
	__u32 flags;
	__aligned_u64 mask;
};

#define DMAPROBE_SET_MASK _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_SET_MASK)

/**
 * struct dmaprobe_enable - ioctl(DMAPROBE_ENABLE)
 * @size: sizeof(struct dmaprobe_enable)
 * @flags: must be 0
 * @enable: 1 to enable the device, 0 to give that up
 * @__reserved: must be 0
 *
 * Enable the device's memory decoding and bus mastering for as long as the
 * session asks for it. This is for callers that reach the BARs through sysfs;
 * who opens the VFIO device does the same through VFIO's config space.
 *
 * EBUSY while the VFIO device is open; opening the VFIO device answers EBUSY
 * while a session has the device enabled. Asking twice for the same is no error.
 */
struct dmaprobe_enable {
	__u32 size;
	__u32 flags;
	__u32 enable;
	__u32 __reserved;
};

#define DMAPROBE_ENABLE _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_ENABLE)

/**
 * enum dmaprobe_buffer_kind - how a buffer lies in physical memory
 * @DMAPROBE_BUFFER_CONTIGUOUS: one physically contiguous range
 * @DMAPROBE_BUFFER_SCATTERED: single pages, none followed by its physical
 *	neighbour
 */
enum dmaprobe_buffer_kind {
	DMAPROBE_BUFFER_CONTIGUOUS = 0,
	DMAPROBE_BUFFER_SCATTERED = 1,
};

/**
 * struct dmaprobe_buffer_alloc - ioctl(DMAPROBE_BUFFER_ALLOC)
 * @size: sizeof(struct dmaprobe_buffer_alloc)
 * @flags: must be 0
 * @kind: one of &enum dmaprobe_buffer_kind
 * @id: out: id of the buffer
 * @length: bytes, a multiple of the CPU's page size, at most 1 GiB; a contiguous
 *	buffer is bounded by the page allocator's largest order (4 MiB on x86)
 * @mmap_offset: out: what to give to mmap() as offset, together with
 *	MAP_SHARED; add a multiple of the page size to map from there
 *
 * Allocate zeroed memory from the page allocator. It can be mmapped; the
 * program's mappings of it outlive the buffer. EINTR when the process is being
 * killed.
 */
struct dmaprobe_buffer_alloc {
	__u32 size;
	__u32 flags;
	__u32 kind;
	__u32 id;
	__aligned_u64 length;
	__aligned_u64 mmap_offset;
};

#define DMAPROBE_BUFFER_ALLOC _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_BUFFER_ALLOC)

/**
 * struct dmaprobe_buffer_free - ioctl(DMAPROBE_BUFFER_FREE)
 * @size: sizeof(struct dmaprobe_buffer_free)
 * @flags: must be 0
 * @id: the buffer
 * @__reserved: must be 0
 *
 * Free a buffer. EBUSY while it is mapped for DMA or linked into an IOVA.
 */
struct dmaprobe_buffer_free {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 __reserved;
};

#define DMAPROBE_BUFFER_FREE _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_BUFFER_FREE)

/**
 * enum dmaprobe_map_kind - the kernel call that maps
 * @DMAPROBE_MAP_SINGLE: dma_map_single(), by the kernel's virtual address
 * @DMAPROBE_MAP_PAGE: dma_map_page(), by page and offset
 * @DMAPROBE_MAP_PHYS: dma_map_phys(), by physical address; Linux 6.18
 */
enum dmaprobe_map_kind {
	DMAPROBE_MAP_SINGLE = 0,
	DMAPROBE_MAP_PAGE = 1,
	DMAPROBE_MAP_PHYS = 2,
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
 * @attrs: DMA attributes; none is defined yet, must be 0
 * @dma_addr: out: the address to give to the device
 * @need_sync: out: 1 when dma_sync_*() has work to do for this mapping
 *	(dma_need_sync())
 * @__reserved: must be 0
 *
 * Map a range of a buffer for streaming DMA. ENOMEM when the kernel's call
 * answers with a mapping error (dma_mapping_error()); EIO when the device
 * cannot reach the memory and nothing can bounce it.
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

#define DMAPROBE_MAP _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_MAP)

/**
 * struct dmaprobe_unmap - ioctl(DMAPROBE_UNMAP)
 * @size: sizeof(struct dmaprobe_unmap)
 * @flags: must be 0
 * @id: the mapping
 * @__reserved: must be 0
 *
 * Unmap with the call that belongs to the one that mapped.
 */
struct dmaprobe_unmap {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 __reserved;
};

#define DMAPROBE_UNMAP _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_UNMAP)

/**
 * enum dmaprobe_sync_target - who is to see the memory
 * @DMAPROBE_SYNC_FOR_CPU: dma_sync_single_range_for_cpu()
 * @DMAPROBE_SYNC_FOR_DEVICE: dma_sync_single_range_for_device()
 */
enum dmaprobe_sync_target {
	DMAPROBE_SYNC_FOR_CPU = 0,
	DMAPROBE_SYNC_FOR_DEVICE = 1,
};

/**
 * struct dmaprobe_sync - ioctl(DMAPROBE_SYNC)
 * @size: sizeof(struct dmaprobe_sync)
 * @flags: must be 0
 * @id: the mapping
 * @target: one of &enum dmaprobe_sync_target
 * @offset: start of the range in the mapping
 * @length: length of the range, at least 1
 *
 * Synchronise a range of a streaming mapping, in the mapping's own direction.
 */
struct dmaprobe_sync {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 target;
	__aligned_u64 offset;
	__aligned_u64 length;
};

#define DMAPROBE_SYNC _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_SYNC)

/**
 * struct dmaprobe_iova_alloc - ioctl(DMAPROBE_IOVA_ALLOC)
 * @size: sizeof(struct dmaprobe_iova_alloc)
 * @flags: must be 0
 * @buffer_id: the buffer of the first link, or 0
 * @id: out: id of the IOVA
 * @buffer_offset: where in that buffer the first link will start. Only its place
 *	inside the granule counts: the IOVA gets the same. Must be 0 without a
 *	buffer
 * @length: bytes of IOVA space, at least 1
 * @addr: out: first address
 *
 * Allocate IOVA space with dma_iova_try_alloc(). Where that answers false:
 * EOPNOTSUPP when no IOMMU translates for this device, so that the streaming
 * calls serve instead; ENOSPC when the space or the mask is exhausted.
 * EOPNOTSUPP also before Linux 6.16, which has no such call.
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

#define DMAPROBE_IOVA_ALLOC _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_IOVA_ALLOC)

/**
 * struct dmaprobe_iova_free - ioctl(DMAPROBE_IOVA_FREE)
 * @size: sizeof(struct dmaprobe_iova_free)
 * @flags: must be 0
 * @id: the IOVA
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

#define DMAPROBE_IOVA_FREE _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_IOVA_FREE)

/**
 * struct dmaprobe_iova_link - ioctl(DMAPROBE_IOVA_LINK)
 * @size: sizeof(struct dmaprobe_iova_link)
 * @flags: must be 0
 * @id: the IOVA
 * @buffer_id: the buffer
 * @dir: one of &enum dmaprobe_dir
 * @__reserved: must be 0
 * @buffer_offset: start of the range in the buffer
 * @offset: where in the IOVA space to link it
 * @length: length of the range, at least 1; the range is physically contiguous
 * @attrs: DMA attributes; none is defined yet, must be 0
 *
 * Link a range of a buffer with dma_iova_link(). The device may use it after
 * ``DMAPROBE_IOVA_SYNC``.
 *
 * EINVAL when the link would break a rule of the kernel's call: it leaves the
 * IOVA space; at @offset 0 the memory does not lie in its granule as the IOVA
 * does; behind that, memory or IOVA do not start at a granule; it ends inside
 * a granule and is not the last range, or lies behind such a range. EEXIST when
 * it would cover a granule that is linked. ENOMEM when the kernel has no memory
 * for page tables, or no room to bounce what it must bounce.
 */
struct dmaprobe_iova_link {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 buffer_id;
	__u32 dir;
	__u32 __reserved;
	__aligned_u64 buffer_offset;
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 attrs;
};

#define DMAPROBE_IOVA_LINK _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_IOVA_LINK)

/**
 * struct dmaprobe_iova_sync - ioctl(DMAPROBE_IOVA_SYNC)
 * @size: sizeof(struct dmaprobe_iova_sync)
 * @flags: must be 0
 * @id: the IOVA
 * @__reserved: must be 0
 * @offset: start of the range in the IOVA space
 * @length: length of the range, at least 1
 *
 * Make linked ranges known to the IOMMU with dma_iova_sync(). EINVAL when the
 * range leaves the IOVA space; ENXIO when part of it is not linked.
 */
struct dmaprobe_iova_sync {
	__u32 size;
	__u32 flags;
	__u32 id;
	__u32 __reserved;
	__aligned_u64 offset;
	__aligned_u64 length;
};

#define DMAPROBE_IOVA_SYNC _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_IOVA_SYNC)

/**
 * struct dmaprobe_iova_unlink - ioctl(DMAPROBE_IOVA_UNLINK)
 * @size: sizeof(struct dmaprobe_iova_unlink)
 * @flags: must be 0
 * @id: the IOVA
 * @dir: one of &enum dmaprobe_dir, the one the range was linked with
 * @offset: start of the range in the IOVA space
 * @length: length of the range, at least 1
 * @attrs: DMA attributes, those the range was linked with
 *
 * Unlink with dma_iova_unlink(). The range is made of whole links, one or more,
 * without a hole: part of a link may be part of a large page-table entry, which
 * the kernel cannot take apart.
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

#define DMAPROBE_IOVA_UNLINK _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_IOVA_UNLINK)

/**
 * struct dmaprobe_iova_destroy - ioctl(DMAPROBE_IOVA_DESTROY)
 * @size: sizeof(struct dmaprobe_iova_destroy)
 * @flags: must be 0
 * @id: the IOVA
 * @dir: one of &enum dmaprobe_dir, the one everything was linked with
 * @mapped_len: bytes linked, from the start of the space; 0 when nothing is
 * @attrs: DMA attributes, those everything was linked with
 *
 * Unlink all and free the space with dma_iova_destroy(). What is linked must be
 * exactly the bytes from 0 to @mapped_len.
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

#define DMAPROBE_IOVA_DESTROY _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_IOVA_DESTROY)

/**
 * struct dmaprobe_iova_state - ioctl(DMAPROBE_IOVA_STATE)
 * @size: sizeof(struct dmaprobe_iova_state)
 * @flags: must be 0
 * @id: the IOVA
 * @use: out: 1 when dma_use_iova() holds for the state
 * @addr: out: first address
 * @length: out: dma_iova_size()
 * @linked: out: bytes linked
 * @nr_links: out: number of links
 * @bounced: out: 1 when the kernel bounced part of a link
 *
 * The kernel's state and the module's record of what is linked.
 */
struct dmaprobe_iova_state {
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

#define DMAPROBE_IOVA_STATE _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_IOVA_STATE)

/**
 * enum dmaprobe_translate_flags - what to tell
 * @DMAPROBE_TRANSLATE_PHYS: tell physical addresses too; needs CAP_SYS_ADMIN,
 *	otherwise EPERM
 */
enum dmaprobe_translate_flags {
	DMAPROBE_TRANSLATE_PHYS = 1 << 0,
};

/**
 * enum dmaprobe_extent_kind - where an extent leads
 * @DMAPROBE_EXTENT_HOLE: nowhere: nothing is mapped
 * @DMAPROBE_EXTENT_BUFFER: into a buffer of this session
 * @DMAPROBE_EXTENT_FOREIGN: into memory that is none of this session's buffers
 *	(a bounce buffer of the kernel, or another session's memory)
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
 * @buffer_id: the buffer it leads to, or 0
 * @buffer_offset: where in that buffer
 * @phys: physical address when %DMAPROBE_TRANSLATE_PHYS was asked for and the
 *	extent is not a hole, or 0
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
 * @buffer_id: the buffer to look into first, or 0; it saves a search and
 *	changes no result
 * @nr_extents: in: room at @extents, in entries, at least 1; out: entries
 *	written
 * @extents: address of an array of &struct dmaprobe_extent
 * @translated: out: bytes that the extents written cover, from @iova on; less
 *	than @length when there was no room for more
 *
 * Ask iommu_iova_to_phys() for each granule of a range of the device's IOVA
 * space, whether something of this session is mapped there or not. Neighbouring
 * granules that lead to neighbouring bytes of one buffer make one extent; so do
 * neighbouring holes, and neighbouring foreign granules that are physically
 * contiguous. With %DMAPROBE_TRANSLATE_PHYS every extent is physically
 * contiguous.
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

#define DMAPROBE_TRANSLATE _IO(DMAPROBE_IOC_MAGIC, DMAPROBE_NR_TRANSLATE)

#endif /* _UAPI_LINUX_DMAPROBE_H */

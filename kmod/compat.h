/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels the module builds for (6.12 and newer), under
 * the names of today's kernel. Nothing else asks for a version.
 */
#ifndef DMAPROBE_COMPAT_H
#define DMAPROBE_COMPAT_H

#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#ifndef kzalloc_obj
#define kzalloc_obj(_obj, _gfp)	kzalloc(sizeof(_obj), _gfp)
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
static inline int copy_struct_to_user(void __user *dst, size_t usize,
				      const void *src, size_t ksize,
				      bool *ignored_trailing)
{
	size_t size = min(ksize, usize);

	if (usize > ksize && clear_user(dst + size, usize - ksize))
		return -EFAULT;
	if (copy_to_user(dst, src, size))
		return -EFAULT;
	return 0;
}
#endif

#if !defined(CONFIG_PER_VMA_LOCK) || !defined(CONFIG_SWIOTLB)
#error "dmaprobe needs a kernel with CONFIG_PER_VMA_LOCK (for mm_lock_seq) and CONFIG_SWIOTLB"
#endif
static_assert(offsetof(seqcount_t, sequence) == 0);
/* Changes, with release, when a writer lets go of the lock of an mm. A seqcount_t or a number. */
#define dmaprobe_mm_seq(mm)	smp_load_acquire((unsigned int *)&(mm)->mm_lock_seq)

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0)
#define sort_nonatomic		sort
#define sort_r_nonatomic	sort_r
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#define DMAPROBE_HAVE_DMA_IOVA	true
#else
#define DMAPROBE_HAVE_DMA_IOVA	false

struct dma_iova_state {
	dma_addr_t addr;
	u64 __size;
};

#define DMA_IOVA_USE_SWIOTLB	BIT_ULL(63)

static inline size_t dma_iova_size(struct dma_iova_state *state)
{
	return state->__size;
}

static inline bool dma_use_iova(struct dma_iova_state *state)
{
	return false;
}

static inline bool dma_iova_try_alloc(struct device *dev, struct dma_iova_state *state,
				      phys_addr_t phys, size_t size)
{
	return false;
}

static inline void dma_iova_free(struct device *dev, struct dma_iova_state *state)
{
}

static inline void dma_iova_destroy(struct device *dev, struct dma_iova_state *state,
				    size_t mapped_len, enum dma_data_direction dir,
				    unsigned long attrs)
{
}

static inline int dma_iova_sync(struct device *dev, struct dma_iova_state *state, size_t offset,
				size_t size)
{
	return -EOPNOTSUPP;
}

static inline int dma_iova_link(struct device *dev, struct dma_iova_state *state,
				phys_addr_t phys, size_t offset, size_t size,
				enum dma_data_direction dir, unsigned long attrs)
{
	return -EOPNOTSUPP;
}

static inline void dma_iova_unlink(struct device *dev, struct dma_iova_state *state,
				   size_t offset, size_t size, enum dma_data_direction dir,
				   unsigned long attrs)
{
}

static inline bool dma_need_unmap(struct device *dev)
{
	return true;
}
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
#define DMAPROBE_HAVE_DMA_MAP_PHYS	true
#else
#define DMAPROBE_HAVE_DMA_MAP_PHYS	false

static inline dma_addr_t dma_map_phys(struct device *dev, phys_addr_t phys, size_t size,
				      enum dma_data_direction dir, unsigned long attrs)
{
	return DMA_MAPPING_ERROR;
}

static inline void dma_unmap_phys(struct device *dev, dma_addr_t addr, size_t size,
				  enum dma_data_direction dir, unsigned long attrs)
{
}
#endif

/*
 * Until 6.16 x86 looks up what remap_pfn_range() has reserved when a VMA is zapped, and
 * warns when another zap was faster. What the DMA API allocates is RAM, and reserves nothing.
 */
#ifndef VM_PAT
#define VM_PAT			VM_NONE
#endif

/* Attributes that not all these kernels have are 0 where they are missing. */
#ifndef DMA_ATTR_MMIO			/* 6.18 */
#define DMA_ATTR_MMIO		0UL
#endif
#ifndef DMA_ATTR_REQUIRE_COHERENT	/* 7.0 */
#define DMA_ATTR_REQUIRE_COHERENT	0UL
#endif
#ifndef DMA_ATTR_CC_SHARED		/* 7.0 */
#define DMA_ATTR_CC_SHARED	0UL
#endif

/* A program may map its memory as often as it likes, without a warning. */
#ifdef DMA_ATTR_DEBUGGING_IGNORE_CACHELINES	/* 7.0 */
#define DMAPROBE_MAY_OVERLAP	DMA_ATTR_DEBUGGING_IGNORE_CACHELINES
#else
#define DMAPROBE_MAY_OVERLAP	0UL
#endif

/* Attaching to a dma-buf that never moves maps it at once, and for both directions. */
#define DMAPROBE_ATTACH_MAPS	(LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0))

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
#define DMAPROBE_DMA_BUF_INVALIDATE	invalidate_mappings
#else
#define DMAPROBE_DMA_BUF_INVALIDATE	move_notify

static inline void dma_buf_invalidate_mappings(struct dma_buf *dmabuf)
{
	dma_buf_move_notify(dmabuf);
}
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
#define DMAPROBE_IMPORT_NS_DMA_BUF	MODULE_IMPORT_NS("DMA_BUF")
#else
#define DMAPROBE_IMPORT_NS_DMA_BUF	MODULE_IMPORT_NS(DMA_BUF)
#endif

/* Slots of struct vfio_device_ops that not all these kernels have. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
#define DMAPROBE_VFIO_REGION_INFO_OPS \
	.get_region_info_caps = vfio_pci_ioctl_get_region_info,
#else
#define DMAPROBE_VFIO_REGION_INFO_OPS
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
#define DMAPROBE_VFIO_MATCH_OPS \
	.match_token_uuid = vfio_pci_core_match_token_uuid,
#else
#define DMAPROBE_VFIO_MATCH_OPS
#endif

#endif /* DMAPROBE_COMPAT_H */

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The limits of a device: its DMA masks, and what it takes in a scatter-gather list.
 *
 * Unprivileged sessions may narrow the masks. They stay below 4 GiB, so that the page tables that
 * the kernel leaves behind, for which nobody is charged, are those of 4 GiB (8 MiB with 4 KiB
 * pages), and so that the IOVA allocator has no reason to report in the kernel log that it goes
 * beyond. Limits of segments decide how the kernel maps lists, and need a privilege altogether.
 */
#include <linux/capability.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/moduleparam.h>

#include "compat.h"
#include "private.h"

static unsigned int unprivileged_mask_bits = 32;
module_param(unprivileged_mask_bits, uint, 0444);
MODULE_PARM_DESC(unprivileged_mask_bits, "Widest DMA mask that takes no privilege, in bits");

/*
 * The kernel remembers the size of a range that it had no room for below a mask (struct
 * iova_domain, max32_alloc_size), and refuses such ranges below 4 GiB, whatever the mask is
 * then, until one from below 4 GiB is given back that is too large for its caches
 * (IOVA_RANGE_CACHE_MAX_SIZE). So each device has one to give back.
 */
#define SPARE_SIZE	(PAGE_SIZE * 64)

/* And below a mask of fewer pages than a cached range has, it does not look at the mask. */
#define MIN_MASK_BITS	(PAGE_SHIFT + 5)

/* Ones from bit 0 up. */
static bool valid_mask(u64 mask, u64 least)
{
	return mask >= least && !(mask & (mask + 1));
}

static u64 unprivileged_mask(void)
{
	return DMA_BIT_MASK(clamp(unprivileged_mask_bits, MIN_MASK_BITS, 64));
}

/* Called at unplug too, after dmaprobe_limits_reset(). */
void dmaprobe_spare_put(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;
	struct dma_iova_state state = { .addr = dd->spare_addr, .__size = SPARE_SIZE };

	if (dd->spare) {
		dma_free_coherent(dev, SPARE_SIZE, dd->spare, dd->spare_addr);
		/* A lazy domain gives its address back when it flushes, every 10 ms. */
		if (dd->domain->type == IOMMU_DOMAIN_DMA_FQ)
			msleep(20);
	} else if (dd->spare_addr) {
		dma_iova_free(dev, &state);
	}
	dd->spare = NULL;
	dd->spare_addr = 0;
}

/* The mask must be the one that the device was bound with. */
static void spare_get(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;
	struct dma_iova_state state;

	if (!dmaprobe_translates(dd))
		return;
	if (!DMAPROBE_HAVE_DMA_IOVA)
		dd->spare = dma_alloc_coherent(dev, SPARE_SIZE, &dd->spare_addr,
					       DMAPROBE_ALLOC_GFP);
	else if (dma_iova_try_alloc(dev, &state, 0, SPARE_SIZE))
		dd->spare_addr = state.addr;
}

/* The masks that the device was bound with, and the kernel's memory of others gone. */
static void reset_masks(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;

	dmaprobe_spare_put(dd);
	dma_set_mask(dev, dd->bound_mask);
	dma_set_coherent_mask(dev, dd->bound_coherent_mask);
	spare_get(dd);
}

/* Remember the limits of a new device. Its former driver may have left any. */
void dmaprobe_limits_save(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;

	dd->bound_mask = min(dma_get_mask(dev), unprivileged_mask());
	dd->bound_coherent_mask = min(dev->coherent_dma_mask, unprivileged_mask());
	dd->bound_boundary = dma_get_seg_boundary(dev);
	dd->bound_max_segment = max_t(u32, dma_get_max_seg_size(dev), PAGE_SIZE);
	dd->bound_min_align = dma_get_min_align_mask(dev);
}

/*
 * Give a device the limits it was bound with, when no session holds an address. At the
 * start too: setting masks lets the DMA core find out what the device needs.
 */
void dmaprobe_limits_reset(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;

	guard(rwsem_write)(&dd->group->lock);
	reset_masks(dd);
	dma_set_seg_boundary(dev, dd->bound_boundary);
	dma_set_max_seg_size(dev, dd->bound_max_segment);
	dma_set_min_align_mask(dev, dd->bound_min_align);
	dd->direct_max = dma_max_mapping_size(dev);
	dd->widened = false;
}

/* Nobody can make an address meanwhile: that takes dmaprobe_group::lock. */
static bool holds_addresses(const struct dmaprobe_device *dd)
{
	return atomic_long_read(&dd->nr_addresses[0]) || atomic_long_read(&dd->nr_addresses[1]);
}

static int is_other_function(struct device *dev, void *self)
{
	return dev != self && dev_is_pci(dev) && !pci_is_bridge(to_pci_dev(dev));
}

/* Whether other functions share the IOVA allocator, to which our mask matters as well. */
static bool has_siblings(struct device *dev)
{
	struct iommu_group *group = iommu_group_get(dev);
	bool ret = group && iommu_group_for_each_dev(group, dev, is_other_function);

	iommu_group_put(group);
	return ret;
}

int dmaprobe_op_set_mask(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_set_mask *cmd = ucmd->cmd;
	struct dmaprobe_device *dd = ucmd->session->dd;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);
	u64 mask = dma_get_mask(dev), coherent_mask = dev->coherent_dma_mask;
	bool wide = cmd->mask > unprivileged_mask();
	int ret;

	if (!cmd->flags || !valid_mask(cmd->mask, DMA_BIT_MASK(MIN_MASK_BITS)))
		return -EINVAL;
	if ((wide || (cmd->mask < dd->bound_mask && has_siblings(dev))) && !capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (holds_addresses(dd))
		return -EBUSY;

	reset_masks(dd);
	ret = dma_set_mask(dev, cmd->flags & DMAPROBE_SET_MASK_STREAMING ? cmd->mask : mask);
	if (!ret)
		ret = dma_set_coherent_mask(dev, cmd->flags & DMAPROBE_SET_MASK_COHERENT ?
					    cmd->mask : coherent_mask);
	if (ret) {
		dma_set_mask(dev, mask);
		dma_set_coherent_mask(dev, coherent_mask);
	}
	dd->widened |= wide && !ret;
	dd->direct_max = dma_max_mapping_size(dev);
	return ret;
}

/*
 * The kernel checks none of these: a boundary that is no mask is a BUG when memory is bounced,
 * and a minimum alignment of more than a bounce slot takes away from what can be bounced at all.
 */
int dmaprobe_op_set_segments(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_set_segments *cmd = ucmd->cmd;
	struct dmaprobe_device *dd = ucmd->session->dd;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);

	if (!cmd->flags)
		return -EINVAL;
	if (cmd->flags & DMAPROBE_SET_SEGMENTS_MAX_SIZE ?
	    cmd->max_segment_size < PAGE_SIZE : cmd->max_segment_size)
		return -EINVAL;
	if (cmd->flags & DMAPROBE_SET_SEGMENTS_MIN_ALIGN ?
	    cmd->min_align_mask > DMA_BIT_MASK(11) ||
	    (cmd->min_align_mask & (cmd->min_align_mask + 1)) : cmd->min_align_mask)
		return -EINVAL;
	if (cmd->flags & DMAPROBE_SET_SEGMENTS_BOUNDARY ?
	    !valid_mask(cmd->segment_boundary_mask, PAGE_SIZE - 1) : cmd->segment_boundary_mask)
		return -EINVAL;
	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (holds_addresses(dd))
		return -EBUSY;

	if (cmd->flags & DMAPROBE_SET_SEGMENTS_MAX_SIZE)
		dma_set_max_seg_size(dev, cmd->max_segment_size);
	if (cmd->flags & DMAPROBE_SET_SEGMENTS_MIN_ALIGN)
		dma_set_min_align_mask(dev, cmd->min_align_mask);
	if (cmd->flags & DMAPROBE_SET_SEGMENTS_BOUNDARY)
		dma_set_seg_boundary(dev, cmd->segment_boundary_mask);
	dd->direct_max = dma_max_mapping_size(dev);
	dd->widened = true;
	return 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The limits of a device: its DMA masks, and what it takes in a scatter-gather list.
 *
 * Unprivileged sessions may narrow the masks. They stay below 4 GiB, so that the page
 * tables that the kernel leaves behind, for which nobody is charged, are those of 4 GiB
 * (8 MiB with 4 KiB pages), and so that the IOVA allocator has no reason to report in
 * the kernel log that it goes beyond. Limits of segments decide how the kernel maps
 * lists, and need a privilege altogether.
 */
#include <linux/capability.h>
#include <linux/dma-mapping.h>
#include <linux/moduleparam.h>

#include "private.h"

static unsigned int unprivileged_mask_bits = 32;
module_param(unprivileged_mask_bits, uint, 0444);
MODULE_PARM_DESC(unprivileged_mask_bits, "Widest DMA mask that takes no privilege, in bits");

/* Ones from bit 0 up, enough of them for a page. */
static bool valid_mask(u64 mask)
{
	return mask >= PAGE_SIZE - 1 && !(mask & (mask + 1));
}

static u64 unprivileged_mask(void)
{
	return DMA_BIT_MASK(clamp(unprivileged_mask_bits, PAGE_SHIFT, 64));
}

/* Remember the limits of a new device. Its former driver may have left any mask. */
void dmaprobe_limits_save(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;

	dd->bound_mask = min(dma_get_mask(dev), unprivileged_mask());
	dd->bound_coherent_mask = min(dev->coherent_dma_mask, unprivileged_mask());
	dd->bound_boundary = dma_get_seg_boundary(dev);
	dd->bound_max_segment = dma_get_max_seg_size(dev);
	dd->bound_min_align = dma_get_min_align_mask(dev);
}

/*
 * Give a device the limits it was bound with, when no session holds an address.
 *
 * Setting masks also lets the DMA core find out what the device needs, so this is done
 * at the start as well.
 */
void dmaprobe_limits_reset(struct dmaprobe_device *dd)
{
	struct device *dev = &dd->pdev->dev;

	guard(rwsem_write)(&dd->group->lock);
	dma_set_mask(dev, dd->bound_mask);
	dma_set_coherent_mask(dev, dd->bound_coherent_mask);
	dma_set_seg_boundary(dev, dd->bound_boundary);
	dma_set_max_seg_size(dev, dd->bound_max_segment);
	dma_set_min_align_mask(dev, dd->bound_min_align);
	dd->direct_max = dma_max_mapping_size(dev);
	dd->widened = false;
}

/* Nobody can make an address meanwhile: that takes dmaprobe_group::lock. */
static bool holds_addresses(const struct dmaprobe_device *dd)
{
	return atomic_read(&dd->nr_addresses[false]) || atomic_read(&dd->nr_addresses[true]);
}

int dmaprobe_op_set_mask(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_set_mask *cmd = ucmd->cmd;
	struct dmaprobe_device *dd = ucmd->session->dd;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);
	bool wide = cmd->mask > unprivileged_mask();
	int ret = 0;

	if (!cmd->flags || !valid_mask(cmd->mask))
		return -EINVAL;
	if (wide && !capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (holds_addresses(dd))
		return -EBUSY;

	if (cmd->flags & DMAPROBE_SET_MASK_STREAMING)
		ret = dma_set_mask(dev, cmd->mask);
	dd->widened |= wide && !ret;
	if (!ret && (cmd->flags & DMAPROBE_SET_MASK_COHERENT))
		ret = dma_set_coherent_mask(dev, cmd->mask);
	dd->direct_max = dma_max_mapping_size(dev);
	return ret;
}

/*
 * The kernel checks none of these: a boundary that is no mask is a BUG when memory is
 * bounced, and a minimum alignment of more than a bounce slot takes away from what can
 * be bounced at all.
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
	    !valid_mask(cmd->segment_boundary_mask) : cmd->segment_boundary_mask)
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

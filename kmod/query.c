// SPDX-License-Identifier: GPL-2.0-only
/*
 * What can be asked about the device and its domain, and what can
 * be set of the device: its DMA masks and the limits of its lists.
 */
#include <linux/dma-map-ops.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "private.h"

int dmaprobe_op_limits(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_limits *cmd = ucmd->cmd;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);

	cmd->props = 0;
	if (dev_is_dma_coherent(dev))
		cmd->props |= DMAPROBE_DEVICE_COHERENT;
	if (dma_dev_need_sync(dev))
		cmd->props |= DMAPROBE_DEVICE_NEED_SYNC;
	if (dma_need_unmap(dev))
		cmd->props |= DMAPROBE_DEVICE_NEED_UNMAP;
	if (dma_addressing_limited(dev))
		cmd->props |= DMAPROBE_DEVICE_ADDRESSING_LIMITED;
	if (dmaprobe_translates(ucmd->session->dd))
		cmd->props |= DMAPROBE_DEVICE_IOMMU;
	if (dma_can_mmap(dev))
		cmd->props |= DMAPROBE_DEVICE_CAN_MMAP;
	cmd->max_segment_size = dma_get_max_seg_size(dev);
	cmd->dma_mask = dma_get_mask(dev);
	cmd->coherent_dma_mask = dev->coherent_dma_mask;
	cmd->required_mask = dma_get_required_mask(dev);
	cmd->bus_dma_limit = dev->bus_dma_limit;
	cmd->max_mapping_size = dma_max_mapping_size(dev);
	cmd->opt_mapping_size = dma_opt_mapping_size(dev);
	cmd->merge_boundary = dma_get_merge_boundary(dev);
	cmd->segment_boundary_mask = dma_get_seg_boundary(dev);
	cmd->min_align_mask = dma_get_min_align_mask(dev);
	cmd->cache_alignment = dma_get_cache_alignment();
	cmd->__reserved = 0;
	return 0;
}

static u32 domain_type(const struct iommu_domain *domain)
{
	switch (domain->type) {
	case IOMMU_DOMAIN_IDENTITY:
		return DMAPROBE_DOMAIN_IDENTITY;
	case IOMMU_DOMAIN_DMA:
		return DMAPROBE_DOMAIN_DMA;
	case IOMMU_DOMAIN_DMA_FQ:
		return DMAPROBE_DOMAIN_DMA_FQ;
	default:
		return DMAPROBE_DOMAIN_OTHER;
	}
}

static u32 resv_type(enum iommu_resv_type type)
{
	switch (type) {
	case IOMMU_RESV_DIRECT:
		return DMAPROBE_RESV_DIRECT;
	case IOMMU_RESV_DIRECT_RELAXABLE:
		return DMAPROBE_RESV_DIRECT_RELAXABLE;
	case IOMMU_RESV_MSI:
		return DMAPROBE_RESV_MSI;
	case IOMMU_RESV_SW_MSI:
		return DMAPROBE_RESV_SW_MSI;
	default:
		return DMAPROBE_RESV_RESERVED;
	}
}

static int tell_regions(struct dmaprobe_ucmd *ucmd, struct device *dev)
{
	struct dmaprobe_domain *cmd = ucmd->cmd;
	struct dmaprobe_resv_region *out;
	struct iommu_resv_region *region;
	LIST_HEAD(regions);
	u32 room;
	int ret;

	iommu_get_resv_regions(dev, &regions);
	room = min(cmd->nr_regions, list_count_nodes(&regions));
	ret = dmaprobe_tell(ucmd, cmd->regions, room, sizeof(*out));
	out = ucmd->array;
	cmd->nr_regions = 0;
	list_for_each_entry(region, &regions, list) {
		if (!ret && cmd->nr_regions < room) {
			out[cmd->nr_regions].start = region->start;
			out[cmd->nr_regions].length = region->length;
			out[cmd->nr_regions].type = resv_type(region->type);
		}
		cmd->nr_regions++;
	}
	iommu_put_resv_regions(dev, &regions);
	return ret;
}

/*
 * Drivers whose IOMMU hangs on a device of the driver model are named by that;
 * those of x86 are known by the names they give their instances.
 */
static const char *iommu_driver(const struct device *iommu)
{
	if (iommu->parent && iommu->parent->driver)
		return iommu->parent->driver->name;
	if (strstarts(dev_name(iommu), "dmar"))
		return "intel-iommu";
	if (strstarts(dev_name(iommu), "ivhd"))
		return "amd-iommu";
	return "";
}

int dmaprobe_op_domain(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_domain *cmd = ucmd->cmd;
	const struct iommu_domain *domain = ucmd->session->dd->domain;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);
	const struct device *iommu;

	cmd->type = DMAPROBE_DOMAIN_NONE;
	cmd->pgsize_bitmap = 0;
	cmd->aperture_start = 0;
	cmd->aperture_end = 0;
	memset(cmd->iommu, 0, sizeof(cmd->iommu));
	memset(cmd->driver, 0, sizeof(cmd->driver));
	if (!domain) {
		cmd->nr_regions = 0;
		return 0;
	}

	cmd->type = domain_type(domain);
	cmd->pgsize_bitmap = domain->pgsize_bitmap;
	cmd->aperture_start = domain->geometry.aperture_start;
	cmd->aperture_end = domain->geometry.aperture_end;
	iommu = dev->iommu->iommu_dev->dev;
	if (iommu) {
		strscpy(cmd->iommu, dev_name(iommu), sizeof(cmd->iommu));
		strscpy(cmd->driver, iommu_driver(iommu), sizeof(cmd->driver));
	}
	return tell_regions(ucmd, dev);
}

/*
 * Whether any session of a device holds a DMA address: all but buffers do. Calls
 * that make one stand still meanwhile.
 */
static bool holds_addresses(struct dmaprobe_device *dd)
{
	struct dmaprobe_session *s;
	struct dmaprobe_object *obj;
	unsigned long id;

	guard(mutex)(&dd->lock);
	list_for_each_entry(s, &dd->sessions, node) {
		xa_for_each(&s->objects, id, obj) {
			if (obj->type != &dmaprobe_buffer_type)
				return true;
		}
	}
	return false;
}

/* Ones from bit 0 up, at least 12 of them: no less than a page of any CPU. */
static bool valid_mask(u64 mask)
{
	return mask >= DMA_BIT_MASK(12) && !(mask & (mask + 1));
}

int dmaprobe_op_set_mask(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_set_mask *cmd = ucmd->cmd;
	struct dmaprobe_device *dd = ucmd->session->dd;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);
	int ret = 0;

	if (!cmd->flags || !valid_mask(cmd->mask))
		return -EINVAL;
	if (holds_addresses(dd))
		return -EBUSY;

	if (cmd->flags & DMAPROBE_SET_MASK_STREAMING)
		ret = dma_set_mask(dev, cmd->mask);
	if (!ret && (cmd->flags & DMAPROBE_SET_MASK_COHERENT))
		ret = dma_set_coherent_mask(dev, cmd->mask);
	dd->direct_max = dma_max_mapping_size(dev);
	return ret;
}

/*
 * The kernel checks none of these: a boundary that is no mask is a BUG when memory
 * is bounced, and a minimum alignment of more than a bounce slot takes away from
 * what can be bounced at all.
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
	    (cmd->min_align_mask & (cmd->min_align_mask + 1)) :
	    cmd->min_align_mask)
		return -EINVAL;
	if (cmd->flags & DMAPROBE_SET_SEGMENTS_BOUNDARY ?
	    !valid_mask(cmd->segment_boundary_mask) ||
	    cmd->segment_boundary_mask > ULONG_MAX :
	    cmd->segment_boundary_mask)
		return -EINVAL;
	if (holds_addresses(dd))
		return -EBUSY;

	if (cmd->flags & DMAPROBE_SET_SEGMENTS_MAX_SIZE)
		dma_set_max_seg_size(dev, cmd->max_segment_size);
	if (cmd->flags & DMAPROBE_SET_SEGMENTS_MIN_ALIGN)
		dma_set_min_align_mask(dev, cmd->min_align_mask);
	if (cmd->flags & DMAPROBE_SET_SEGMENTS_BOUNDARY)
		dma_set_seg_boundary(dev, cmd->segment_boundary_mask);
	dd->direct_max = dma_max_mapping_size(dev);
	return 0;
}

int dmaprobe_op_enable(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_enable *cmd = ucmd->cmd;

	if (cmd->__reserved || cmd->enable > 1)
		return -EINVAL;
	if (cmd->enable)
		return dmaprobe_mmio_enable(ucmd->session);
	dmaprobe_mmio_disable(ucmd->session);
	return 0;
}

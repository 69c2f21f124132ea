// SPDX-License-Identifier: GPL-2.0-only
/* What the kernel, the device and its domain offer: nothing here changes anything. */
#include <linux/dma-map-ops.h>

#include "compat.h"
#include "private.h"

int dmaprobe_op_nop(struct dmaprobe_ucmd *ucmd)
{
	return 0;
}

int dmaprobe_op_get_info(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_get_info *cmd = ucmd->cmd;

	cmd->abi_version = DMAPROBE_ABI_VERSION;
	cmd->features = (DMAPROBE_HAVE_DMA_IOVA ? DMAPROBE_FEATURE_DMA_IOVA : 0) |
			(DMAPROBE_HAVE_DMA_MAP_PHYS ? DMAPROBE_FEATURE_MAP_PHYS : 0);
	cmd->attrs = dmaprobe_attrs_offered();
	return 0;
}

int dmaprobe_op_get_limits(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_get_limits *cmd = ucmd->cmd;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);

	cmd->props = (dev_is_dma_coherent(dev) ? DMAPROBE_DEVICE_COHERENT : 0) |
		     (dma_dev_need_sync(dev) ? DMAPROBE_DEVICE_NEED_SYNC : 0) |
		     (dma_need_unmap(dev) ? DMAPROBE_DEVICE_NEED_UNMAP : 0) |
		     (dma_addressing_limited(dev) ? DMAPROBE_DEVICE_ADDRESSING_LIMITED : 0) |
		     (dmaprobe_translates(ucmd->session->dd) ? DMAPROBE_DEVICE_IOMMU : 0) |
		     (dma_can_mmap(dev) ? DMAPROBE_DEVICE_CAN_MMAP : 0) |
		     (ucmd->session->dd->confined && !dmaprobe_group_is_shared(dev) ?
		      DMAPROBE_DEVICE_CONFINED : 0);
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

/* The ABI counts the types of reserved regions as the kernel does. */
static_assert(DMAPROBE_RESV_MSI == (int)IOMMU_RESV_MSI);
static_assert(DMAPROBE_RESV_SW_MSI == (int)IOMMU_RESV_SW_MSI);

static int reply_regions(struct dmaprobe_ucmd *ucmd, struct device *dev)
{
	struct dmaprobe_get_domain *cmd = ucmd->cmd;
	struct dmaprobe_resv_region *out;
	struct iommu_resv_region *region;
	LIST_HEAD(regions);
	u32 room;
	int ret;

	iommu_get_resv_regions(dev, &regions);
	room = min(cmd->nr_regions, list_count_nodes(&regions));
	ret = dmaprobe_reply_array(ucmd, cmd->regions, room, sizeof(*out));
	out = ucmd->array;
	cmd->nr_regions = 0;
	list_for_each_entry(region, &regions, list) {
		if (!ret && cmd->nr_regions < room) {
			out[cmd->nr_regions].start = region->start;
			out[cmd->nr_regions].length = region->length;
			out[cmd->nr_regions].type = region->type;
		}
		cmd->nr_regions++;
	}
	iommu_put_resv_regions(dev, &regions);
	return ret;
}

/*
 * Drivers whose IOMMU hangs on a device of the driver model are named by that; those of
 * x86 are known by the names they give their instances.
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

int dmaprobe_op_get_domain(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_get_domain *cmd = ucmd->cmd;
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
	return reply_regions(ucmd, dev);
}

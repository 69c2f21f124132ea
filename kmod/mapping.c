// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mappings: one streaming mapping of a buffer range each.
 *
 * A mapping never changes until it is unmapped, so it needs no lock: a call that
 * uses it holds a reference, and unmapping asks for the last one.
 */
#include <linux/dma-direct.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

struct dmaprobe_mapping {
	struct dmaprobe_object obj;
	struct dmaprobe_buffer *buf;
	dma_addr_t addr;
	size_t length;
	u8 kind;
	u8 dir;
};

static dma_addr_t map(struct device *dev, u32 kind, phys_addr_t phys,
		      size_t length, enum dma_data_direction dir)
{
	switch (kind) {
	case DMAPROBE_MAP_SINGLE:
		return dma_map_single(dev, phys_to_virt(phys), length, dir);
	case DMAPROBE_MAP_PAGE:
		return dma_map_page(dev, pfn_to_page(PHYS_PFN(phys)),
				    offset_in_page(phys), length, dir);
	default:
		return dma_map_phys(dev, phys, length, dir, 0);
	}
}

static void unmap(struct device *dev, u32 kind, dma_addr_t addr, size_t length,
		  enum dma_data_direction dir)
{
	switch (kind) {
	case DMAPROBE_MAP_SINGLE:
		dma_unmap_single(dev, addr, length, dir);
		break;
	case DMAPROBE_MAP_PAGE:
		dma_unmap_page(dev, addr, length, dir);
		break;
	default:
		dma_unmap_phys(dev, addr, length, dir, 0);
		break;
	}
}

static void mapping_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_mapping *m =
		container_of(obj, struct dmaprobe_mapping, obj);

	unmap(dmaprobe_dma_dev(obj->session), m->kind, m->addr, m->length,
	      m->dir);
	dmaprobe_buffer_put(m->buf);
}

static const struct dmaprobe_object_type mapping_type = {
	.release = mapping_release,
	.stats = offsetof(struct dmaprobe_stats, nr_mappings),
};

static_assert(offsetof(struct dmaprobe_mapping, obj) == 0);

/**
 * dmaprobe_check_reach - check that the kernel can map memory without a WARN
 * @dd: the device
 * @phys: the memory
 * @length: its length
 *
 * Without a translating IOMMU the kernel's call WARNs about memory beyond the
 * mask when it has no bounce buffer or the bounce buffer lies beyond it as well.
 * Bounce buffers are known to lie below 4 GiB, not where below.
 *
 * Return: 0 or -EIO
 */
int dmaprobe_check_reach(const struct dmaprobe_device *dd, phys_addr_t phys,
			 size_t length)
{
	struct device *dev = &dd->pdev->dev;

	if (dmaprobe_translates(dd))
		return 0;
	if (dd->direct_max == SIZE_MAX) {
		u64 limit = min_not_zero(dma_get_mask(dev), dev->bus_dma_limit);

		return phys_to_dma(dev, phys) + length - 1 > limit ? -EIO : 0;
	}
	if (length > dd->direct_max || dma_get_mask(dev) < DMA_BIT_MASK(32))
		return -EIO;
	return 0;
}

int dmaprobe_op_map(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_map *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct device *dev = dmaprobe_dma_dev(s);
	struct dmaprobe_mapping *m;
	phys_addr_t phys;
	int ret;

	if (cmd->__reserved)
		return -EINVAL;
	if (cmd->attrs)
		return -EOPNOTSUPP;
	if (cmd->kind > DMAPROBE_MAP_PHYS || !dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;
	if (cmd->kind == DMAPROBE_MAP_PHYS && !DMAPROBE_HAVE_DMA_MAP_PHYS)
		return -EOPNOTSUPP;

	m = kzalloc_obj(*m, GFP_KERNEL_ACCOUNT);
	if (!m)
		return -ENOMEM;
	m->kind = cmd->kind;
	m->dir = cmd->dir;
	m->length = cmd->length;

	m->buf = dmaprobe_buffer_get(ucmd, cmd->buffer_id);
	if (IS_ERR(m->buf)) {
		ret = PTR_ERR(m->buf);
		goto err_free;
	}
	ret = dmaprobe_buffer_range(m->buf, cmd->buffer_offset, cmd->length,
				    cmd->dir, &phys);
	if (ret)
		goto err_buffer;
	ret = dmaprobe_check_reach(s->dd, phys, cmd->length);
	if (ret)
		goto err_buffer;
	ret = dmaprobe_object_reserve(s, &m->obj, &mapping_type);
	if (ret)
		goto err_buffer;

	m->addr = map(dev, m->kind, phys, m->length, m->dir);
	ret = dma_mapping_error(dev, m->addr);
	if (ret)
		goto err_unreserve;

	cmd->id = m->obj.id;
	cmd->dma_addr = m->addr;
	cmd->need_sync = dma_need_sync(dev, m->addr);
	ret = dmaprobe_respond(ucmd);
	if (ret)
		goto err_unmap;
	dmaprobe_object_publish(ucmd, &m->obj);
	return 0;

err_unmap:
	unmap(dev, m->kind, m->addr, m->length, m->dir);
err_unreserve:
	dmaprobe_object_unreserve(&m->obj);
err_buffer:
	dmaprobe_buffer_put(m->buf);
err_free:
	kfree(m);
	return ret;
}

int dmaprobe_op_unmap(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_unmap *cmd = ucmd->cmd;

	if (cmd->__reserved)
		return -EINVAL;
	return dmaprobe_object_destroy(ucmd, cmd->id, &mapping_type);
}

int dmaprobe_op_sync(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_sync *cmd = ucmd->cmd;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);
	struct dmaprobe_mapping *m;
	struct dmaprobe_object *obj;
	int ret = -EINVAL;

	if (cmd->target > DMAPROBE_SYNC_FOR_DEVICE || !cmd->length)
		return -EINVAL;

	obj = dmaprobe_object_get(ucmd, cmd->id, &mapping_type);
	if (IS_ERR(obj))
		return PTR_ERR(obj);
	m = container_of(obj, struct dmaprobe_mapping, obj);
	if (cmd->length > m->length || cmd->offset > m->length - cmd->length)
		goto out;

	if (cmd->target == DMAPROBE_SYNC_FOR_CPU)
		dma_sync_single_range_for_cpu(dev, m->addr, cmd->offset,
					      cmd->length, m->dir);
	else
		dma_sync_single_range_for_device(dev, m->addr, cmd->offset,
						 cmd->length, m->dir);
	ret = 0;
out:
	dmaprobe_object_put(obj);
	return ret;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mappings: one streaming mapping of a buffer range or of part of a BAR each, and the
 * commands that take a mapping of any type.
 *
 * A mapping never changes until it is unmapped, so it needs no lock: a call that uses
 * it holds a reference, and unmapping asks for the last one.
 */
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/nospec.h>
#include <linux/overflow.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/swiotlb.h>

#include "compat.h"
#include "private.h"

/* A kind beside those of enum dmaprobe_map_kind. */
#define MAP_RESOURCE	(DMAPROBE_MAP_KIND_PHYS + 1)

struct dmaprobe_mapping {
	struct dmaprobe_object obj;
	struct dmaprobe_buffer *buf;	/* NULL for a resource */
	dma_addr_t addr;
	size_t length;
	u8 kind;
	u8 dir;
};

static dma_addr_t mapping_map(struct device *dev, const struct dmaprobe_mapping *m,
			      phys_addr_t phys)
{
	unsigned long attrs = dmaprobe_map_attrs(m->obj.session, m->obj.attrs);

	switch (m->kind) {
	case DMAPROBE_MAP_KIND_SINGLE:
		return dma_map_single_attrs(dev, phys_to_virt(phys), m->length, m->dir, attrs);
	case DMAPROBE_MAP_KIND_PAGE:
		return dma_map_page_attrs(dev, pfn_to_page(PHYS_PFN(phys)),
					  offset_in_page(phys), m->length, m->dir, attrs);
	case DMAPROBE_MAP_KIND_PHYS:
		return dma_map_phys(dev, phys, m->length, m->dir, attrs);
	default:
		return dma_map_resource(dev, phys, m->length, m->dir, attrs);
	}
}

static void mapping_unmap(struct device *dev, const struct dmaprobe_mapping *m)
{
	unsigned long attrs = dmaprobe_map_attrs(m->obj.session, m->obj.attrs);

	switch (m->kind) {
	case DMAPROBE_MAP_KIND_SINGLE:
		dma_unmap_single_attrs(dev, m->addr, m->length, m->dir, attrs);
		break;
	case DMAPROBE_MAP_KIND_PAGE:
		dma_unmap_page_attrs(dev, m->addr, m->length, m->dir, attrs);
		break;
	case DMAPROBE_MAP_KIND_PHYS:
		dma_unmap_phys(dev, m->addr, m->length, m->dir, attrs);
		break;
	default:
		dma_unmap_resource(dev, m->addr, m->length, m->dir, attrs);
		break;
	}
}

static void mapping_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_mapping *m = container_of(obj, struct dmaprobe_mapping, obj);

	mapping_unmap(dmaprobe_dma_dev(obj->session), m);
	dmaprobe_buffer_put(m->buf);
	kfree_rcu(m, obj.rcu);
}

static int mapping_sync(struct dmaprobe_object *obj, const struct dmaprobe_sync *cmd)
{
	struct dmaprobe_mapping *m = container_of(obj, struct dmaprobe_mapping, obj);
	struct device *dev = dmaprobe_dma_dev(obj->session);

	if (m->kind == MAP_RESOURCE)
		return -EOPNOTSUPP;
	if (cmd->length > m->length || cmd->offset > m->length - cmd->length)
		return -EINVAL;
	if (cmd->target == DMAPROBE_SYNC_FOR_CPU)
		dma_sync_single_range_for_cpu(dev, m->addr, cmd->offset, cmd->length, m->dir);
	else
		dma_sync_single_range_for_device(dev, m->addr, cmd->offset, cmd->length, m->dir);
	return 0;
}

static int mapping_segments(struct dmaprobe_object *obj, struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_mapping *m = container_of(obj, struct dmaprobe_mapping, obj);

	return dmaprobe_reply_segment(ucmd, m->addr, m->length);
}

static const struct dmaprobe_object_type mapping_type = {
	.release = mapping_release,
	.end_cmd = DMAPROBE_UNMAP,
	.has_address = true,
	.stats = offsetof(struct dmaprobe_get_stats, nr_mappings),
	.sync = mapping_sync,
	.segments = mapping_segments,
};

/*
 * Without a translating IOMMU the kernel's call WARNs about what is beyond the mask
 * when it may not or cannot bounce it, or when the bounce buffer lies beyond the mask
 * as well. The kernel may add bounce buffers (CONFIG_SWIOTLB_DYNAMIC), below 4 GiB where it
 * has such memory. It logs what does not fit into one.
 */
static int check_direct(const struct dmaprobe_device *dd, u64 start, size_t length, u32 dir,
			bool bounce)
{
	struct device *dev = &dd->pdev->dev;
	u64 limit = min_not_zero(dma_get_mask(dev), dev->bus_dma_limit);
	u64 end;

	if (!is_swiotlb_force_bounce(dev) && !dma_kmalloc_needs_bounce(dev, length, dir) &&
	    start != DMA_MAPPING_ERROR && !check_add_overflow(start, length - 1, &end) &&
	    end <= limit)
		return 0;
	if (!bounce || dd->direct_max == SIZE_MAX || limit < DMA_BIT_MASK(32) ||
	    phys_to_dma_unencrypted(dev, dev->dma_io_tlb_mem->defpool.end - 1) > limit)
		return -EIO;
	/* A bounce buffer keeps these bits of the address. */
	length += start & dma_get_min_align_mask(dev);
	return length > dd->direct_max || length - 1 > dma_get_seg_boundary(dev) ? -EIO : 0;
}

/* Check that a device can be given a range of memory. Returns 0 or -EIO. */
int dmaprobe_check_reach(const struct dmaprobe_device *dd, phys_addr_t phys,
			 size_t length, u32 dir, u64 attrs)
{
	u64 mask;

	if (!dmaprobe_translates(dd))
		return check_direct(dd, phys_to_dma(&dd->pdev->dev, phys), length, dir,
				    !(attrs & DMAPROBE_ATTR_REQUIRE_COHERENT));

	/* An untrusted device's memory that shares a granule is bounced. */
	mask = dmaprobe_granule(dd) - 1;
	if (likely(dd->direct_max == SIZE_MAX) || !((phys | length) & mask))
		return 0;
	return length > dd->direct_max ||
	       (length | mask) > dma_get_seg_boundary(&dd->pdev->dev) ? -EIO : 0;
}

/*
 * Check that part of a BAR can be mapped.
 *
 * An IOMMU maps whole granules, and a BAR smaller than one shares it with other
 * devices' registers. Those are nobody's to give away. Returns 0; -ENXIO when there is
 * no such memory BAR; -EINVAL when there can be none of that number, or the range is
 * empty, leaves the BAR, or its granules do.
 */
int dmaprobe_bar_range(const struct dmaprobe_device *dd, u32 bar, u64 offset,
		       u64 length, phys_addr_t *phys)
{
	const struct resource *res;
	u64 mask, size;

	if (bar >= PCI_STD_NUM_BARS)
		return -EINVAL;
	bar = array_index_nospec(bar, PCI_STD_NUM_BARS);
	res = pci_resource_n(dd->pdev, bar);
	if (!(res->flags & IORESOURCE_MEM) ||
	    (res->flags & (IORESOURCE_UNSET | IORESOURCE_DISABLED)) ||
	    !res->start || !resource_size(res))
		return -ENXIO;

	size = resource_size(res);
	if (!length || length > min(size, DMAPROBE_IOVA_RANGE_MAX) || offset > size - length)
		return -EINVAL;
	*phys = res->start + offset;
	if (!dmaprobe_translates(dd))
		return 0;
	mask = dmaprobe_granule(dd) - 1;
	if ((*phys & ~mask) < res->start || ((*phys + length - 1) | mask) > res->end)
		return -EINVAL;
	return 0;
}

/* Map a range and make an object of that, which takes over the hold of @buf. */
static struct dmaprobe_mapping *
map_add(struct dmaprobe_ucmd *ucmd, u8 kind, u8 dir, u64 attrs,
	struct dmaprobe_buffer *buf, phys_addr_t phys, size_t length)
{
	struct device *dev = dmaprobe_dma_dev(ucmd->session);
	struct dmaprobe_mapping *m;
	int ret;

	m = kzalloc_obj(*m, DMAPROBE_GFP);
	if (!m)
		return ERR_PTR(-ENOMEM);
	m->obj.attrs = attrs;
	m->kind = kind;
	m->dir = dir;
	m->buf = buf;
	m->length = length;
	ret = dmaprobe_object_add(ucmd->session, &m->obj, &mapping_type);
	if (ret)
		goto err_free;
	m->addr = mapping_map(dev, m, phys);
	ret = dma_mapping_error(dev, m->addr);
	if (ret)
		goto err_cancel;
	dmaprobe_object_made(ucmd, &m->obj);
	ucmd->iova = m->addr;
	ucmd->length = m->length;
	return m;

err_cancel:
	dmaprobe_object_cancel(&m->obj);
err_free:
	kfree_rcu(m, obj.rcu);
	return ERR_PTR(ret);
}

int dmaprobe_op_map(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_map *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_mapping *m;
	phys_addr_t phys;
	int ret;

	ret = dmaprobe_check_map_attrs(s, cmd->attrs, DMAPROBE_MAP_ATTRS | DMAPROBE_ATTR_CC_SHARED);
	if (ret)
		return ret;
	if (cmd->kind > DMAPROBE_MAP_KIND_PHYS || !dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;
	if (cmd->kind == DMAPROBE_MAP_KIND_PHYS && !DMAPROBE_HAVE_DMA_MAP_PHYS)
		return -EOPNOTSUPP;

	struct dmaprobe_buffer *buf __free(dmaprobe_buffer_put) =
		dmaprobe_buffer_get(ucmd, cmd->buffer_id);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	ret = dmaprobe_buffer_range(buf, cmd->buffer_offset, cmd->length, cmd->dir, &phys) ?:
	      dmaprobe_check_reach(s->dd, phys, cmd->length, cmd->dir, cmd->attrs);
	if (ret)
		return ret;
	m = map_add(ucmd, cmd->kind, cmd->dir, cmd->attrs, buf, phys, cmd->length);
	if (IS_ERR(m))
		return PTR_ERR(m);
	retain_and_null_ptr(buf);
	cmd->id = m->obj.id;
	cmd->dma_addr = m->addr;
	cmd->need_sync = dma_need_sync(dmaprobe_dma_dev(s), m->addr);
	return 0;
}

int dmaprobe_op_map_resource(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_map_resource *cmd = ucmd->cmd;
	struct dmaprobe_device *dd = ucmd->session->dd;
	struct dmaprobe_mapping *m;
	phys_addr_t phys;
	int ret = dmaprobe_check_attrs(cmd->attrs,
				       DMAPROBE_MAP_ATTRS & ~DMAPROBE_ATTR_REQUIRE_COHERENT);

	if (ret)
		return ret;
	if (!dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;
	ret = dmaprobe_bar_range(dd, cmd->bar, cmd->offset, cmd->length, &phys);
	if (!ret && !dmaprobe_translates(dd))
		ret = check_direct(dd, DMAPROBE_HAVE_DMA_MAP_PHYS ?
				   phys_to_dma(&dd->pdev->dev, phys) : phys,
				   cmd->length, DMA_TO_DEVICE, false);
	if (ret)
		return ret;
	m = map_add(ucmd, MAP_RESOURCE, cmd->dir, cmd->attrs, NULL, phys, cmd->length);
	if (IS_ERR(m))
		return PTR_ERR(m);
	cmd->id = m->obj.id;
	cmd->dma_addr = m->addr;
	return 0;
}

int dmaprobe_op_sync(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_sync *cmd = ucmd->cmd;
	struct dmaprobe_object *obj;
	int ret;

	ucmd->length = cmd->length;
	if (cmd->target > DMAPROBE_SYNC_FOR_DEVICE || !cmd->length)
		return -EINVAL;

	obj = dmaprobe_object_get(ucmd, cmd->id, NULL);
	if (IS_ERR(obj))
		return PTR_ERR(obj);
	if (obj->type->sync)
		ret = obj->type->sync(obj, cmd);
	else
		ret = obj->type->end_cmd == DMAPROBE_UNMAP ? -EOPNOTSUPP : -ENOENT;
	dmaprobe_object_put(obj);
	return ret;
}

/* Answer DMAPROBE_GET_SEGMENTS for what is one segment. Returns 0 or -ENOMEM. */
int dmaprobe_reply_segment(struct dmaprobe_ucmd *ucmd, dma_addr_t addr, size_t length)
{
	struct scatterlist sg;

	sg_init_table(&sg, 1);
	sg_dma_address(&sg) = addr;
	sg_dma_len(&sg) = length;
	return dmaprobe_reply_segments(ucmd, &sg, 1);
}

/* Answer DMAPROBE_GET_SEGMENTS for a mapped list, as far as there is room. Returns 0. */
int dmaprobe_reply_segments(struct dmaprobe_ucmd *ucmd, struct scatterlist *sgl, unsigned int nents)
{
	struct dmaprobe_get_segments *cmd = ucmd->cmd;
	struct dmaprobe_segment *out = ucmd->array;
	u32 room = min(cmd->nr_segments, nents);
	struct scatterlist *sg;
	int i;

	ucmd->array_size = room * sizeof(*out);
	cmd->nr_segments = nents;
	for_each_sg(sgl, sg, room, i) {
		out[i].dma_addr = sg_dma_address(sg);
		out[i].length = sg_dma_len(sg);
		cond_resched();
	}
	return 0;
}

int dmaprobe_op_get_segments(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_get_segments *cmd = ucmd->cmd;
	struct dmaprobe_object *obj;
	int ret;

	/* No list is longer. */
	cmd->nr_segments = min(cmd->nr_segments, DMAPROBE_MAP_SG_MAX);
	ret = dmaprobe_reply_array(ucmd, cmd->segments, cmd->nr_segments,
				   sizeof(struct dmaprobe_segment));
	if (ret)
		return ret;
	guard(rwsem_read)(&ucmd->session->dd->group->lock);
	if (ucmd->session->dd->unplugged)
		return -ENODEV;
	ret = -ENOENT;
	obj = dmaprobe_object_get(ucmd, cmd->id, NULL);
	if (IS_ERR(obj))
		return PTR_ERR(obj);
	if (obj->type->segments)
		ret = obj->type->segments(obj, ucmd);
	dmaprobe_object_put(obj);
	return ret;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lists: one streaming mapping of a scatter-gather list each.
 *
 * As a mapping of one range, a list never changes until it is unmapped. It holds each
 * of its buffers once, however often that is in the list.
 */
#include <linux/dma-map-ops.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

/* The IOVA space of a list, at most: the kernel maps it without a pause. */
#define LIST_MAX_LENGTH		SZ_1G

struct dmaprobe_sg {
	struct dmaprobe_object obj;
	struct sg_table sgt;
	struct xarray buffers;		/* by id */
	unsigned long charged;		/* pages, for the table */
	u64 length;
	u8 kind;
	u8 dir;
};

static int list_map(struct device *dev, struct dmaprobe_sg *list)
{
	unsigned long attrs = dmaprobe_map_attrs(list->obj.session, list->obj.attrs);
	struct sg_table *sgt = &list->sgt;

	if (list->kind == DMAPROBE_MAP_SG_KIND_TABLE)
		return dma_map_sgtable(dev, sgt, list->dir, attrs);
	sgt->nents = dma_map_sg_attrs(dev, sgt->sgl, sgt->orig_nents, list->dir, attrs);
	return sgt->nents ? 0 : -EIO;
}

static void list_unmap(struct device *dev, struct dmaprobe_sg *list)
{
	unsigned long attrs = dmaprobe_map_attrs(list->obj.session, list->obj.attrs);
	struct sg_table *sgt = &list->sgt;

	if (list->kind == DMAPROBE_MAP_SG_KIND_TABLE)
		dma_unmap_sgtable(dev, sgt, list->dir, attrs);
	else
		dma_unmap_sg_attrs(dev, sgt->sgl, sgt->orig_nents, list->dir, attrs);
}

static void list_clear(struct dmaprobe_sg *list)
{
	struct dmaprobe_buffer *buf;
	unsigned long id;

	xa_for_each(&list->buffers, id, buf)
		dmaprobe_buffer_put(buf);
	xa_destroy(&list->buffers);
	dmaprobe_uncharge(list->obj.session, list->charged);
	sg_free_table(&list->sgt);
}

static void list_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_sg *list = container_of(obj, struct dmaprobe_sg, obj);

	list_unmap(dmaprobe_dma_dev(obj->session), list);
	list_clear(list);
	kfree_rcu(list, obj.rcu);
}

static int list_sync(struct dmaprobe_object *obj, const struct dmaprobe_sync *cmd)
{
	struct dmaprobe_sg *list = container_of(obj, struct dmaprobe_sg, obj);
	struct device *dev = dmaprobe_dma_dev(obj->session);
	struct sg_table *sgt = &list->sgt;

	if (cmd->offset || cmd->length != list->length)
		return -EINVAL;
	if (list->kind == DMAPROBE_MAP_SG_KIND_TABLE) {
		if (cmd->target == DMAPROBE_SYNC_FOR_CPU)
			dma_sync_sgtable_for_cpu(dev, sgt, list->dir);
		else
			dma_sync_sgtable_for_device(dev, sgt, list->dir);
	} else {
		if (cmd->target == DMAPROBE_SYNC_FOR_CPU)
			dma_sync_sg_for_cpu(dev, sgt->sgl, sgt->orig_nents, list->dir);
		else
			dma_sync_sg_for_device(dev, sgt->sgl, sgt->orig_nents, list->dir);
	}
	return 0;
}

static int list_segments(struct dmaprobe_object *obj, struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_sg *list = container_of(obj, struct dmaprobe_sg, obj);

	return dmaprobe_reply_segments(ucmd, list->sgt.sgl, list->sgt.nents);
}

static const struct dmaprobe_object_type list_type = {
	.release = list_release,
	.end_cmd = DMAPROBE_UNMAP,
	.has_address = true,
	.may_block = true,
	.stats = offsetof(struct dmaprobe_get_stats, nr_mappings),
	.sync = list_sync,
	.segments = list_segments,
};

/* Find a buffer and hold it with the list. */
static struct dmaprobe_buffer *list_hold(struct dmaprobe_ucmd *ucmd,
					 struct dmaprobe_sg *list, u32 id)
{
	struct dmaprobe_buffer *buf = dmaprobe_buffer_get(ucmd, id);
	int ret;

	if (IS_ERR(buf))
		return buf;
	ret = xa_insert(&list->buffers, buf->mem.obj.id, buf, DMAPROBE_GFP);
	if (!ret)
		return buf;
	dmaprobe_buffer_put(buf);
	return ret == -EBUSY ? buf : ERR_PTR(ret);
}

/*
 * The kernel lays entries out so that none of them crosses a segment boundary, and merges none
 * into more than the longest segment, provided that none does so by itself: it takes none apart.
 * An address keeps its place in the granule, or all of it where nothing translates.
 */
static int check_entry(const struct dmaprobe_device *dd, phys_addr_t phys, u64 length)
{
	struct device *dev = &dd->pdev->dev;
	u64 boundary = dma_get_seg_boundary(dev), start = phys & boundary;

	if (dmaprobe_translates(dd))
		start &= dmaprobe_granule(dd) - 1;
	return length > dma_get_max_seg_size(dev) || length - 1 > boundary - start ? -EINVAL : 0;
}

/* The entry before, and how much IOVA space the list takes so far. */
struct dmaprobe_layout {
	const struct dmaprobe_buffer *buf;
	u64 offset;
	u64 reach;	/* from @offset to the end of the last granule */
	u64 length;
};

/*
 * Lay an entry out as iommu_dma_map_sg() does. To keep a segment boundary it maps more
 * of the memory behind the entry before, which must be the session's then.
 */
static int lay_out(const struct dmaprobe_device *dd, struct dmaprobe_layout *lay,
		   const struct dmaprobe_sg_entry *entry, struct dmaprobe_buffer *buf,
		   phys_addr_t phys, u32 dir)
{
	u64 mask = dmaprobe_translates(dd) ? dmaprobe_granule(dd) - 1 : 0;
	u64 boundary = dma_get_seg_boundary(&dd->pdev->dev);
	u64 length = ALIGN((phys & mask) + entry->length, mask + 1);
	u64 pad = mask ? (boundary - lay->length + 1) & boundary : 0;
	phys_addr_t unused;
	int ret;

	if (pad && pad < length - 1) {
		ret = dmaprobe_buffer_range(lay->buf, lay->offset, lay->reach + pad, dir, &unused);
		if (ret)
			return ret;
		lay->length += pad;
	}
	lay->length += length;
	lay->buf = buf;
	lay->offset = entry->offset;
	lay->reach = length - (phys & mask);
	return lay->length > LIST_MAX_LENGTH ? -EINVAL : 0;
}

static int list_fill(struct dmaprobe_ucmd *ucmd, struct dmaprobe_sg *list,
		     const struct dmaprobe_sg_entry *entry)
{
	const struct dmaprobe_device *dd = ucmd->session->dd;
	struct dmaprobe_layout lay = {};
	struct scatterlist *sg;
	int i, ret;

	for_each_sgtable_sg(&list->sgt, sg, i) {
		struct dmaprobe_buffer *buf;
		phys_addr_t phys;

		if (dmaprobe_cancelled())
			return -EINTR;
		cond_resched();
		if (entry->__reserved)
			return -EINVAL;
		buf = list_hold(ucmd, list, entry->buffer_id);
		if (IS_ERR(buf))
			return PTR_ERR(buf);
		ret = dmaprobe_buffer_range(buf, entry->offset, entry->length, list->dir, &phys) ?:
		      check_entry(dd, phys, entry->length) ?:
		      dmaprobe_check_reach(dd, phys, entry->length, list->dir, list->obj.attrs) ?:
		      lay_out(dd, &lay, entry, buf, phys, list->dir);
		if (ret)
			return ret;
		list->length += entry->length;
		sg_set_page(sg, pfn_to_page(PHYS_PFN(phys)), entry->length, offset_in_page(phys));
		entry++;
	}
	return 0;
}

/* Whether dma_sync_sg_*() has work to do, which no call of the kernel reports. */
static bool list_need_sync(struct device *dev, const struct dmaprobe_sg *list)
{
	struct scatterlist *sg;
	int i;

	for_each_sgtable_dma_sg(&list->sgt, sg, i) {
		if (dma_need_sync(dev, sg_dma_address(sg)))
			return true;
	}
	return false;
}

/* Map a list whose table is there, with the device there. */
static int list_add_mapped(struct dmaprobe_ucmd *ucmd, struct dmaprobe_sg *list,
			   const struct dmaprobe_sg_entry *entries)
{
	struct dmaprobe_map_sg *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct device *dev = dmaprobe_dma_dev(s);
	int ret = dmaprobe_check_map_attrs(s, cmd->attrs, DMAPROBE_MAP_ATTRS);

	if (ret)
		return ret;
	ret = list_fill(ucmd, list, entries);
	if (ret)
		return ret;
	/* The kernel may map, and remember, each by itself. */
	list->obj.nr_addresses = cmd->nr_entries;
	ret = dmaprobe_object_add(s, &list->obj, &list_type);
	if (ret)
		return ret;
	ret = list_map(dev, list);
	if (ret) {
		dmaprobe_object_cancel(&list->obj);
		return ret;
	}

	cmd->id = list->obj.id;
	cmd->nr_segments = list->sgt.nents;
	cmd->need_sync = list_need_sync(dev, list);
	dmaprobe_object_made(ucmd, &list->obj);
	ucmd->iova = sg_dma_address(list->sgt.sgl);
	ucmd->length = list->length;
	return 0;
}

int dmaprobe_op_map_sg(struct dmaprobe_ucmd *ucmd)
{
	const struct dmaprobe_map_sg *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_sg_entry *entries;
	struct dmaprobe_sg *list;
	int ret;

	if (!cmd->nr_entries || cmd->nr_entries > DMAPROBE_MAP_SG_MAX ||
	    cmd->kind > DMAPROBE_MAP_SG_KIND_TABLE || !dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;
	list = kzalloc_obj(*list, GFP_KERNEL_ACCOUNT);
	if (!list)
		return -ENOMEM;
	list->kind = cmd->kind;
	list->dir = cmd->dir;
	list->obj.attrs = cmd->attrs;
	list->obj.session = s;
	xa_init_flags(&list->buffers, XA_FLAGS_ACCOUNT);
	list->charged = PFN_UP(cmd->nr_entries * sizeof(*list->sgt.sgl));
	ret = dmaprobe_charge(s, list->charged);
	if (ret)
		goto err_free;
	/* A memory cgroup may put us to sleep for both, so not under the lock. */
	entries = dmaprobe_fetch_array(cmd->entries, cmd->nr_entries, sizeof(*entries));
	ret = PTR_ERR_OR_ZERO(entries) ?:
	      sg_alloc_table(&list->sgt, cmd->nr_entries, GFP_KERNEL_ACCOUNT);
	if (!ret) {
		guard(rwsem_read)(&s->dd->group->lock);
		ret = s->dd->unplugged ? -ENODEV : list_add_mapped(ucmd, list, entries);
	}
	if (!IS_ERR(entries))
		kvfree(entries);
	if (!ret)
		return 0;

	list_clear(list);
err_free:
	kfree_rcu(list, obj.rcu);
	return ret;
}

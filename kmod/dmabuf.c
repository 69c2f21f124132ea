// SPDX-License-Identifier: GPL-2.0-only
/*
 * dma-bufs: allocations exported as such, and mappings of imported ones.
 *
 * A dma-buf made here holds the object of its allocation and nothing else, so it
 * keeps neither session nor device alive, and there are no cycles. When the
 * allocation is revoked, the dma-buf stays as an empty shell. That needs
 * importers that let go of the memory at once when they are told: only our own are
 * accepted.
 *
 * An importer maps, is told to unmap, and unmaps under the lock of the dma-buf's
 * reservation object.
 */
#include <linux/dma-buf.h>
#include <linux/dma-direct.h>
#include <linux/dma-resv.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/swiotlb.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "private.h"

/* How long to wait for an exporter that moves the memory. */
#define IMPORT_TIMEOUT	(10 * HZ)

struct dmaprobe_import {
	struct dmaprobe_object obj;
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;	/* NULL: taken away; under the reservation lock */
	struct dmaprobe_segment *segments;	/* while there is a table */
	u32 nr_segments;
	u8 dir;
};

static_assert(offsetof(struct dmaprobe_import, obj) == 0);

static const struct dma_buf_attach_ops import_ops;

/* --- export ---------------------------------------------------------------- */

static int export_attach(struct dma_buf *dmabuf,
			 struct dma_buf_attachment *attach)
{
	return attach->importer_ops == &import_ops ? 0 : -EOPNOTSUPP;
}

/* The memory never moves; when it goes, pins do not count. */
static int export_pin(struct dma_buf_attachment *attach)
{
	return 0;
}

static void export_unpin(struct dma_buf_attachment *attach)
{
}

/* The longest entry that needs not be taken apart for a device. */
static unsigned int longest_entry(struct device *dev)
{
	/* Wherever a page lies, it crosses no segment boundary. */
	if (dma_get_seg_boundary(dev) < U32_MAX)
		return PAGE_SIZE;
	return dma_get_max_seg_size(dev);
}

/*
 * Without a translating IOMMU the device must reach the pages by itself: nobody
 * synchronises what is bounced, and the kernel WARNs about what cannot be.
 */
static int check_reach(const struct dmaprobe_import *imp, struct sg_table *sgt)
{
	const struct dmaprobe_session *s = imp->obj.session;
	struct device *dev = dmaprobe_dma_dev(s);
	u64 limit = min_not_zero(dma_get_mask(dev), dev->bus_dma_limit);
	struct scatterlist *sg;
	int i;

	if (dmaprobe_translates(s->dd))
		return 0;
	if (is_swiotlb_force_bounce(dev))
		return -EIO;
	for_each_sgtable_sg(sgt, sg, i) {
		if (phys_to_dma(dev, sg_phys(sg)) + sg->length - 1 > limit)
			return -EIO;
	}
	return 0;
}

/* Coherent memory needs no sync, and the same memory may be mapped many times. */
static unsigned long export_attrs(const struct dmaprobe_allocation *a)
{
	return DMAPROBE_MAY_OVERLAP | (a->kind == DMAPROBE_ALLOC_COHERENT ?
				       DMA_ATTR_SKIP_CPU_SYNC : 0);
}

static struct sg_table *export_map(struct dma_buf_attachment *attach,
				   enum dma_data_direction dir)
{
	struct dmaprobe_allocation *a = attach->dmabuf->priv;
	struct sg_table *sgt;
	int ret;

	if (READ_ONCE(a->gone))
		return ERR_PTR(-ENODEV);

	sgt = kzalloc_obj(*sgt, GFP_KERNEL_ACCOUNT);
	if (!sgt)
		return ERR_PTR(-ENOMEM);
	ret = sg_alloc_table_from_pages_segment(sgt, a->mem.pages,
						a->mem.nr_pages, 0,
						a->mem.nr_pages << PAGE_SHIFT,
						longest_entry(attach->dev),
						GFP_KERNEL_ACCOUNT);
	if (ret)
		goto err_free;
	ret = check_reach(attach->importer_priv, sgt);
	if (ret)
		goto err_table;
	ret = dma_map_sgtable(attach->dev, sgt, dir, export_attrs(a));
	if (ret)
		goto err_table;
	return sgt;

err_table:
	sg_free_table(sgt);
err_free:
	kfree(sgt);
	return ERR_PTR(ret);
}

static void export_unmap(struct dma_buf_attachment *attach,
			 struct sg_table *sgt, enum dma_data_direction dir)
{
	dma_unmap_sgtable(attach->dev, sgt, dir,
			  export_attrs(attach->dmabuf->priv));
	sg_free_table(sgt);
	kfree(sgt);
}

static int export_sync(struct dma_buf *dmabuf, u32 target)
{
	struct dmaprobe_allocation *a = dmabuf->priv;
	int ret = -ENODEV;

	/* Revoking takes this lock between setting gone and freeing. */
	dma_resv_lock(dmabuf->resv, NULL);
	if (!READ_ONCE(a->gone)) {
		dmaprobe_allocation_sync(a, target, 0, a->mem.length);
		ret = 0;
	}
	dma_resv_unlock(dmabuf->resv);
	return ret;
}

static int export_begin_cpu_access(struct dma_buf *dmabuf,
				   enum dma_data_direction dir)
{
	return export_sync(dmabuf, DMAPROBE_SYNC_FOR_CPU);
}

static int export_end_cpu_access(struct dma_buf *dmabuf,
				 enum dma_data_direction dir)
{
	return export_sync(dmabuf, DMAPROBE_SYNC_FOR_DEVICE);
}

static int export_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	return dmaprobe_allocation_mmap(dmabuf->priv, vma, vma->vm_pgoff);
}

static void export_release(struct dma_buf *dmabuf)
{
	struct dmaprobe_allocation *a = dmabuf->priv;

	scoped_guard(spinlock, &a->lock) {
		if (a->dmabuf == dmabuf)
			a->dmabuf = NULL;
	}
	dmaprobe_object_put(&a->mem.obj);
}

static const struct dma_buf_ops export_ops = {
	.attach = export_attach,
	.pin = export_pin,
	.unpin = export_unpin,
	.map_dma_buf = export_map,
	.unmap_dma_buf = export_unmap,
	.begin_cpu_access = export_begin_cpu_access,
	.end_cpu_access = export_end_cpu_access,
	.mmap = export_mmap,
	.release = export_release,
};

/*
 * Hold the dma-buf of an allocation, unless there is none or its last user has just
 * left. Until export_release() has had the lock, the struct is there.
 */
static struct dma_buf *export_get_locked(struct dmaprobe_allocation *a)
{
	lockdep_assert_held(&a->lock);
	return a->dmabuf && get_file_active(&a->dmabuf->file) ? a->dmabuf : NULL;
}

static struct dma_buf *export_get(struct dmaprobe_allocation *a)
{
	struct dma_buf *dmabuf;

	spin_lock(&a->lock);
	dmabuf = export_get_locked(a);
	spin_unlock(&a->lock);
	return dmabuf;
}

/* The one dma-buf that an allocation has at a time. */
static struct dma_buf *export_get_or_make(struct dmaprobe_allocation *a)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct dma_buf *dmabuf, *made;

	dmabuf = export_get(a);
	if (dmabuf)
		return dmabuf;

	info.ops = &export_ops;
	info.size = a->mem.nr_pages << PAGE_SHIFT;
	info.flags = O_RDWR;
	info.priv = a;
	dmaprobe_object_hold(&a->mem.obj);
	made = dma_buf_export(&info);
	if (IS_ERR(made)) {
		dmaprobe_object_put(&a->mem.obj);
		return made;
	}
	scoped_guard(spinlock, &a->lock) {
		dmabuf = export_get_locked(a);
		if (!dmabuf)
			a->dmabuf = made;
	}
	if (!dmabuf)
		return made;
	dma_buf_put(made);
	return dmabuf;
}

/**
 * dmaprobe_export_revoke - take an allocation's memory away from its dma-buf
 * @a: the allocation; gone is set, and VMAs can be found
 */
void dmaprobe_export_revoke(struct dmaprobe_allocation *a)
{
	struct dma_buf *dmabuf = export_get(a);

	/* Without users, there is neither an importer nor a VMA. */
	if (!dmabuf)
		return;
	unmap_mapping_range(dmabuf->file->f_mapping, 0, 0, true);
	dma_resv_lock(dmabuf->resv, NULL);
	dma_buf_invalidate_mappings(dmabuf);
	dma_resv_unlock(dmabuf->resv);
	dma_buf_put(dmabuf);
}

/* The dma-buf of the allocation that a call names, held. */
static struct dma_buf *export(struct dmaprobe_ucmd *ucmd, u32 id)
{
	struct dmaprobe_allocation *a;
	struct dma_buf *dmabuf;

	guard(rwsem_read)(&ucmd->session->dd->unplug_lock);
	if (!ucmd->session->dd->pdev)
		return ERR_PTR(-ENODEV);
	a = dmaprobe_allocation_get(ucmd, id);
	if (IS_ERR(a))
		return ERR_CAST(a);
	dmabuf = a->mem.pages ? export_get_or_make(a) : ERR_PTR(-ENXIO);
	dmaprobe_object_put(&a->mem.obj);
	return dmabuf;
}

/* A descriptor, unlike an object, must be told before it is there. */
int dmaprobe_op_export(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_export *cmd = ucmd->cmd;
	struct dma_buf *dmabuf;
	int fd, ret;

	dmabuf = export(ucmd, cmd->id);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		ret = fd;
		goto err_dmabuf;
	}
	cmd->fd = fd;
	ret = dmaprobe_respond(ucmd);
	if (ret)
		goto err_fd;
	fd_install(fd, dmabuf->file);
	return 0;

err_fd:
	put_unused_fd(fd);
err_dmabuf:
	dma_buf_put(dmabuf);
	return ret;
}

/* --- import ---------------------------------------------------------------- */

static void import_unmap(struct dmaprobe_import *imp)
{
	dma_resv_assert_held(imp->dmabuf->resv);
	if (imp->sgt)
		dma_buf_unmap_attachment(imp->attach, imp->sgt, imp->dir);
	imp->sgt = NULL;
}

/* Whether it is to move or to go for good: it is gone. */
static void import_invalidate(struct dma_buf_attachment *attach)
{
	import_unmap(attach->importer_priv);
}

static const struct dma_buf_attach_ops import_ops = {
	.DMAPROBE_DMA_BUF_INVALIDATE = import_invalidate,
};

static void import_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_import *imp =
		container_of(obj, struct dmaprobe_import, obj);

	dma_resv_lock(imp->dmabuf->resv, NULL);
	import_unmap(imp);
	dma_resv_unlock(imp->dmabuf->resv);
	dma_buf_detach(imp->dmabuf, imp->attach);
	dma_buf_put(imp->dmabuf);
	kvfree(imp->segments);
}

static int import_segments(struct dmaprobe_object *obj, struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_segments *cmd = ucmd->cmd;
	struct dmaprobe_import *imp =
		container_of(obj, struct dmaprobe_import, obj);
	u32 nr, room;
	int ret;

	dma_resv_lock(imp->dmabuf->resv, NULL);
	nr = imp->sgt ? imp->nr_segments : 0;
	dma_resv_unlock(imp->dmabuf->resv);

	room = min(cmd->nr_segments, nr);
	cmd->nr_segments = nr;
	ret = dmaprobe_tell(ucmd, cmd->segments, room, sizeof(*imp->segments));
	if (!ret && room)
		memcpy(ucmd->array, imp->segments, room * sizeof(*imp->segments));
	return ret;
}

static const struct dmaprobe_object_type import_type = {
	.release = import_release,
	.mapping = true,
	.stats = offsetof(struct dmaprobe_stats, nr_mappings),
	.segments = import_segments,
};

/* As check_reach(), for an exporter whose pages we do not know. */
static bool reaches_all(const struct dmaprobe_device *dd)
{
	return dmaprobe_translates(dd) ||
	       (dd->direct_max == SIZE_MAX &&
		!dma_addressing_limited(&dd->pdev->dev));
}

/* On failure, what it did is undone by import_unmap(). */
static int import_map(struct dmaprobe_import *imp)
{
	struct scatterlist *sg;
	struct sg_table *sgt;
	long left;
	int i;

	sgt = dma_buf_map_attachment(imp->attach, imp->dir);
	if (IS_ERR(sgt))
		return PTR_ERR(sgt);
	imp->sgt = sgt;

	left = dma_resv_wait_timeout(imp->dmabuf->resv, DMA_RESV_USAGE_KERNEL,
				     true, IMPORT_TIMEOUT);
	if (left <= 0)
		return left == -ERESTARTSYS ? -EINTR : left ?: -ETIMEDOUT;

	imp->segments = kvmalloc_array(sgt->nents, sizeof(*imp->segments),
				       GFP_KERNEL_ACCOUNT);
	if (!imp->segments)
		return -ENOMEM;
	for_each_sgtable_dma_sg(sgt, sg, i) {
		imp->segments[i].dma_addr = sg_dma_address(sg);
		imp->segments[i].length = sg_dma_len(sg);
	}
	imp->nr_segments = sgt->nents;
	return 0;
}

int dmaprobe_op_map_dmabuf(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_map_dmabuf *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_import *imp;
	int ret;

	if (!dmaprobe_valid_dir(cmd->dir))
		return -EINVAL;

	imp = kzalloc_obj(*imp, GFP_KERNEL_ACCOUNT);
	if (!imp)
		return -ENOMEM;
	imp->dir = cmd->dir;
	imp->dmabuf = dma_buf_get(cmd->fd);
	if (IS_ERR(imp->dmabuf)) {
		ret = PTR_ERR(imp->dmabuf);
		goto err_free;
	}
	if (imp->dmabuf->ops != &export_ops) {
		ret = -EINVAL;
		if (!dmaprobe_one_segment(dmaprobe_dma_dev(s), imp->dmabuf->size))
			goto err_put;
		ret = -EIO;
		if (!reaches_all(s->dd))
			goto err_put;
	}
	imp->attach = dma_buf_dynamic_attach(imp->dmabuf, dmaprobe_dma_dev(s),
					     &import_ops, imp);
	if (IS_ERR(imp->attach)) {
		ret = PTR_ERR(imp->attach);
		goto err_put;
	}
	ret = dmaprobe_object_reserve(s, &imp->obj, &import_type);
	if (ret)
		goto err_detach;

	dma_resv_lock(imp->dmabuf->resv, NULL);
	ret = import_map(imp);
	if (ret)
		import_unmap(imp);
	dma_resv_unlock(imp->dmabuf->resv);
	if (ret)
		goto err_unreserve;

	cmd->id = imp->obj.id;
	cmd->nr_segments = imp->nr_segments;
	cmd->length = imp->dmabuf->size;
	dmaprobe_object_publish(ucmd, &imp->obj);
	return 0;

err_unreserve:
	kvfree(imp->segments);
	dmaprobe_object_unreserve(&imp->obj);
err_detach:
	dma_buf_detach(imp->dmabuf, imp->attach);
err_put:
	dma_buf_put(imp->dmabuf);
err_free:
	kfree(imp);
	return ret;
}

DMAPROBE_IMPORT_NS_DMA_BUF;

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocations as dma-bufs.
 *
 * A dma-buf made here holds the object of its allocation and nothing else, so it keeps
 * neither session nor device alive, and there are no cycles. When the allocation is
 * revoked, the dma-buf stays as an empty shell. That needs importers that let go of the
 * memory at once when asked to: only our own are accepted.
 *
 * A dma-buf lives as long as its dentry, which an O_PATH descriptor keeps when the file has
 * long been freed, and the last user of a dentry can go at any time. So nothing here goes by
 * dma_buf::file once the descriptor is handed out: export_release() waits for a revoke to
 * end, and the inode is held until then.
 */
#include <linux/dma-buf.h>
#include <linux/dma-map-ops.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

struct dmaprobe_export_link {
	struct list_head node;		/* under dmaprobe_allocation::exports_lock */
	struct dmaprobe_allocation *a;
	struct dma_buf *dmabuf;
	struct inode *inode;
};

static struct dmaprobe_allocation *exported(const struct dma_buf *dmabuf)
{
	struct dmaprobe_export_link *link = dmabuf->priv;

	return link->a;
}

static int export_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	struct dmaprobe_allocation *a = exported(dmabuf);
	int ret;

	if (attach->importer_ops != &dmaprobe_import_ops)
		return -EOPNOTSUPP;
	spin_lock(&a->lock);
	/* Nobody synchronises for a device that does not see the CPU's caches. */
	ret = a->revoked ? -ENODEV :
	      dev_is_dma_coherent(attach->dev) != dev_is_dma_coherent(a->dev) ? -EOPNOTSUPP :
	      a->nr_imports == DMAPROBE_MAX_USERS ? -ENOMEM : 0;
	a->nr_imports += !ret;
	spin_unlock(&a->lock);
	return ret;
}

static void export_detach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	struct dmaprobe_allocation *a = exported(dmabuf);

	spin_lock(&a->lock);
	a->nr_imports--;
	spin_unlock(&a->lock);
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

/* The device must reach the pages by itself: nobody synchronises what is bounced. */
static int check_reach(struct dma_buf_attachment *attach, struct sg_table *sgt, u32 dir)
{
	struct scatterlist *sg;
	int ret = 0, i;

	for_each_sgtable_sg(sgt, sg, i)
		ret = ret ?: dmaprobe_check_reach(dmaprobe_import_device(attach), sg_phys(sg),
						  sg->length, dir, DMAPROBE_ATTR_REQUIRE_COHERENT);
	return ret;
}

/* Coherent memory needs no sync, and the same memory may be mapped many times. */
static unsigned long export_attrs(const struct dmaprobe_allocation *a)
{
	return DMAPROBE_MAY_OVERLAP | (a->kind == DMAPROBE_ALLOC_KIND_COHERENT ?
				       DMA_ATTR_SKIP_CPU_SYNC : 0);
}

static struct sg_table *export_map(struct dma_buf_attachment *attach, enum dma_data_direction dir)
{
	struct dmaprobe_allocation *a = exported(attach->dmabuf);
	struct sg_table *sgt;
	int ret;

	if (READ_ONCE(a->revoked))
		return ERR_PTR(-ENODEV);

	sgt = kzalloc_obj(*sgt, DMAPROBE_GFP);
	if (!sgt)
		return ERR_PTR(-ENOMEM);
	ret = sg_alloc_table_from_pages_segment(sgt, a->mem.pages, a->mem.nr_pages, 0,
						a->mem.nr_pages << PAGE_SHIFT,
						longest_entry(attach->dev), DMAPROBE_GFP);
	if (ret)
		goto err_free;
	ret = check_reach(attach, sgt, dir);
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
	dma_unmap_sgtable(attach->dev, sgt, dir, export_attrs(exported(attach->dmabuf)));
	sg_free_table(sgt);
	kfree(sgt);
}

static int export_sync(struct dma_buf *dmabuf, u32 target)
{
	struct dmaprobe_allocation *a = exported(dmabuf);
	int ret = -ENODEV;

	/* Revoking takes this lock between marking the allocation and freeing. */
	dma_resv_lock(dmabuf->resv, NULL);
	if (!READ_ONCE(a->revoked)) {
		dmaprobe_allocation_sync(a, target, 0, a->mem.length);
		ret = 0;
	}
	dma_resv_unlock(dmabuf->resv);
	return ret;
}

static int export_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	return export_sync(dmabuf, DMAPROBE_SYNC_FOR_CPU);
}

static int export_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	return export_sync(dmabuf, DMAPROBE_SYNC_FOR_DEVICE);
}

static int export_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	return dmaprobe_allocation_mmap(exported(dmabuf), vma, vma->vm_pgoff);
}

/* The last user of the dentry has gone. The dma-buf is there until we return. */
static void export_release(struct dma_buf *dmabuf)
{
	struct dmaprobe_export_link *link = dmabuf->priv;
	struct dmaprobe_allocation *a = link->a;

	mutex_lock(&a->exports_lock);
	a->nr_exports -= !list_empty(&link->node);
	list_del(&link->node);
	mutex_unlock(&a->exports_lock);
	iput(link->inode);
	kfree(link);
	dmaprobe_object_put(&a->mem.obj);
}

static const struct dma_buf_ops export_ops = {
	.attach = export_attach,
	.detach = export_detach,
	.pin = export_pin,
	.unpin = export_unpin,
	.map_dma_buf = export_map,
	.unmap_dma_buf = export_unmap,
	.begin_cpu_access = export_begin_cpu_access,
	.end_cpu_access = export_end_cpu_access,
	.mmap = export_mmap,
	.release = export_release,
};

/* Of how many pieces a dma-buf is that was made here; 0 for others. */
u32 dmaprobe_export_pieces(const struct dma_buf *dmabuf)
{
	return dmabuf->ops == &export_ops ? exported(dmabuf)->nr_pieces : 0;
}

/* Take an allocation's memory away from those that mmap and import its dma-bufs. */
void dmaprobe_export_revoke(struct dmaprobe_allocation *a)
{
	struct dmaprobe_export_link *link;

	guard(mutex)(&a->exports_lock);
	list_for_each_entry(link, &a->exports, node)
		unmap_mapping_range(link->inode->i_mapping, 0, 0, true);
	/* Whoever polls a dma-buf queues for it, so it is taken once. */
	dma_resv_lock(&a->resv, NULL);
	list_for_each_entry(link, &a->exports, node)
		dma_buf_invalidate_mappings(link->dmabuf);
	dma_resv_unlock(&a->resv);
}

int dmaprobe_op_export(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_export *cmd = ucmd->cmd;
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct dmaprobe_export_link *link;
	struct dmaprobe_allocation *a;
	struct dma_buf *dmabuf;
	int ret;

	scoped_guard(rwsem_read, &ucmd->session->dd->group->lock) {
		a = dmaprobe_allocation_get(ucmd, cmd->id);
		if (IS_ERR(a))
			return ucmd->session->dd->unplugged ? -ENODEV : PTR_ERR(a);
	}
	/* Nobody destroys it meanwhile. It may be revoked, which then finds it to be so. */
	ret = a->mem.pages ? -ENOMEM : -ENXIO;
	link = a->mem.pages && READ_ONCE(a->nr_exports) < DMAPROBE_MAX_USERS ?
	       kzalloc_obj(*link, GFP_KERNEL_ACCOUNT) : NULL;
	if (!link)
		goto err_put;
	INIT_LIST_HEAD(&link->node);
	link->a = a;
	ucmd->fd = get_unused_fd_flags(O_CLOEXEC);
	ret = ucmd->fd;
	if (ret < 0)
		goto err_free;

	info.ops = &export_ops;
	info.size = a->mem.nr_pages << PAGE_SHIFT;
	info.flags = O_RDWR;
	info.priv = link;
	info.resv = &a->resv;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		ret = PTR_ERR(dmabuf);
		goto err_fd;
	}
	/* From here on export_release() undoes it all. */
	link->dmabuf = dmabuf;
	link->inode = file_inode(dmabuf->file);
	ihold(link->inode);
	ucmd->file = dmabuf->file;
	cmd->fd = ucmd->fd;
	mutex_lock(&a->exports_lock);
	ret = a->nr_exports < DMAPROBE_MAX_USERS ? 0 : -ENOMEM;
	if (!ret)
		list_add(&link->node, &a->exports);
	a->nr_exports += !ret;
	mutex_unlock(&a->exports_lock);
	return ret;

err_fd:
	put_unused_fd(ucmd->fd);
err_free:
	kfree(link);
err_put:
	dmaprobe_object_put(&a->mem.obj);
	return ret;
}
